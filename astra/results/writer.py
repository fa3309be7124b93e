"""The checkpoints of a run: what was yielded waits here, and is written by a second thread.

It writes what has waited for ``write_frequency`` seconds, so that a result is stored while the next
row takes hours. The rows of a page are all written by that thread: while the database is away the
task goes on computing, and a transaction that the task left open cannot swallow a checkpoint.
"""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from itertools import groupby
from time import perf_counter
from typing import TYPE_CHECKING, Any

import peewee

from astra.database.connection import at_hand, dialect, in_transaction, retrying, writing
from astra.database.threads import Beside, apart, aside
from astra.errors import DatabaseError
from astra.results.checkpoint import write
from astra.results.claim import Claim
from astra.results.rows import Checkpoint, Handed, Refusal, Target, Yielded

if TYPE_CHECKING:
    from astra.results.stopping import Settings, Stop, Tally

log = logging.getLogger(__name__)


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


#: A difference that is not worth a statement [s].
NEGLIGIBLE_S = 1e-3


def _as_written(result: Any) -> tuple[Any, float]:
    """The table of a result, and the overhead that it was written with."""
    return type(result), result.__data__.get("t_overhead") or 0.0


class Corrections:
    """What is to be mended of the results of a run, and no more of them than that."""

    def __init__(self, claim: Claim | None) -> None:
        self.claim = claim
        self.overheads: dict[tuple[Any, float], list[int]] = {}  # task_pk, by table and as written
        self.kept: list[tuple[float, Any]] = []  # as written, and the result, if somebody has it
        self.elapsed: dict[tuple[Any, int], float] = {}  # of (table, task_pk)
        self.unwritten: list[Any] = []  # results that are being written, with a longer time

    def stored(self, results: Iterable[Any]) -> None:
        """These were written, as they are."""
        for (model, overhead_s), alike in groupby(results, _as_written):
            some = list(alike)
            pks = self.overheads.setdefault((model, overhead_s), [])
            pks += [result.__data__["task_pk"] for result in some]
            if self.claim is None:  # who runs a page does not look at its results
                self.kept += [(overhead_s, weakref.ref(result)) for result in some]
        written, self.unwritten = self.unwritten, []
        for result in written:
            self._note(result)

    def longer(self, result: Any, spent_s: float) -> None:
        """A result that a checkpoint has taken took longer than it says there."""
        if spent_s < NEGLIGIBLE_S:
            return
        result.__data__["t_elapsed"] += spent_s
        self._note(result)

    def _note(self, result: Any) -> None:
        if result.__data__.get("task_pk") is None:
            self.unwritten.append(result)
        else:
            self.elapsed[type(result), result.task_pk] = result.t_elapsed

    def write(self, overhead_s: float) -> None:
        """Mend what was written, and set the overhead of the results that somebody still has."""
        self.stored(())
        changes = [(m, [pk], {"t_elapsed": t}) for (m, pk), t in self.elapsed.items()]
        wrong: dict[Any, list[int]] = {}
        for (model, written_s), pks in self.overheads.items():
            if abs(written_s - overhead_s) > NEGLIGIBLE_S:
                wrong.setdefault(model, []).extend(pks)
        for written_s, result in self.kept:
            if abs(written_s - overhead_s) > NEGLIGIBLE_S and (found := result()) is not None:
                found.__data__["t_overhead"] = overhead_s
        changes += [(model, keys, {"t_overhead": overhead_s}) for model, keys in wrong.items()]
        if not changes:
            return
        if self.claim is None:
            apart(lambda: retrying(lambda: self._update(changes)))
            return
        try:
            aside(lambda: retrying(lambda: self._update(changes), bound_s=5))
        except (DatabaseError, peewee.PeeweeException) as error:
            # The results stand; how time is shared out is no reason to fail.
            log.warning("times could not be corrected: %s", error)

    def _update(self, changes: list[tuple[Any, list[int], dict[str, float]]]) -> None:
        with writing():
            for model, keys, values in changes:
                clause = dialect().among(model.task_pk, keys)
                if self.claim is not None:
                    clause &= model.attempt_pk == self.claim.attempt.pk
                model.update(values).where(clause).execute()
