"""Measure an attempt: time per row, start-up, reading, writing, and memory.

Row times are stored as counts in bins that grow by a twelfth of an octave, so that a page of any
length takes some hundred bytes, pages can be added up, and a quantile is accurate within 3 %.
"""

from collections import Counter, deque
from collections.abc import Iterable
from math import floor, log2, sqrt
from threading import Lock

#: Bins to an octave (a factor of two) of time.
_BINS = 12

_SHORTEST_S = 1e-6  # shorter times count as this long


class RowTimes:
    """A histogram of seconds per row, in bins of equal ratio.

    >>> times = RowTimes([0.01] * 98 + [1.0] * 2)
    >>> round(times.quantile(0.5), 3), round(times.quantile(0.99), 2), times.n_rows
    (0.01, 1.03, 100)
    >>> str(times)
    '-80:98 0:2'
    """

    def __init__(self, seconds: Iterable[float] = ()) -> None:
        self._bins: Counter[int] = Counter()
        self._uncounted = deque(seconds)
        self._counting = Lock()
        #: Count a row by its time in seconds. Any thread may call it; it only stores the number.
        self.add = self._uncounted.append

    @property
    def bins(self) -> Counter[int]:
        """The number of rows in each bin."""
        with self._counting:
            # Rows that are added at the same time are counted the next time.
            times_s = [self._uncounted.popleft() for _ in range(len(self._uncounted))]
            self._bins.update(floor(log2(max(s, _SHORTEST_S)) * _BINS) for s in times_s)
        return self._bins

    @classmethod
    def parse(cls, text: str | None) -> "RowTimes":
        """Parse the text that `str` makes of a histogram; None means no rows."""
        times = cls()
        for pair in (text or "").split():
            place, _, count = pair.partition(":")
            times.bins[int(place)] += int(count)
        return times

    def __str__(self) -> str:
        return " ".join(f"{place}:{count}" for place, count in sorted(self.bins.items()))

    def __add__(self, other: "RowTimes") -> "RowTimes":
        times = RowTimes()
        times.bins.update(self.bins + other.bins)
        return times

    @property
    def n_rows(self) -> int:
        return sum(self.bins.values())

    def quantile(self, share: float) -> float:
        """Return the seconds that this share of the rows does not exceed; 0 without rows."""
        remaining = share * self.n_rows
        for place, count in sorted(self.bins.items()):
            remaining -= count
            if remaining <= 1e-9:
                return _middle_s(place)
        return 0.0

    def mean(self) -> float:
        return sum(n * _middle_s(b) for b, n in self.bins.items()) / max(self.n_rows, 1)

    def deviation(self) -> float:
        """Return the standard deviation in seconds."""
        mean = self.mean()
        squares = sum(n * (_middle_s(b) - mean) ** 2 for b, n in self.bins.items())
        return sqrt(squares / max(self.n_rows, 1))


def _middle_s(place: int) -> float:
    return float(2.0 ** ((place + 0.5) / _BINS))
