"""Resume a plan: submit the pages that are neither done nor running, with their missing rows."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from astra.config.profiles import choose_profile
from astra.database.connection import connection
from astra.element.suspects import reset_deaths
from astra.errors import UsageError, nearest
from astra.models.locks import transaction_with_locks
from astra.models.plans import Page, Plan
from astra.plan.lookup import check_plan_version, get_plan, paused_message
from astra.plan.pages import PageStatus, failed_keys, pages_without_keys, planning_lock
from astra.policy import retry_policy
from astra.policy.next_steps import (
    PageStep,
    end_of,
    exclude_bad_nodes,
    grouped,
    next_steps,
    record,
)
from astra.resume.refill import Refill, put_back, withdraw_pages
from astra.slurm.parse import Answer
from astra.states import ALIVE, Outcome, PageState, SlurmState
from astra.status.page_states import Pages, current_pages
from astra.submit.intent import hold_plan
from astra.submit.local import LocalRun, start_local
from astra.submit.night_hours import ALWAYS, Hours
from astra.submit.submit import Submitted, check_ready, refuse_cancelled, submit_pages

log = logging.getLogger(__name__)


def resume(
    plan: int,
    failed: bool = False,
    only: Iterable[str] = (),
    profile_name: str | None = None,
    options: Mapping[str, object] | None = None,
    dry_run: bool = False,
    hours: Hours = ALWAYS,
    slurm_answer: Answer | None = None,
) -> Submitted:
    """Submit the pages of a plan that are neither done nor running, or lack elements.

    Nothing is submitted twice. The retry policy decides for each page how it is submitted again.

    Parameters
    ----------
    plan : int
        Number of the plan.
    failed, dry_run : bool
        Also take rows that failed; return the scripts, and submit nothing.
    only : iterable of str
        Only pages whose element ended in one of these Slurm states, even without retries left.
    profile_name : str, optional
        Profile; default that of the previous elements.
    options : mapping, optional
        sbatch's options in snake case, which override the profile's.
    hours : Hours
        When elements may begin, and must have ended.
    slurm_answer : Answer, optional
        Slurm's present answer about the plan; default: Slurm is queried.

    Returns
    -------
    Submitted
        The pages that were submitted, skipped and given up.

    Raises
    ------
    UsageError
        If there is no such plan, or it was cancelled.
    SlurmError
        If Slurm refuses; call it again later.

    Examples
    --------
    >>> from astra.api import resume
    >>> resume(1).pages  # doctest: +SKIP
    3
    """
    check_ready(frozen := get_plan(plan), verb="retry" if failed else "resume")
    choose_profile(profile_name, options)  # refuses bad options before anything is changed
    wanted = checked_states(only)
    with hold_plan(frozen):
        pages, skipped, statuses = _choose(frozen, failed, wanted, dry_run, slurm_answer)
        refills = [] if dry_run or wanted else withdraw_pages(statuses)
        on_request = bool(wanted) or failed
        steps = _steps(frozen, pages, refills, statuses, profile_name, options, on_request)
        submitted = _take_steps(frozen, pages, steps, refills, statuses, dry_run, hours)
    return _with_other_pages(submitted, skipped, steps, len(pages), len(statuses.held))


def _steps(
    plan: Plan,
    pages: Iterable[Page],
    refills: Iterable[Refill],
    statuses: Pages,
    name: str | None,
    options: Mapping[str, object] | None,
    on_request: bool,
) -> list[PageStep]:
    """Return the next steps of pages, and then of those withdrawn from pools that lack elements.

    Done pages, which are retried, and withdrawn ones count as not submitted. A pool gets as many
    elements as it lacks.
    """
    lacking = {number: refill.missing for refill in refills for number in refill.pages}
    numbers = {page.number for page in pages}
    pending = [
        replace(s, state=PageState.UNSUBMITTED)
        if s.state is PageState.DONE or s.page in lacking
        else s
        for s in statuses
        if s.page in numbers or s.page in lacking
    ]
    steps = next_steps(plan, pending, name, options, on_request)
    chosen = [step for step in steps if step.page.number in numbers]
    more = [
        replace(step, profile=replace(step.profile, max_elements=missing, throttle=None))
        for step in steps
        if (missing := lacking.get(step.page.number))
    ]
    return [*chosen, *more]


def _take_steps(
    plan: Plan,
    pages: list[Page],
    steps: list[PageStep],
    refills: list[Refill],
    statuses: Pages,
    dry_run: bool,
    hours: Hours,
) -> Submitted:
    """Submit the pages that the policy retries, exclude bad nodes, and record the ends.

    Pages are grouped by the options of their elements. The `pages` that were chosen were read with
    their states, others when they had been withdrawn from their pool.
    """
    seen = {page.number: page for page in (*(step.page for step in steps), *pages)}
    groups: defaultdict[str, list[PageStep]] = defaultdict(list)
    for step in steps:
        if step.decision.retry:
            groups[repr(step.profile)].append(step)
    wanted = [
        (group[0].profile, {step.page.number: step.page.n_pending for step in group})
        for group in groups.values()
    ]
    if dry_run:
        return submit_pages(plan, wanted, seen, dry_run, hours)
    exclude_bad_nodes(plan, statuses, steps)
    # Done pages, whose failures are retried, have nothing to continue.
    done = {row.number for row in statuses.rows if not row.n_pending}
    try:
        return submit_pages(plan, wanted, seen, dry_run, hours)
    finally:
        put_back(plan, [page for page in pages if page.number not in done], refills)
        record(plan, steps, statuses)


def _with_other_pages(
    submitted: Submitted,
    skipped: Counter[str],
    steps: list[PageStep],
    n_chosen: int,
    n_held: int,
) -> Submitted:
    """Add the pages that were skipped, that Slurm holds back, and that were given up."""
    left = [step for step in steps if not step.decision.retry]
    # Free pages of a pool that lacks elements are submitted after all.
    skipped[PageState.WAITING.value] -= len(steps) - n_chosen
    skipped[PageState.WAITING.value] -= n_held
    skipped["held"] = n_held
    skipped["given up"] = len(left)
    skipped_states = {state: n for state, n in skipped.items() if n}
    return replace(submitted, skipped=skipped_states, left=tuple(grouped(left)))


def resume_local(
    plan: int,
    n_processes: int = 1,
    failed: bool = False,
    progress: Callable[[int, int], None] = lambda ended, rows: None,
    row_timeout: float | None = None,
    setup: tuple[str, ...] = (),
) -> Submitted:
    """Run the pages of a plan that are neither done nor running as processes on this machine.

    Parameters
    ----------
    plan : int
        Number of the plan.
    n_processes : int
        How many processes run at once.
    failed : bool
        Also take rows that failed.
    progress : callable, optional
        Called with the number of rows that have ended, and of all rows.
    row_timeout : float, optional
        Time after which a row is terminated and recorded as a failure [s].
    setup : tuple of str
        Lines of shell that each process runs first, such as those of a profile.

    Returns
    -------
    Submitted
        The pages that were run and skipped; none of a paused plan.

    Raises
    ------
    UsageError
        If there is no such plan, or it was cancelled.

    Examples
    --------
    >>> from astra.api import resume_local
    >>> resume_local(1, n_processes=2).pages  # every page is done
    0
    """
    frozen = get_plan(plan)
    check_plan_version(frozen)
    refuse_cancelled(frozen)
    if frozen.paused is not None:
        paused = paused_message(frozen.pk, frozen.pause_reason)
        return Submitted(frozen.pk, frozen.task, 0, 0, message=paused)
    with hold_plan(frozen):
        pages, counted, _ = _choose(frozen, failed, frozenset(), False)
        skipped = dict(counted)
        if not pages:
            return Submitted(frozen.pk, frozen.task, 0, 0, skipped=skipped)
        run = LocalRun(frozen, start_local(frozen, pages), pages, row_timeout, setup)
    return replace(run.run(n_processes, progress), skipped=skipped)


def _choose(
    plan: Plan,
    failed: bool,
    only: frozenset[str],
    dry_run: bool,
    slurm_answer: Answer | None = None,
) -> tuple[list[Page], Counter[str], Pages]:
    """Return the pages to submit, the numbers of others by state, and the states of all pages.

    Pages that have been claimed since their states were read count as running.
    """
    statuses = current_pages(plan, slurm_answer)
    chosen: set[int] = set()
    skipped: Counter[str] = Counter()
    for page in statuses:
        if _is_wanted(page, failed, only):
            chosen.add(page.page)
        else:
            skipped[page.state.value] += 1
    if failed and not dry_run:
        _reset(plan, chosen)
    with connection():
        pages = [p for p in pages_without_keys(plan) if p.number in chosen]
    seen = {row.number: row.attempt_pk for row in statuses.rows if row.number in chosen}
    claimed = {p.number for p in pages if p.attempt_pk != seen[p.number]}
    if claimed:
        skipped[PageState.RUNNING.value] += len(claimed)
    wanted = [p for p in pages if p.n_pending or (failed and dry_run)]
    return [p for p in wanted if p.number not in claimed], skipped, statuses


def _is_wanted(page: PageStatus, failed: bool, only: frozenset[str]) -> bool:
    if page.state in ALIVE:
        return False
    if not page.pending and not (failed and page.failed):
        return False
    return not only or page.state is PageState.UNSUBMITTED or not only.isdisjoint(_ends(page))


def _ends(page: PageStatus) -> set[str | None]:
    """Return how the element of a page ended: by Slurm, and as the policy names it."""
    end = end_of(page)
    return {page.slurm_state, end.state if end else None}


def _reset(plan: Plan, numbers: set[int]) -> None:
    """Make the failed rows of these pages pending again, except those that other plans will run."""
    lock = planning_lock(plan.task, plan.input_table)
    with connection(), transaction_with_locks((lock,), f"retries plan {plan.pk}"):
        has_failed = Page.select().where((Page.plan == plan.pk) & (Page.n_failed > 0))
        pages = [page for page in has_failed if page.number in numbers]
        again, held = failed_keys(plan, pages)
        reset_deaths(pages)
        for page in pages:
            outcomes = bytearray(page.outcomes)
            for place, key in enumerate(page.row_keys):
                if outcomes[place] == Outcome.FAILURE and key in again:
                    outcomes[place] = Outcome.PENDING
            as_read = (Page.pk == page.pk) & (Page.outcomes == page.outcomes)
            n_failed = outcomes.count(Outcome.FAILURE)
            Page.update(outcomes=bytes(outcomes), n_failed=n_failed).where(as_read).execute()
    for other, n_rows in held.items():
        text = "%d failed rows are left to plan %d, which will run them: astra status %d"
        log.warning(text, n_rows, other, other)


def checked_states(texts: Iterable[str]) -> frozenset[str]:
    """Return the states in which elements ended by their names, in upper or lower case.

    Raises
    ------
    UsageError
        If a name is neither a Slurm state nor one that the policy has for what Slurm cannot say.
    """
    names = {state.value for state in SlurmState if state is not SlurmState.ABSENT}
    names |= retry_policy.EXTERNAL.keys()
    states = set()
    for text in texts:
        if text.upper() not in names:
            hint = nearest(text.upper(), names)
            raise UsageError(f"--only {text}: not a state in which an element ends. {hint}")
        states.add(text.upper())
    return frozenset(states)
