"""The headline of plans: their state in one sentence, and the command to type next.

The report and the pages of ``astra report --watch`` print it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from astra.database.connection import dialect
from astra.errors import count
from astra.plan.pages import PageStatus
from astra.records import dataclass
from astra.states import PageState, PlanState, worst
from astra.status.page_states import never_starts
from astra.status.status import PlanStatus


class Kind(StrEnum):
    """The kinds of state that people distinguish at first sight, each with its own colour."""

    WHOLE = "whole"
    FAILED_ROWS = "failed rows"
    RUNNING = "running"
    NOT_BEGUN = "not begun"
    ATTENTION = "attention"
    CANCELLED = "cancelled"

    @property
    def label(self) -> str:
        return "Not whole: needs attention" if self is Kind.ATTENTION else self.capitalize()


@dataclass(frozen=True)
class Headline:
    """The state of some plans, and the commands to type next, the most useful first.

    Three blanks separate a command from its reason, as in ``PlanStatus.advice``.
    """

    kind: Kind
    text: str
    commands: tuple[str, ...]


def headline_of(plans: Sequence[PlanStatus]) -> Headline:
    """Return the headline of one plan, or of several together."""
    state = worst(plan.state for plan in plans)
    kind = Kind.NOT_BEGUN if plans and all(map(_not_begun, plans)) else Kind(state.value)
    # The first command is for a plan that determines their state, not for one that is whole.
    first = sorted(plans, key=lambda plan: plan.state is not state)
    commands = [line for plan in first for line in (*_next_of(plan, kind), *plan.advice)]
    return Headline(kind, _text(plans, kind), tuple(dict.fromkeys(commands)))


def stuck_pages(plan: PlanStatus) -> list[PageStatus]:
    """Return the pages of a plan that will not, or may not, end by themselves."""
    return [
        page
        for page in plan.in_states(set(PageState) - {PageState.DONE})
        if page.state not in (PageState.RUNNING, PageState.WAITING)
        or page.overdue
        or never_starts(page)
    ]


def _not_begun(plan: PlanStatus) -> bool:
    states = set(plan.pages)
    queued = states == {PageState.WAITING} and plan.state is PlanState.RUNNING
    untouched = queued or states == {PageState.UNSUBMITTED}
    return untouched and not plan.n_ended


def _next_of(plan: PlanStatus, kind: Kind) -> list[str]:
    """Return the command for a plan that does not need attention."""
    local = " --local" if dialect().name == "sqlite" else ""
    if plan.state is PlanState.RUNNING and kind is not Kind.ATTENTION:
        return [f"astra status {plan.plan} --watch   shows its progress"]
    if plan.state is PlanState.CANCELLED and kind is Kind.CANCELLED:
        return [f"astra submit {plan.task}{local}   plans and submits its rows again"]
    if plan.state is PlanState.WHOLE and kind is Kind.WHOLE:
        return [f"astra results {plan.task}   prints the stored results"]
    return []


def _text(plans: Sequence[PlanStatus], kind: Kind) -> str:
    rows, pages = total(p.rows for p in plans), total(p.pages for p in plans)
    n_rows, n_ended = rows.total(), sum(p.n_ended for p in plans)
    if kind in (Kind.WHOLE, Kind.FAILED_ROWS) and n_ended == n_rows:
        return _ended_text(n_rows, rows["failed"])
    n_left = n_rows - n_ended
    some = f"{n_left:,} of {n_rows:,} rows {'has' if n_left == 1 else 'have'} not ended"
    if kind is Kind.FAILED_ROWS:
        return f"{some}, as their plan was cancelled; {rows['failed']:,} ended as failures."
    if kind is Kind.RUNNING:
        return f"{some}; running and waiting elements continue by themselves."
    if kind is Kind.CANCELLED:
        return f"{some}: the plan was cancelled."
    if kind is Kind.NOT_BEGUN:
        waiting, unsubmitted = pages["waiting"], pages["unsubmitted"]
        parts = [f"{count(waiting, 'page')} in the queue"] if waiting else []
        parts += [f"{count(unsubmitted, 'page')} not submitted"] if unsubmitted else []
        return f"None of {count(n_rows, 'row')} has begun: {', '.join(parts)}."
    return "; ".join([some, *_stuck_text(plans, pages)]) + "."


def _ended_text(n_rows: int, n_failed: int) -> str:
    if n_rows == 0:
        return "There are no rows to process."
    if n_rows == 1:
        return f"Its one row has ended{' as a failure' if n_failed else ''}."
    return f"All {n_rows:,} rows have ended" + (
        f", {n_failed:,} of them as failures." if n_failed else "."
    )


def _stuck_text(plans: Sequence[PlanStatus], pages: Mapping[str, int]) -> Iterable[str]:
    stuck = [page for plan in plans for page in stuck_pages(plan)]
    unknown = sum(page.state is PageState.UNKNOWN for page in stuck)
    if len(stuck) > unknown:
        yield f"{count(len(stuck) - unknown, 'page')} will not end without intervention"
    if unknown:
        yield f"Slurm does not say whether the elements of {count(unknown, 'page')} have ended"
    if alive := pages["running"] + pages["waiting"]:
        yield f"{alive:,} run or wait"


def total(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Add up the counts of several plans by state."""
    totals: Counter[str] = Counter()
    for plan_counts in counts:
        totals.update(plan_counts)
    return totals
