"""When the next checkpoint of a run is due."""

import time
from collections import deque

#: Before its next checkpoint, an element works this many times as long as recent ones took, so that
#: checkpoints cost at most one per cent of its time.
WORK_PER_COST = 100

#: The fewest seconds between two checkpoints.
MIN_INTERVAL_S = 1.0

#: A checkpoint that is due at most this many seconds before its page is expected to end waits for
#: that end, so that both share one transaction and one connection.
SLACK_S = MIN_INTERVAL_S / 2

#: The number of recent checkpoints. Their median is used, so that one outage of the database does
#: not make an element lose minutes afterwards.
N_RECENT = 3


class Schedule:
    """Decide when waiting rows are written. An element keeps one schedule for all of its pages.

    Parameters
    ----------
    longest_s : a row waits no longer than this (``write_frequency``).
    by_cost : write earlier than that if recent checkpoints were cheap.
    """

    def __init__(self, longest_s: float, by_cost: bool) -> None:
        self.longest_s, self.by_cost = longest_s, by_cost
        self.recent_s: deque[float] = deque(maxlen=N_RECENT)
        self.is_cold = True  # the first checkpoint of a process also imports modules
        self.last = time.monotonic()  # when the last checkpoint ended, or the run began
        self.interval_s = MIN_INTERVAL_S  # of work between two checkpoints

    def begin(self) -> None:
        """Note that a run begins now."""
        self.last = time.monotonic()

    def due(self, since: float, end: float | None = None) -> float:
        """Return when rows that have waited since `since` are due, by the monotonic clock.

        `end` is when the page is expected to end, if that is known. If it takes longer than
        expected, the rows wait for another :data:`SLACK_S` and no more.
        """
        latest = since + self.longest_s
        if not self.by_cost:
            return latest
        due = max(since, self.last + self.interval_s)
        if end is not None and due < end <= due + SLACK_S:
            due += SLACK_S
        return min(latest, due)

    def note(self, took_s: float) -> None:
        """Record a checkpoint that ended now; `took_s` includes waiting for the database.

        The first one of a process is not representative, and is not counted.
        """
        self.last = time.monotonic()
        if self.is_cold:
            self.is_cold = False
            return
        self.recent_s.append(took_s)
        typical_s = sorted(self.recent_s)[len(self.recent_s) // 2]
        self.interval_s = max(MIN_INTERVAL_S, WORK_PER_COST * typical_s)
