"""The second thread of a run: it writes what is due, and heartbeats, while the task computes."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import peewee

from astra.database.connection import keep_connected, retrying
from astra.database.exhaustion import start_thread
from astra.database.threads import join
from astra.errors import DatabaseError
from astra.records import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeat:
    """Record in the database that the attempt is running, after a while without a checkpoint."""

    beat: Callable[[], None]
    every_s: float

    def send(self) -> None:
        try:
            retrying(self.beat, bound_s=5)
        except (DatabaseError, peewee.PeeweeException) as error:
            log.warning("the heartbeat could not be written: %s", error)


class Work(Protocol):
    """What the thread does."""

    def seconds_until_due(self) -> float | None:
        """Return how long nothing has to be written; None while nothing waits."""

    def write_due(self) -> None:
        """Write the rows whose checkpoint is due."""

    def fail_for_good(self, error: BaseException) -> None:
        """Record that the thread has ended with an error, and writes nothing more."""


class Background:
    """A thread that writes what is due, on a connection of its own.

    Parameters
    ----------
    work : what is written, and when.
    heartbeat : sent while there is nothing to write.
    keeps_connection : hold one connection for the whole run instead of one for each checkpoint.
    """

    def __init__(self, work: Work, heartbeat: Heartbeat | None, keeps_connection: bool) -> None:
        self.work, self.heartbeat, self.keeps_connection = work, heartbeat, keeps_connection
        self.woken = threading.Event()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def wake(self) -> None:
        """Make the thread check again what is due; start it at the first call."""
        if self.thread is None:
            self.thread = start_thread(self._run, "astra writer")
        self.woken.set()

    def close(self, wait: bool) -> None:
        """End the thread; with `wait`, wait until it has ended, which a silent database delays."""
        self.over.set()
        self.woken.set()
        if self.thread is not None and wait:
            join(self.thread)

    def _run(self) -> None:
        try:
            with keep_connected() if self.keeps_connection else nullcontext():
                self._write_until_over()
        except BaseException as error:
            self.work.fail_for_good(error)

    def _write_until_over(self) -> None:
        last = time.monotonic()  # when the last checkpoint or heartbeat was written
        while True:
            self.woken.clear()  # before looking at anything that it announces
            if self.over.is_set():
                return
            wait_s = self.work.seconds_until_due()
            if wait_s is not None and wait_s <= 0:
                self.work.write_due()
                last = time.monotonic()
            elif self.heartbeat is None:
                self.woken.wait(wait_s)
            else:
                silence_s = self.heartbeat.every_s - (time.monotonic() - last)
                if silence_s <= 0:
                    self.heartbeat.send()
                    last, silence_s = time.monotonic(), self.heartbeat.every_s
                self.woken.wait(silence_s if wait_s is None else min(wait_s, silence_s))
