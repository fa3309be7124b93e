"""What the servers have in common: a folder, ports, a keeper, and words for what is missing."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.keeper import Keeper, KeptProcess

#: Always there, short enough for the paths of sockets (108 bytes), and open to the servers' users,
#: which a person's own TMPDIR need not be.
TEMPORARY = "/tmp"

#: Memory, and how many bytes of it have to be free for databases: several workers share them.
_MEMORY, _MIN_MEMORY = "/dev/shm", 8 << 30

#: Below the ports that Linux gives to outgoing connections (32768 to 60999), above those of services.
_PORTS = range(20_000, 32_000)

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class ServerError(RuntimeError):
    """A server did not start, or not do what was asked of it; the message shows its log."""


class MissingPackage(ServerError):
    """A program that the tests need is not installed; the message names the package."""


class Ports:
    """Free ports on loopback, which no other run on this machine takes meanwhile."""

    def __init__(self) -> None:
        self._claims: list[int] = []

    def one(self) -> int:
        for port in random.sample(_PORTS, len(_PORTS)):
            if self._claim(port):
                return port
        raise ServerError(f"no port from {_PORTS.start} to {_PORTS.stop} is free on 127.0.0.1")

    def _claim(self, port: int) -> bool:
        # A name in Linux's abstract namespace can be bound once and is free when its holder ends:
        # a port that was found free stays ours until a server listens on it.
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0astra-tests-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            return False
        self._claims.append(claim.detach())
        return True

    def release(self) -> None:
        while self._claims:
            os.close(self._claims.pop())


def listens(port: int) -> bool:
    """Whether a process of this machine listens on a TCP port, without calling it."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, _, state = line.split()[1:4]
        if state == "0A" and int(local.partition(":")[2], 16) == port:
            return True
    return False


class Server:
    """A folder and the processes that live in it; both are gone after :meth:`close`.

    Use it as a context manager, or close it in a ``finally``. Should that not come to pass, its
    keeper does it when the tests have ended.
    """

    def __init__(self, folder: Path | None, parent: str = TEMPORARY) -> None:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="astra-", dir=parent))
        else:
            folder.mkdir(parents=True)
        folder.chmod(0o755)
        self.folder = folder
        self.ports = Ports()
        self.keeper = Keeper(folder)

    def close(self) -> None:
        """End every process of this server and remove its folder."""
        try:
            self.keeper.close()
        finally:
            self.ports.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def await_start(
        self, process: KeptProcess, ready: Callable[[], object], what: str, log: Path
    ) -> None:
        """Wait until `ready` holds; a process that ends before shows its log.

        A command that fails in `ready` means that it is not, yet.
        """

        def ended_or_ready() -> bool:
            if process.poll() is not None:
                raise ServerError(f"{what} ended with {process.poll()}:\n{tail(log)}")
            with contextlib.suppress(ServerError):
                return bool(ready())
            return False

        try:
            wait_for(ended_or_ready, what)
        except TimeoutError as error:
            raise ServerError(f"{what} does not answer:\n{tail(log)}") from error


def memory() -> str:
    """Return a folder in memory for many small files; without enough memory, one on the disk."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _MIN_MEMORY:
        return TEMPORARY
    return _MEMORY


def tail(log: Path, n_lines: int = 30) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-n_lines:])
    except OSError as error:
        return str(error)


def bare_environment(**more: str) -> dict[str, str]:
    """What a daemon needs: nothing of the person's who runs the tests, but for the time zone."""
    names = ("PATH", "TZ", "LANG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {**kept, "PATH": f"{kept.get('PATH', '/usr/bin:/bin')}:{_SBIN}", "HOME": "/", **more}


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=bare_environment()["PATH"])
    if found is None:
        raise MissingPackage(
            f"{name} is missing: as root, apt-get install {package} (./setup tests does it)"
        )
    return found


def command(*words: object, env: Mapping[str, str] | None = None, timeout_s: float = 60) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in words],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        shown = " ".join(str(word) for word in words)
        raise ServerError(f"{shown}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    """Wait until `condition` holds, asking again and again, more rarely the longer it takes."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        if waited > timeout_s:
            raise TimeoutError(f"gave up waiting for {what} after {timeout_s:g} s")
        time.sleep(min(max(waited / 20, 0.02), 0.2))


def hear_interrupts() -> None:
    """Have SIGINT and SIGQUIT do to this process, and to those that it starts, what they do in a
    terminal.

    Whatever a shell puts into the background ignores them, and so does all that this starts.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL}
    for number, handler in usual.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A short path that the servers' users may enter, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="astra-", dir=TEMPORARY))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
