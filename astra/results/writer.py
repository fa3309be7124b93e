"""Write the results that a run yields, as checkpoints.

A second thread writes all rows of a page: the task continues to compute while the database is
unavailable, and a transaction that the task left open cannot swallow a checkpoint. If a program
calls a task, the task's thread writes each full batch before it passes the results on; the second
thread writes results that have waited for ``write_frequency`` seconds.
"""

import logging
import threading
import time
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING

from astra.database.connection import dialect, in_transaction, keep_connected, retrying
from astra.errors import DatabaseError
from astra.results.background import Background, Heartbeat
from astra.results.buffer import Buffer
from astra.results.checkpoint import write
from astra.results.claim import Claim
from astra.results.rows import Checkpoint, HandedRow, Refusal, Target, YieldedResult
from astra.results.schedule import Schedule
from astra.states import Outcome

if TYPE_CHECKING:
    from astra.results.stopping import Settings, Stop, Tally

log = logging.getLogger(__name__)


#: Batches that may wait while one is written, or while the database is unavailable.
MAX_BATCHES = 4

#: Seconds that a task waits while its batch is written to SQLite: while a task computes, each row
#: of the batch would wait 5 ms for the interpreter's lock. If another process locks the file for
#: longer, the task continues.
WAIT_FOR_FILE_S = 1.0


class Writer:
    """Store what a run yields.

    Parameters
    ----------
    settings, target : how results are written, and the task and table that they belong to.
    stop : the request to end the run; it is made here if the plan was cancelled.
    tally : the counts of the element's rows; refused results are added to it.
    claim : the claim to a plan's page; without one, results do not belong to a plan.
    heartbeat : of the attempt, sent while nothing is written.
    grace_s : how long to wait for an unavailable database once the run has to end.
    schedule : of the element's earlier pages, which knows what their checkpoints cost.
    """

    def __init__(
        self,
        settings: "Settings",
        target: Target,
        stop: "Stop",
        tally: "Tally",
        claim: Claim | None = None,
        heartbeat: Heartbeat | None = None,
        grace_s: float = 3.0,
        schedule: Schedule | None = None,
    ) -> None:
        self.settings, self.target, self.claim = settings, target, claim
        self.stop, self.tally, self.grace_s = stop, tally, grace_s
        self.buffer = Buffer()
        self.stored = self.buffer.stored
        self.schedule = schedule or Schedule(settings.write_frequency, by_cost=claim is not None)
        self.schedule.begin()
        self.began, self.n_ended_before = time.monotonic(), tally.n_ended
        #: Rows of the page that have to end.
        self.n_rows = 0 if claim is None else claim.outcomes.count(Outcome.PENDING)
        self.is_sqlite = settings.write_to_database and dialect().name == "sqlite"
        is_within = settings.write_to_database and in_transaction()
        # A database in memory exists in one connection only, and a transaction that the caller
        # holds open in the caller's: another connection would not see it, or would wait for it.
        self.may_write_behind = settings.write_to_database and not (
            is_within or dialect().is_in_memory
        )
        if is_within:
            log.warning(
                "called within a transaction: results are written when a batch is full, and "
                "others see them when you commit; write_frequency has no effect"
            )
        self.writes_in_background = claim is not None and self.may_write_behind
        self.background = Background(self, heartbeat, self.is_sqlite)
        self.writing = threading.RLock()  # one checkpoint at a time
        self.is_ending = threading.Event()  # the run, or its process, is about to end
        self.must_write_all = False  # whether all waiting rows have to be written now
        #: Whether the task continues without waiting for the file, until the next checkpoint.
        self.skips_wait = False
        #: The error that ends the run, caused neither by the task nor by a row.
        self.fatal_error: BaseException | None = None
        self._written_s = 0.0  # seconds that checkpoints took
        self._began_s: float | None = None  # when the present one began

    @property
    def t_write_s(self) -> float:
        """The seconds that checkpoints have taken, with the present one up to now."""
        began_s = self._began_s
        return self._written_s + (0.0 if began_s is None else perf_counter() - began_s)

    # -- waiting rows --------------------------------------------------------------------------

    def add(
        self,
        results: Iterable[YieldedResult] = (),
        no_results: Iterable[HandedRow] = (),
        failures: Iterable[Refusal] = (),
        found: Iterable[HandedRow] = (),
    ) -> None:
        """Add how rows have ended; all results of a row go into one checkpoint."""
        if self.settings.write_to_database and self.buffer.add(
            results, no_results, failures, found
        ):
            self.wake()

    def unwritten(self) -> Checkpoint:
        """Return everything that was yielded and is not known to be stored."""
        return self.buffer.unwritten()

    def wake(self) -> None:
        """Make the second thread check again what is due."""
        if self.may_write_behind:
            self.background.wake()

    def wait_no_longer(self) -> None:
        """Write what waits, but do not wait for the database: the process has to end."""
        self.is_ending.set()
        self.wake()

    def is_full(self) -> bool:
        return self.buffer.n_waiting >= self.settings.batch_size

    def is_stuck(self) -> bool:
        """Return whether it is useless to wait for the second thread."""
        return self.fatal_error is not None or self.stop.is_wanted

    # -- called by the task's thread -----------------------------------------------------------

    def keep_up(self, is_last: bool = False) -> None:
        """Start to write the rows that are due, and return when there is room for more.

        After the last row, do not wait: the end of the run writes everything.
        """
        if self.buffer.since is None and self.buffer.note_fresh():
            self.wake()
        if not self.writes_in_background:
            if self.is_full() or self._is_due():
                self.write_all()
        elif self.is_sqlite:
            if self.is_full() or self._is_due():
                self._wait_for_file()
        elif self.is_full() and not is_last:
            self.wake()
            self._wait_for_room()

    def _is_due(self) -> bool:
        since = self.buffer.since
        return since is not None and time.monotonic() >= self.schedule.due(since)

    def _wait_for_file(self) -> None:
        self.wake()
        if not self.skips_wait:
            with self.buffer.changed:
                written = self.buffer.changed.wait_for(
                    lambda: not self.unwritten() or self.is_stuck(), WAIT_FOR_FILE_S
                )
            self.skips_wait = not written
        self._wait_for_room()

    def _wait_for_room(self) -> None:
        max_waiting = MAX_BATCHES * self.settings.batch_size
        with self.buffer.changed:
            while self.buffer.n_waiting >= max_waiting and not self.is_stuck():
                self.buffer.changed.wait(1.0)

    def write_all(self) -> None:
        """Wait until everything that was yielded is stored.

        Without a page, this thread writes, on its own connection; except in a transaction that the
        task has begun, and might roll back, and to SQLite, which does not define what a cursor sees
        if its own connection writes, and refuses the write of a connection whose cursor sees an
        older state.

        If the run has to stop and the database is unavailable, wait only for the grace time; what
        is not stored then is :meth:`unwritten`.

        Raises
        ------
        DatabaseError
            If the database did not store everything.
        """
        if not self.may_write_behind or not (
            self.writes_in_background or self.is_sqlite or in_transaction()
        ):
            self.write()
            return
        with self.buffer.changed:
            if not self.unwritten():
                return
            self.must_write_all = True
            self.wake()
            asked_at: float | None = None
            while self.unwritten() and self.fatal_error is None:
                if self.stop.is_wanted:
                    asked_at = asked_at or time.monotonic()
                    if time.monotonic() - asked_at > self.grace_s:
                        raise DatabaseError(
                            "the run was asked to stop, and the database did not take the last "
                            f"checkpoint within {self.grace_s:g} s"
                        )
                self.buffer.changed.wait(0.2)
            self.must_write_all = False
            if self.fatal_error is not None:
                raise self.fatal_error

    def write_last(self) -> None:
        """Write the rest of the page on this thread's connection, which it continues to use."""
        try:
            self.write()
        except Exception as error:
            self.fatal_error = error  # `write` has already retried for as long as it may
            raise

    def close(self) -> None:
        """End the second thread; do not wait for it while the database keeps it from writing."""
        self.is_ending.set()
        self.background.close(wait=not (self.writes_in_background and self.unwritten()))

    # -- called by the second thread -----------------------------------------------------------

    def seconds_until_due(self) -> float | None:
        """Return how long nothing has to be written; None while nothing waits."""
        with self.buffer.changed:
            since = self.buffer.since
            if since is None:
                return None
            if (
                self.must_write_all
                or self.stop.is_wanted
                or (self.writes_in_background and self.is_full())
            ):
                return 0.0
            return self.schedule.due(since, self._expected_end()) - time.monotonic()

    def _expected_end(self) -> float | None:
        """Estimate, by the monotonic clock, when the page ends if its rows continue as before."""
        n_ended = self.tally.n_ended - self.n_ended_before
        if not self.n_rows or not n_ended:
            return None
        return self.began + (time.monotonic() - self.began) * self.n_rows / n_ended

    def write_due(self) -> None:
        """Write what is due, and on the same connection any batches that become full meanwhile."""
        with keep_connected():
            self.write()
            while self.writes_in_background and self.is_full():
                self.write()

    def fail_for_good(self, error: BaseException) -> None:
        """Record the error that ended the second thread, and wake threads that wait for it."""
        with self.buffer.changed:
            self.fatal_error = error
            self.buffer.changed.notify_all()

    # -- called by either ----------------------------------------------------------------------

    def write(self) -> None:
        """Write all waiting rows as one checkpoint; keep them if that fails."""
        with self.writing:
            checkpoint = self.buffer.take()
            if not checkpoint:
                return
            began = self._began_s = perf_counter()
            try:
                written = retrying(
                    lambda: write(checkpoint, self.target, self.claim, self._judge),
                    waiting=self.stop.wanted if self.writes_in_background else self.is_ending,
                )
            except BaseException:
                self.buffer.put_back(checkpoint)
                raise
            finally:
                took_s, self._began_s = perf_counter() - began, None
            self._written_s += took_s
            self.schedule.note(took_s)
            self.skips_wait = False
            self.buffer.finish(written if self.claim is None else ())
            self._check_run(checkpoint)

    def _judge(self, refused: list[Refusal]) -> None:
        """Raise the error that ends the run, if the rows did not cause that they failed."""
        if self.claim is not None and refused:
            self.tally.check(self.target.task, refused)

    def _check_run(self, checkpoint: Checkpoint) -> None:
        """End the run if the checkpoint showed that its plan was cancelled, or its task broken."""
        self.tally.count(checkpoint.refused)
        self.tally.n_stored += checkpoint.n_stored
        if self.claim is not None:
            if self.claim.cancelled:
                self.stop.ask("the plan was cancelled")
            self.tally.check(self.target.task)
