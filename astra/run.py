"""One run of a task: rows are handed over, results taken, timed, and written at checkpoints.

The task computes in the caller's thread. A second thread writes what has waited for
``write_frequency`` seconds, so that a result is stored while the next row takes hours.
"""

import atexit
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import peewee

from astra import log
from astra.database import dialect, in_transaction, retrying
from astra.errors import BrokenElement, DatabaseError
from astra.results import (
    Checkpoint,
    Claim,
    Handed,
    Refusal,
    Target,
    Yielded,
    key_of_result,
    refusal,
    write,
)


@dataclass(frozen=True)
class Settings:
    """The keywords of a task, resolved: call beats decorator beats default."""

    live: bool = False
    batch_size: int = 1000
    write_frequency: float = 300
    write_to_database: bool = True
    re_raise_exceptions: bool = True


class Stop:
    """A wish that the run ends: after the row in hand, or now."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.reason = ""

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.wanted.set()


class Rows:
    """The rows of a run that are still to be handed over, in order."""

    def __init__(self, rows: Iterable[Any], again: Callable[[list[int]], Iterable[Handed]] | None):
        self.rows = iter(rows)
        self.again = again  # how rows are read once more, where they need not be kept
        self.exhausted = False
        self.asked = False

    def __next__(self) -> Any:
        self.asked = True
        try:
            return next(self.rows)
        except StopIteration:
            self.exhausted = True
            raise


class Run:
    """One run of a task over rows; iterate over it to get the results.

    Parameters
    ----------
    function : the generator function, called with an iterator of rows first.
    rows : what it is to process; :class:`~astra.results.Handed`, or rows as they are.
    settings, target : how, and whose results these are.
    call : calls `function` with an iterator of rows and its other arguments.
    claim : of a plan's page; without one, results are not bound to a plan.
    again : reads rows once more by their keys; without it, rows in hand are kept.
    stop : ends the run early when it is asked to.
    whole : every row has to end: a task that stops asking is started again on the rest.
    n_rows : how many rows there are, where that is known.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        call: Callable[[Iterator[Any]], Iterator[Any]],
        settings: Settings,
        target: Target,
        *,
        claim: Claim | None = None,
        again: Callable[[list[int]], Iterable[Handed]] | None = None,
        stop: Stop | None = None,
        whole: bool = False,
        n_rows: int | None = None,
        heartbeat: Callable[[], None] | None = None,
        heartbeat_s: float = 60.0,
    ) -> None:
        self.rows = Rows(rows, again)
        self.call, self.settings, self.target = call, settings, target
        self.claim, self.stop, self.whole, self.n_rows = claim, stop or Stop(), whole, n_rows
        self.open: dict[int, Handed] = {}  # handed over, not ended: by identity, in order
        self.by_key: dict[int, Handed] = {}
        self.current: Handed | None = None
        self.waiting = Checkpoint()
        self.stored: deque[Any] = deque()
        self.since: float | None = None  # when the oldest waiting result was yielded
        self.mutex = threading.RLock()  # guards `waiting` and `stored`
        self.writing = threading.RLock()  # one checkpoint at a time
        self.due = threading.Event()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None
        self.trouble: BaseException | None = None
        self.heartbeat, self.heartbeat_s = heartbeat, heartbeat_s
        self.note: str | None = None
        self.n_results = 0
        self.t_task_s = self.t_write_s = self.t_overhead_s = 0.0
        self.mark = 0.0
        self.began = False  # the first row has been asked for in this pass
        self.credited: list[tuple[int, float, Any]] = []  # task_pk, overhead as written, table
        self.suspects: list[tuple[list[Handed], bool]] = []

    # -- the way through ------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        _Guard.enter(self)
        try:
            yield from self._results(self.rows)
            while self.suspects and not self.stop.wanted.is_set():
                group, halve = self.suspects.pop()
                yield from self._results(self._once_more(group), halve)
            yield from self._flushed()
        finally:
            try:
                self.flush()
            finally:
                self.over.set()
                self.due.set()
                if self.thread is not None:
                    self.thread.join()
                _Guard.leave(self)
            self._correct_overhead()

    def _results(self, rows: Rows, halve: bool = False) -> Iterator[Any]:
        """Run the task until `rows` have ended, again after each row that raised."""
        while True:
            self.began, self.current, rows.asked = False, None, False
            generator = self.call(self._hand(rows))
            try:
                error = yield from self._take(generator)
            finally:
                close = getattr(generator, "close", None)
                if close is not None:
                    close()
            if error is not None:
                if self.settings.re_raise_exceptions:
                    self._blame_last(error)
                    raise error
                self._blame(error, halve)
            else:
                self._settle()
                if self.whole and not rows.asked and not self.stop.wanted.is_set():
                    raise BrokenElement(
                        f"{self.target.task} ended without asking for a row; its page stays pending"
                    )
                if not self.whole:
                    return
            if rows.exhausted or self.stop.wanted.is_set():
                return

    def _take(self, generator: Iterator[Any]) -> Generator[Any, None, BaseException | None]:
        """Take results from the task, and pass on those that may be; what the task raised."""
        while True:
            self.mark = time.perf_counter()
            try:
                result = next(generator)
            except StopIteration:
                self._spend(None)
                return None
            except (Exception, SystemExit) as error:
                if self.trouble is not None:
                    raise self.trouble from error
                self._spend(None)
                return error
            if result is ...:
                self._spend(self.current)
            else:
                yielded = self._timed(result)
                self._wait(yielded)
                if self.settings.live or not self.settings.write_to_database:
                    yield result
            if len(self.waiting.results) >= self.settings.batch_size or self._is_late():
                self.flush()
            if self.trouble is not None:
                raise self.trouble
            if self.stored:
                yield from self._flushed(write_first=False)
            if self.stop.wanted.is_set() and not self.open:
                return None

    def _flushed(self, write_first: bool = True) -> Iterator[Any]:
        if write_first:
            self.flush()
        while self.stored:
            result = self.stored.popleft()
            if not self.settings.live:
                yield result

    # -- rows in, results out ---------------------------------------------------------------

    def _hand(self, rows: Rows) -> Iterator[Any]:
        """What the task iterates over: rows, until there are none or the run is to end."""
        while not self.stop.wanted.is_set():
            self._spend(self.current)
            try:
                row = next(rows)
            except StopIteration:
                break
            except Exception as error:
                # Not the task's doing, though it comes out through the task.
                self.trouble = error
                raise
            handed = row if isinstance(row, Handed) else self._handed(row)
            given = handed.row
            self.open[id(handed)] = handed
            if handed.key is not None:
                self.by_key[handed.key] = handed
            if rows.again is not None:
                handed.row = None
            self.current, self.began = handed, True
            self.mark = time.perf_counter()
            yield given
        self.mark = time.perf_counter()

    def _handed(self, row: Any) -> Handed:
        data = getattr(row, "__data__", None) or {}
        key = data.get("pk" if self.target.on_source else "spectrum_pk")
        return Handed(getattr(key, "pk", key), row, data.get("modified"), self.read_at)

    #: The database's time at which rows that are handed over as they are were read.
    read_at: Any = None

    def _once_more(self, group: list[Handed]) -> Rows:
        if self.rows.again is None:
            return Rows(group, None)
        return Rows(self.rows.again([h.key for h in group if h.key is not None]), self.rows.again)

    def _spend(self, handed: Handed | None) -> None:
        """Credit the time since the task got the word to a row, or to the overhead."""
        spent_s = time.perf_counter() - self.mark
        self.t_task_s += spent_s
        if not self.began or handed is None:
            self.t_overhead_s += spent_s
        else:
            handed.t_spent_s += spent_s

    def _timed(self, result: Any) -> Yielded:
        """The result with the row that it is for, which has ended with it, and its times."""
        spent_s = time.perf_counter() - self.mark
        self.t_task_s += spent_s
        key = key_of_result(result, self.target.on_source)
        handed = self.by_key.pop(key, None) if key is not None else None
        if handed is None:
            handed = self.current if key is None else None
        if handed is not None:
            self.open.pop(id(handed), None)
            spent_s += handed.t_spent_s
            handed.t_spent_s = 0.0
            handed.row = None
        self.n_results += 1
        data = getattr(result, "__data__", None)
        if data is not None and "t_elapsed" in result._meta.fields:
            result.t_elapsed = spent_s
            result.t_overhead = self.t_overhead_s / max(self.n_rows or 0, self.n_results)
        return Yielded(result, handed)

    def _settle(self) -> None:
        """The task has ended in order: it yielded nothing for the rows that are still open."""
        if self.open and self.settings.write_to_database:
            with self.mutex:
                self.waiting.no_results += self.open.values()
        self.open.clear()
        self.by_key.clear()

    # -- failures ---------------------------------------------------------------------------

    def _blame_last(self, error: BaseException) -> None:
        """Before an exception goes on to the caller: its row is known if it is the only one."""
        if isinstance(error, Exception) and len(self.open) == 1 and self.claim is not None:
            self._fail(next(iter(self.open.values())), error)

    def _blame(self, error: BaseException, halve: bool) -> None:
        """Find the row that an exception belongs to, and record it; the others go on."""
        log.error("%s raised: %s", self.target.task, error, exc_info=error)
        group = list(self.open.values())
        if not self.began:
            raise BrokenElement(
                f"{self.target.task} raised before it asked for a row: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not group:
            # Every row in hand has its result: nothing is lost by what came after it.
            self.note = f"{type(error).__name__} after a result: {error}"
        elif len(group) == 1:
            self._fail(group[0], error)
        elif halve:
            middle = len(group) // 2
            self.suspects += [(group[middle:], True), (group[:middle], True)]
        else:
            # Likeliest is the last; the others may have had no result, or have been collected.
            self.suspects += [(group[:-1], True), (group[-1:], True)]
        self.open.clear()
        self.by_key.clear()

    def _fail(self, handed: Handed, error: BaseException) -> None:
        self.open.pop(id(handed), None)
        with self.mutex:
            self.waiting.failures.append(refusal(error, handed.key, handed.modified))
            self.since = self.since or time.monotonic()

    def fail(self, failure: Refusal) -> None:
        """Record a failure that is known before the task saw the row."""
        with self.mutex:
            self.waiting.failures.append(failure)

    # -- checkpoints ------------------------------------------------------------------------

    def _wait(self, yielded: Yielded) -> None:
        if not self.settings.write_to_database:
            return
        with self.mutex:
            self.waiting.results.append(yielded)
            if self.since is None:
                self.since = time.monotonic()
                self._wake()

    def _is_late(self) -> bool:
        return (
            self.since is not None
            and time.monotonic() - self.since >= self.settings.write_frequency
        )

    def _wake(self) -> None:
        """Have the second thread look at the clock again."""
        if self.thread is None and self._may_write_behind():
            self.thread = threading.Thread(target=self._write_behind, name="astra", daemon=True)
            self.thread.start()
        self.due.set()

    def start_heartbeat(self) -> None:
        self._wake()

    @staticmethod
    def _may_write_behind() -> bool:
        # A database in memory belongs to one connection, and a transaction that the caller
        # holds open belongs to the caller's: nobody else could see, or get past, it.
        return not dialect().url.endswith(":memory:") and not in_transaction()

    def _write_behind(self) -> None:
        beat = time.monotonic()
        while not self.over.is_set():
            self.due.clear()
            with self.mutex:
                late_s = (
                    self.since + self.settings.write_frequency - time.monotonic()
                    if self.since is not None
                    else None
                )
            if self.stop.wanted.is_set() and late_s is not None:
                late_s = 0.0
            if late_s is not None and late_s <= 0:
                try:
                    self.flush(patiently=False)
                except BaseException as error:
                    self.trouble = error
                    return
                beat = time.monotonic()
                continue
            rest_s = self.heartbeat_s - (time.monotonic() - beat)
            if self.heartbeat is not None and rest_s <= 0:
                self._beat()
                beat, rest_s = time.monotonic(), self.heartbeat_s
            self.due.wait(rest_s if late_s is None else min(late_s, rest_s))

    def _beat(self) -> None:
        try:
            retrying(self.heartbeat or (lambda: None), bound_s=5)
        except (DatabaseError, peewee.PeeweeException) as error:
            log.warning("no heartbeat: %s", error)

    def flush(self, patiently: bool = True) -> None:
        """Write all that waits, as one checkpoint; nothing is dropped if that fails."""
        if not self.settings.write_to_database:
            return
        with self.writing:
            with self.mutex:
                checkpoint, self.waiting, since = self.waiting, Checkpoint(), self.since
                self.since = None
            if not checkpoint:
                return
            began = time.perf_counter()
            try:
                written = retrying(
                    lambda: write(checkpoint, self.target, self.claim),
                    waiting=None if patiently else self.over,
                )
            except BaseException:
                with self.mutex:
                    self.waiting = Checkpoint(
                        checkpoint.results + self.waiting.results,
                        checkpoint.failures + self.waiting.failures,
                        checkpoint.no_results + self.waiting.no_results,
                    )
                    self.since = since
                raise
            self.t_write_s += time.perf_counter() - began
            with self.mutex:
                self.stored.extend(written)
            self.credited += ((r.task_pk, r.t_overhead or 0.0, type(r)) for r in written)

    def _correct_overhead(self) -> None:
        """The time after the last row is known only now: mend what was written before it."""
        if not self.credited:
            return
        share_s = self.t_overhead_s / max(self.n_results, 1)
        wrong: dict[Any, list[int]] = {}
        for pk, written_s, model in self.credited:
            if abs(written_s - share_s) > 1e-3:
                wrong.setdefault(model, []).append(pk)
        for model, keys in wrong.items():
            clause = dialect().among(model.task_pk, keys)
            if self.claim is not None:
                clause &= model.attempt_pk == self.claim.attempt.pk
            retrying(model.update(t_overhead=share_s).where(clause).execute)


class _Guard:
    """Runs under way in this process: a SIGTERM that nobody handles, or the end of the
    interpreter, finds their results written."""

    runs: list[Run] = []
    previous: Any = None

    @classmethod
    def enter(cls, run: Run) -> None:
        if not cls.runs:
            atexit.register(cls.flush)
            if (
                threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            ):
                cls.previous = signal.signal(signal.SIGTERM, cls.on_sigterm)
        cls.runs.append(run)

    @classmethod
    def leave(cls, run: Run) -> None:
        if run in cls.runs:
            cls.runs.remove(run)
        if not cls.runs:
            atexit.unregister(cls.flush)
            if cls.previous is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, cls.previous)
                cls.previous = None

    @classmethod
    def flush(cls) -> None:
        for run in list(cls.runs):
            run.flush()

    @classmethod
    def on_sigterm(cls, number: int, frame: object) -> None:
        # Raised where the program stands; the runs' own ends, or the end of the interpreter,
        # write what waits.
        raise SystemExit(128 + number)
