"""Write the results that a run yields, as checkpoints.

The rows of a page are all written by a second thread: while the database is away the task goes on
computing, and a transaction that the task left open cannot swallow a checkpoint. A task that a
program calls writes its full batches itself, before it passes their results on; the second thread
writes what has waited for ``write_frequency`` seconds meanwhile.
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
from astra.results.rows import Checkpoint, Handed, Refusal, Target, Yielded
from astra.results.schedule import Schedule
from astra.states import Outcome

if TYPE_CHECKING:
    from astra.results.stopping import Settings, Stop, Tally

log = logging.getLogger(__name__)


#: Batches that may wait while one is written, or while the database is away.
MOST_BATCHES = 4

#: Seconds that a task waits while its batch is written to SQLite: beside a task that computes, each
#: row of it would wait 5 ms for the interpreter's lock. Where another process holds the file for
#: longer, the task goes on.
WAIT_FOR_FILE_S = 1.0


class Writer:
    """Stores what a run yields.

    Parameters
    ----------
    settings, target : how, and whose results these are.
    claim : of a plan's page; without one, results are not bound to a plan.
    stop : the request that the run ends; it is made here when the plan was cancelled.
    tally : of the element; it counts results that are refused.
    heartbeat : of the attempt, for the time in which nothing is written.
    grace_s : how long a database that is away is waited for, once the run is to end.
    schedule : of the element, which knows what its checkpoints took up to now.
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
        self.is_file = settings.write_to_database and dialect().name == "sqlite"
        self.is_behind = claim is not None and _may_write_behind()
        self.background = Background(self, heartbeat, self.is_file)
        self.writing = threading.RLock()  # one checkpoint at a time
        self.ending = False  # whatever waits is to be written now
        self.goes_on = False  # the task does not wait for the file before the next checkpoint
        #: What ends the run, and is neither the task's doing nor a row's.
        self.trouble: BaseException | None = None
        self.t_write_s = 0.0

    # -- what waits ----------------------------------------------------------------------------

    def add(self, yielded: Yielded) -> None:
        if self.buffer.add(yielded):
            self.wake()

    def add_row(self, results: list[Yielded]) -> None:
        """All results of a row that has ended: they go into one checkpoint."""
        if self.buffer.add_row(results):
            self.wake()

    def add_no_results(self, rows: Iterable[Handed]) -> None:
        if self.buffer.add_no_results(rows):
            self.wake()

    def fail(self, failure: Refusal) -> None:
        """Record why a row has no result."""
        if self.buffer.add_failure(failure):
            self.wake()

    def unwritten(self) -> Checkpoint:
        """What was yielded and is not known to be stored."""
        return self.buffer.unwritten()

    def wake(self) -> None:
        """Have the second thread look at the clock again."""
        if self.background.thread is not None or _may_write_behind():
            self.background.wake()

    def is_full(self) -> bool:
        return self.buffer.n_waiting >= self.settings.batch_size

    def is_stuck(self) -> bool:
        """Whether it is no use to wait for the second thread."""
        return self.trouble is not None or self.stop.wanted.is_set()

    # -- by the task's thread ------------------------------------------------------------------

    def keep_up(self, is_last: bool = False) -> None:
        """Have written what is due, and let the task go on when there is room for more.

        After the last row comes the end of the run, which writes all.
        """
        if not self.is_behind:
            if self.is_full() or self._is_due():
                self.flush()
        elif self.is_file:
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
        if not self.goes_on:
            with self.buffer.changed:
                written = self.buffer.changed.wait_for(
                    lambda: not self.unwritten() or self.is_stuck(), WAIT_FOR_FILE_S
                )
            self.goes_on = not written
        self._wait_for_room()

    def _wait_for_room(self) -> None:
        most = MOST_BATCHES * self.settings.batch_size
        with self.buffer.changed:
            while self.buffer.n_waiting >= most and not self.is_stuck():
                self.buffer.changed.wait(1.0)

    def flush(self) -> None:
        """Write all that waits on this thread's connection, where nothing speaks against it.

        SQLite does not say what a cursor sees whose own connection writes, and refuses the write
        of a connection whose cursor sees an older state: there the second thread writes.
        """
        if not self.settings.write_to_database:
            return
        if self.is_file and _may_write_behind():
            self._flush_behind()
        else:
            self.write()

    def write_all(self) -> None:
        """Wait until everything that was yielded is stored.

        Where the run is to stop and the database is away, it waits a moment only: what is not
        stored then is :meth:`unwritten`.

        Raises
        ------
        DatabaseError
            If the database did not take it.
        """
        if not self.settings.write_to_database:
            return
        if self.is_behind:
            self._flush_behind(self.grace_s)
        else:
            self.flush()

    def _flush_behind(self, grace_s: float | None = None) -> None:
        """Have the second thread write all that waits; after a request to stop, for `grace_s`."""
        with self.buffer.changed:
            if not self.unwritten():
                return
            self.ending = True
            self.wake()
            asked: float | None = None
            while self.unwritten() and self.trouble is None:
                if grace_s is not None and self.stop.wanted.is_set():
                    asked = asked or time.monotonic()
                    if time.monotonic() - asked > grace_s:
                        raise DatabaseError(
                            "the run was asked to stop, and the database did not take the last "
                            f"checkpoint within {grace_s:g} s"
                        )
                self.buffer.changed.wait(0.2)
            self.ending = False
            if self.trouble is not None:
                raise self.trouble

    def write_last(self) -> None:
        """Write what is left of the page on the connection that this thread goes on with."""
        try:
            self.write()
        except Exception as error:
            self.trouble = error  # it was tried for as long as anything is
            raise

    def close(self) -> None:
        """End the second thread, unless the database keeps it."""
        self.background.close(wait=not (self.is_behind and self.unwritten()))

    # -- by the second thread ------------------------------------------------------------------

    def seconds_until_due(self) -> float | None:
        """How long nothing has to be written; None while nothing waits."""
        with self.buffer.changed:
            since = self.buffer.since
            if since is None:
                return None
            if self.ending or self.stop.wanted.is_set() or (self.is_behind and self.is_full()):
                return 0.0
            return self.schedule.due(since, self._expected_end()) - time.monotonic()

    def _expected_end(self) -> float | None:
        """When the page will have ended if its rows go on as they did, by the monotonic clock."""
        n_ended = self.tally.n_ended - self.n_ended_before
        if not self.n_rows or not n_ended:
            return None
        return self.began + (time.monotonic() - self.began) * self.n_rows / n_ended

    def write_due(self) -> None:
        """Write what is due, and on the same connection the batches that became full meanwhile."""
        with keep_connected():
            self.write()
            while self.is_behind and self.is_full():
                self.write()

    def fail_for_good(self, error: BaseException) -> None:
        """Take note that the second thread writes nothing more."""
        with self.buffer.changed:
            self.trouble = error
            self.buffer.changed.notify_all()

    # -- by either -----------------------------------------------------------------------------

    def write(self) -> None:
        """Write all that waits as one checkpoint; nothing is dropped if that fails."""
        if not self.settings.write_to_database:
            return
        with self.writing:
            checkpoint = self.buffer.take()
            if not checkpoint:
                return
            began = perf_counter()
            try:
                written = retrying(
                    lambda: write(checkpoint, self.target, self.claim, self._judge),
                    waiting=self.stop.wanted if self.is_behind else self.background.over,
                )
            except BaseException:
                self.buffer.put_back(checkpoint)
                raise
            took_s = perf_counter() - began
            self.t_write_s += took_s
            self.schedule.note(took_s)
            self.goes_on = False
            self.buffer.finish(written if self.claim is None else ())
            self._look_around(checkpoint)

    def _judge(self, refused: list[Refusal]) -> None:
        """End the run before failures are stored that are not the rows' own."""
        if self.claim is not None and refused:
            self.tally.check(self.target.task, refused)

    def _look_around(self, checkpoint: Checkpoint) -> None:
        """End the run if the checkpoint showed that it is in vain."""
        self.tally.count(checkpoint.refused)
        self.tally.n_stored += checkpoint.n_stored
        if self.claim is not None:
            if self.claim.cancelled:
                self.stop.ask("the plan was cancelled")
            self.tally.check(self.target.task)


def _may_write_behind() -> bool:
    # A database in memory belongs to one connection, and a transaction that the caller holds open
    # belongs to the caller's: nobody else could see, or get past, it.
    return not dialect().url.endswith(":memory:") and not in_transaction()
