"""Run astra's commands in forks of one process, which has imported astra.

Most of the time of a short command is that of its imports. Whatever a test wants to know of a start
itself, of a process's command line or of its signals wants a process of its own.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NoReturn

_ROOT = Path(__file__).resolve().parent.parent

#: Not imported: others' packages, and a pipeline whose tables `astra initdb` would make.
_APART = ("astra.airflow", "astra.pipelines", "astra.__main__")


def astra(
    *words: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 120,
) -> "subprocess.CompletedProcess[str]":
    """Run ``astra`` with these words; with `env`, in that environment instead of this process's."""
    request = {
        "words": [str(word) for word in words],
        # Elements that the command starts find the tests' tasks.
        "env": {"PYTHONPATH": str(_ROOT), **(os.environ if env is None else env)},
        "cwd": str(cwd or Path.cwd()),
    }
    channel = _forks()
    channel.settimeout(timeout_s)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        socket.send_fds(channel, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
        status = int(channel.recv(64))
        said = [(file.seek(0), file.read())[1] for file in (out, err)]
    return subprocess.CompletedProcess(request["words"], status, *said)


@cache
def _forks() -> socket.socket:
    """Start the process that forks, which ends with this one; return the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.forks"],
            stdin=theirs, cwd="/", env={**os.environ, "PYTHONPATH": str(_ROOT)},
            start_new_session=True,
        )  # fmt: skip
    atexit.register(process.wait)
    atexit.register(ours.close)  # which ends it, and is called first
    return ours


def _modules() -> Iterator[str]:
    package = importlib.import_module("astra")
    for module in pkgutil.walk_packages(package.__path__, "astra."):
        if not module.name.startswith(_APART):
            yield module.name


def _next_command() -> list[str]:
    """Answer requests; return in each fork, with the words of its command."""
    channel = socket.socket(fileno=os.dup(0))
    while True:
        message, streams, _, _ = socket.recv_fds(channel, 1 << 20, 2)
        if not message:
            sys.exit()
        request = json.loads(message)
        if (pid := os.fork()) == 0:
            channel.close()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for number, stream in enumerate((nothing, *streams)):
                os.dup2(stream, number)
                os.close(stream)
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            return [str(word) for word in request["words"]]
        for stream in streams:
            os.close(stream)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        channel.send(str(status).encode())


def _end(status: object) -> NoReturn:
    """End this process at once: freeing what was imported would copy it."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    for name in _modules():
        importlib.import_module(name)
    gc.freeze()
    sys.argv = ["astra", *_next_command()]
    __package__ = None  # so that click calls the command astra, too
    from astra.__main__ import run

    try:
        run()
    except SystemExit as end:
        _end(end.code)
