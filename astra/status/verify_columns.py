"""Hold the rows of a plan, and the records that are stored for them, as columns of numbers."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from astra.models.keys import RowKey
from astra.models.plans import Page
from astra.states import Outcome

#: Represents the number of a result that is identified by another key than that of its row.
OF_ANOTHER_KEY = 2**31

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Rows:
    """The rows of some pages, as columns; `key` is the place of a row's key in `keys`."""

    def __init__(self, pages: list[Page]) -> None:
        numbers, n_rows = [page.number for page in pages], [page.n_rows for page in pages]
        self.page: Numbers = np.repeat(np.array(numbers, dtype=np.int64), n_rows)
        row_keys = [key for page in pages for key in page.row_keys]
        self.keys: list[RowKey] = sorted(set(row_keys))
        self.places: dict[object, int] = {key: place for place, key in enumerate(self.keys)}
        self.key = np.array([self.places[key] for key in row_keys], dtype=np.int64)
        joined = b"".join(bytes(page.outcomes) for page in pages)
        self.outcome = np.frombuffer(joined, dtype=np.uint8)

    def ended(self, outcome: Outcome) -> Flags:
        return self.outcome == outcome.value


class StoredRows:
    """The records that are stored for `keys`, as named columns parallel to them.

    Attributes
    ----------
    there : marks the keys for which there is a record.
    every : the columns of all records, whatever their key.
    """

    def __init__(
        self, rows: Sequence[tuple[int, ...]], keys: Numbers, names: Sequence[str]
    ) -> None:
        # A row of zeros represents a missing record.
        table = np.array(rows or [(0,) * len(names)], dtype=np.int64)
        every: dict[str, Numbers] = dict(zip(names, table.T, strict=True))
        order = np.lexsort((every.get("number", every["key"]), every["key"]))
        self.every = {name: column[order] for name, column in every.items()}
        self._keys = keys
        place = np.searchsorted(self.every["key"], keys)
        self._place = np.minimum(place, len(table) - 1)
        self.there: Flags = (self.every["key"][self._place] == keys) & bool(rows)

    def __getitem__(self, name: str) -> Numbers:
        return np.where(self.there, self.every[name][self._place], 0)

    @cached_property
    def _steps(self) -> tuple[Flags, Numbers]:
        """For each record: whether the next has the same key, and the step to its number."""
        same, numbers = np.diff(self.every["key"]) == 0, self.every["number"]
        return same & (numbers[1:] != OF_ANOTHER_KEY), np.diff(numbers)

    @cached_property
    def is_again(self) -> Flags:
        """Mark records that repeat the number of the record before."""
        same, steps = self._steps
        return np.append(False, same & (steps == 0))

    @cached_property
    def is_gap(self) -> Flags:
        """Mark records that do not continue the record before, or do not begin at 0."""
        same, steps = self._steps
        is_other = np.zeros(len(steps), dtype=bool)
        for name in ("attempt", "made_by", "input"):  # the same for all results of a row
            is_other |= np.diff(self.every[name]) != 0
        wrong = same & ((steps > 1) | ((steps == 1) & is_other))
        first = np.append(True, np.diff(self.every["key"]) != 0)
        number = self.every["number"]
        return np.append(False, wrong) | (first & (number != 0) & (number != OF_ANOTHER_KEY))

    def any_own(self, which: Flags) -> Flags:
        """Return the keys for which the first record, or another one of the same key, is marked."""
        first = np.append(True, np.diff(self.every["key"]) != 0)
        return self.any_of(which & (first | (self.every["number"] != OF_ANOTHER_KEY)))

    def any_of(self, which: Flags) -> Flags:
        """Return the keys for which one of the records is marked."""
        if not which.any():
            return np.zeros(len(self._keys), dtype=bool)
        return np.isin(self._keys, self.every["key"][which]) & self.there
