"""The numbers of a report: what ran when, how fast and where, and what failed.

:func:`report_of` reads the database. It asks squeue once which elements live, if a plan is not
whole, and sacct once how much of the requested resources was used. The size of a report does not
depend on the number of pages: pages are counted, and only those that need attention are listed.
`page.py` renders the report.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from astra.config import settings
from astra.database.connection import connection, dialect, tuples
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import plan_numbers
from astra.plan.pages import PageStatus
from astra.records import dataclass
from astra.report.attempts import Attempts, Ending, Histogram, Node, SlowPage, TimeSeries
from astra.report.earlier import Earlier, earlier_of
from astra.report.failures import FailureKind, failures_of
from astra.report.provenance import Provenance, provenance_of
from astra.report.row_times import SlowRow, row_times
from astra.report.usage import Efficiency, efficiency
from astra.report.waste import wasted
from astra.states import PageState, PlanState, worst
from astra.status.headline import Headline, Kind, headline_of, stuck_pages, total
from astra.status.logs import log_paths
from astra.status.status import PlanStatus, statuses

N_LISTED = 100  # pages and nodes in a table, at most


@dataclass(frozen=True)
class Report:
    """The numbers of some plans. `rows` and `pages` are counted by state, and add up."""

    title: str
    written: datetime
    state: PlanState
    kind: Kind  # of its headline, which decides the colour
    verdict: str
    plans: tuple[PlanStatus, ...]
    rows: Mapping[str, int]
    pages: Mapping[str, int]
    n_rows: int
    n_pages: int
    n_attempts: int
    retries: int  # attempts after the first of a page
    began: datetime | None
    ended: datetime | None
    task_s: float
    read_s: float
    write_s: float
    over_time: TimeSeries | None
    rate: TimeSeries | None
    row_times: Histogram | None
    page_times: Histogram | None
    efficiency: Efficiency | None
    nodes: tuple[Node, ...]
    n_nodes: int
    failures: tuple[FailureKind, ...]
    n_failure_kinds: int  # those that are not listed, too
    failures_elsewhere: int  # rows counted as failed whose record now belongs to another plan
    attention: tuple[tuple[int, PageStatus], ...]  # plan and page
    n_attention: int
    endings: tuple[Ending, ...]
    slow_rows: tuple[SlowRow, ...]
    slow_pages: tuple[SlowPage, ...]
    this: Earlier | None
    earlier: tuple[Earlier, ...]
    how: tuple[Provenance, ...]
    next: tuple[str, ...]  # the first is the one command to type
    wasted: tuple[str, ...]
    logs: tuple[tuple[int, int, str], ...]  # plan, page and file, of pages that need attention
    notes: tuple[str, ...] = ()

    @property
    def wall_s(self) -> float:
        return (self.ended - self.began).total_seconds() if self.began and self.ended else 0.0

    @property
    def n_ended(self) -> int:
        return sum(plan.n_ended for plan in self.plans)


def report_of(
    plans: int | Sequence[int],
    title: str | None = None,
    earlier: Sequence[Earlier] = (),
    headline: Callable[[Sequence[PlanStatus]], Headline] = headline_of,
) -> Report:
    """Return the report of one plan, or of several together.

    Parameters
    ----------
    plans : int, or a sequence of int
        Numbers of the plans, or of one.
    title : str, optional
        By default, the plan's number and task.
    earlier : sequence of Earlier, optional
        What it is compared with, the latest first.
    headline : callable
        Makes the verdict from the statuses of the plans.

    Returns
    -------
    Report
        The numbers that ``astra report`` renders.

    Raises
    ------
    UsageError
        If there is no such plan.

    Examples
    --------
    >>> from astra.api import report
    >>> report([1]).n_rows
    4
    """
    plans = list(dict.fromkeys(plan_numbers(plans)))  # one that is given twice counts once
    with connection():
        queried = dialect().now()
    current = statuses(plans, include_done=False, recent_s=settings.current().slurm.recent_s)
    verdict = headline(current)
    with connection():
        planned = {p.pk: p for p in Plan.select().where(Plan.pk << list(plans))}
        submissions = list(Submission.select().where(Submission.plan << list(plans)))
        now = dialect().now()
        attempts = Attempts(plans, current, queried, now)
        how = tuple(provenance_of(planned[pk], submissions) for pk in plans)
        figures = _attempt_figures(list(planned.values()), submissions, attempts)
        figures |= _state_figures(current)
        this = earlier_of(plans, "this one") if earlier else None
    used, notes = efficiency(submissions)
    return Report(
        title=title or "; ".join(f"plan {s.plan}: {s.task}" for s in current),
        written=now, state=worst(status.state for status in current), kind=verdict.kind, how=how,
        plans=tuple(replace(s, elements=()) for s in current), earlier=tuple(earlier),
        efficiency=used, wasted=tuple(wasted(used, attempts, figures["page_times"])), this=this,
        notes=tuple(dict.fromkeys([*(n for s in current for n in s.notes), *notes])),
        verdict=verdict.text, next=verdict.commands, **figures,
    )  # fmt: skip


def _state_figures(statuses: Sequence[PlanStatus]) -> dict[str, Any]:
    """Return rows and pages by state, failed rows by kind, and the most urgent pages."""
    kinds, n_kinds, n_recorded = failures_of([status.plan for status in statuses])
    n_failed = sum(status.rows.get("failed", 0) for status in statuses)
    attention = [(status.plan, page) for status in statuses for page in stuck_pages(status)]
    listed = tuple(sorted(attention, key=_urgency)[:N_LISTED])
    return dict(
        rows=dict(total(s.rows for s in statuses)), pages=dict(total(s.pages for s in statuses)),
        n_rows=sum(s.n_rows for s in statuses), n_pages=sum(s.n_pages for s in statuses),
        failures=kinds, n_failure_kinds=n_kinds, failures_elsewhere=max(0, n_failed - n_recorded),
        attention=listed, n_attention=len(attention), logs=tuple(_last_logs(listed)),
    )  # fmt: skip


def _last_logs(pages: Iterable[tuple[int, PageStatus]]) -> Iterable[tuple[int, int, str]]:
    """Return the plan, the page and the log of the last attempt at each of some pages."""
    listed = {(plan, page.page) for plan, page in pages}
    of_plans = Page.plan << list({plan for plan, _ in listed})
    some = of_plans & dialect().among(Page.number, list({number for _, number in listed}))
    query = Page.select(Page.attempt_pk, Page.plan, Page.number).where(some)
    last = {pk: (plan, n) for pk, plan, n in tuples(query) if pk and (plan, n) in listed}
    return ((*last[attempt], path) for attempt, path in log_paths(last).items())


def _attempt_figures(
    plans: list[Plan], submissions: Sequence[Submission], attempts: Attempts
) -> dict[str, Any]:
    """Return the numbers of attempts: when, how fast, on which nodes, and how they ended."""
    of_rows, slow_rows = row_times(plans, attempts)
    over_time = attempts.over_time(min((s.created for s in submissions), default=None))
    nodes = attempts.nodes()
    return dict(
        n_attempts=attempts.n,
        retries=int(np.count_nonzero(attempts.number > 1)),
        began=attempts.began,
        ended=attempts.ended,
        task_s=float(attempts.task_s.sum()),
        read_s=float(attempts.read_s.sum()),
        write_s=float(attempts.write_s.sum()),
        over_time=over_time,
        rate=attempts.rate(over_time),
        row_times=of_rows,
        page_times=attempts.page_times(),
        nodes=tuple(nodes[:N_LISTED]),
        n_nodes=len(nodes),
        endings=tuple(attempts.endings()),
        slow_rows=tuple(slow_rows),
        slow_pages=tuple(attempts.slow_pages()),
    )


_ORDER = [
    PageState.BROKEN, PageState.INCOMPLETE, PageState.LOST, PageState.INTERRUPTED,
    PageState.UNKNOWN, PageState.RUNNING, PageState.WAITING, PageState.CANCELLED,
    PageState.UNSUBMITTED,
]  # fmt: skip


def _urgency(item: tuple[int, PageStatus]) -> tuple[int, int, int]:
    plan, page = item
    return _ORDER.index(page.state), plan, page.page
