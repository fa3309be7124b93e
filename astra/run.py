"""One run of a task: rows are handed over, results taken, timed, and written at checkpoints.

The task computes in the caller's thread. A second thread writes what has waited for
``write_frequency`` seconds, so that a result is stored while the next row takes hours. The rows of
a page are all written by that thread: while the database is away the task goes on computing, and
a transaction that the task left open cannot swallow a checkpoint.
"""

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol

import peewee

from astra import log
from astra.corrections import Corrections
from astra.database import Beside, apart, at_hand, dialect, in_transaction, retrying
from astra.errors import BrokenElement, DatabaseError, OutOfMemory
from astra.guard import Guard, Terminated
from astra.measures import RowTimes
from astra.models.pipeline import PipelineOutputModel
from astra.models.source import Source
from astra.results import (
    Checkpoint,
    Claim,
    Handed,
    Refusal,
    Target,
    Yielded,
    as_key,
    key_of_result,
    refusal,
    words_of,
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


#: Batches that may wait while one is written, or while the database is away.
ROOM = 4

#: Errors of the operating system that no row is to blame for: disk, memory, network, mounts.
_WORLD = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE,
        errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ECONNREFUSED,
        errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EREMOTEIO,
    }
)  # fmt: skip


#: In the place of a row, when there are no more.
_END = object()


class Stop:
    """A wish that the run ends: after the row in hand, or now."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.reason = ""

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.wanted.set()


@dataclass
class Tally:
    """How the rows of an element fared: a task that fails them all is not the rows' fault."""

    share: float = 1.0  # of the rows that may fail
    after: int = 20  # rows; with fewer nothing is concluded
    n_ended: int = 0
    n_failed: int = 0

    def check(self, task: str) -> None:
        """
        Raises
        ------
        BrokenElement
            If more than the share of rows has failed.
        """
        if self.n_ended >= self.after and self.n_failed > self.share * self.n_ended:
            raise BrokenElement(
                f"{self.n_failed} of {self.n_ended} rows of this element failed, more than the "
                f"share of {self.share:g} ([element] max_failures): {task} is taken to be broken, "
                "not its rows; failures not yet stored are left out, and their rows stay pending"
            )


class Board(Protocol):
    """What is told which rows the task has in hand (see supervise.py)."""

    def hand(self, key: int | None) -> None:
        """The task is given a row."""

    def end(self, key: int | None) -> None:
        """The task has the row in hand no more."""

    def clear(self) -> None:
        """The task has no row in hand."""

    def works(self, since: float) -> None:
        """The task has had the word since then; 0 while it has not."""


class Rows:
    """The rows of a run that are still to be handed over, in order."""

    def __init__(self, rows: Iterable[Any], again: Callable[[list[int]], Iterable[Handed]] | None):
        self.rows = iter(rows)
        self.again = again  # how rows are read once more, where they need not be kept
        self.exhausted = False
        self.asked = False


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
    n_rows : how many rows there are, where that is known.
    suspects : rows by their keys that are handed over last, each group by itself, since a
        process died with them in hand.
    begins : is told of the run before the task is called.
    ends : asked when all rows have ended: whether the last checkpoint may be written on this
        thread's connection, which the task has left alone.
    enters : is told of each group before it is handed over, once all else is written.
    board : is told which rows the task has in hand.
    tally : of the element.
    outer : exceptions that are no row's fault.

    With a claim every row has to end: a task that stops asking is started again on the rest.
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
        n_rows: int | None = None,
        heartbeat: Callable[[], None] | None = None,
        heartbeat_s: float = 60.0,
        suspects: Iterable[list[int]] = (),
        begins: Callable[["Run"], None] = lambda run: None,
        ends: Callable[[], bool] = lambda: False,
        enters: Callable[[list[int]], None] = lambda keys: None,
        board: Board | None = None,
        tally: Tally | None = None,
        outer: tuple[type[BaseException], ...] = (MemoryError,),
        grace_s: float = 3.0,
    ) -> None:
        self.rows = Rows(rows, again)
        self.call, self.settings, self.target = call, settings, target
        self.key_name = target.key_name
        self.claim, self.stop, self.n_rows = claim, stop or Stop(), n_rows
        self.board, self.tally, self.outer = board, tally or Tally(), outer
        self.begins, self.ends, self.enters, self.grace_s = begins, ends, enters, grace_s
        _warn_of_transaction(settings)
        # Handed over, not ended, in order: by key; a row without one, or one of two, by itself.
        self.open: dict[Any, Handed] = {}
        self.current: Handed | None = None
        self.waiting = Checkpoint()
        self.stored: deque[Any] = deque()
        self.since: float | None = None  # when the oldest waiting result was yielded
        self.mutex = threading.RLock()  # guards `waiting`, `in_writing` and `stored`
        self.room = threading.Condition(self.mutex)  # something was written, or cannot be
        self.writing = threading.RLock()  # one checkpoint at a time
        self.in_writing = Checkpoint()
        self.behind = claim is not None and self._may_write_behind()
        # SQLite's driver lets go of the interpreter's lock at every row: beside a task that
        # computes, each row of a batch would wait 5 ms to get it back. And what one core has made
        # need not go over to another.
        self.writes_here = self.behind and dialect().name == "sqlite"
        self.beside = Beside()
        self.is_left = (
            False  # to the second thread, which waits for the file while the task goes on
        )
        self.ending = False  # whatever waits is to be written now
        self.due = threading.Event()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None
        self.trouble: BaseException | None = None
        self.heartbeat, self.heartbeat_s = heartbeat, heartbeat_s
        self.note: str | None = None
        self.n_results = 0
        self.t_task_s = self.t_write_s = self.t_overhead_s = 0.0
        self.row_times = RowTimes()
        self.mark = 0.0
        self.began = False  # the first row has been asked for in this pass
        self.asked = False  # a row, or the end, has been asked for since the last result
        self.at_end = False  # the task was told that there are no more rows
        self.after: Yielded | None = None  # the result of the row in hand, once it is yielded
        # A row that may have to be handed over again, and that nobody reads again, is kept.
        self.keeps_rows = again is None and not settings.re_raise_exceptions
        self.corrections = Corrections(claim)
        groups = [[Handed(key, None) for key in group] for group in suspects]
        self.suspects: list[tuple[list[Handed], bool]] = [(group, True) for group in groups[::-1]]
        self.careful = bool(groups)  # a process died before: write before what may kill this one

    # -- the way through ------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        Guard.enter(self)
        try:
            self.begins(self)
            yield from self._results(self.rows)
            while self.suspects and not self.stop.wanted.is_set():
                group, halve = self.suspects.pop()
                if self.careful:
                    self.write_all()
                    self.enters([h.key for h in group if h.key is not None])
                yield from self._results(self._once_more(group), halve)
            if not self.behind:
                yield from self._flushed()
            elif not self._is_stuck() and self.ends():
                self._write_last()
        finally:
            try:
                self.write_all()
            finally:
                self.beside.close()
                self.over.set()
                self.due.set()
                if self.thread is not None and not (self.behind and self.unwritten()):
                    self.thread.join()
                Guard.leave(self)
            self.corrections.write(self.t_overhead_s / max(self.n_results, 1))

    def _results(self, rows: Rows, halve: bool = False) -> Iterator[Any]:
        """Run the task until `rows` have ended, again after each row that raised."""
        while True:
            self.began, self.current, rows.asked = False, None, False
            self.after, self.at_end = None, False
            generator = self.call(self._hand(rows))
            try:
                error = yield from self._take(generator)
            finally:
                close = getattr(generator, "close", None)
                if close is not None:
                    close()
            if error is not None:
                if self.claim is not None:
                    self._refuse_outer(error)
                elif self._is_outer(error):
                    raise error
                if self.settings.re_raise_exceptions:
                    self._blame_last(error)
                    raise error
                self._blame(error, halve)
                error = None  # its traceback holds all that the task has loaded
            else:
                self._settle()
                whole = self.claim is not None
                if whole and not rows.asked and not self.stop.wanted.is_set():
                    raise BrokenElement(
                        f"{self.target.task} ended without asking for a row; its page stays pending"
                    )
                if not whole:
                    return
            if rows.exhausted or self.stop.wanted.is_set():
                return

    def _take(self, generator: Iterator[Any]) -> Generator[Any, None, BaseException | None]:
        """Take results from the task, and pass on those that may be; what the task raised."""
        writes, board = self.settings.write_to_database, self.board
        passes_on = self.settings.live or not writes
        is_over, is_full = self.stop.wanted.is_set, self._is_full
        while True:
            if Guard.told:
                Guard.check()
            self._give_word()
            try:
                result = next(generator)
            except StopIteration:
                self._spend(None)
                return None
            except Terminated:
                raise
            except (Exception, SystemExit) as error:
                if self.trouble is not None:
                    raise self.trouble from error
                self._spend(self.current)
                return error
            finally:
                if board is not None:
                    board.works(0.0)
            if result is ...:
                self._spend(self.current)
            else:
                yielded = self._timed(result)
                if writes:
                    self._wait(yielded)
                if passes_on:
                    yield result
            if is_full():
                if self.behind:
                    self._hand_on()
                else:
                    self.flush()
            elif not self.behind and self._is_late():
                self.flush()
            if self.trouble is not None:
                raise self.trouble
            if self.stored:
                yield from self._flushed(write_first=False)
            if not self.open and is_over():
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
        rows.asked = True
        is_over, open_, board = self.stop.wanted.is_set, self.open, self.board
        while not is_over():
            self._spend(self.current)
            if board is not None:
                board.works(0.0)
            try:
                row = next(rows.rows, _END)
                if row is _END:
                    self._no_more(rows)
                    break
            except Exception as error:
                # Not the task's doing, though it comes out through the task.
                self.trouble = error
                raise
            if type(row) is Handed:
                handed = row
            else:
                if not self.began and not open_:
                    self._look_at_first(row)
                handed = self._handed(row)
            given, key = handed.row, handed.key
            open_[handed if key is None or key in open_ else key] = handed
            if not self.keeps_rows:
                handed.row = None
            self.current, self.after = handed, None
            self.began = self.asked = True
            if board is not None:
                board.hand(key)
            del row, handed  # what the task lets go of is not held here, either
            self._give_word()
            yield given
        self._give_word()

    def _no_more(self, rows: Rows) -> None:
        """At the end of the rows all is written, if what comes next may be deadly."""
        rows.exhausted = self.at_end = self.asked = True
        if self.careful:
            self.write_all()

    def _handed(self, row: Any) -> Handed:
        data = getattr(row, "__data__", None) or {}
        key = as_key(data.get("pk" if self.target.on_source else "spectrum_pk"))
        table = getattr(getattr(row, "_meta", None), "table_name", None)
        return Handed(key, row, data.get("modified"), self.read_at, table=table)

    def _look_at_first(self, row: Any) -> None:
        """Rows of a generator say only themselves whether they are sources or spectra."""
        if isinstance(row, peewee.Model):
            self.target = replace(self.target, on_source=isinstance(row, Source))
            self.key_name = self.target.key_name

    #: The database's time at which rows that are handed over as they are were read.
    read_at: Any = None

    def _once_more(self, group: list[Handed]) -> Rows:
        if self.rows.again is None:
            return Rows(group, None)
        return Rows(self.rows.again([h.key for h in group if h.key is not None]), self.rows.again)

    def _give_word(self) -> None:
        self.mark = perf_counter()
        if self.board is not None:
            self.board.works(self.mark)

    def _spend(self, handed: Handed | None) -> None:
        """Credit the time since the task got the word to a row, or to the overhead."""
        spent_s = perf_counter() - self.mark
        self.t_task_s += spent_s
        if not self.began or handed is None:
            self.t_overhead_s += spent_s
        elif self.after is not None:
            self._amend(self.after, spent_s)
        else:
            handed.t_spent_s += spent_s

    def _amend(self, yielded: Yielded, spent_s: float) -> None:
        """Credit work that a task does on a row after its result was yielded."""
        result = yielded.result
        if type(result) is not self.target.output and not isinstance(result, PipelineOutputModel):
            return
        with self.mutex:
            if yielded.taken:
                self.corrections.longer(result, spent_s)
            else:
                result.__data__["t_elapsed"] += spent_s

    def _timed(self, result: Any) -> Yielded:
        """The result with the row that it is for, which has ended with it, and its times."""
        spent_s = perf_counter() - self.mark
        self.t_task_s += spent_s
        handed, again = self._row_of(result)
        if handed is not None and not again:
            if self.open and self.asked and (self.at_end or handed is not self.current):
                self._share_out(handed, spent_s)
            else:
                handed.t_spent_s += spent_s
            spent_s, handed.t_spent_s, handed.row = handed.t_spent_s, 0.0, None
            if self.board is not None:
                self.board.end(handed.key)
            self.row_times.add(spent_s)
        self.asked = False
        self.n_results += 1
        self.tally.n_ended += 1
        if type(result) is self.target.output or isinstance(result, PipelineOutputModel):
            set_times(result, spent_s, self.t_overhead_s / max(self.n_rows or 0, self.n_results))
        yielded = Yielded(result, handed, again)
        if handed is self.current:
            self.after = yielded
        return yielded

    def _share_out(self, handed: Handed, spent_s: float) -> None:
        """A task that took several rows before its first result has worked on all of them."""
        each = [handed, *self.open.values()]
        for worked_on in each:
            worked_on.t_spent_s += spent_s / len(each)

    def _row_of(self, result: Any) -> tuple[Handed | None, bool]:
        """The row that a result is for, which is open no more, and whether it had ended before.

        A result that bears no key of a row in hand is for the row that was handed over last.
        """
        last = self.current
        if last is not None and type(result) is self.target.output:  # as it mostly is
            key = result.__data__.get(self.key_name)
            if key == last.key and type(key) is int and key in self.open:
                return self.open.pop(key), False
        key = key_of_result(result, self.target.on_source)
        if key is not None and key in self.open:
            return self.open.pop(key), False
        if last is not None and (key is None or key == last.key):
            return last, not self._close(last)
        if last is not None and last.key is None and self._close(last):
            return last, False
        # It is of a row that ended, or that was never handed over: nothing is known of it.
        return (Handed(key, None, None, self.read_at) if self.claim is None else None), False

    def _close(self, handed: Handed) -> bool:
        """The row is open no more; whether it was."""
        if self.open.get(handed.key) is handed:
            del self.open[handed.key]
            return True
        return self.open.pop(handed, None) is not None

    def _settle(self) -> None:
        """The task has ended in order: it yielded nothing for the rows that are still open."""
        if self.open and self.settings.write_to_database:
            with self.mutex:
                self.waiting.no_results += self.open.values()
            self.tally.n_ended += len(self.open)
            for handed in self.open.values():
                self.row_times.add(handed.t_spent_s)
        self._drop_hands()

    def _drop_hands(self) -> None:
        self.open.clear()
        if self.board is not None:
            self.board.clear()

    # -- failures ---------------------------------------------------------------------------

    def _blame_last(self, error: BaseException) -> None:
        """Before an exception goes on to the caller: its row is known if it is the only one."""
        if isinstance(error, Exception) and len(self.open) == 1 and self.claim is not None:
            self._fail(next(iter(self.open.values())), error)

    def _blame(self, error: BaseException, halve: bool) -> None:
        """Find the row that an exception belongs to, and record it; the others go on."""
        said = f"{type(error).__name__}: {words_of(error)}"
        log.error("%s raised %s", self.target.task, said, exc_info=_told(error))
        group = list(self.open.values())
        if not self.began:
            raise BrokenElement(
                f"{self.target.task} raised before it asked for a row: {said}"
            ) from error
        if not group:
            # Every row in hand has its result: nothing is lost by what came after it.
            self.note = f"{type(error).__name__} after a result: {words_of(error)}"
        elif len(group) == 1:
            self._fail(group[0], error)
        elif halve:
            middle = len(group) // 2
            self.suspects += [(group[middle:], True), (group[:middle], True)]
        else:
            # Likeliest is the last; the others may have had no result, or have been collected.
            self.suspects += [(group[:-1], True), (group[-1:], True)]
        self._drop_hands()

    def _is_outer(self, error: BaseException) -> bool:
        """Whether an exception is of the world around, such as a full disk, and of no row."""
        return isinstance(error, self.outer) or (
            isinstance(error, OSError) and error.errno in _WORLD
        )

    def _refuse_outer(self, error: BaseException) -> None:
        """
        Raises
        ------
        BrokenElement
            If an exception is no row's fault.
        """
        if not self._is_outer(error):
            return
        said = f"{type(error).__name__}: {words_of(error)}"
        if isinstance(error, MemoryError):
            raise OutOfMemory(f"{self.target.task} ran out of memory ({said})") from error
        raise BrokenElement(
            f"{said}: this is taken to be no row's fault ([element] outer_exceptions), and the "
            "rows stay pending"
        ) from error

    def _fail(self, handed: Handed, error: BaseException) -> None:
        self._close(handed)
        self.row_times.add(handed.t_spent_s)
        self.tally.n_ended += 1
        self.tally.n_failed += 1
        with self.mutex:
            self.waiting.failures.append(refusal(error, handed))
            self.since = self.since or time.monotonic()
        try:
            self.tally.check(self.target.task)
        except BrokenElement:
            with self.mutex:
                self.waiting.failures.clear()
            raise

    def fail(self, failure: Refusal) -> None:
        """Record a failure that is known before the task saw the row."""
        with self.mutex:
            self.waiting.failures.append(failure)

    # -- checkpoints ------------------------------------------------------------------------

    def _wait(self, yielded: Yielded) -> None:
        with self.mutex:
            self.waiting.results.append(yielded)
            if self.since is None:
                self.since = time.monotonic()
                self._wake()

    def _is_full(self) -> bool:
        return len(self.waiting) >= self.settings.batch_size

    def _hand_on(self) -> None:
        """Have a full batch written, and go on while there is room for more."""
        if self.writes_here and not self.is_left and not self.in_writing and self._write_here():
            return
        if self.n_results == self.n_rows:
            return  # of the last row, as it seems: what comes next is the end, which writes it
        self._wake()
        with self.room:
            while len(self.waiting) >= ROOM * self.settings.batch_size and not self._is_stuck():
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

    def _write_last(self) -> None:
        """Write what is left of the page on the connection that this thread goes on with."""
        try:
            self.flush()
        except Exception as error:
            self.trouble = error  # it was tried for as long as anything is
            raise

    def _is_stuck(self) -> bool:
        return self.trouble is not None or self.stop.wanted.is_set()

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
            self._wake()
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

    def unwritten(self) -> Checkpoint:
        """What was yielded and is not known to be stored."""
        with self.mutex:
            return self.in_writing + self.waiting

    def _patiently(self, work: Callable[[], Any]) -> Any:
        """`work()`, which writes, again while the database is away."""
        if threading.current_thread() is self.thread:
            # It has a connection that nobody else reads on.
            return retrying(work, waiting=self.stop.wanted if self.behind else self.over)
        ends = self.stop.wanted if self.behind else None
        return apart(lambda: retrying(work, waiting=ends))

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
                self._beat()
                beat, rest_s = time.monotonic(), self.heartbeat_s
            self.due.wait(rest_s if late_s is None else min(late_s, rest_s))

    def _write_due(self) -> None:
        """Write what is due, and on the same connection the batches that became full meanwhile."""
        with at_hand(self.behind):
            self.flush()
            while self.behind and self._is_full():
                self.flush()
        self.is_left = False

    def _until_due(self) -> float | None:
        """Seconds until something has to be written; None while nothing waits."""
        with self.mutex:
            if not self.waiting:
                return None
            if self.ending or self.stop.wanted.is_set() or (self.behind and self._is_full()):
                return 0.0
            if self.since is None:
                return None
            return self.since + self.settings.write_frequency - time.monotonic()

    def _beat(self) -> None:
        try:
            retrying(self.heartbeat or (lambda: None), bound_s=5)
        except (DatabaseError, peewee.PeeweeException) as error:
            log.warning("no heartbeat: %s", error)

    def flush(self, way: Callable[[Callable[[], Any]], Any] | None = None) -> None:
        """Write all that waits, as one checkpoint; nothing is dropped if that fails."""
        if not self.settings.write_to_database:
            return
        with self.writing:
            with self.mutex:
                checkpoint, self.waiting, since = self.waiting, Checkpoint(), self.since
                self.in_writing, self.since = checkpoint, None
                if self.after is not None:
                    self.after.taken = True
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


def set_times(result: PipelineOutputModel, elapsed_s: float, overhead_s: float) -> None:
    """As by assignment, which takes four times as long."""
    data, dirty = result.__data__, result._dirty
    data["t_elapsed"], data["t_overhead"] = elapsed_s, overhead_s
    dirty.add("t_elapsed")
    dirty.add("t_overhead")


def _warn_of_transaction(settings: Settings) -> None:
    if settings.write_to_database and in_transaction():
        log.warning(
            "called within a transaction: results are written when a batch is full, and others "
            "see them when you commit; write_frequency has no effect"
        )


def _told(error: BaseException) -> BaseException | None:
    """An exception as the log can show it: one without a text would end the logging itself."""
    try:
        str(error)
    except Exception:
        return None
    return error
