"""An element's two processes: one runs the task and may crash, the other supervises it.

The task runs in a child. A board in shared memory lists the rows in progress, so that after a crash
the parent knows the rows concerned, without a write to the database for each row. The child is then
restarted, and the page continues. A row that takes longer than the row timeout ends the child and
is recorded. After SIGKILL, which comes from a memory limit or a person, the element ends;
`astra resume` decides what follows.
"""

import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from astra.config import settings
from astra.element.progress_board import ProgressBoard
from astra.errors import OutOfHours
from astra.processes import now_s, process_start_s, signal_name
from astra.states import KILLED, OUT_OF_MEMORY, TIMED_OUT

if TYPE_CHECKING:
    from astra.element.suspects import Death

log = logging.getLogger(__name__)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def supervised(work: Callable[[ProgressBoard], int], row_timeout_s: float = 0.0) -> int:
    """Run an element's `work` in a child process, again after each crash; return its exit status.

    Parameters
    ----------
    work : runs the element's pages and returns an exit status. It is called in the child.
    row_timeout_s : longest time that a task may take for each row in progress; 0 for no limit.
    """
    # It may be ignored, as inherited from the parent: how a child ended would then be unknown.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    board, requests = ProgressBoard(), _StopRequests()
    try:
        return _supervised(work, board, _Parent(board, requests, row_timeout_s))
    finally:
        requests.is_set()  # those that came too late would end this process
        requests.unblock()


def _supervised(
    work: Callable[[ProgressBoard], int], board: ProgressBoard, parent: "_Parent"
) -> int:
    """Fork a child that works, and fork it again after each crash; return the exit status.

    The child returns from this function, too, with the exit status of its work.
    """
    n_deaths = last_page = 0  # with no row in progress, at the same page
    child_start_s = process_start_s()
    while True:
        board.reset(child_start_s)
        _flush()
        gc.freeze()  # else the child's garbage collection would copy all shared memory pages
        own_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            parent.requests.unblock()
            return _child(work, board, own_pid)
        status = parent.wait(pid)
        child_start_s = now_s()
        if board.finished and not parent.timed_out:
            status = board.exit_status  # whatever happened to its process after that
            return OutOfHours.exit_status if parent.hours_are_over and status == 75 else status
        if (-status if status < 0 else status - 128) == signal.SIGKILL and not parent.timed_out:
            # Do not continue: a memory limit or a person ended the child on purpose.
            parent.note_death(status, alive=False)
            return 128 + signal.SIGKILL
        had_rows = parent.note_death(status, alive=True)
        if parent.requests.is_set():
            return OutOfHours.exit_status if parent.hours_are_over else 75
        if had_rows or board.page_pk != last_page:
            n_deaths, last_page = 0, board.page_pk
        # A row that timed out may have ended since: the process then ends by itself.
        n_deaths += not had_rows and not (parent.timed_out and status != -signal.SIGKILL)
        if n_deaths >= settings.current().element.max_deaths:
            from astra.element.deaths import give_up

            give_up(board, parent.death(status), parent.requests)
            return 77


def _child(work: Callable[[ProgressBoard], int], board: ProgressBoard, parent: int) -> int:
    """Run the work in the child, which is killed if its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the line above
        os._exit(128 + signal.SIGKILL)
    status = 1
    try:
        status = work(board)
        return status
    finally:
        _flush()
        if not board.out_of_memory:
            board.finish(status)


def _flush() -> None:
    """Write what was printed; the work of an element does not depend on the disk of its log."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


class _StopRequests:
    """The requests to stop that an element gets as signals.

    While no child runs, there is none to pass signals on to, and they are blocked: they do not
    interrupt the parent, which notices them when it checks. Has the methods of an event.
    """

    def __init__(self) -> None:
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        self.made = False

    def is_set(self) -> bool:
        while self.wait(0.0):
            pass
        return self.made

    def wait(self, seconds: float) -> bool:
        """Wait for a signal; return whether one has come."""
        has_come = signal.sigtimedwait(_STOP_SIGNALS, seconds) is not None
        self.made = self.made or has_come
        return has_come

    def unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


class _Stopwatch:
    """Measure how long a task has worked on its rows, while this process was awake.

    When Slurm suspends an element, or a machine sleeps, both processes pause. That time is not
    counted.
    """

    def __init__(self, max_step_s: float) -> None:
        self.max_step_s = max_step_s  # one call of `read` adds at most this many seconds
        self.since = self.read_at = self.worked_s = 0.0

    def read(self, since: float) -> float:
        """Return the seconds of work since `since`; 0 if the task does not work."""
        now = time.perf_counter()
        if since != self.since:
            self.since, self.worked_s, self.read_at = since, 0.0, since
        if since:
            self.worked_s += min(now - self.read_at, self.max_step_s)
        self.read_at = now
        return self.worked_s

    def restart(self) -> None:
        self.worked_s = 0.0


class _Parent:
    """Wait for a child, pass signals on to it, and terminate it when a row takes too long.

    When the hours of its night are over, ask it to stop, as Slurm would.
    """

    def __init__(self, board: ProgressBoard, requests: _StopRequests, row_timeout_s: float) -> None:
        self.board, self.requests, self.row_timeout_s = board, requests, row_timeout_s
        self.timed_out = self.lingered = self.hours_are_over = False
        self.finished_s: float | None = None  # when the child was first seen to have finished
        self.pid = 0
        # seconds between two checks
        self.every_s = min(max(row_timeout_s / 10, 0.05), 1.0) if row_timeout_s else 1.0
        self.stopwatch = _Stopwatch(2 * self.every_s)

    def wait(self, pid: int) -> int:
        """Wait for the child; return its exit status, or minus the signal that ended it."""
        self.pid, self.timed_out, self.lingered, self.finished_s = pid, False, False, None
        handlers = dict.fromkeys(_STOP_SIGNALS, self._pass_on)
        handlers[signal.SIGALRM] = self._check_limits
        previous = {number: signal.signal(number, do) for number, do in handlers.items()}
        # The timer also runs if there are no limits: a signal that arrives just before the wait is
        # handled at its next tick.
        signal.setitimer(signal.ITIMER_REAL, self.every_s, self.every_s)
        self.requests.unblock()
        try:
            # Until it is reaped, its number is no other process's, which a handler might signal.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
            self.pid = 0
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in previous.items():
                signal.signal(number, handler)
        _, status, used = os.wait4(pid, 0)
        self.peak_mb = used.ru_maxrss / 1024
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.requests.made = True
        if self.pid:
            os.kill(self.pid, number)

    def _check_limits(self, number: int, frame: FrameType | None) -> None:
        if 0 < self.board.stop_at_s <= now_s() and not self.hours_are_over:
            self.hours_are_over = True
            log.warning("the hours of the night are over: the yielded results are stored")
            self._pass_on(signal.SIGTERM, None)
        if self.board.finished:
            self._end_lingering()
        if self.row_timeout_s and self.pid:
            self._check_row_timeout(self.stopwatch.read(self.board.since))

    def _check_row_timeout(self, working_s: float) -> None:
        if self.timed_out:  # it may also hang in a clean-up, after its rows have ended
            if working_s > settings.current().element.grace_s + 2:
                os.kill(self.pid, signal.SIGKILL)
        elif working_s > self.row_timeout_s:
            # A task may collect rows before it computes.
            limit_s = self.row_timeout_s * self.board.n_in_progress()
            if 0 < limit_s < working_s:
                self.timed_out = True
                self.stopwatch.restart()
                self.board.timed_out = True
                # On SIGTERM the child stores its yielded results, if its interpreter still runs.
                os.kill(self.pid, signal.SIGTERM)

    def _end_lingering(self) -> None:
        """Kill a child that has finished and does not exit, as a thread of the task still runs."""
        self.finished_s = self.finished_s or now_s()
        over_s = now_s() - self.finished_s - settings.current().element.grace_s
        if self.pid and not self.lingered and over_s > 0:
            self.lingered = True
            log.warning("the task left something running: its process is killed, all is stored")
            os.kill(self.pid, signal.SIGKILL)

    peak_mb = 0.0  # of the child that ended last

    def note_death(self, status: int, alive: bool) -> bool:
        """Record the rows in progress as suspects; return whether there were any."""
        from astra.element.deaths import note_death  # here, as only this needs the database

        return note_death(self.board, self.death(status), self.peak_mb, alive, self.requests)

    def death(self, status: int) -> "Death":
        """Return how the child ended."""
        from astra.element.suspects import Death

        if self.timed_out:
            cause = f"took longer than the row timeout of {self.row_timeout_s:g} s"
            if status == -signal.SIGKILL and not self.board.n_in_progress():
                cause += ", and its process did not end after it"
            return Death(TIMED_OUT, cause, True)
        if self.board.out_of_files:
            return Death(KILLED, "left no file descriptor to use the database with")
        if self.board.out_of_memory:
            return Death(OUT_OF_MEMORY, "ran out of memory (MemoryError)")
        if self.requests.is_set() and status != -signal.SIGKILL:
            how = f"exit status {status}" if status >= 0 else signal_name(-status)
            return Death(KILLED, f"ended its process when asked to stop ({how})", on_request=True)
        if status >= 0:
            return Death(KILLED, f"ended its process (exit status {status})")
        name = signal_name(-status)
        if -status == signal.SIGKILL:
            killed = "was being processed when its process was killed (signal 9, SIGKILL)"
            return Death(KILLED, f"{killed}, by a memory limit or from outside")
        return Death(KILLED, f"killed its process (signal {-status}, {name})")
