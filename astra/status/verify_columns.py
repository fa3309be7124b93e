"""Rows of a plan, and what is stored for them, as columns of numbers."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from astra.models.plans import Page
from astra.states import Outcome

#: Stands for the number of a result that is identified by another key than its row's.
OF_ANOTHER_KEY = 2**31

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Rows:
    """The rows of some pages, as columns."""

    def __init__(self, pages: list[Page], keys: list[int]) -> None:
        numbers, n_rows = [page.number for page in pages], [page.n_rows for page in pages]
        self.page: Numbers = np.repeat(np.array(numbers, dtype=np.int64), n_rows)
        self.key = np.array(keys, dtype=np.int64)
        joined = b"".join(bytes(page.outcomes) for page in pages)
        self.outcome = np.frombuffer(joined, dtype=np.uint8)

    def ended(self, outcome: Outcome) -> Flags:
        return self.outcome == outcome.value


class Stored:
    """What is stored for `keys`, as columns parallel to them; `there` marks those with anything."""

    def __init__(self, rows: list[tuple[int, ...]], keys: Numbers) -> None:
        # A row of zeros represents that nothing is stored.
        table = np.array(rows, dtype=np.int64) if rows else np.zeros((1, 9), dtype=np.int64)
        numbers = table[:, 5] if table.shape[1] > 6 else np.zeros(len(table), dtype=np.int64)
        order = np.lexsort((numbers, table[:, 0]))
        self._table, self._numbers, self._keys = table[order], numbers[order], keys
        place = np.searchsorted(self._table[:, 0], keys)
        self._place = np.minimum(place, len(self._table) - 1)
        self.there = (self._table[self._place, 0] == keys) & bool(rows)

    def every(self, number: int) -> Numbers:
        """Return a column of everything that is stored, whatever its key."""
        return self._table[:, number]

    def column(self, number: int) -> Numbers:
        return np.where(self.there, self._table[self._place, number], 0)

    @cached_property
    def _steps(self) -> tuple[Flags, Numbers]:
        """For each stored row, whether the next has the same key, and by how much its number is
        higher."""
        same = np.diff(self._table[:, 0]) == 0
        return same & (self._numbers[1:] != OF_ANOTHER_KEY), np.diff(self._numbers)

    @cached_property
    def is_again(self) -> Flags:
        """Mark stored rows that repeat the number of the row before."""
        same, steps = self._steps
        return np.append(False, same & (steps == 0))

    @cached_property
    def is_gap(self) -> Flags:
        """Mark stored rows that do not continue the row before, or do not begin at 0."""
        same, steps = self._steps
        wrong = same & ((steps > 1) | ((steps == 1) & (np.diff(self._table[:, 1]) != 0)))
        first = np.append(True, np.diff(self._table[:, 0]) != 0)
        return np.append(False, wrong) | (
            first & (self._numbers != 0) & (self._numbers != OF_ANOTHER_KEY)
        )

    def any_of(self, which: Flags) -> Flags:
        """Return the keys for which one of the stored rows is marked."""
        if not which.any():
            return np.zeros(len(self._keys), dtype=bool)
        return np.isin(self._keys, self._table[which, 0]) & self.there
