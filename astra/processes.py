"""Facts about processes: their start, command line, user and memory."""

import atexit
import fcntl
import gc
import os
import pwd
import resource
import signal
import sys
import time
from functools import cache
from pathlib import Path


@cache
def process_space() -> str:
    """Identify the machine since its start, and the space in which its processes are numbered.

    Containers may share a host name, and so may two machines.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"


def process_began(pid: int) -> str | None:
    """Return where and when a process began; None if it has ended, or is elsewhere.

    The time, in ticks since the machine started, distinguishes a process from a later one with the
    same number (proc(5), field 22 of stat).
    """
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{process_space()} {fields[19]}"


def is_here(began: str | None) -> bool:
    """Return whether a process of this host that began so can be seen by this one, if it lives."""
    space = (began or "").rpartition(" ")[0]  # earlier versions did not record it
    return space in ("", process_space())


def is_running(pid: int, began: str | None) -> bool:
    """Return whether the process with this number that began so runs here."""
    now, then = process_began(pid), (began or "").rpartition(" ")[2]
    return now is not None and now.rpartition(" ")[2] == then and is_here(began)


def _stat(pid: int | str) -> list[str]:
    """Return the fields of proc(5), stat, that follow the name of the command."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def command_of(pid: int) -> list[str]:
    """Return the command line of a process of this machine; empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in text.split(b"\0")[:-1]]


def is_element(arguments: list[str], token: str | None) -> bool:
    """Return whether a command line is that of an element of a submission."""
    return "run-page" in arguments and token in arguments


def elements_here(token: str) -> set[int]:
    """Return the elements of a local submission that run on this machine, by their command lines.

    An element is alive while one of its two processes is: after a crash, its parent restarts the
    child.
    """
    commands = [command_of(int(name)) for name in os.listdir("/proc") if name.isdecimal()]
    return {
        int(arguments[-1])
        for arguments in commands
        if is_element(arguments, token)
        and arguments[-2] == "--element"
        and arguments[-1].isdecimal()
    }


def signal_name(number: int) -> str:
    """Return the name of a signal: real-time signals are counted from the first of them."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - signal.SIGRTMIN:+}"


def user_name() -> str:
    """Return the name of the user of this process, or the number if it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def process_label() -> str:
    """Return what this process does and where: ``run-page job 2431_17 me@n2:4711``."""
    program = Path(sys.argv[0])
    is_astra = program.name == "astra" or program.parent.name == "astra"
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    index = os.environ.get("SLURM_ARRAY_TASK_ID")
    return " ".join([
        (sys.argv[1:2] or ["-"])[0] if is_astra else program.name,
        *([f"job {job}_{index}" if index else f"job {job}"] if job else []),
        f"{user_name()}@{os.uname().nodename.partition('.')[0]}:{os.getpid()}",
    ])  # fmt: skip


def _is_usable(number: int) -> bool:
    """Return whether the descriptor of a standard stream is open, and for writing if it has to be.

    SQLite opens /dev/null for reading instead of one that is closed.
    """
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return False
    return number == 0 or mode != os.O_RDONLY


def open_descriptors() -> None:
    """Open the descriptors of standard streams that are closed, as by ``os.close(1)``.

    Else a connection would get their numbers, and what is printed would go to the server.
    """
    for number in range(3):
        if not _is_usable(number):
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)


def open_streams() -> None:
    """Replace standard streams that are closed, so that whoever writes to them does not fail.

    Also open descriptors that are closed below an open stream.
    """
    open_descriptors()
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, "r+"))


def now_s() -> float:
    """Return the seconds since the machine started, by the clock of :func:`process_start_s`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_start_s(pid: int | str = "self") -> float:
    """Return when a process started, in seconds since the machine did (proc(5), stat, field 22)."""
    return int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")


def peak_mb() -> float:
    """Return the peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_USUAL = gc.get_threshold()

_SELDOM = (100_000, *_USUAL[1:])


def collect_garbage_rarely() -> None:
    """Collect garbage rarely from the start of a command, and not at its end."""
    gc.set_threshold(*_SELDOM)
    atexit.register(gc.freeze)


def collect_garbage_normally() -> None:
    """Collect garbage as usual from here on, as a task expects, except for imported modules.

    Do nothing in a process that did not call :func:`collect_garbage_rarely`.
    """
    if gc.get_threshold() != _SELDOM:
        return
    gc.freeze()
    gc.set_threshold(*_USUAL)
    atexit.unregister(gc.freeze)
