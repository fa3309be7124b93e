"""What an attempt measures of itself: its times, and its memory."""

from astra.element.progress_board import ProgressBoard
from astra.element.reader import Reader
from astra.processes import now_s, peak_mb
from astra.tasks.run import Run


class Meter:
    """Measure an attempt. The values are written with each checkpoint, and at its end."""

    def __init__(self, since_s: float, board: ProgressBoard | None) -> None:
        self.since_s, self.board = since_s, board  # when the start-up before the first row began
        self.first_s: float | None = None  # when the task was given its first row
        self.run: Run | None = None
        self.reader: Reader | None = None

    def note_first_row(self) -> None:
        """Note the time at the first call, which comes before the task is given its first row."""
        if self.first_s is None:
            self.first_s = now_s()
            if self.board is not None:  # should the process die before a checkpoint
                self.board.start_s = self.first_s - self.since_s

    def read(self) -> dict[str, object]:
        """Return columns of the attempt with their current values."""
        columns: dict[str, object] = {"max_rss_mb": peak_mb()}
        if self.run is not None and self.reader is not None:
            columns |= {
                "t_task_s": self.run.clock.t_task_s,
                "t_write_s": self.run.writer.t_write_s,
                "t_read_s": self.reader.t_read_s,
                "row_times": str(self.run.clock.row_times) or None,
            }
        if self.first_s is not None:
            columns["t_start_s"] = self.first_s - self.since_s
            columns["t_rows_s"] = now_s() - self.first_s
        return columns
