"""The status of a plan: finished rows from the database, running elements from Slurm.

Slurm is queried first, and the database is read afterwards: whatever an element wrote before Slurm
reported its end is therefore seen.
"""

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from functools import cache
from itertools import islice
from operator import attrgetter

from peewee import Model

from astra.config.units import written_moment
from astra.database.connection import connection, dialect
from astra.errors import AstraError, ConfigError, TaskError
from astra.models.attempts import excluded_nodes
from astra.models.failures import Failure
from astra.models.importing import load
from astra.models.plans import Page, Plan
from astra.models.table_checks import current_tables, lacking_guard
from astra.models.tracked_tables import tracked_model
from astra.plan.lookup import get_plan, plan_numbers
from astra.plan.pages import PageStatus, failed_keys, live_pages
from astra.policy.next_steps import NextStep, grouped, next_steps
from astra.records import dataclass
from astra.slurm.parse import Answer
from astra.states import ALIVE, COUNTED, ENDED, PageState, PlanState
from astra.status.page_states import (
    UNEXPLAINED,
    Pages,
    in_states,
    query_slurm_for,
    spool_notes,
)


@dataclass(frozen=True)
class PlanStatus:
    """The status of a plan. Its rows by state always add up to `n_rows`.

    :func:`astra.api.status` returns it.

    Examples
    --------
    >>> from astra.api import status
    >>> plan = status(1)
    >>> sum(plan.rows.values()) == plan.n_rows
    True
    """

    plan: int  #: number of the plan
    task: str  #: name of the task
    input_model: str  #: name of the input model
    state: PlanState  #: of the plan as a whole
    n_pages: int  #: number of pages
    n_rows: int  #: number of rows
    rows: Mapping[str, int]  #: rows by state: done, failed, no result, running, waiting, lost ...
    pages: Mapping[str, int]  #: pages by state
    #: pages one by one, with their elements
    elements: Sequence[PageStatus] = field(repr=False, default=())
    notes: tuple[str, ...] = ()  #: what to know about these numbers
    advice: tuple[str, ...] = ()  #: commands to type next
    refused: int = 0  #: further results of rows that have one
    steps: tuple[NextStep, ...] = ()  #: what resume does about pages that are not whole

    @property
    def n_ended(self) -> int:
        """The number of rows that have ended."""
        return sum(self.rows.get(name, 0) for name in ENDED)

    def in_states(self, states: Collection[PageState]) -> Iterator[PageStatus]:
        """Yield the pages that are in one of these states."""
        return in_states(self.elements, states)


def status(plan: int, include_done: bool = True, recent_s: float = 0.0) -> PlanStatus:
    """Return the status of a plan: its rows by outcome, its pages and elements by state.

    Parameters
    ----------
    plan : int
        Number of the plan.
    include_done : bool
        Also find out how the elements of completed pages ended.
    recent_s : float
        Age up to which an earlier answer of Slurm to this user is used again [s].

    Returns
    -------
    PlanStatus
        The numbers of its ``rows`` add up to ``n_rows``.

    Raises
    ------
    UsageError
        If there is no such plan.

    Examples
    --------
    >>> from astra.api import status
    >>> plan = status(1)
    >>> plan.state.value, plan.rows["done"]
    ('whole', 4)
    """
    return statuses([plan], include_done, recent_s)[0]


def statuses(
    plans: int | Sequence[int], include_done: bool = True, recent_s: float = 0.0
) -> list[PlanStatus]:
    """Return the status of several plans; Slurm is asked once for all of them.

    Parameters
    ----------
    plans : int, or a sequence of int
        Numbers of the plans, or of one.
    include_done : bool
        As for :func:`status`.
    recent_s : float
        As for :func:`status` [s].

    Returns
    -------
    list of PlanStatus
        In the order of `plans`.

    Raises
    ------
    UsageError
        If there is no such plan.

    Examples
    --------
    >>> from astra.api import statuses
    >>> [plan.state.value for plan in statuses([1])]
    ['whole']
    """
    with current_tables():  # one connection for all
        frozen = [get_plan(plan) for plan in plan_numbers(plans)]
    answer = query_slurm_for(frozen, include_done, recent_s)
    lost = cache(_lost_guard)
    with connection():
        return [
            _status(
                plan, answer, [*answer.notes, *lost(plan.input_table, plan.input_model)],
                include_done,
            )
            for plan in frozen
        ]  # fmt: skip


def _lost_guard(table: str, path: str) -> list[str]:
    """Return what an input table lacks to record changes of its rows."""
    with connection():
        model: type[Model] | None = None
        if path.partition(":")[0] in sys.modules:  # no module is imported only for this check
            with suppress(TaskError):  # it no longer has the model
                model = load(path)
        if model is None:
            model = tracked_model(table, path)
        lacks = None if model is None else lacking_guard(model)
    return [f"the table {table} {lacks}"] if lacks else []


def _status(plan: Plan, answer: Answer, notes: list[str], include_done: bool) -> PlanStatus:
    """Combine what is stored with Slurm's answer."""
    pages = Pages(plan, answer, include_done)
    if pages.any_local() and not pages.tally.keys() <= ALIVE | {PageState.DONE}:
        # A process of this machine may have recorded its end after its page was read.
        pages = Pages(plan, answer, include_done)
    plan = pages.plan
    steps, more = _next_steps(plan, pages)
    if _is_controlled(plan, pages):
        more = [*_controls(plan), *more]
    return _summary(plan, pages, [*notes, *spool_notes(plan), *more], steps)


def _is_controlled(plan: Plan, pages: Pages) -> bool:
    """Return whether a pause or a throttle keeps rows back that may run: pending or failed ones."""
    may_run = pages.tally.keys() - {PageState.DONE} or any(r.n_failed for r in pages.rows)
    return plan.cancelled is None and bool(may_run)


def _controls(plan: Plan) -> list[str]:
    """Return notes on a plan that is paused or throttled."""
    notes = []
    if plan.paused is not None:
        notes.append(
            f"the plan is paused since {written_moment(plan.paused)} ({plan.pause_reason}); its "
            f"elements take no further page: astra continue {plan.pk}"
        )
    if plan.throttle is not None:
        many = "1 element takes" if plan.throttle == 1 else f"{plan.throttle} elements take"
        notes.append(f"at most {many} further pages: astra throttle {plan.pk} --off ends this")
    return notes


def _next_steps(plan: Plan, pages: Pages) -> tuple[list[NextStep], list[str]]:
    """Return what the policy does about unfinished pages, and notes on excluded nodes."""
    stuck = in_states(pages, set(PageState) - ALIVE - {PageState.DONE})
    ended = [p for p in stuck if p.job and not p.job.startswith("local:")]
    try:
        steps = [step for step in grouped(next_steps(plan, ended)) if step.state is not None]
    except AstraError as error:
        note = f"the next step of the unfinished pages is unknown: {error}"
        if isinstance(error, ConfigError):
            note += f"; to submit them with another profile: astra resume {plan.pk} --profile NAME"
        return [], [note]
    notes = [
        f"node {e.node} of cluster {e.cluster} is excluded until {written_moment(e.until)}: "
        f"{e.reason}"
        for e in excluded_nodes()
        if pages.tally.keys() - {PageState.DONE}
    ]
    return steps, notes


def _summary(plan: Plan, pages: Pages, notes: list[str], steps: list[NextStep]) -> PlanStatus:
    """Count the rows and pages by state, and decide the state of the plan."""
    rows: Counter[str] = Counter()
    for name, column in zip(ENDED, COUNTED, strict=True):
        rows[name] = sum(map(attrgetter(column), pages.rows))
    for at, (_, n_left) in pages.tally.items():
        rows[at.value] += n_left
    by_page = {at.value: n for at, (n, _) in pages.tally.items()}
    with connection():
        refused = Failure.select().where((Failure.plan_pk == plan.pk) & Failure.refused).count()
    if rows["no result"] == plan.n_rows:
        notes = [
            *notes,
            "the task yielded nothing for any row; what it returns is not stored, and it can loop "
            "over its rows only once, unless it begins with rows = list(rows). After a change of "
            f"it: astra plan {plan.task} --again",
        ]
    state = plan_state(pages.tally.keys(), bool(pages.held), pages.cancelled, rows["failed"] > 0)
    if sum(rows.values()) != plan.n_rows:
        sums = f"the rows add up to {sum(rows.values()):,}, not {plan.n_rows:,}"
        notes = [*notes, f"{sums}: astra verify {plan.pk} shows where"]
        state = PlanState.ATTENTION
    return PlanStatus(
        plan.pk,
        plan.task,
        plan.input_model.rpartition(":")[2],
        state,
        plan.n_pages,
        plan.n_rows,
        {key: value for key, value in rows.items() if value or key == "done"},
        by_page,
        pages,
        tuple(notes),
        tuple(_advice(plan, pages, rows, steps)),
        refused,
        tuple(steps),
    )


def plan_state(
    states: Collection[PageState],
    any_held: bool = False,
    cancelled: bool = False,
    any_failed: bool = False,
) -> PlanState:
    """Return the state of a plan from the states of its pages."""
    states = set(states)
    if states <= {PageState.DONE}:
        return PlanState.FAILED_ROWS if any_failed else PlanState.WHOLE
    stuck = states - ALIVE - {PageState.DONE, PageState.CANCELLED}
    if stuck or PageState.UNKNOWN in states or any_held:
        return PlanState.ATTENTION
    if states & ALIVE:
        return PlanState.RUNNING
    return PlanState.CANCELLED if cancelled else PlanState.ATTENTION


def _advice(plan: Plan, pages: Pages, rows: Mapping[str, int], steps: list[NextStep]) -> list[str]:
    """Return the commands to type next, each with its reason after three blanks."""
    states = set(pages.tally)
    if given_up := {number for step in steps if not step.retry for number in step.pages}:
        numbers = zip(pages.rows, pages.states, strict=True)
        states = {at for row, at in numbers if row.number not in given_up}
    suffix = " --local" if pages.any_local() or dialect().name == "sqlite" else ""
    advice = []
    is_paused = plan.paused is not None and _is_controlled(plan, pages)
    for broken in islice(in_states(pages, {PageState.BROKEN}), 1):  # the cause, before all else
        then = f"continue {plan.pk}" if is_paused else f"resume {plan.pk}{suffix}"
        advice.append(f"astra logs {plan.pk} {broken.page}   shows why; fix it, then astra {then}")
    if is_paused:
        advice.append(f"astra continue {plan.pk}   ends the pause; before, nothing is submitted")
    unsubmitted = PageState.UNSUBMITTED
    if states == {unsubmitted} and pages.n_never_submitted == pages.tally[unsubmitted][0]:
        advice.append(f"astra submit {plan.pk}{suffix}")
    elif (suffix or not is_paused) and states & {  # on Slurm, to continue submits them
        PageState.LOST,
        PageState.INTERRUPTED,
        PageState.INCOMPLETE,
        PageState.UNSUBMITTED,
    }:
        advice.append(
            f"astra resume {plan.pk}{suffix}   submits the pages that are neither done nor running"
        )
    for remedy in sorted({step.remedy for step in steps if step.remedy}):
        advice.append(f"{remedy}   submits them anyway")
    if plan.paused is None and plan.throttle is None and (idle := pages.left_by_idle_elements()):
        advice.append(f"astra logs {plan.pk} {idle.page}   shows why its elements began no page")
    died = next((p for p in in_states(pages, UNEXPLAINED) if p.exit_code), None)
    if died is not None:
        place = len(advice) if rows.get("done") else 0  # else the log may say why none is
        advice.insert(
            place, f"astra logs {plan.pk} {died.page}   shows its log (exit {died.exit_code})"
        )
    silent = next((p for p in in_states(pages, {PageState.RUNNING}) if p.overdue), None)
    if silent is not None:
        advice.append(_advice_on_silent(plan, silent, suffix))
    if pages.held:
        held = pages[pages.held[0]]
        advice.append(
            f"scontrol show job {held.job}   Slurm holds it back ({held.reason}): fix that "
            f"(scontrol release, scontrol update), or astra cancel {plan.pk}"
        )
    unknown = {p.job is not None for p in in_states(pages, {PageState.UNKNOWN})}
    if False in unknown:
        advice.append(f"astra resume {plan.pk}   looks up the array of an sbatch without an answer")
    if True in unknown:
        # A page whose element Slurm does not know is lost when its heartbeat is overdue.
        later = "in a few minutes" if pages.answer.queue else "when Slurm answers"
        advice.append(f"astra status {plan.pk}   again, {later}")
    if rows.get("failed"):
        advice.append(f"astra failures {plan.pk}   shows which rows, and why")
    if states <= {PageState.DONE} and rows.get("failed"):
        advice += _advice_on_failed(plan, suffix)
    return advice


def _advice_on_failed(plan: Plan, suffix: str) -> list[str]:
    """Return how the failed rows of a plan are processed again, unless other plans will do that."""
    has_failed = (Page.plan == plan.pk) & (Page.n_failed > 0)
    with connection():
        if live_pages(plan.task, plan.input_table).where(Page.plan != plan.pk).exists():
            again, others = failed_keys(plan, Page.select().where(has_failed))
            if not again:
                return [f"astra status {pk}   is of the plan that has these rows" for pk in others]
    return [f"astra retry {plan.pk}{suffix}   processes these rows again"]


def _advice_on_silent(plan: Plan, page: PageStatus, suffix: str) -> str:
    """Return what to do about a page whose element runs without a heartbeat."""
    if page.reason:
        signalled = page.reason == "STOPPED"  # by scancel --signal=STOP
        command = "scancel --signal=CONT --full" if signalled else "scontrol resume"
        return f"{command} {page.job}   continues its element, which is {page.reason}"
    return (
        f"astra cancel {plan.pk} --page {page.page}   ends its element if that hangs: it runs, and "
        f"its heartbeat is overdue; then astra resume {plan.pk}{suffix}"
    )
