"""Watch a plan: repeat its status until no element runs or waits."""

import random
import time
from collections import deque
from collections.abc import Iterator

from astra.config import settings
from astra.records import dataclass
from astra.states import ALIVE
from astra.status.page_states import never_starts
from astra.status.status import PlanStatus, status

_RATE_OVER_S = 120.0  # rows per second are counted over this period, or since the last status


@dataclass(frozen=True)
class Watched:
    """The status of a plan at one moment.

    Examples
    --------
    >>> from astra.api import watch
    >>> next(watch(1, every_s=10)).status.n_ended
    4
    """

    status: PlanStatus  #: the plan's status
    at: float  #: when, by this machine's clock [s since the epoch]
    rows_per_s: float | None  #: rate of the last two minutes; None in the first status [1/s]
    left_s: float | None  #: time that the pending rows take at this rate [s]


def watch(plan: int, every_s: float) -> Iterator[Watched]:
    """Yield the status of a plan every `every_s` seconds, until nothing of it runs.

    Each status takes one squeue and one sacct, whatever the number of arrays. If this user has just
    called them, their answers are used again.

    Parameters
    ----------
    plan : int
        Number of the plan.
    every_s : float
        Time between two statuses [s].

    Yields
    ------
    Watched
        The status, with the rate of rows and the time left.

    Raises
    ------
    UsageError
        If there is no such plan.

    Examples
    --------
    >>> from astra.api import watch
    >>> [watched.status.state.value for watched in watch(1, every_s=10)]
    ['whole']
    """
    counts: deque[tuple[float, int]] = deque()
    while True:
        began = time.monotonic()
        recent_s = min(settings.current().slurm.recent_s, every_s / 2)
        current = status(plan, include_done=False, recent_s=recent_s)
        counts.append((began, current.n_ended))
        while len(counts) > 2 and began - counts[0][0] > _RATE_OVER_S:
            counts.popleft()
        lasted_s = began - counts[0][0]
        rate = (current.n_ended - counts[0][1]) / lasted_s if lasted_s else None
        n_left = current.n_rows - current.n_ended
        yield Watched(current, time.time(), rate, n_left / rate if rate and rate > 0 else None)
        if not may_continue(current):
            return
        took_s = time.monotonic() - began
        # If Slurm answers slowly, it is queried less often, and not by all watchers at once.
        time.sleep(max(every_s - took_s, took_s * random.uniform(0.5, 1.5)))  # noqa: S311


def may_continue(current: PlanStatus) -> bool:
    """Return whether anything of a plan may continue by itself."""
    return any(not never_starts(page) for page in current.in_states(ALIVE))
