"""One run of a task: rows are handed over, results taken, timed, and left to the writer.

The task computes in the caller's thread; :mod:`astra.results.writer` has a second one.
"""

import errno
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any, Protocol

import peewee

from astra.database.connection import in_transaction
from astra.errors import BrokenElement, MissingExtra, OutOfMemory
from astra.models.keys import RowKey, as_key, moment_in, table_name
from astra.models.pipeline import OutputModel
from astra.results.claim import Claim
from astra.results.rows import Handed, Target, Yielded, refusal, words_of
from astra.results.stopping import Guard, Settings, Stop, Tally, Terminated
from astra.results.timing import RowTimes
from astra.results.writer import Writer

log = logging.getLogger(__name__)


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


class Board(Protocol):
    """What is told which rows the task has in hand (see supervisor.py)."""

    def hand(self, key: RowKey | None) -> None:
        """The task is given a row."""

    def end(self, key: RowKey | None) -> None:
        """The task has the row in hand no more."""

    def clear(self) -> None:
        """The task has no row in hand."""

    def works(self, since: float) -> None:
        """The task has had the word since then; 0 while it has not."""


class Rows:
    """The rows of a run that are still to be handed over, in order."""

    def __init__(self, rows: Iterable[Any], again: Callable[[list[Any]], Iterable[Handed]] | None):
        self.rows = iter(rows)
        self.again = again  # how rows are read once more, where they need not be kept
        self.exhausted = False
        self.asked = False


class Run:
    """One run of a task over rows; iterate over it to get the results.

    Parameters
    ----------
    function : the generator function, called with an iterator of rows first.
    rows : what it is to process; :class:`~astra.results.rows.Handed`, or rows as they are.
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
        again: Callable[[list[Any]], Iterable[Handed]] | None = None,
        stop: Stop | None = None,
        n_rows: int | None = None,
        heartbeat: Callable[[], None] | None = None,
        heartbeat_s: float = 60.0,
        suspects: Iterable[list[Any]] = (),
        begins: Callable[["Run"], None] = lambda run: None,
        ends: Callable[[], bool] = lambda: False,
        enters: Callable[[list[Any]], None] = lambda keys: None,
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
        self.begins, self.ends, self.enters = begins, ends, enters
        _warn_of_transaction(settings)
        self.writer = Writer(
            settings, target, claim, self.stop, self.tally, heartbeat, heartbeat_s, grace_s
        )
        # Handed over, not ended, in order: by key; a row without one, or one of two, by itself.
        self.open: dict[Any, Handed] = {}
        self.current: Handed | None = None
        self.note: str | None = None
        self.n_results = 0
        self.t_task_s = self.t_overhead_s = 0.0
        self.row_times = RowTimes()
        self.mark = 0.0
        self.began = False  # the first row has been asked for in this pass
        self.asked = False  # a row, or the end, has been asked for since the last result
        self.at_end = False  # the task was told that there are no more rows
        self.after: Yielded | None = None  # the result of the row in hand, once it is yielded
        # A row that may have to be handed over again, and that nobody reads again, is kept.
        self.keeps_rows = again is None and not settings.re_raise_exceptions
        groups = [[Handed(key, None) for key in group] for group in suspects]
        self.suspects: list[tuple[list[Handed], bool]] = [(group, True) for group in groups[::-1]]
        self.careful = bool(groups)  # a process died before: write before what may kill this one

    # -- the way through ------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        Guard.enter(self.writer)
        try:
            self.begins(self)
            yield from self._results(self.rows)
            while self.suspects and not self.stop.wanted.is_set():
                group, halve = self.suspects.pop()
                if self.careful:
                    self.writer.write_all()
                    self.enters([h.key for h in group if h.key is not None])
                yield from self._results(self._once_more(group), halve)
            if not self.writer.behind:
                yield from self._flushed()
            elif not self.writer.is_stuck() and self.ends():
                self.writer.write_last()
        finally:
            try:
                self.writer.write_all()
            finally:
                self.writer.close()
                Guard.leave(self.writer)
            self.writer.corrections.write(self.t_overhead_s / max(self.n_results, 1))

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
        writer, is_over, is_full = self.writer, self.stop.wanted.is_set, self.writer.is_full
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
                if writer.trouble is not None:
                    raise writer.trouble from error
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
                    writer.add(yielded)
                if passes_on:
                    yield result
            if is_full():
                if writer.behind:
                    writer.hand_on(is_last=self.n_results == self.n_rows)
                else:
                    writer.flush()
            elif not writer.behind and writer.is_late():
                writer.flush()
            if writer.trouble is not None:
                raise writer.trouble
            if writer.stored:
                yield from self._flushed(write_first=False)
            if not self.open and is_over():
                return None

    def _flushed(self, write_first: bool = True) -> Iterator[Any]:
        if write_first:
            self.writer.flush()
        while self.writer.stored:
            result = self.writer.stored.popleft()
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
                self.writer.trouble = error
                raise
            if type(row) is Handed:
                handed = row
            else:
                if not self.began and not open_:
                    self._look_at_first(row)
                handed = self._handed(row)
            given, key, known = handed.row, handed.key, handed.known
            open_[handed if known is None or known in open_ else known] = handed
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
            self.writer.write_all()

    def _handed(self, row: Any) -> Handed:
        model = type(row) if isinstance(row, peewee.Model) else None
        table = None if model is None else table_name(model)
        modified = None if model is None else moment_in(row)
        bears = self.target.link.of_row(row) if self.target.link is not None else None
        key = as_key(bears) if self.key_name is not None else None
        bears = None if key is not None else bears
        return Handed(key, row, modified, self.read_at, table=table, bears=bears)

    def _look_at_first(self, row: Any) -> None:
        """Rows of a generator say only themselves of which table they are."""
        if isinstance(row, peewee.Model):
            self.target = replace(self.target, model=type(row))
            self.writer.target = self.target
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
            if self._is_timed(self.after.result):
                self.writer.amend(self.after, spent_s)
        else:
            handed.t_spent_s += spent_s

    def _is_timed(self, result: Any) -> bool:
        return type(result) is self.target.output or isinstance(result, OutputModel)

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
        if self._is_timed(result):
            set_times(result, spent_s, self.t_overhead_s / max(self.n_rows or 0, self.n_results))
        yielded = Yielded(result, handed, again)
        if handed is None:
            yielded.bears = self.target.bears(result)
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
        bears = self.target.bears(result)
        if bears is not None and bears in self.open:
            return self.open.pop(bears), False
        if last is not None and (bears is None or bears == last.known):
            return last, not self._close(last)
        if last is not None and last.known is None and self._close(last):
            return last, False
        # It is of a row that ended, or that was never handed over: nothing is known of it.
        if self.claim is not None:
            return None, False
        key = as_key(bears) if self.key_name is not None else None
        return Handed(key, None, None, self.read_at, bears=None if key else bears), False

    def _close(self, handed: Handed) -> bool:
        """The row is open no more; whether it was."""
        if self.open.get(handed.known) is handed:
            del self.open[handed.known]
            return True
        return self.open.pop(handed, None) is not None

    def _settle(self) -> None:
        """The task has ended in order: it yielded nothing for the rows that are still open."""
        if self.open and self.settings.write_to_database:
            self.writer.add_no_results(self.open.values())
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
        return isinstance(error, (MissingExtra, *self.outer)) or (
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
        if isinstance(error, MissingExtra):
            raise BrokenElement(f"{error}; the rows stay pending") from error
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
        self.writer.fail(refusal(error, handed))
        try:
            self.tally.check(self.target.task)
        except BrokenElement:
            self.writer.forget_failures()
            raise


def set_times(result: OutputModel, elapsed_s: float, overhead_s: float) -> None:
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


class _Nothing:
    """The writer of a run that the end of the process finds nothing to write of."""

    def write_all(self) -> None:
        """There is nothing."""


def passed_on(
    rows: Callable[[], Iterable[Any]],
    call: Callable[[Iterator[Any]], Iterator[Any]],
    n_rows: int | None,
) -> Iterator[Any]:
    """The results of a task, each as soon as it is yielded, with the time that its row took.

    Parameters
    ----------
    rows : opens what the task is to process.
    call : calls the task with an iterator of rows.
    n_rows : how many there are, where that is known.
    """
    mark = perf_counter()  # since when the task has the word
    row: Any = None  # the last that was handed over
    after: Any = None  # its result, once there is one
    row_s = others_s = overhead_s = 0.0  # not yet in a result: of it, of others in hand, of none
    n_open = n_results = 0  # rows without a result, results
    asked = at_end = False  # for a row since the last result; told that there are no more
    model: Any = None  # of the results up to now, which is faster to ask than its ancestors
    trouble: Exception | None = None

    def hand() -> Iterator[Any]:
        nonlocal mark, row, after, row_s, others_s, overhead_s, n_open, asked, at_end, trouble
        overhead_s += perf_counter() - mark
        try:
            for given in rows():
                others_s += row_s
                row, after, row_s, asked = given, None, 0.0, True
                n_open += 1
                mark = perf_counter()
                yield given
                if after is None:
                    row_s += perf_counter() - mark
                else:  # work that the task does on a row after its result
                    after.__data__["t_elapsed"] += perf_counter() - mark
        except Exception as error:  # not the task's doing, though it comes out through the task
            trouble = error
            raise
        asked = at_end = True
        mark = perf_counter()

    nothing = _Nothing()
    Guard.enter(nothing)
    generator = call(hand())
    try:
        mark = perf_counter()
        for result in generator:
            spent_s = perf_counter() - mark
            if result is ...:
                row_s += spent_s
                mark = perf_counter()
                continue
            if n_open == 1:
                spent_s += row_s + others_s
                row_s = others_s = 0.0
            elif n_open and not at_end and after is None and _is_of(result, row):
                spent_s += row_s
                row_s = 0.0
            elif n_open:  # a task that took several rows first has worked on all of them
                pool_s = others_s + row_s + (spent_s if asked else 0.0)
                spent_s = pool_s / n_open + (0.0 if asked else spent_s)
                others_s, row_s = pool_s - pool_s / n_open, 0.0
            n_open -= n_open > 0
            n_results += 1
            asked = False
            if type(result) is model or isinstance(result, OutputModel):
                set_times(result, spent_s, overhead_s / (n_rows or n_results))
                after, model = result, type(result)
            if Guard.told:
                Guard.check()
            yield result
            mark = perf_counter()
        if trouble is not None:
            raise trouble
    finally:
        generator.close()  # type: ignore[attr-defined]
        Guard.leave(nothing)


def _is_of(result: Any, row: Any) -> bool:
    """Whether a result bears the key of a row."""
    link = result.link_to(type(row)) if isinstance(result, OutputModel) else None
    return link is not None and link.of_result(result) == link.of_row(row)
