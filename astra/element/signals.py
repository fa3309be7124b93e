"""Requests to stop: how a process that runs a task handles SIGTERM, SIGINT and SIGUSR1."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

from astra.config import settings
from astra.database.connection import LAST_WAIT_S
from astra.database.exhaustion import start_thread
from astra.database.statement_timeout import limit_all
from astra.errors import Interrupted
from astra.results.stopping import ActiveRuns, SignalHandler, Stop

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

#: Interrupts the row in progress. SIGALRM would not do: a task that limits the time of its rows by
#: it has a handler of its own, which would raise the exception of a row that takes too long.
_INTERRUPT = signal.SIGRTMAX

#: Written to the pipe to find out whether all signals before it were passed on.
_MARK = 255


class _Pipe:
    """A pipe to the thread that receives signals.

    A handler that set an event itself would deadlock if a second signal arrived in the meantime,
    such as one from the parent after one from Slurm. A task may close all files of its process; the
    descriptors of the pipe may then be those of other files, such as a checkpoint's.
    """

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        self.identity = self._identify(self.write_end)
        self.mark_received = threading.Event()  # all signals before the mark were passed on

    @staticmethod
    def _identify(end: int) -> tuple[int, int] | None:
        try:
            status = os.fstat(end)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def is_open(self) -> bool:
        return self._identify(self.write_end) == self._identify(self.read_end) == self.identity

    def write(self, number: int) -> None:
        with suppress(BlockingIOError):  # it is full of signals
            os.write(self.write_end, bytes([number]))

    def read(self) -> bytes:
        """Wait for signals and return their numbers; nothing once the pipe was closed."""
        return os.read(self.read_end, 64) if self.is_open() else b""

    def watch(self, ask_to_stop: Callable[[int], None]) -> None:
        """Pass on each signal that is received, until the number 0 is."""
        while (received := self.read()) and 0 not in received:
            for number in received:
                if number in _NUMBERS:
                    ask_to_stop(number)
            if _MARK in received:
                self.mark_received.set()

    def wait_until_passed_on(self) -> None:
        """Wait until all signals that have come so far were passed on."""
        if self.is_open():
            self.mark_received.clear()
            self.write(_MARK)
            self.mark_received.wait(1.0)

    def close(self) -> None:
        for end in (self.read_end, self.write_end):
            if self._identify(end) == self.identity:
                os.close(end)


class _Interrupter:
    """Interrupt the row in progress by an exception, `grace_s` after a request to stop."""

    def __init__(self, stop: Stop, grace_s: float) -> None:
        self.stop, self.grace_s = stop, grace_s
        self.main = threading.get_ident()
        self.asked, self.over = threading.Event(), threading.Event()
        self.has_interrupted = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # Reading and writing rows are not interrupted: they end by themselves, within a time limit.
        is_at_work = self.stop.is_loading or ActiveRuns.are_computing()
        if is_at_work and not self.has_interrupted:
            self.has_interrupted = True  # only once: the task may have to clean up
            ActiveRuns.interrupt(Interrupted.exit_status)

    def run(self) -> None:
        """Send the signal when it is time, and again until it has interrupted something.

        If it arrives just before the main thread begins to sleep, it is handled only after the
        sleep, unless another one wakes the thread.
        """
        self.asked.wait()
        pause_s = self.grace_s
        while not self.over.wait(pause_s) and not self.has_interrupted:
            signal.pthread_kill(self.main, _INTERRUPT)
            pause_s = 0.1

    def end(self) -> None:
        self.over.set()
        self.asked.set()


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Stop the element on SIGTERM, SIGINT and SIGUSR1, after the row in progress or soon after.

    A row that continues for longer than ``grace_s`` is interrupted by an exception. The C handler
    itself writes to a pipe, so that waiting results are stored at once, even while the task is deep
    in a library's code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    grace_s = settings.current().element.grace_s
    pipe, interrupter = _Pipe(), _Interrupter(stop, grace_s)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if pipe.is_open():
            pipe.write(number)  # as the C handler has done, unless the task took its descriptor
        else:
            start_thread(partial(ask_to_stop, number), "astra signal")

    def ask_to_stop(number: int) -> None:
        stop.ask(signal.Signals(number).name)
        interrupter.asked.set()
        limit_all(max(grace_s, LAST_WAIT_S))  # do not wait longer for a silent database
        for run in list(ActiveRuns.runs):
            run.writer.wait_no_longer()

    def take_back() -> dict[int, SignalHandler]:
        own: dict[int, SignalHandler] = {n: signal.signal(n, on_signal) for n in _NUMBERS}
        own = {number: handler for number, handler in own.items() if handler is not on_signal}
        if own:
            pipe.wait_until_passed_on()
        return own

    stop.take_back_signals = take_back
    previous = {n: signal.signal(n, on_signal) for n in _NUMBERS}
    previous[_INTERRUPT] = signal.signal(_INTERRUPT, interrupter.on_signal)
    waker = signal.set_wakeup_fd(pipe.write_end, warn_on_full_buffer=False)
    watching = start_thread(partial(pipe.watch, ask_to_stop), "astra signals")
    interrupting = start_thread(interrupter.run, "astra interrupt")
    try:
        yield
    finally:
        stop.take_back_signals = dict
        interrupter.end()
        interrupting.join()
        if pipe.is_open():
            pipe.write(0)
            watching.join()
        signal.set_wakeup_fd(waker)
        for number, handler in previous.items():
            signal.signal(number, handler)
        pipe.close()
        limit_all(math.inf)  # the process may continue, as that of a notebook does
