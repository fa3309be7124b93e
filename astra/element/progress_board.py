"""Which rows are in progress, in memory that the two processes of an element share."""

import mmap

from astra.config.checks import MAX_PAGE_ROWS

_HEADER = 64

#: Fields of the header, of eight bytes each.
_PAGE, _ATTEMPT, _SINCE, _FINISHED, _N_ROWS, _MEMORY, _START, _TIMED_OUT = range(8)


class ProgressBoard:
    """Track the rows in progress: those that the task was given and that have not ended.

    The child writes the board, and its parent reads it after the child has crashed.
    """

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, _HEADER + MAX_PAGE_ROWS + 1))
        self._header = memory[:_HEADER]
        #: By place in the page: 1 while a row is in progress. Memory that is never touched costs
        #: nothing.
        self.flags = memory[_HEADER:]
        self._numbers, self._times = self._header.cast("q"), self._header.cast("d")
        #: When the task began to compute, by perf_counter; 0 while it does not.
        self.since = self._times[_SINCE : _SINCE + 1]
        self._birth_s: float | None = None

    # -- called by the child ----------------------------------------------------------------

    def take_birth(self) -> float | None:
        """Return when this process began, for its first page; None for later pages."""
        birth_s, self._birth_s = self._birth_s, None
        return birth_s

    def begin_page(self, page_pk: int, attempt_pk: int, n_rows: int) -> None:
        """Begin a claimed page: no row is in progress, whatever an earlier process had left."""
        self._numbers[_N_ROWS] = n_rows
        self.clear()
        self.set_start_up_s(0.0)
        self._numbers[_PAGE], self._numbers[_ATTEMPT] = page_pk, attempt_pk

    def clear(self) -> None:
        """Mark all rows as ended."""
        n_rows = self._numbers[_N_ROWS]
        self.flags[:n_rows] = bytes(n_rows)
        self.since[0] = 0.0

    def set_start_up_s(self, start_s: float) -> None:
        """Record the seconds until the task was given its first row; 0 if it has none yet."""
        self._times[_START] = start_s

    def finish(self, exit_status: int) -> None:
        """Record that the child's work has ended regularly, and with which exit status."""
        self._numbers[_FINISHED] = 1 + exit_status

    def out_of_memory(self) -> None:
        self._numbers[_MEMORY] = 1

    @property
    def timed_out(self) -> bool:
        """Whether a row took longer than the row timeout, and this process is to end."""
        return bool(self._numbers[_TIMED_OUT])

    # -- called by the parent ---------------------------------------------------------------

    def reset(self, birth_s: float) -> None:
        """Reset the board for a new child, which begins at `birth_s`."""
        self._header[:] = bytes(_HEADER)
        self._birth_s = birth_s

    def time_out(self) -> None:
        """Note that a row takes longer than the row timeout, before the child is asked to stop."""
        self._numbers[_TIMED_OUT] = 1

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
    def exit_status(self) -> int:
        return self._numbers[_FINISHED] - 1

    @property
    def ran_out_of_memory(self) -> bool:
        return bool(self._numbers[_MEMORY])

    @property
    def start_s(self) -> float | None:
        return self._times[_START] or None

    def places(self) -> list[int]:
        """Return the places in the page of the rows in progress."""
        return [place for place, flag in enumerate(self.flags[: self._numbers[_N_ROWS]]) if flag]

    def n_in_progress(self) -> int:
        return bytes(self.flags[: self._numbers[_N_ROWS]]).count(1)
