"""The checkpoints of a run: what was yielded waits here, and is written by a second thread.

It writes what has waited for ``write_frequency`` seconds, so that a result is stored while the next
row takes hours. The rows of a page are all written by that thread: while the database is away the
task goes on computing, and a transaction that the task left open cannot swallow a checkpoint.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import peewee

from astra import log
from astra.corrections import Corrections
from astra.database import Beside, apart, at_hand, dialect, in_transaction, retrying
from astra.errors import DatabaseError
from astra.results import Checkpoint, Claim, Handed, Refusal, Target, Yielded, write

if TYPE_CHECKING:
    from astra.run import Settings, Stop, Tally

#: Batches that may wait while one is written, or while the database is away.
ROOM = 4


class Writer:
    """What a run has yielded and has still to store.

    Parameters
    ----------
    settings, target : how, and whose results these are.
    claim : of a plan's page; without one, results are not bound to a plan.
    stop : the wish that the run ends; the end of its plan is told to it.
    tally : of the element, told of results that are refused.
    heartbeat : tells the database that the attempt lives, once nothing was written for
        `heartbeat_s`.
    grace_s : how long a database that is away is waited for, once the run is to end.
    """

    def __init__(
        self,
        settings: "Settings",
        target: Target,
        claim: Claim | None,
        stop: "Stop",
        tally: "Tally",
        heartbeat: Callable[[], None] | None = None,
        heartbeat_s: float = 60.0,
        grace_s: float = 3.0,
    ) -> None:
        self.settings, self.target, self.claim = settings, target, claim
        self.stop, self.tally, self.grace_s = stop, tally, grace_s
        self.heartbeat, self.heartbeat_s = heartbeat, heartbeat_s
        self.waiting = Checkpoint()
        self.in_writing = Checkpoint()
        self.stored: deque[Any] = deque()  # results that may be passed on now
        self.since: float | None = None  # when the oldest of what waits was yielded
        self.mutex = threading.RLock()  # guards the four above
        self.room = threading.Condition(self.mutex)  # something was written, or cannot be
        self.writing = threading.RLock()  # one checkpoint at a time
        self.behind = claim is not None and _may_write_behind()
        # SQLite's driver lets go of the interpreter's lock at every row: beside a task that
        # computes, each row of a batch would wait 5 ms to get it back. And what one core has made
        # need not go over to another.
        self.writes_here = self.behind and dialect().name == "sqlite"
        self.beside = Beside()
        # To the second thread, which waits for the file while the task goes on.
        self.is_left = False
        self.ending = False  # whatever waits is to be written now
        self.due = threading.Event()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None
        #: What ends the run, and is neither the task's doing nor a row's.
        self.trouble: BaseException | None = None
        self.corrections = Corrections(claim)
        self.t_write_s = 0.0

    # -- what waits ----------------------------------------------------------------------------

    def add(self, yielded: Yielded) -> None:
        with self.mutex:
            self.waiting.results.append(yielded)
            self._start_clock()

    def add_no_results(self, rows: Iterable[Handed]) -> None:
        with self.mutex:
            self.waiting.no_results += rows
            self._start_clock()

    def fail(self, failure: Refusal) -> None:
        """Record why a row has no result."""
        with self.mutex:
            self.waiting.failures.append(failure)
            self._start_clock()

    def forget_failures(self) -> None:
        """Those that are not stored yet are left out: they are no rows' fault."""
        with self.mutex:
            self.waiting.failures.clear()

    def amend(self, yielded: Yielded, spent_s: float) -> None:
        """Credit work that a task does on a row after its result was yielded."""
        with self.mutex:
            if yielded.taken:
                self.corrections.longer(yielded.result, spent_s)
            else:
                yielded.result.__data__["t_elapsed"] += spent_s

    def unwritten(self) -> Checkpoint:
        """What was yielded and is not known to be stored."""
        with self.mutex:
            return self.in_writing + self.waiting

    def is_full(self) -> bool:
        return len(self.waiting) >= self.settings.batch_size

    def is_late(self) -> bool:
        return (
            self.since is not None
            and time.monotonic() - self.since >= self.settings.write_frequency
        )

    def is_stuck(self) -> bool:
        return self.trouble is not None or self.stop.wanted.is_set()

    def _start_clock(self) -> None:
        if self.since is None:
            self.since = time.monotonic()
            self.wake()

    # -- by the task's thread ------------------------------------------------------------------

    def hand_on(self, is_last: bool) -> None:
        """Have a full batch written, and go on while there is room for more.

        After what seems to be the last row comes the end, which writes all.
        """
        if self.writes_here and not self.is_left and not self.in_writing and self._write_here():
            return
        if is_last:
            return
        self.wake()
        with self.room:
            while len(self.waiting) >= ROOM * self.settings.batch_size and not self.is_stuck():
                self.room.wait(1.0)

    def _write_here(self) -> bool:
        """Write all that waits while the task waits; whether it could be done at once."""
        try:
            self.flush(self.beside.at_once)
        except (DatabaseError, peewee.PeeweeException) as error:
            log.debug("not written at once: %s", error)
            self.is_left = True
            return False
        return True

    def write_last(self) -> None:
        """Write what is left of the page on the connection that this thread goes on with."""
        try:
            self.flush()
        except Exception as error:
            self.trouble = error  # it was tried for as long as anything is
            raise

    def write_all(self) -> None:
        """Wait until everything that was yielded is stored.

        Told to end while the database is away, it waits a moment only: what is not stored then
        is :meth:`unwritten`.
        """
        if not self.behind:
            self.flush()
            return
        with self.room:
            if not self.unwritten() or not self.settings.write_to_database:
                return
            self.ending = True
            self.wake()
            told: float | None = None
            while self.unwritten() and self.trouble is None:
                if self.stop.wanted.is_set():
                    told = told or time.monotonic()
                    if time.monotonic() - told > self.grace_s:
                        raise DatabaseError(
                            "told to end, and the database did not take the last checkpoint within "
                            f"{self.grace_s:g} s"
                        )
                self.room.wait(0.2)
            self.ending = False
            if self.trouble is not None:
                raise self.trouble

    def close(self) -> None:
        """Nothing more comes; the thread ends, unless the database keeps it."""
        self.beside.close()
        self.over.set()
        self.due.set()
        if self.thread is not None and not (self.behind and self.unwritten()):
            self.thread.join()

    # -- by the second thread ------------------------------------------------------------------

    def wake(self) -> None:
        """Have the second thread look at the clock again."""
        if self.thread is None and _may_write_behind():
            self.thread = threading.Thread(target=self._write_behind, name="astra", daemon=True)
            self.thread.start()
        self.due.set()

    def _write_behind(self) -> None:
        with at_hand(self.writes_here):  # nobody lacks a connection to a file
            self._write_until_over()

    def _write_until_over(self) -> None:
        beat = time.monotonic()
        while not self.over.is_set():
            self.due.clear()
            late_s = self._until_due()
            if late_s is not None and late_s <= 0:
                try:
                    self._write_due()
                except BaseException as error:
                    with self.room:
                        self.trouble = error
                        self.room.notify_all()
                    return
                beat = time.monotonic()
                continue
            rest_s = self.heartbeat_s - (time.monotonic() - beat)
            if self.heartbeat is not None and rest_s <= 0:
                self._beat(self.heartbeat)
                beat, rest_s = time.monotonic(), self.heartbeat_s
            self.due.wait(rest_s if late_s is None else min(late_s, rest_s))

    def _until_due(self) -> float | None:
        """Seconds until something has to be written; None while nothing waits."""
        with self.mutex:
            if not self.waiting:
                return None
            if self.ending or self.stop.wanted.is_set() or (self.behind and self.is_full()):
                return 0.0
            if self.since is None:
                return None
            return self.since + self.settings.write_frequency - time.monotonic()

    def _write_due(self) -> None:
        """Write what is due, and on the same connection the batches that became full meanwhile."""
        with at_hand(self.behind):
            self.flush()
            while self.behind and self.is_full():
                self.flush()
        self.is_left = False

    @staticmethod
    def _beat(heartbeat: Callable[[], None]) -> None:
        try:
            retrying(heartbeat, bound_s=5)
        except (DatabaseError, peewee.PeeweeException) as error:
            log.warning("no heartbeat: %s", error)

    # -- by either -----------------------------------------------------------------------------

    def flush(self, way: Callable[[Callable[[], Any]], Any] | None = None) -> None:
        """Write all that waits, as one checkpoint; nothing is dropped if that fails."""
        if not self.settings.write_to_database:
            return
        with self.writing:
            with self.mutex:
                checkpoint, self.waiting, since = self.waiting, Checkpoint(), self.since
                self.in_writing, self.since = checkpoint, None
                for yielded in checkpoint.results:
                    yielded.taken = True
            if not checkpoint:
                return
            began = perf_counter()
            way = way or self._patiently
            try:
                written = way(lambda: write(checkpoint, self.target, self.claim))
            except BaseException:
                with self.room:
                    self.waiting, self.in_writing = checkpoint + self.waiting, Checkpoint()
                    self.since = since
                raise
            self.t_write_s += perf_counter() - began
            with self.room:
                self.in_writing = Checkpoint()
                if not self.behind:  # who runs a page does not look at its results
                    self.stored.extend(written)
                self.room.notify_all()
                self.corrections.stored(written)
            self.tally.n_failed += checkpoint.n_refused
            if self.claim is not None:
                if self.claim.cancelled:
                    self.stop.ask("the plan was cancelled")
                self.tally.check(self.target.task)

    def _patiently(self, work: Callable[[], Any]) -> Any:
        """`work()`, which writes, again while the database is away."""
        if threading.current_thread() is self.thread:
            # It has a connection that nobody else reads on.
            return retrying(work, waiting=self.stop.wanted if self.behind else self.over)
        ends = self.stop.wanted if self.behind else None
        return apart(lambda: retrying(work, waiting=ends))


def _may_write_behind() -> bool:
    # A database in memory belongs to one connection, and a transaction that the caller holds open
    # belongs to the caller's: nobody else could see, or get past, it.
    return not dialect().url.endswith(":memory:") and not in_transaction()
