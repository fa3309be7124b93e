"""One run of a task: it gets rows, and its results go to the writer.

The task computes in the caller's thread. :mod:`~astra.tasks.rows_in_progress` knows its rows,
:mod:`~astra.tasks.row_clock` measures how long it works on each, :mod:`~astra.tasks.blame` finds
the row that an exception belongs to, and :mod:`~astra.results.writer` stores the results.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from threading import Lock, get_ident
from typing import Protocol, cast

from astra.errors import AstraError, BrokenElement, Terminated, error_text
from astra.models.keys import RowKey
from astra.models.pipeline import OutputModel
from astra.results.columns import as_yielded
from astra.results.rows import (
    End,
    HandedRow,
    Refusal,
    YieldedResult,
    foreign_row_message,
    foreign_row_refusal,
    place_of_yield,
    refusal,
)
from astra.results.stopping import INTERRUPTIONS, ActiveRuns, end_forked
from astra.results.writer import Writer
from astra.tasks.blame import Blame
from astra.tasks.row_clock import ProgressBoard, RowClock, share_out
from astra.tasks.rows_in_progress import RowsInProgress

log = logging.getLogger(__name__)


#: Stands for a row when there are no more.
_END = object()


class PageRows(Protocol):
    """The rows of a page (see reader.py)."""

    groups: list[list[RowKey]]  # the keys of suspects; each group is handed over by itself, last

    def __iter__(self) -> Iterator[HandedRow]:
        """Read the rows that are not suspects."""

    def reread(self, keys: list[RowKey]) -> Iterable[HandedRow]:
        """Read rows again, by their keys."""

    def begin_group(self, keys: list[RowKey]) -> None:
        """Note that a group is handed over next; everything before it is written."""


class Pass:
    """The rows of one call of the task: all of them, or a group that is tried again."""

    def __init__(self, rows: Iterable[object], halve: bool = False) -> None:
        self.rows = iter(rows)
        self.halve = halve  # the rows are suspects: if one raises, each half is tried by itself
        self.exhausted = False
        self.has_asked = False  # the task has asked for a row since it was called last
        # Any thread of the task may ask for a row, even one that outlives its call of the task.
        self.reading, self.taking = Lock(), Lock()


class Run:
    """One run of a task over rows; iterate over it to get the results.

    Parameters
    ----------
    rows : the rows of a page, or any other rows.
    call : calls the task with an iterator of rows and its other arguments.
    writer : stores the results. If it has a claim, the rows are those of a page, every row has to
        end, and a task that returns early is called again with the remaining rows.
    n_rows : the number of rows, where it is known.
    may_write_last_here : called when all rows have ended; returns whether the last checkpoint may
        be written on this thread's connection, which the task has not used.
    board : is notified of the rows in progress.
    outer_exceptions : exceptions that no row is to blame for.
    """

    def __init__(
        self,
        rows: Iterable[object],
        call: Callable[[Iterator[object]], Iterator[object]],
        writer: Writer,
        n_rows: int | None = None,
        *,
        may_write_last_here: Callable[[], bool] = lambda: False,
        board: ProgressBoard | None = None,
        outer_exceptions: tuple[type[BaseException], ...] = (MemoryError,),
    ) -> None:
        self.call, self.writer, self.n_rows, self.may_write_last_here, self.board = (
            call, writer, n_rows, may_write_last_here, board
        )  # fmt: skip
        self.settings, self.stop, self.tally = writer.settings, writer.stop, writer.tally
        self.is_page = writer.claim is not None
        self.rows = rows
        has_page_rows = self.is_page and hasattr(rows, "reread")
        self.page_rows = cast("PageRows", rows) if has_page_rows else None
        # A row is kept if it may have to be handed over again and cannot be read again.
        keeps_rows = self.page_rows is None and not self.settings.re_raise_exceptions
        self.in_progress = RowsInProgress(writer.target, keeps_rows, self.is_page, board)
        self.clock = RowClock(n_rows, board)
        writer.buffer.finish_fresh = self.clock.end_row
        groups = self.page_rows.groups if self.page_rows is not None else []
        self.blame = Blame(writer.target.task, groups, outer_exceptions, self._fail)
        self.n_results = self.n_calls = 0
        self.is_waiting = False  # the caller works on a result that was passed on to it
        self.began = False  # the task has asked for the first row of this pass
        self.asked_since_result = False  # the task has asked for a row since its last result
        self.at_end = False  # the task has asked for a row, and there are no more
        self.last_result: YieldedResult | None = None  # of the row that was handed over last

    # -- the passes -----------------------------------------------------------------------

    def __iter__(self) -> Iterator[object]:
        self.pid, self.thread = os.getpid(), get_ident()
        ActiveRuns.enter(self)
        try:
            yield from self._results(Pass(self.rows))
            while not self.stop.is_wanted and (group := self.blame.next_group()):
                yield from self._results(self._run_group(*group))
            if not self.writer.writes_in_background:
                self.writer.write_all()
                yield from self._stored()
            elif not self.writer.is_stuck() and self.may_write_last_here():
                self.writer.write_last()
        finally:
            try:
                self.writer.write_all()
            finally:
                self.writer.close()
                ActiveRuns.leave(self)

    def _run_group(self, group: list[HandedRow], halve: bool) -> Pass:
        """Hand over a group of rows by itself."""
        keys = [handed.key for handed in group if handed.key is not None]
        if self.blame.is_deadly:  # the group may end this process: write everything first
            self.writer.write_all()
            if self.page_rows is not None:
                self.page_rows.begin_group(keys)
        return Pass(group if self.page_rows is None else self.page_rows.reread(keys), halve)

    def _results(self, rows: Pass) -> Iterator[object]:
        """Run the task until `rows` have ended, again after each row that raised."""
        while True:
            self.began = rows.has_asked = self.at_end = False
            self.last_result = None
            self.in_progress.start_pass()
            generator = self.call(self._hand_over(rows, self.n_calls))
            try:
                error = yield from self._take_results(generator)
            finally:
                with rows.taking:
                    self.n_calls += 1
                self._close(generator)
            if error is not None:
                self._handle(error, rows.halve)
                error = None  # its traceback would keep everything that the task has loaded
            else:
                self._settle()
                if not self.is_page:
                    return
                if not rows.has_asked and not self.stop.is_wanted:
                    raise BrokenElement(
                        f"{self.writer.target.task} ended without taking a row; its page "
                        "stays pending"
                    )
            if rows.exhausted or self.stop.is_wanted:
                return

    def _close(self, generator: Iterator[object]) -> None:
        """Close the task; an exception that a page's task raises then is of none of its rows.

        The clock runs, so that a clean-up that takes too long is interrupted like a row.
        """
        try:
            self.clock.start()
            getattr(generator, "close", lambda: None)()
            if os.getpid() != self.pid:
                ActiveRuns.check()
        except BaseException as error:
            if os.getpid() != self.pid:
                end_forked(error)
            if not self.is_page or self._ends_with(error):
                raise
            log.error("%s raised as it was closed: %s", self.writer.target.task, error_text(error))
        finally:
            self.clock.stop()

    def _take_results(
        self, generator: Iterator[object]
    ) -> Generator[object, None, BaseException | None]:
        """Take results from the task, pass on those that may be, and return its exception."""
        clock, writer, stop = self.clock, self.writer, self.stop
        writes, stored = self.settings.write_to_database, writer.stored
        passes_on = self.settings.live or not writes
        is_simple = (
            self.is_page and writer.writes_in_background and not (passes_on or writer.is_sqlite)
        )
        output = writer.target.output if is_simple and not writer.target.gathers else None
        while True:
            if ActiveRuns.status:
                ActiveRuns.check()
            clock.start()
            try:
                result = next(generator)
            except StopIteration:
                clock.stop()
                self._check_end()
                return None
            except BaseException as error:
                if os.getpid() != self.pid:
                    end_forked(error)
                self._credit(clock.stop())
                if self._ends_with(error):
                    raise
                self._check_end(error)
                return error
            if ActiveRuns.status:  # the task has caught it, and yields instead of the result
                ActiveRuns.check()
            if isinstance(result, OutputModel):
                result = as_yielded(result)
            is_done = type(result) is output and self._end_only_row(result)
            if is_done:
                pass
            elif result is ...:
                self._credit(clock.stop())
            elif type(result) is End:
                self._credit(clock.stop())
                self._end_row(self.in_progress.find(result.row))
            else:
                gathers = writer.target.gathers  # known once the first row was handed over
                yielded = self._gathered(result) if gathers else self._timed(result)
                if writes and not isinstance(result, OutputModel):
                    yielded.place = place_of_yield(generator)
                if writes and (yielded.again or not (gathers or yielded.is_stray)):
                    writer.add([yielded])
                if passes_on:
                    yield from self._pass_on(result)
            if writes and not is_done:
                writer.keep_up(is_last=self.n_results == self.n_rows)
                if stored:
                    yield from self._stored()
            if writer.fatal_error is not None:
                raise writer.fatal_error
            if not self.in_progress.by_key and stop.is_wanted:
                return None

    def _check_end(self, error: BaseException | None = None) -> None:
        """Raise what ended the run, where the task has caught it, and returned or raised `error`.

        The rows in progress have neither failed then, nor no result. Nor has a row failed that
        raises when its element was asked to stop: a handler of the task's own may have raised.
        """
        ActiveRuns.check()
        fatal_error = self.writer.fatal_error
        if fatal_error is not None:
            raise fatal_error from (None if fatal_error is error else error)
        if error is not None and self.is_page and self.stop.was_asked():
            raise Terminated from error

    def _ends_with(self, error: BaseException) -> bool:
        """Return whether an exception ends the run, and is not the failure of a row."""
        return isinstance(error, Terminated if self.is_page else INTERRUPTIONS)

    def _stored(self) -> Iterator[object]:
        """Pass on results that are in the database, unless they were passed on at once."""
        while self.writer.stored:
            result = self.writer.stored.popleft()
            if not self.settings.live:
                yield from self._pass_on(result)

    def _pass_on(self, result: object) -> Iterator[object]:
        """Give a result to the caller, which may be another task that computes with it."""
        self.is_waiting = True
        try:
            yield result
        finally:
            self.is_waiting = False

    # -- rows in, results out ---------------------------------------------------------------

    def _hand_over(self, rows: Pass, call: int) -> Iterator[object]:
        """Generate the rows for a call of the task, until there are none or the run has to stop.

        A thread of the task may still ask for rows when its call has ended. It gets none, since the
        next call of the task would not know of them.
        """
        clock, stop = self.clock, self.stop
        if call != self.n_calls:
            return
        rows.has_asked = True
        clock.credit_overhead(clock.stop())
        while not stop.is_wanted:
            if ActiveRuns.status:  # the task has caught it in the row that it was given last
                ActiveRuns.check()
            with rows.reading:
                given = self._take(rows, call)
            if given is _END:
                break
            clock.start()
            yield given
            if call != self.n_calls:
                return
            self._credit(clock.stop())
        if call == self.n_calls:
            clock.start()

    def _take(self, rows: Pass, call: int) -> object:
        """Take the next row, and return it as the task is given it; `_END` if there are no more."""
        in_progress = self.in_progress
        if in_progress.gathered:
            with rows.taking:
                if call == self.n_calls:
                    self._end_gathered()
        try:
            row = next(rows.rows, _END)
            if row is _END:
                self._note_end(rows)
                return _END
        except Exception as error:
            self._note_unread(error)
            raise
        with rows.taking:
            if call != self.n_calls:
                rows.rows = chain([row], rows.rows)
                return _END
            if type(row) is HandedRow:
                handed = row
            else:
                if not self.began and not in_progress.by_key:
                    self.writer.target = in_progress.set_table(row)
                handed = in_progress.wrap(row)
            self.last_result, self.began, self.asked_since_result = None, True, True
            return in_progress.take(handed)

    def _note_unread(self, error: Exception) -> None:
        """End the run by an exception that passes through the task, and that it did not cause."""
        try:
            if not isinstance(error, AstraError):  # the database is there: store what was yielded
                self.writer.write_all()
        finally:
            self.writer.fatal_error = self.writer.fatal_error or error

    def _note_end(self, rows: Pass) -> None:
        """Note that there are no more rows; write everything if the rest may end this process."""
        rows.exhausted = self.at_end = self.asked_since_result = True
        if self.blame.is_deadly:
            self.writer.write_all()

    def _credit(self, spent_s: float) -> None:
        """Credit time to the row that was handed over last, or to its result.

        A result that a checkpoint has taken keeps its times.
        """
        if self.last_result is not None:
            if not self.last_result.taken:
                self.last_result.result.__data__["t_elapsed"] += spent_s
        elif self.in_progress.last is not None:
            self.in_progress.last.t_spent_s += spent_s

    def _end_only_row(self, result: OutputModel) -> bool:
        """End the only row in progress of a page with its result; return False in any other case.

        This is the most frequent case by far. It does as little as it can for each row, and leaves
        the rest to the buffer.
        """
        in_progress, buffer = self.in_progress, self.writer.buffer
        key = result.__data__.get(in_progress.key_name)
        if len(in_progress.by_key) != 1 or type(key) is not int or key not in in_progress.by_key:
            return False
        handed = in_progress.by_key.pop(key)
        in_progress.ended.add(key)
        handed.t_spent_s += self.clock.stop()
        in_progress.flags[handed.place] = 0
        self.asked_since_result = False
        self.n_results += 1
        self.tally.n_ended += 1
        buffer.fresh.append((result, handed))
        if buffer.since is None or len(buffer.fresh) >= self.settings.batch_size:
            self.writer.keep_up(is_last=self.n_results == self.n_rows)
        return True

    def _timed(self, result: object) -> YieldedResult:
        """Set the times of a result; return it with its row, which ends with it."""
        spent_s = self.clock.stop()
        in_progress = self.in_progress
        yielded = in_progress.match(result)
        handed = yielded.handed
        in_progress.end(handed)
        if not (yielded.again or yielded.is_stray):
            if (
                in_progress.by_key
                and self.asked_since_result
                and (self.at_end or handed is not in_progress.last)
            ):
                spent_s = share_out(spent_s, list(in_progress.by_key.values()))
            spent_s += handed.t_spent_s
            handed.t_spent_s, handed.row = 0.0, None
            if self.is_page:
                self.clock.row_times.add(spent_s)
            in_progress.flags[handed.place] = 0
        self.asked_since_result = False
        self.n_results += 1
        self.tally.n_ended += 1
        if yielded.is_stray:
            target = self.writer.target
            log.error("%s: %s", target.task, foreign_row_message(handed.link_value, target))
        if type(result) is in_progress.target.output or isinstance(result, OutputModel):
            self.clock.set_times(result, spent_s)
            if handed is in_progress.last:
                self.last_result = yielded
        return yielded

    def _gathered(self, result: object) -> YieldedResult:
        """Set the times of a result that waits for the end of its row."""
        spent_s = self.clock.stop()
        self.asked_since_result = False
        self.n_results += 1
        yielded = self.in_progress.match(result)
        if not yielded.again:
            self.in_progress.gathered.setdefault(yielded.handed, []).append(yielded)
        yielded.handed.t_spent_s += spent_s
        if isinstance(result, OutputModel):
            self.clock.set_times(result, spent_s)
        return yielded

    def _end_gathered(self) -> None:
        """End the rows with results: the task asks for another row, or is done."""
        for handed in list(self.in_progress.gathered):
            self._end_row(handed)

    def _end_row(self, handed: HandedRow | None) -> None:
        """End a row with the results that were yielded for it so far, if any."""
        if handed is None or not self.in_progress.end(handed):
            return
        results = self.in_progress.gathered.pop(handed, [])
        self.clock.row_times.add(handed.t_spent_s)
        self.tally.n_ended += 1
        self.in_progress.flags[handed.place] = 0
        self.writer.add(results, no_results=[] if results else [handed])

    def _settle(self) -> None:
        """End the rows in progress without a result: the task has returned."""
        self._end_gathered()
        for handed, named in self.in_progress.pop_misattributed().items():
            self._record(foreign_row_refusal(handed, named, self.writer.target))
        rows = self.in_progress.clear()
        self.writer.add(no_results=rows)
        self.tally.n_ended += len(rows)
        for handed in rows:
            self.clock.row_times.add(handed.t_spent_s)

    # -- failures ---------------------------------------------------------------------------

    def _handle(self, error: BaseException, halve: bool) -> None:
        """Find the row that an exception belongs to, or raise the exception."""
        if self.is_page:
            self.blame.refuse_outer_exception(error)
        elif self.blame.is_outer_exception(error):
            raise error
        if self.settings.re_raise_exceptions:
            # Its row is known if it is the only one.
            if isinstance(error, Exception) and len(self.in_progress) == 1 and self.is_page:
                self._fail(next(iter(self.in_progress.by_key.values())), error)
            raise error
        # A task that cannot work without rows is not broken if there are none for it.
        began = self.began or self.at_end or self.stop.is_wanted
        self.blame.find(error, list(self.in_progress.by_key.values()), began, halve)
        self.in_progress.clear()

    def _fail(self, handed: HandedRow, error: BaseException) -> None:
        """Record that a row has failed."""
        self.in_progress.end(handed)
        self._record(refusal(error, handed))

    def _record(self, failure: Refusal) -> None:
        self.clock.row_times.add(failure.handed.t_spent_s)
        self.tally.n_ended += 1
        self.tally.count([failure])
        self.writer.add(failures=[failure])
        try:
            self.tally.check(self.writer.target.task)
        except BrokenElement:
            self.writer.buffer.forget_failures()
            raise
