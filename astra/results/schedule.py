"""When the next checkpoint of a run is due."""

import time
from collections import deque
from statistics import median

#: An element works so many times as long as its recent checkpoints took before it writes the next:
#: a checkpoint costs at most one per cent of its time.
WORK_PER_COST = 100

#: Seconds between two checkpoints, at least.
LEAST_INTERVAL_S = 1.0

#: A checkpoint that falls due so many seconds before its page is expected to end waits for that
#: end: one transaction, and one connection, serve for both.
SLACK_S = LEAST_INTERVAL_S / 2

#: How many checkpoints are recent. Their median counts, so that one outage of the database does
#: not make an element lose minutes afterwards.
N_RECENT = 3


class Schedule:
    """Decides when rows that wait are written. An element keeps one from page to page.

    Parameters
    ----------
    longest_s : a row waits no longer than this (``write_frequency``).
    by_cost : write earlier than that where the recent checkpoints were cheap.
    """

    def __init__(self, longest_s: float, by_cost: bool) -> None:
        self.longest_s, self.by_cost = longest_s, by_cost
        self.recent_s: deque[float] = deque(maxlen=N_RECENT)
        self.is_cold = True  # the first checkpoint of a process imports and prepares what it needs
        self.last = time.monotonic()  # when the last checkpoint ended, or the run began
        self.interval_s = LEAST_INTERVAL_S  # that the element works from one to the next

    def begin(self) -> None:
        """Note that a run begins now."""
        self.last = time.monotonic()

    def due(self, since: float, end: float | None = None) -> float:
        """When rows that have waited since then are written, by the monotonic clock.

        `end` is when the page is expected to end, where that is known. Should it take longer than
        expected, the rows wait for :data:`SLACK_S` and no more.
        """
        latest = since + self.longest_s
        if not self.by_cost:
            return latest
        due = max(since, self.last + self.interval_s)
        if end is not None and due < end <= due + SLACK_S:
            due += SLACK_S
        return min(latest, due)

    def note(self, took_s: float) -> None:
        """Count a checkpoint that ended now; what it took includes waiting for the database.

        The first one says nothing about the next, and counts for nothing.
        """
        self.last = time.monotonic()
        if self.is_cold:
            self.is_cold = False
            return
        self.recent_s.append(took_s)
        self.interval_s = max(LEAST_INTERVAL_S, WORK_PER_COST * median(self.recent_s))
