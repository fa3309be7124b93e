"""Requests to stop: how a process that runs a task handles SIGTERM, SIGINT and SIGUSR1."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from astra.config import settings
from astra.database.connection import HURRY_S
from astra.database.statement_timeout import hurry
from astra.errors import Interrupted
from astra.results.stopping import ActiveRuns, Stop


def _write(pipe: int, number: int) -> None:
    """Write to a pipe that another thread reads, which then sets the event of the request.

    A handler that set it itself would deadlock when a second signal arrives meanwhile, as one from
    Slurm and one from the parent.
    """
    with suppress(BlockingIOError):  # it is full of signals
        os.write(pipe, bytes([number]))


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Stop the element on SIGTERM, SIGINT and SIGUSR1, after the row in progress or soon after.

    A row that goes on for longer than ``grace_s`` is interrupted by an exception. The C handler
    itself writes to a pipe, so that waiting results are stored at once, even while the task is deep
    in a library's code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    grace_s = settings.current().element.grace_s
    read, write = os.pipe()
    os.set_blocking(write, False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def on_signal(number: int, frame: FrameType | None) -> None:
        # The C handler has written this already, unless the task has taken its descriptor away.
        _write(write, number)

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if stop.is_loading or ActiveRuns.are_computing():
            ActiveRuns.interrupt(Interrupted.exit_status)
        # Reading and writing rows is not interrupted: it ends by itself, within a bound.
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    def watch() -> None:
        received = b""
        while 0 not in received:
            received = os.read(read, 64)
            for number in received:
                if number in numbers:
                    stop.ask(signal.Signals(number).name)
                    # The timer is set here and not in the handler: a signal that arrives just
                    # before the main thread begins to sleep is handled only after the sleep,
                    # unless another signal wakes it.
                    if signal.getitimer(signal.ITIMER_REAL)[0] == 0.0:
                        signal.setitimer(signal.ITIMER_REAL, grace_s)
                    hurry(max(grace_s, HURRY_S))  # do not wait longer for a silent database
                    for run in list(ActiveRuns.runs):
                        run.writer.wake()

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
