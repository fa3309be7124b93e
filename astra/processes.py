"""Facts about this and other processes: when they began, their clock and memory."""

import atexit
import gc
import os
import pwd
import resource
import time
from pathlib import Path


def process_began(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the machine did; None if it is gone.

    Tells a process from a later one of the same number (proc(5), field 22 of stat).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def command_of(pid: int) -> list[str]:
    """The words that a process of this machine was started with; none if it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words]


def user_name() -> str:
    """The name of the user of this process; the number where there is no entry for it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def now_s() -> float:
    """The clock by which processes are born: seconds since the machine started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def born_s(pid: int | str = "self") -> float:
    """When a process was started, by the same clock (proc(5), field 22 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_mb() -> float:
    """The largest memory, in MB, that this process has held up to now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_USUAL = gc.get_threshold()

_SELDOM = (100_000, *_USUAL[1:])


def collect_seldom() -> None:
    """From the start of a command; what is there at its end is left to the operating system."""
    gc.set_threshold(*_SELDOM)
    atexit.register(gc.freeze)


def collect_as_usual() -> None:
    """Before the code of a task runs: as it expects, but for what was imported up to now.

    In a process that is not astra's own nothing was changed, and nothing is.
    """
    if gc.get_threshold() != _SELDOM:
        return
    gc.freeze()
    gc.set_threshold(*_USUAL)
    atexit.unregister(gc.freeze)
