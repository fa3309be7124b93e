"""Keeps the processes of one server, so that none outlives the tests, however these end.

A server's processes are no children of the tests: they are children of a keeper, this file run as
a script. It adopts whatever they leave behind (it is a "child subreaper", prctl(2)), which matters
for Slurm, whose job steps detach themselves from the daemon that started them. So the keeper's
descendants are the server's processes, all of them and nobody else's, with no pid file to trust
and no name to search for.

When its standard input closes, because the server was closed or because the tests were killed, it
ends all its descendants and removes the server's folder.
"""

import atexit
import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_CLONE_NEWNS = 0x00020000  # linux/sched.h
_END_S = 15.0


# ------------------------------------------------------------------------------ in the tests


class KeptProcess:
    """A process that a keeper started."""

    def __init__(self, keeper: "Keeper", pid: int) -> None:
        self._keeper, self.pid = keeper, pid

    def poll(self) -> int | None:
        """Its exit status, minus the signal that killed it, or None while it runs."""
        return cast("int | None", self._keeper.ask("poll", pid=self.pid))

    def signal(self, number: int) -> None:
        """Send it a signal; nothing if it has ended, and never to another process of its pid."""
        self._keeper.ask("signal", pid=self.pid, number=int(number))

    def wait(self, timeout_s: float = 120) -> int:
        end = time.monotonic() + timeout_s
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} has not ended in {timeout_s:g} s")
            time.sleep(0.01)
        return status


class Keeper:
    """The tests' end of a keeper; `folder` is removed with the last of the processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        # Its own session: an interrupt from the keyboard is for the tests, which then close it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(
        self,
        argv: Sequence[object],
        env: Mapping[str, str],
        log: Path,
        user: str | None = None,
        last_signal: int = signal.SIGKILL,
    ) -> KeptProcess:
        """Start a process in the foreground; at the end it gets `last_signal`, then SIGKILL."""
        pid = self.ask(
            "start",
            argv=[str(word) for word in argv],
            env=dict(env),
            log=str(log),
            user=user,
            last_signal=int(last_signal),
        )
        return KeptProcess(self, cast(int, pid))

    def processes(self) -> dict[int, str]:
        """Every living process of this server, and its command line."""
        found = cast("dict[str, str]", self.ask("processes"))
        return {int(pid): command for pid, command in found.items()}

    def ask(self, do: str, **arguments: object) -> object:
        with self._lock:
            to, back = cast(TextIO, self._process.stdin), cast(TextIO, self._process.stdout)
            if to.closed:
                raise RuntimeError(f"the server in {self.folder} is closed")
            to.write(json.dumps({"do": do, **arguments}) + "\n")
            to.flush()
            answer = json.loads(back.readline() or '{"error": "the keeper has died"}')
        if "error" in answer:
            raise RuntimeError(f"{do} {arguments.get('argv', '')}: {answer['error']}")
        return answer["is"]

    def close(self) -> None:
        """End every process, remove the folder, and fail if either could not be done."""
        atexit.unregister(self.close)
        to, back = cast(TextIO, self._process.stdin), cast(TextIO, self._process.stdout)
        if to.closed:
            return
        # Said in words too: a fork of the tests may hold another end of the pipe open.
        with self._lock, contextlib.suppress(OSError):
            to.write('{"do": "end"}\n')
            to.flush()
        with contextlib.suppress(OSError):
            to.close()
        left = back.read()
        back.close()
        if self._process.wait() != 0:
            raise RuntimeError(f"the server in {self.folder} left behind: {left}")


# ------------------------------------------------------------------------------ the script


class _Kept:
    """What the keeper knows of its children; every method but the first four answers a request."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[subprocess.Popen[bytes], int]] = {}
        self.ended: dict[int, int] = {}

    def reap(self) -> None:
        """Take note of the children that have ended, adopted ones included."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if pid in self.running:
                    process, _ = self.running.pop(pid)
                    process.returncode = self.ended[pid] = os.waitstatus_to_exitcode(status)

    def end_all(self) -> dict[int, str]:
        """End every descendant; what could not be ended is the answer."""
        for pid, (_, last_signal) in self.running.items():
            os.kill(pid, last_signal)
        deadline = time.monotonic() + 5
        end = time.monotonic() + _END_S
        while (alive := self.processes()) and time.monotonic() < end:
            if not self.running or time.monotonic() > deadline:
                for pid in alive:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            self.reap()
        return alive

    def start(
        self, argv: list[str], env: dict[str, str], log: str, user: str | None, last_signal: int
    ) -> int:
        with open(log, "ab") as out:
            process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
                **_as(user),
            )
        self.running[process.pid] = (process, last_signal)
        return process.pid

    def mount(self, folder: str, megabytes: int) -> None:
        """A small disk, seen by the processes that are started later, and gone with the last."""
        if ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
            raise PermissionError("no mounts of its own are allowed here")
        for words in (
            ["--make-rprivate", "/"],
            ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder],
        ):
            subprocess.run(["mount", *words], check=True, capture_output=True)

    def poll(self, pid: int) -> int | None:
        return None if pid in self.running else self.ended[pid]

    def signal(self, pid: int, number: int) -> None:
        # Children are waited for in this thread alone: a pid in `running` is not free for others.
        if pid in self.running:
            os.kill(pid, number)

    def processes(self) -> dict[int, str]:
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(stat.parent.name))
        found: list[int] = []
        below = children.get(os.getpid(), [])
        while below:
            found += below
            below = [pid for parent in below for pid in children.get(parent, [])]
        return {pid: _command_line(pid) for pid in found}


def _as(user: str | None) -> dict[str, Any]:
    """The words of Popen that run a program as another user, with that user's groups alone."""
    if user is None:
        return {}
    import pwd

    entry = pwd.getpwnam(user)
    groups = os.getgrouplist(user, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "?"
    return words.replace(b"\0", b" ").decode(errors="replace").strip()


def _serve(kept: _Kept) -> None:
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([woken, sys.stdin], [], [])
        if woken in ready:
            os.read(woken, 4096)
        kept.reap()
        # One request at a time, each answered before the next: readline never holds a second.
        if sys.stdin in ready:
            request = json.loads(sys.stdin.readline() or '{"do": "end"}')
            if (do := request.pop("do")) == "end":
                return
            try:
                answer = {"is": getattr(kept, do)(**request)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)


def _main(folder: str) -> int:
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        print("prctl(PR_SET_CHILD_SUBREAPER) is refused", flush=True)
        return 1
    # What would end this process at once must come by way of the `finally` below.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    kept = _Kept()
    try:
        with contextlib.suppress(BrokenPipeError):
            _serve(kept)
    finally:
        left: dict[int, str] | str = kept.end_all()
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(f"{folder}/"):
                subprocess.run(["umount", "-l", place], check=False)
        shutil.rmtree(folder, ignore_errors=True)
        left = left or (folder if Path(folder).exists() else "")
    if left:
        print(left, flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
