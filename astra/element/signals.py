"""Told to end: what SIGTERM, SIGINT and SIGUSR1 do to a process that runs a task."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from astra.config import settings
from astra.database.connection import HURRY_S
from astra.database.timeouts import hurry
from astra.results.stopping import Guard, Stop
from astra.results.writer import Writer


class Forced(BaseException):
    """The row in hand did not end in time after the element was told to end."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


@contextmanager
def heard(stop: Stop) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGUSR1 end the element: after the row in hand, or soon after.

    A pipe is written by the C handler itself, so that what waits is stored at once, even while
    the task is deep in a library's code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    grace_s = settings.current().element.grace_s
    read, write = os.pipe()
    os.set_blocking(write, False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def on_signal(number: int, frame: FrameType | None) -> None:
        """Nothing: an event that is set here would wait for itself when a second signal comes
        meanwhile, as from Slurm and from the parent. The thread that reads the pipe sets it."""

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if _in_own_code(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.1)  # a checkpoint is being written: let it
            return
        raise Forced(stop.reason)

    def watch() -> None:
        got = b""
        while 0 not in got:
            got = os.read(read, 64)
            for number in got:
                if number in numbers:
                    stop.ask(signal.Signals(number).name)
                    # Here, and not in the handler: a signal that comes just before the main
                    # thread begins to sleep is handled when it has slept, unless another wakes it.
                    if signal.getitimer(signal.ITIMER_REAL)[0] == 0.0:
                        signal.setitimer(signal.ITIMER_REAL, grace_s)
                    hurry(max(grace_s, HURRY_S))  # a silent database is waited for no longer
                    for writer in list(Guard.writers):
                        writer.due.set()

    previous = {n: signal.signal(n, on_signal) for n in numbers}
    previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, on_alarm)
    waker = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="astra signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(write, b"\0")
        thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)  # the thread may just have set it
        signal.set_wakeup_fd(waker)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


#: What ends by itself, within a bound, once the process was told to end; cut, it would lose rows.
_UNCUT = {Writer.write_all.__code__, Writer.flush.__code__}

_UNCUT_MODULES = (
    "astra.database",
    "astra.results.checkpoint",
    "astra.results.columns",
    "astra.results.rows",
    "astra.plan.spool",
)


def _in_own_code(frame: FrameType | None) -> bool:
    """Whether rows are being read, written, waited for to be written, or spooled."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if frame.f_code in _UNCUT or name.startswith(_UNCUT_MODULES):
            return True
        frame = frame.f_back
    return False
