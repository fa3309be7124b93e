"""The attempts of plans as columns, and their totals over time."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from astra.database.connection import tuples
from astra.models.attempts import Attempt
from astra.models.plans import Page
from astra.records import dataclass
from astra.states import AttemptState, PageState
from astra.status.status import PlanStatus

Reals = NDArray[np.float64]

N_BINS = 96  # bars over time

N_SLOWEST = 15


@dataclass(frozen=True)
class TimeSeries:
    """Values over time, as the mean in each of `N_BINS` intervals of equal length."""

    began: datetime
    ended: datetime
    series: Mapping[str, tuple[float, ...]]

    @property
    def bin_s(self) -> float:
        return (self.ended - self.began).total_seconds() / N_BINS


@dataclass(frozen=True)
class Histogram:
    """The counts of `n` values in the bins between `edges`."""

    n: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float
    p90: float
    maximum: float
    of: str | None = None  # which values were used, if not all


@dataclass(frozen=True)
class Node:
    """What the attempts on a node did."""

    node: str
    attempts: int
    rows: int
    busy_s: float
    failed: int
    unsuccessful: int  # attempts that did not complete their page by themselves
    max_rss_mb: float | None

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.busy_s if self.busy_s else 0.0


@dataclass(frozen=True)
class SlowPage:
    """A page that took long."""

    plan: int
    page: int
    rows: int
    attempts: int
    seconds: float  # of all its attempts
    node: str


@dataclass(frozen=True)
class Ending:
    """A way in which attempts ended, and how many of them did."""

    state: str
    slurm_state: str | None
    attempts: int
    message: str | None  # of one of them


class _Record(NamedTuple):
    """One attempt, as the database returns it."""

    plan: int
    page: int
    page_rows: int
    submission: int
    number: int
    state: str
    slurm_state: str | None
    host: str
    began: datetime
    seen: datetime
    ended: datetime | None
    rows: int
    failed: int
    task_s: float
    read_s: float
    write_s: float
    max_rss_mb: float | None
    message: str | None


#: The state of an attempt that is recorded as running and has no live process.
_LOST = "lost"

_ENDED_WELL = frozenset({AttemptState.DONE.value, AttemptState.RUNNING.value})


def _marked_if_lost(record: _Record, alive: set[tuple[int, int]], queried: datetime) -> _Record:
    """Mark a running attempt as lost if its element was not alive according to Slurm."""
    silent = (record.plan, record.page) not in alive and record.seen <= queried
    lost = record.state == AttemptState.RUNNING and silent
    return record._replace(state=_LOST) if lost else record


def _end_of_work(record: _Record, now: datetime) -> datetime:
    """Return when an attempt stopped working: if it was taken over, after its last heartbeat."""
    if record.state == AttemptState.RUNNING:
        return now
    died = record.state == AttemptState.SUPERSEDED
    return record.seen if died or record.ended is None else record.ended


class Attempts:
    """The attempts of some plans, as columns."""

    def __init__(
        self, plans: Sequence[int], statuses: Sequence[PlanStatus], queried: datetime, now: datetime
    ) -> None:
        query = (
            Attempt.select(
                Page.plan, Page.number, Page.n_rows, Attempt.submission_pk,
                Attempt.number, Attempt.state,
                Attempt.slurm_state, Attempt.host, Attempt.began, Attempt.seen, Attempt.ended,
                Attempt.n_done + Attempt.n_failed + Attempt.n_no_result, Attempt.n_failed,
                Attempt.t_task_s, Attempt.t_read_s, Attempt.t_write_s, Attempt.max_rss_mb,
                Attempt.message,
            )
            .join(Page)
            .where(Page.plan << list(plans))
            .order_by(Page.plan, Page.number, Attempt.number)
        )  # fmt: skip
        alive = {
            (s.plan, p.page) for s in statuses for p in s.elements if p.state is PageState.RUNNING
        }
        records = [_marked_if_lost(_Record(*values), alive, queried) for values in tuples(query)]
        self.records, self.n = records, len(records)
        self.whole = {(s.plan, p.page) for s in statuses for p in s.elements if not p.pending}
        self.n_pages = sum(s.n_pages for s in statuses)
        self.began_s = np.array([record.began.timestamp() for record in records])
        ends = [_end_of_work(record, now) for record in records]
        self.ended_s = np.maximum(np.array([end.timestamp() for end in ends]), self.began_s)
        self.number = np.array([record.number for record in records], dtype=int)
        self.rows = np.array([record.rows for record in records], dtype=float)
        self.task_s = np.array([record.task_s for record in records])
        self.read_s = np.array([record.read_s for record in records])
        self.write_s = np.array([record.write_s for record in records])
        self.began = min((record.began for record in records), default=None)
        self.ended = max(ends, default=None)

    def over_time(self, first: datetime | None) -> TimeSeries | None:
        """Count pages by state over time, from the first submission to the last heartbeat."""
        if not self.n or self.began is None or self.ended is None:
            return None
        start = min(first or self.began, self.began)
        end = max(self.ended, start + timedelta(seconds=1))
        edges = _edges(start, end)
        t0, t1 = edges[0], edges[-1]
        following = np.append(self.began_s[1:], np.inf)
        ids = [(record.plan, record.page) for record in self.records]
        first_of = np.array([i == 0 or ids[i] != ids[i - 1] for i in range(self.n)])
        last_of = np.array([*first_of[1:], True], bool)
        ended = np.array([record.state == AttemptState.DONE for record in self.records], bool)
        is_done = last_of & (ended | np.array([page in self.whole for page in ids], bool))
        # An element that continues its page with another attempt has not stopped.
        same = [
            one.submission == other.submission and one.state != AttemptState.SUPERSEDED
            for one, other in pairwise(self.records)
        ]
        until = np.where(~last_of & np.array([*same, False], bool), following, self.ended_s)
        stopped = ~is_done & (until < t1)
        gone_on = np.minimum(np.where(last_of, t1, following), t1)
        never = self.n_pages - int(first_of.sum())
        begins = np.append(self.began_s[first_of], np.full(never, t1))
        series = {
            "done": mean_over(until[is_done], np.full(int(is_done.sum()), t1), edges),
            "running": mean_over(self.began_s, np.minimum(until, gone_on), edges),
            "stopped": mean_over(until[stopped], gone_on[stopped], edges),
            "not begun": mean_over(np.full(len(begins), t0), begins, edges),
        }
        return TimeSeries(start, end, series)

    def rate(self, pages: TimeSeries | None) -> TimeSeries | None:
        """Return the rows ended per second, those of an attempt spread evenly over its time."""
        if pages is None:
            return None
        lasted_s = np.maximum(self.ended_s - self.began_s, 1e-3)
        edges = _edges(pages.began, pages.ended)
        per_s = mean_over(self.began_s, self.began_s + lasted_s, edges, self.rows / lasted_s)
        return TimeSeries(pages.began, pages.ended, {"rows per second": per_s})

    def _places(self, *fields: str) -> dict[Any, list[int]]:
        """Return the places of the attempts by the values of these fields."""
        groups: dict[Any, list[int]] = defaultdict(list)
        values = attrgetter(*fields)
        for place, record in enumerate(self.records):
            groups[values(record)].append(place)
        return groups

    def page_times(self) -> Histogram | None:
        """Return the seconds that all attempts of each whole page took."""
        lasted_s, pages = self.ended_s - self.began_s, self._places("plan", "page")
        times = [lasted_s[places].sum() for page, places in pages.items() if page in self.whole]
        return histogram(np.array(times)) if times else None

    def _peak_mb(self, places: list[int]) -> float | None:
        return max((mb for i in places if (mb := self.records[i].max_rss_mb)), default=None)

    def slow_pages(self) -> list[SlowPage]:
        lasted_s = self.ended_s - self.began_s
        pages = [
            SlowPage(
                plan, page, self.records[places[-1]].page_rows, len(places),
                float(lasted_s[places].sum()), self.records[places[-1]].host,
            )
            for (plan, page), places in self._places("plan", "page").items()
        ]  # fmt: skip
        return sorted(pages, key=lambda page: -page.seconds)[:N_SLOWEST]

    def nodes(self) -> list[Node]:
        """Return the nodes, those with the most unsuccessful attempts first."""
        lasted_s = self.ended_s - self.began_s
        nodes = [
            Node(
                host, len(places), int(self.rows[places].sum()), float(lasted_s[places].sum()),
                sum(self.records[i].failed for i in places),
                sum(self.records[i].state not in _ENDED_WELL for i in places),
                self._peak_mb(places),
            )
            for host, places in self._places("host").items()
        ]  # fmt: skip
        return sorted(nodes, key=lambda node: (-node.unsuccessful, node.node))

    def endings(self) -> list[Ending]:
        """Return how attempts ended, successful ones first."""
        endings = []
        for (state, slurm_state), places in self._places("state", "slurm_state").items():
            messages = (self.records[i].message for i in places if state != AttemptState.DONE)
            endings.append(
                Ending(state, slurm_state, len(places), next(filter(None, messages), None))
            )
        return sorted(endings, key=lambda e: (e.state != AttemptState.DONE, -e.attempts))


def _edges(began: datetime, ended: datetime) -> Reals:
    return np.linspace(began.timestamp(), ended.timestamp(), N_BINS + 1)


def mean_over(
    starts: Reals, ends: Reals, edges: Reals, weights: Reals | None = None
) -> tuple[float, ...]:
    """Return how many of the intervals ``[start, end)`` cover each bin, on average."""
    weights = np.ones(len(starts)) if weights is None else weights
    total = _ramps(starts, weights, edges) - _ramps(ends, weights, edges)
    return tuple(np.maximum(np.diff(total) / np.diff(edges), 0).round(6).tolist())


def _ramps(times: Reals, weights: Reals, at: Reals) -> Reals:
    """Return the sum of ``weight * max(0, t - time)`` at each t of `at`."""
    order = np.argsort(times)
    since = times[order] - at[0]  # small numbers keep their precision
    weight = np.concatenate([[0.0], np.cumsum(weights[order])])
    moment = np.concatenate([[0.0], np.cumsum(weights[order] * since)])
    n = np.searchsorted(since, at - at[0])
    return (at - at[0]) * weight[n] - moment[n]


def histogram(values: Reals, of: str | None = None) -> Histogram:
    """Return a histogram of seconds, with five bins to a decade."""
    least = 1e-6
    values = np.maximum(np.asarray(values, dtype=float), least)
    low, high = math.floor(math.log10(values.min()) * 5), math.ceil(math.log10(values.max()) * 5)
    edges = 10.0 ** (np.arange(low, max(high, low + 1) + 1) / 5)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(place, minlength=len(edges) - 1)
    return Histogram(
        len(values), tuple(edges.tolist()), tuple(counts.tolist()), float(np.median(values)),
        float(np.quantile(values, 0.9)), float(values.max()), of,
    )  # fmt: skip
