"""The report of some plans as numbers: what ran when, how fast, on what, and what did not end well.

:func:`report_of` reads the database, asks Slurm once what lives where something is not whole, and
the accounting once what was used of what was asked for. It is bounded whatever the number of
pages: what is many is summed up, what needs somebody's attention is listed.
`page.py` draws it.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from peewee import Case, fn

from astra.config import settings
from astra.database.connection import connection, dialect
from astra.errors import Untrusted, UsageError
from astra.models.importing import load
from astra.models.pipeline import link_of
from astra.models.plans import Attempt, Failure, Page, Plan, Submission
from astra.plan.lookup import find_modules
from astra.plan.pages import key_reader
from astra.report.attempts import Ending, Histogram, Node, Over, Runs, SlowPage, histogram
from astra.report.usage import Efficiency, efficiency
from astra.states import PageState, PlanState, worst
from astra.status.pages import PageStatus
from astra.status.status import PlanStatus, statuses

log = logging.getLogger(__name__)

N_LISTED = 100  # pages and nodes in a table, at most

N_SLOWEST = 15

N_KINDS = 30  # of failures

N_KEYS = 12  # of rows that are named for a kind of failure

N_EARLIER = 8

#: Results of so many rows are looked at for their run time, at most.
ROWS_LOOKED_AT = 200_000


@dataclass(frozen=True)
class FailureKind:
    """Failures of one exception and place, with one of them as an example."""

    plan: int
    exception: str
    place: str | None
    message: str
    traceback: str | None
    rows: int
    keys: tuple[int | str, ...]


@dataclass(frozen=True)
class SlowRow:
    plan: int
    page: int
    key: int
    seconds: float


@dataclass(frozen=True)
class Earlier:
    """What an earlier plan, or night, came to: a line of the comparison."""

    title: str
    began: datetime
    wall_s: float
    rows: int
    failed: int
    pending: int
    attempts: int
    pages: int
    task_s: float  # that attempts spent in the task

    @property
    def whole(self) -> bool:
        return self.pending == 0

    @property
    def rows_per_s(self) -> float:
        return (self.rows - self.pending) / self.wall_s if self.wall_s else 0.0

    @property
    def row_s(self) -> float:
        ended = self.rows - self.pending
        return self.task_s / ended if ended else 0.0


@dataclass(frozen=True)
class How:
    """How a plan was made and submitted."""

    plan: int
    made: datetime
    by: str
    task: str
    commit: str | None
    arguments: str
    rows_per_page: int
    submissions: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Some plans as numbers. `rows` and `pages` are counted by state and add up."""

    title: str
    made: datetime
    state: PlanState
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
    over_time: Over | None
    rate: Over | None
    row_times: Histogram | None
    page_times: Histogram | None
    efficiency: Efficiency | None
    nodes: tuple[Node, ...]
    n_nodes: int
    failures: tuple[FailureKind, ...]
    failures_elsewhere: int  # rows counted as failed whose record is another plan's by now
    attention: tuple[tuple[int, PageStatus], ...]  # plan and page
    n_attention: int
    endings: tuple[Ending, ...]
    slow_rows: tuple[SlowRow, ...]
    slow_pages: tuple[SlowPage, ...]
    this: Earlier | None
    earlier: tuple[Earlier, ...]
    how: tuple[How, ...]
    next: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def wall_s(self) -> float:
        return (self.ended - self.began).total_seconds() if self.began and self.ended else 0.0

    @property
    def n_ended(self) -> int:
        return sum(self.rows.get(name, 0) for name in ("done", "failed", "no result"))


def report_of(
    plans: Sequence[int], title: str | None = None, earlier: Iterable[Earlier] | None = None
) -> Report:
    """The report of one plan, or of several together.

    Parameters
    ----------
    plans : their numbers.
    title : by default, the plan's number and task.
    earlier : what it is compared with, the latest first; by default, for one plan, the plans of
        the same task and input before it. :func:`earlier_of` makes one of some plans.

    Raises
    ------
    UsageError
        If there is no such plan.
    """
    if not plans:
        raise UsageError("a report is of one plan or of several: none was named")
    found = statuses(plans, of_whole=False, recent_s=settings.current().slurm.recent_s)
    with connection():
        frozen = {p.pk: p for p in Plan.select().where(Plan.pk << list(plans))}
        submissions = list(Submission.select().where(Submission.plan << list(plans)))
        now = dialect().now()
        runs = Runs(plans, found, now)
        rows: Counter[str] = Counter()
        pages: Counter[str] = Counter()
        for status in found:
            rows.update(status.rows)
            pages.update(status.pages)
        state = worst(status.state for status in found)
        slow_pages = runs.slow_pages()
        row_times, slow_rows = _row_times(list(frozen.values()), runs)
        kinds = [kind for plan in plans for kind in _kinds(plan)]
        if earlier is None and len(plans) == 1:
            earlier = _before(frozen[plans[0]])
        this = earlier_of(plans, "this one") if runs.n else None
        attention = [
            (status.plan, page)
            for status in found
            for page in status.elements
            if page.state not in (PageState.DONE, PageState.WAITING) and not _goes_on(page)
        ]
        over = runs.over_time(min((s.created for s in submissions), default=None))
    used, notes = efficiency(submissions, runs)
    return Report(
        title=title or "; ".join(f"plan {s.plan}: {s.task}" for s in found),
        made=now,
        state=state,
        verdict=_verdict(state, rows, pages, len(attention)),
        plans=tuple(replace(status, elements=()) for status in found),
        rows=dict(rows),
        pages=dict(pages),
        n_rows=sum(s.n_rows for s in found),
        n_pages=sum(s.n_pages for s in found),
        n_attempts=runs.n,
        retries=int(np.count_nonzero(runs.number > 1)),
        began=runs.began,
        ended=runs.ended,
        task_s=float(runs.task_s.sum()),
        read_s=float(runs.read_s.sum()),
        write_s=float(runs.write_s.sum()),
        over_time=over,
        rate=runs.rate(over),
        row_times=row_times,
        page_times=runs.page_times(),
        efficiency=used,
        nodes=tuple(runs.nodes()[:N_LISTED]),
        n_nodes=len(set(runs.host)),
        failures=tuple(sorted(kinds, key=lambda kind: -kind.rows)[:N_KINDS]),
        failures_elsewhere=max(0, rows["failed"] - sum(kind.rows for kind in kinds)),
        attention=tuple(sorted(attention, key=_urgency)[:N_LISTED]),
        n_attention=len(attention),
        endings=tuple(runs.endings()),
        slow_rows=tuple(slow_rows),
        slow_pages=tuple(slow_pages),
        this=this,
        earlier=tuple(earlier or ()),
        how=tuple(_how(frozen[pk], submissions) for pk in plans),
        next=tuple(dict.fromkeys(advice for status in found for advice in status.advice)),
        notes=tuple(dict.fromkeys([*(n for status in found for n in status.notes), *notes])),
    )


def _verdict(
    state: PlanState, rows: Mapping[str, int], pages: Mapping[str, int], n_attention: int
) -> str:
    n_rows = sum(rows.values())
    left = n_rows - sum(rows.get(name, 0) for name in ("done", "failed", "no result"))
    if state in (PlanState.WHOLE, PlanState.FAILED_ROWS):
        all_of = f"All {n_rows:,} rows have ended" if n_rows > 1 else "Its one row has ended"
        return all_of + (f", {rows['failed']:,} of them as failures." if rows["failed"] else ".")
    some = f"{left:,} of {n_rows:,} rows have not ended"
    if state is PlanState.RUNNING:
        return f"{some}; what runs, or waits, goes on by itself."
    if state is PlanState.CANCELLED:
        return f"{some}: it was given up."
    stuck = f"{n_attention:,} page{'s' if n_attention != 1 else ''} will not end without somebody"
    if alive := pages.get("running", 0) + pages.get("waiting", 0):
        return f"{some}; {stuck}, {alive:,} run or wait."
    return f"{some}; {stuck}."


def _goes_on(page: PageStatus) -> bool:
    return page.state is PageState.RUNNING and not page.overdue


_ORDER = [
    PageState.BROKEN, PageState.INCOMPLETE, PageState.LOST, PageState.INTERRUPTED,
    PageState.UNKNOWN, PageState.RUNNING, PageState.CANCELLED, PageState.UNSUBMITTED,
]  # fmt: skip


def _urgency(item: tuple[int, PageStatus]) -> tuple[int, int, int]:
    plan, page = item
    return _ORDER.index(page.state), plan, page.page


def _row_times(plans: list[Plan], runs: Runs) -> tuple[Histogram | None, list[SlowRow]]:
    """Run times of rows, from their results: of all, or of enough pages where they are many."""
    times: list[float] = []
    slowest: list[SlowRow] = []
    looked = 0
    for plan in plans:
        numbers = _pages_to_look_at(plan, runs, ROWS_LOOKED_AT // len(plans))
        looked += len(numbers)
        try:
            elapsed = list(_elapsed(plan, numbers))
        except Untrusted as error:
            log.warning("the run times of rows are left out: %s", error)
            continue
        for page, key, seconds in elapsed:
            times.append(seconds)
            slowest.append(SlowRow(plan.pk, page, key, seconds))
        slowest = sorted(slowest, key=lambda row: -row.seconds)[:N_SLOWEST]
    if not times:
        return None, []
    n_pages = sum(plan.n_pages for plan in plans)
    of = f"{looked:,} of {n_pages:,} pages, the slowest among them" if looked < n_pages else None
    return histogram(np.array(times), of), slowest


def _pages_to_look_at(plan: Plan, runs: Runs, n_rows: int) -> list[int]:
    """All pages of a plan, or the slowest and others between them, for about `n_rows` rows."""
    most = max(2, n_rows // plan.limit)
    if plan.n_pages <= most:
        return list(range(1, plan.n_pages + 1))
    mine = [run for run in runs.runs if run.plan == plan.pk and run.rows]
    slowest = sorted(mine, key=lambda run: -run.task_s / run.rows)[: most // 2]
    spread = np.linspace(1, plan.n_pages, most // 2).astype(int).tolist()
    return sorted({run.page for run in slowest} | set(spread))


def _elapsed(plan: Plan, numbers: list[int]) -> Iterable[tuple[int, int, float]]:
    """Page, key and seconds of the results of some pages that this plan's attempts wrote."""
    find_modules(plan)
    output = load(plan.output_model)
    key = link_of(output, load(plan.input_model)).key(output)
    pages = Page.select(Page.number, getattr(Page, key.page_column)).where(
        (Page.plan == plan.pk) & dialect().among(Page.number, numbers)
    )
    of_key = {k: number for number, keys in pages.tuples() for k in keys}
    query = (
        key.narrowed(output.select(), list(of_key))
        .select(key.given, output.t_elapsed)
        .join(Attempt, on=(Attempt.pk == output.attempt_pk))
        .join(Page)
        .where(
            (output.v_astra_major_minor == plan.v_astra // 1000)
            & (Page.plan == plan.pk)
            & output.t_elapsed.is_null(False)
        )
    )
    return ((of_key[k], k, seconds) for k, seconds in query.tuples())


def _kinds(plan: int) -> list[FailureKind]:
    """The failures of a plan by exception and place, each with the first as its example."""
    mine, as_key = (Failure.plan_pk == plan) & ~Failure.refused, key_reader(plan)
    groups = (
        Failure.select(Failure.exception, Failure.place, fn.COUNT(Failure.pk))
        .where(mine)
        .group_by(Failure.exception, Failure.place)
        .tuples()
    )
    found: list[FailureKind] = []
    for exception, place, n in sorted(groups, key=lambda group: -group[2]):
        same_place = Failure.place.is_null() if place is None else Failure.place == place
        alike = mine & (Failure.exception == exception) & same_place
        query = Failure.select(Failure.key).where(alike)
        by_key = query.order_by(fn.LENGTH(Failure.key), Failure.key)
        keys = [key for (key,) in by_key.limit(N_KEYS).tuples()]
        example = Failure.get(alike & (Failure.key == keys[0])) if len(found) < N_KINDS else None
        found.append(
            FailureKind(
                plan, exception, place, example.message if example else "",
                example.traceback if example else None, n, tuple(map(as_key, keys)),
            )
        )  # fmt: skip
    return found


def _before(plan: Plan) -> list[Earlier]:
    """The plans of the same task and input before this one, the latest first."""
    query = (
        Plan.select(Plan.pk)
        .where(
            (Plan.task == plan.task) & (Plan.input_table == plan.input_table) & (Plan.pk < plan.pk)
        )
        .order_by(Plan.pk.desc())
        .limit(N_EARLIER)
    )
    found = [earlier_of([pk], f"plan {pk}") for (pk,) in query.tuples()]
    return [line for line in found if line is not None]


def earlier_of(plans: Sequence[int], title: str) -> Earlier | None:
    """What some plans came to, to compare others with; None where nothing ran."""
    with connection():
        of_pages = (
            Page.select(
                fn.COUNT(Page.pk), fn.SUM(Page.n_rows), fn.SUM(Page.n_failed),
                fn.SUM(Page.n_done + Page.n_failed + Page.n_no_result),
            )
            .where(Page.plan << list(plans))
            .tuples()
            .get()
        )  # fmt: skip
        of_attempts = (
            Attempt.select(
                fn.COUNT(Attempt.pk), fn.MIN(Attempt.began),
                fn.MAX(Case(None, ((Attempt.ended.is_null(), Attempt.seen),), Attempt.ended)),
                fn.SUM(Attempt.t_task_s),
            )
            .join(Page)
            .where(Page.plan << list(plans))
            .tuples()
            .get()
        )  # fmt: skip
    pages, rows, failed, ended = (int(value or 0) for value in of_pages)
    attempts, began, until, task_s = of_attempts
    if not attempts:
        return None
    began, until = _time(began), _time(until)
    return Earlier(
        title, began, (until - began).total_seconds(), rows, failed, rows - ended,
        attempts, pages, task_s or 0.0,
    )  # fmt: skip


def _time(value: Any) -> datetime:
    """A time out of an aggregate, which SQLite gives as text."""
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _how(plan: Plan, submissions: list[Submission]) -> How:
    mine = [s for s in submissions if s.plan_pk == plan.pk]
    return How(
        plan.pk, plan.created, f"{plan.created_by} on {plan.created_on}", plan.task_path,
        plan.commit, plan.arguments, plan.limit,
        tuple(_submission(s) for s in sorted(mine, key=lambda s: s.pk)[-N_KINDS:]),
    )  # fmt: skip


def _submission(s: Submission) -> str:
    what = f"array {s.job_id}" if s.kind == "slurm" else f"local process {s.job_id}"
    return f"{s.created:%Y-%m-%d %H:%M:%S}  {what}, {len(s.elements):,} elements  {s.profile}"
