"""An element's two processes: one runs the task, and may die; the other sees to it.

The task runs in a child. Which rows it has in hand stands on a board in memory that both share, so
that the parent knows whom a death concerns, without a word to the database for each row. After a
crash the child is started again and the page goes on; a row that takes longer than the row timeout
ends its child and is recorded. SIGKILL is not outlived: it comes from a memory limit or a person,
and what to do then is decided by who resumes the plan.
"""

import ctypes
import gc
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from peewee import SQL

from astra.config import settings
from astra.database.connection import dialect, retrying, writing
from astra.element.controls import pause_if_all_break
from astra.element.suspects import Death, record_death
from astra.errors import AstraError, OutOfHours
from astra.models.plans import Attempt, Page
from astra.processes import born_s, now_s
from astra.results.rows import clean
from astra.states import KILLED, OUT_OF_MEMORY, TIMED_OUT, AttemptState

log = logging.getLogger(__name__)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h

#: Pages with more rows are watched by their first rows alone; untouched memory costs nothing.
_PLACES = 1 << 24

_HEADER = 64

#: Places in the header, of eight bytes each.
_PAGE, _ATTEMPT, _SINCE, _FINISHED, _IN_HAND, _MEMORY, _START = range(7)


class Board:
    """Which rows of which page a task has in hand, in memory that two processes share."""

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, _HEADER + _PLACES))
        self._header, self._hands = memory[:_HEADER], memory[_HEADER:]
        self._numbers, self._times = self._header.cast("q"), self._header.cast("d")
        self._positions: dict[Any, int] = {}
        self._birth_s: float | None = None

    # -- the child writes -------------------------------------------------------------------

    def take_birth(self) -> float | None:
        """When the process began that runs the element's first page; None for later pages."""
        birth_s, self._birth_s = self._birth_s, None
        return birth_s

    def begin(self, page_pk: int, attempt_pk: int, positions: dict[Any, int]) -> None:
        """A page is claimed; nothing of it is in hand, whatever a process before this one had."""
        self._positions = positions
        self.clear()
        self.started(0.0)
        self._numbers[_PAGE], self._numbers[_ATTEMPT] = page_pk, attempt_pk

    def hand(self, key: int | str | None) -> None:
        self._set(key, 1)

    def end(self, key: int | str | None) -> None:
        self._set(key, 0)

    def _set(self, key: int | str | None, value: int) -> None:
        place = self._positions.get(key, _PLACES) if key is not None else _PLACES
        if place < _PLACES and self._hands[place] != value:
            self._hands[place] = value
            self._numbers[_IN_HAND] += 1 if value else -1

    def clear(self) -> None:
        n = min(len(self._positions), _PLACES)
        self._hands[:n] = bytes(n)
        self._numbers[_IN_HAND] = 0
        self.works(0.0)

    def works(self, since: float) -> None:
        self._times[_SINCE] = since

    def started(self, start_s: float) -> None:
        """It took so long until the task was given its first row; 0: it was given none yet."""
        self._times[_START] = start_s

    def finish(self) -> None:
        """The child ends in good order, whatever its exit status."""
        self._numbers[_FINISHED] = 1

    def out_of_memory(self) -> None:
        self._numbers[_MEMORY] = 1

    # -- the parent reads -------------------------------------------------------------------

    def start(self, birth_s: float) -> None:
        """Before a child, which begins at `birth_s`: it has said nothing yet."""
        self._header[:] = bytes(_HEADER)
        self._birth_s = birth_s

    @property
    def page_pk(self) -> int:
        return self._numbers[_PAGE]

    @property
    def attempt_pk(self) -> int:
        return self._numbers[_ATTEMPT]

    @property
    def finished(self) -> bool:
        return bool(self._numbers[_FINISHED])

    @property
    def ran_out_of_memory(self) -> bool:
        return bool(self._numbers[_MEMORY])

    @property
    def start_s(self) -> float | None:
        return self._times[_START] or None

    def places(self, n_rows: int) -> list[int]:
        """Places in the page of the rows in hand."""
        return [place for place, value in enumerate(self._hands[:n_rows]) if value]

    def works_since(self) -> float:
        """When the task was given the word, as perf_counter says it; 0 while it has not."""
        return self._times[_SINCE]

    def n_in_hand(self) -> int:
        return self._numbers[_IN_HAND]


def supervised(
    work: Callable[[Board], int], row_timeout_s: float = 0.0, tell_at: float | None = None
) -> int:
    """Do an element's `work` in a child process, again after each crash; its exit status.

    Parameters
    ----------
    work : runs the element's pages; its exit status. It is called in the child.
    row_timeout_s : longest time that a task may take for each row in hand; 0 for no limit.
    tell_at : when the element is told to end, in seconds since the epoch.
    """
    board = Board()
    parent = _Parent(board, row_timeout_s, tell_at)
    in_vain = 0
    birth_s = born_s()
    while True:
        board.start(birth_s)
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # the child would write to each page that it looks for garbage in
        pid = os.fork()
        if pid == 0:
            return _child(work, board)
        status = parent.wait(pid)
        birth_s = now_s()
        if board.finished and not parent.timed_out:
            return OutOfHours.exit_status if parent.over and status == 75 else status
        if (-status if status < 0 else status - 128) == signal.SIGKILL and not parent.timed_out:
            # Not ours to go on: the memory limit, or whoever ended it, knows why.
            _note_death(board, parent.death(status), parent.peak_mb, alive=False)
            return 128 + signal.SIGKILL
        known = _note_death(board, parent.death(status), parent.peak_mb, alive=True)
        if parent.told:
            return OutOfHours.exit_status if parent.over else 75
        in_vain = 0 if known else in_vain + 1
        if in_vain >= settings.current().element.max_deaths:
            _give_up(board, parent.death(status))
            return 77


def _child(work: Callable[[Board], int], board: Board) -> int:
    """In the child: never left behind by its parent, and known to have ended in order."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(128 + signal.SIGKILL)
    try:
        return work(board)
    finally:
        if not board.ran_out_of_memory:
            board.finish()


class _Stopwatch:
    """How long a task has been at its rows, as far as this process was awake to see it.

    An element that Slurm suspends, or a machine that sleeps, stands still as a whole: what the
    clock went on meanwhile is nobody's computing.
    """

    def __init__(self, most_s: float) -> None:
        self.most_s = most_s  # that one look may add
        self.since = self.seen = self.worked_s = 0.0

    def read(self, since: float) -> float:
        """Seconds since the task was given the word at `since`; 0 if it does not have it."""
        now = time.perf_counter()
        if since != self.since:
            self.since, self.worked_s, self.seen = since, 0.0, since
        if since:
            self.worked_s += min(now - self.seen, self.most_s)
        self.seen = now
        return self.worked_s


class _Parent:
    """Waits for a child: passes signals on to it, and ends it when a row takes too long.

    When the hours of its night are `over`, it is told to end, as Slurm would.
    """

    def __init__(self, board: Board, row_timeout_s: float, tell_at: float | None = None) -> None:
        self.board, self.row_timeout_s, self.tell_at = board, row_timeout_s, tell_at
        self.told = self.timed_out = self.over = False
        self.pid = 0
        # between two looks
        self.every_s = min(max(row_timeout_s / 10, 0.05), 1.0) if row_timeout_s else 1.0
        self.stopwatch = _Stopwatch(2 * self.every_s)

    def wait(self, pid: int) -> int:
        """The exit status of the child, minus the signal that ended it."""
        self.pid, self.timed_out = pid, False
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), self._pass_on)
        handlers[signal.SIGALRM] = self._look
        previous = {number: signal.signal(number, do) for number, do in handlers.items()}
        # Also with nothing to look at: a signal that comes just before the wait begins is handled
        # at the next one.
        signal.setitimer(signal.ITIMER_REAL, self.every_s, self.every_s)
        try:
            _, status, used = os.wait4(pid, 0)
            self.peak_mb = used.ru_maxrss / 1024
        finally:
            self.pid = 0
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        if self.pid:
            os.kill(self.pid, number)

    def _look(self, number: int, frame: FrameType | None) -> None:
        if self.tell_at is not None and time.time() >= self.tell_at and not self.over:
            self.over = True
            log.warning("the hours of the night are over: what was yielded is stored")
            self._pass_on(signal.SIGTERM, None)
        if not self.row_timeout_s:
            return
        n_in_hand = self.board.n_in_hand()
        working_s = self.stopwatch.read(self.board.works_since())
        if not self.pid or not n_in_hand:
            return
        limit_s = self.row_timeout_s * n_in_hand  # a task may collect rows before it computes
        if working_s > limit_s and not self.timed_out:
            self.timed_out = True
            self.limit_s = working_s
            # What it has yielded is written at this word, if its interpreter still hears it.
            os.kill(self.pid, signal.SIGTERM)
        elif self.timed_out and working_s > self.limit_s + settings.current().element.grace_s + 2:
            os.kill(self.pid, signal.SIGKILL)

    limit_s = 0.0
    peak_mb = 0.0  # of the child that ended last

    def death(self, status: int) -> Death:
        """What ended the child."""
        if self.timed_out:
            return Death(
                TIMED_OUT, f"took longer than the row timeout of {self.row_timeout_s:g} s", True
            )
        if self.board.ran_out_of_memory:
            return Death(OUT_OF_MEMORY, "ran out of memory (MemoryError)")
        if status >= 0:
            return Death(KILLED, f"ended its process (exit status {status})")
        name = signal.Signals(-status).name
        if -status == signal.SIGKILL:
            word = "was in hand when its process was killed (signal 9, SIGKILL), by a memory limit"
            return Death(KILLED, f"{word} or from outside")
        return Death(KILLED, f"killed its process (signal {-status}, {name})")


#: States of an attempt that its process did not end by itself. One that was told to end by the row
#: timeout calls itself interrupted.
_OPEN = (AttemptState.RUNNING.value, AttemptState.INTERRUPTED.value)


def _note_death(board: Board, death: Death, peak_mb: float, alive: bool) -> bool:
    """Remember the rows in hand; whether there were any."""
    if not board.attempt_pk:
        log.error("the element's process %s before it claimed a page", death.cause)
        return False

    def work() -> bool:
        with writing():
            page = Page.get_by_id(board.page_pk)
            places = board.places(page.n_rows)
            values = {
                "message": clean(f"a row {death.cause}", 2000),
                "n_handed": -1,
                "max_rss_mb": peak_mb,
                "t_start_s": board.start_s,
            }
            if alive:
                values["state"] = AttemptState.DIED.value
            mine = (Attempt.pk == board.attempt_pk) & Attempt.state.in_(_OPEN)
            if page.attempt_pk == board.attempt_pk and Attempt.update(values).where(mine).execute():
                record_death(page.pk, places, death)
            return bool(places)

    try:
        known = retrying(work)
    except AstraError as error:
        log.error("which rows were in hand could not be recorded: %s", error)
        return False
    log.error("the task %s; rows in hand: %d", death.cause, board.n_in_hand())
    return known


def _give_up(board: Board, death: Death) -> None:
    """The process died again and again with no row in hand: it is the task, not a row."""
    message = f"its process died without a row in hand: it {death.cause}"
    log.error("%s; the page stays pending", message)

    def work() -> None:
        with writing():
            broken = Attempt.update(
                state=AttemptState.BROKEN.value, message=message, ended=SQL(dialect().now_sql)
            )
            broken.where(Attempt.pk == board.attempt_pk).execute()
            pause_if_all_break(Page.get_by_id(board.page_pk).plan_pk)

    if board.attempt_pk:
        retrying(work)
