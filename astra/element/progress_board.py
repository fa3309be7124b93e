"""The rows in progress, in memory that the two processes of an element share."""

import ctypes
import mmap
from ctypes import c_bool, c_char, c_double, c_int64, c_uint8
from typing import Self

from astra.config.value_checks import MAX_PAGE_ROWS
from astra.errors import OutOfFiles, OutOfMemory


class ProgressBoard(ctypes.Structure):
    """Track the rows in progress: those that the task was given and that have not ended.

    The child writes the board, and its parent reads it after the child has crashed. The parent
    writes only `timed_out`, and everything before it forks a child.
    """

    _fields_ = (
        ("child_start_s", c_double),  # when the child began; 0 once it has begun its first page
        ("page_pk", c_int64), ("attempt_pk", c_int64), ("n_rows", c_int64),  # of the present page
        ("token", c_char * 32),  # of the attempt
        ("start_s", c_double),  # until the task was given its first row; 0 if it has none yet
        ("since", c_double),  # when the task began to compute, by perf_counter; 0 while it does not
        ("exit_status", c_int64), ("finished", c_bool),  # the child's work has ended regularly
        ("out_of_memory", c_bool), ("out_of_files", c_bool),  # the latter are memory, too
        ("timed_out", c_bool),  # a row took longer than the row timeout: the child has to end
        # By place in the page: 1 while a row is in progress. Memory that is never touched costs
        # nothing.
        ("flags", c_uint8 * (MAX_PAGE_ROWS + 1)),
        # When the element is to be asked to stop, by now_s; 0 until it has begun in time, which
        # holds for its further children as well.
        ("stop_at_s", c_double),
    )  # fmt: skip

    def __new__(cls) -> Self:
        return cls.from_buffer(mmap.mmap(-1, ctypes.sizeof(cls)))

    def reset(self, child_start_s: float) -> None:
        """Reset the board for a new child, which begins at `child_start_s`."""
        ctypes.memset(ctypes.byref(self), 0, ProgressBoard.flags.offset)
        self.child_start_s = child_start_s

    def begin_page(self, page_pk: int, attempt_pk: int, token: str, n_rows: int) -> None:
        """Begin a claimed page: no row is in progress, whatever an earlier process had left."""
        self.n_rows = n_rows
        self.clear()
        self.start_s = 0.0
        self.page_pk, self.attempt_pk, self.token = page_pk, attempt_pk, token.encode()

    def clear(self) -> None:
        """Mark all rows as ended."""
        ctypes.memset(self.flags, 0, self.n_rows)
        self.since = 0.0

    def finish(self, exit_status: int) -> None:
        """Record that the child's work has ended regularly, and with which exit status."""
        self.exit_status = exit_status
        self.finished = True

    def run_out(self, error: OutOfMemory) -> None:
        """Record that the child has no memory, or no files, left."""
        self.out_of_memory, self.out_of_files = True, isinstance(error, OutOfFiles)

    def places(self) -> list[int]:
        """Return the places in the page of the rows in progress."""
        return [place for place, flag in enumerate(self._flags_of_page()) if flag]

    def n_in_progress(self) -> int:
        return self._flags_of_page().count(1)

    def _flags_of_page(self) -> bytes:
        return ctypes.string_at(self.flags, self.n_rows)
