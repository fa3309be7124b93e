"""Measure the time that a task spends on each row, and before the first one."""

from collections.abc import Collection
from time import perf_counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

from astra.models.pipeline import OutputModel
from astra.results.histogram import RowTimes
from astra.results.rows import HandedRow

if TYPE_CHECKING:
    from ctypes import Array, c_uint8


class ProgressBoard(Protocol):
    """The part of `astra.element.progress_board.ProgressBoard` that a run of a task writes."""

    def clear(self) -> None:
        """Note that no row is in progress."""

    #: By place in the page: 1 while a row is in progress.
    flags: "Array[c_uint8]"

    since: float  # when the task began to compute; 0 when it has stopped


class RowClock:
    """Runs while the task computes, and credits its time to rows.

    Parameters
    ----------
    n_rows : the number of rows, where it is known.
    board : is notified when the task starts and stops computing.
    """

    def __init__(self, n_rows: int | None, board: ProgressBoard | None) -> None:
        self.n_rows = n_rows
        self.board = SimpleNamespace() if board is None else board
        self.row_times = RowTimes()  # of the rows of a page that have ended
        self.t_task_s = 0.0  # the whole time of the task
        self.t_before_s = 0.0  # its time before the first row
        self.overhead_s = 0.0  # the share of the next result in that time
        self.since = 0.0  # when the task began to compute; 0 while it does not compute

    def start(self) -> None:
        self.since = self.board.since = perf_counter()

    def stop(self) -> float:
        """Stop the clock; return the seconds since its start, 0 if it was stopped already."""
        if not self.since:
            return 0.0
        spent_s = perf_counter() - self.since
        self.since = self.board.since = 0.0
        self.t_task_s += spent_s
        return spent_s

    def is_running(self) -> bool:
        """Return whether the task computes."""
        return self.since != 0.0

    def credit_overhead(self, spent_s: float) -> None:
        """Credit time before the first row; each result gets a share of it.

        Where the number of rows is not known, the first result bears all of it.
        """
        self.t_before_s += spent_s
        if self.n_rows:
            self.overhead_s = self.t_before_s / self.n_rows
        else:
            self.overhead_s += spent_s

    def end_row(self, result: OutputModel, handed: HandedRow) -> None:
        """Set the times of the one result of a row of a page, and count the row."""
        self.row_times.add(handed.t_spent_s)
        data = result.__data__
        data["t_elapsed"], data["t_overhead"] = handed.t_spent_s, self.overhead_s

    def set_times(self, result: OutputModel, elapsed_s: float) -> None:
        """Set the times of a result; assigning attributes would take four times as long."""
        data, dirty = result.__data__, result._dirty  # type: ignore[attr-defined]
        data["t_elapsed"], data["t_overhead"] = elapsed_s, self.overhead_s
        dirty.add("t_elapsed")
        dirty.add("t_overhead")
        if not self.n_rows:
            self.overhead_s = 0.0


def share_out(spent_s: float, others: Collection[HandedRow]) -> float:
    """Divide time equally between a row and `others`, which the task collected before it computed.

    Return the share of the row itself.
    """
    share_s = spent_s / (1 + len(others))
    for handed in others:
        handed.t_spent_s += share_s
    return share_s
