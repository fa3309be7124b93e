"""The board: which rows a task has in hand, in memory that an element's two processes share."""

import mmap

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
        #: Since when the task computes, by perf_counter; 0 while it does not.
        self.since = self._times[_SINCE : _SINCE + 1]
        self._positions: dict[object, int] = {}
        self._birth_s: float | None = None

    # -- the child writes -------------------------------------------------------------------

    def take_birth(self) -> float | None:
        """When the process began that runs the element's first page; None for later pages."""
        birth_s, self._birth_s = self._birth_s, None
        return birth_s

    def begin(self, page_pk: int, attempt_pk: int, positions: dict[object, int]) -> None:
        """A page is claimed; nothing of it is in hand, whatever a process before this one had."""
        self._positions = positions
        self.clear()
        self.started(0.0)
        self._numbers[_PAGE], self._numbers[_ATTEMPT] = page_pk, attempt_pk

    def hand(self, key: int | str | None) -> None:
        """The task was given a row."""
        place = self._positions.get(key, _PLACES)
        if place < _PLACES and not self._hands[place]:
            self._hands[place] = 1
            self._numbers[_IN_HAND] += 1

    def end(self, key: int | str | None) -> None:
        """A row has ended."""
        place = self._positions.get(key, _PLACES)
        if place < _PLACES and self._hands[place]:
            self._hands[place] = 0
            self._numbers[_IN_HAND] -= 1

    def clear(self) -> None:
        n = min(len(self._positions), _PLACES)
        self._hands[:n] = bytes(n)
        self._numbers[_IN_HAND] = 0
        self.since[0] = 0.0

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

    def n_in_hand(self) -> int:
        return self._numbers[_IN_HAND]
