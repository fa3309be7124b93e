"""Resume a plan: submit the pages that are neither done nor running, with their missing rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from astra.config.profiles import choose_profile
from astra.database.connection import connection, writing
from astra.element.suspects import reset_deaths
from astra.errors import SlurmRefused, UsageError, nearest
from astra.models.plans import Page, Plan
from astra.plan.lookup import check_plan_version, get_plan, paused_message
from astra.plan.pages import PageStatus, pages_without_keys
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
from astra.states import ALIVE, Outcome, PageState, SlurmState
from astra.status.page_states import Pages, SlurmAnswer, current_pages
from astra.submit.arrays import shares
from astra.submit.intent import Holders, hold_plan
from astra.submit.local import LocalRun, start_local
from astra.submit.night_hours import ALWAYS, Hours
from astra.submit.submit import (
    GivenUpPages,
    Submitted,
    check_ready,
    refuse_cancelled,
    submit_pages,
)


def resume(
    plan: int,
    failed: bool = False,
    only: Iterable[str] = (),
    profile_name: str | None = None,
    options: Mapping[str, object] | None = None,
    dry_run: bool = False,
    hours: Hours = ALWAYS,
    slurm_answer: SlurmAnswer | None = None,
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
    slurm_answer : tuple, optional
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
        steps = _steps(frozen, pages, statuses, profile_name, options, bool(wanted) or failed)
        refills = [] if dry_run or wanted else withdraw_pages(statuses)
        more = _replacements(frozen, refills, statuses, profile_name, options)
        submitted = _take_steps(frozen, pages, steps, more, refills, statuses, dry_run, hours)
    left = [step for step in steps if not step.decision.retry]
    return replace(submitted, skipped=_skipped(skipped, more, left), left=_given_up(frozen, left))


def _steps(
    plan: Plan,
    pages: Iterable[Page],
    statuses: Sequence[PageStatus],
    name: str | None,
    options: Mapping[str, object] | None,
    on_request: bool,
) -> list[PageStep]:
    """Return the next steps of pages; done ones, which are retried, count as not submitted."""
    numbers = {page.number for page in pages}
    pending = [
        replace(s, state=PageState.UNSUBMITTED) if s.state is PageState.DONE else s
        for s in statuses
        if s.page in numbers
    ]
    return next_steps(plan, pending, name, options, on_request)


def _replacements(
    plan: Plan,
    refills: Sequence[Refill],
    statuses: Pages,
    name: str | None,
    options: Mapping[str, object] | None,
) -> list[PageStep]:
    """Return steps for pages of submissions that lack elements, with as many as they lack."""
    lacking = {number: refill.missing for refill in refills for number in refill.pages}
    withdrawn = [replace(s, state=PageState.UNSUBMITTED) for s in statuses if s.page in lacking]
    return [
        replace(
            step,
            profile=replace(step.profile, max_elements=lacking[step.page.number], throttle=None),
        )
        for step in next_steps(plan, withdrawn, name, options)
    ]


def _skipped(skipped: dict[str, int], more: list[PageStep], left: list[PageStep]) -> dict[str, int]:
    """Return the numbers of skipped pages, without free ones that are submitted after all."""
    waiting = PageState.WAITING.value
    n_waiting = skipped.get(waiting, 0) - len(more)
    counts = {**skipped, waiting: n_waiting, "given up": len(left)}
    return {state: n for state, n in counts.items() if n}


def _take_steps(
    plan: Plan,
    pages: list[Page],
    chosen: list[PageStep],
    more: list[PageStep],
    refills: list[Refill],
    statuses: Pages,
    dry_run: bool,
    hours: Hours,
) -> Submitted:
    """Submit the pages that the policy retries, exclude bad nodes, and record the ends.

    The steps of the `pages` that were chosen come first; `more` were withdrawn from their pool.
    """
    steps = [*chosen, *more]
    holders = Holders.of([*pages, *(step.page for step in more)])
    retried = [step for step in steps if step.decision.retry]
    if dry_run:
        return _submit_groups(plan, retried, holders, dry_run, hours)
    exclude_bad_nodes(plan, statuses, steps)
    # Done pages, whose failures are retried, have nothing to continue.
    done = {row.number for row in statuses.stored.rows if not row.n_pending}
    try:
        return _submit_groups(plan, retried, holders, dry_run, hours)
    finally:
        put_back(plan, [page for page in pages if page.number not in done], refills)
        record(plan, steps, statuses)


def _submit_groups(
    plan: Plan, steps: list[PageStep], holders: Holders, dry_run: bool, hours: Hours
) -> Submitted:
    """Submit pages, grouped by the options of their elements; the groups share the throttle."""
    groups: dict[str, list[PageStep]] = {}
    for step in steps:
        groups.setdefault(repr(step.profile), []).append(step)
    submitted = Submitted(plan.pk, plan.task, 0, 0, dry_run=dry_run)
    lowest = min((step.profile.throttle for step in steps if step.profile.throttle), default=None)
    throttles = shares(lowest, [len(group) for group in groups.values()])
    for place, group in enumerate(groups.values()):
        if submitted.message:  # a limit of Slurm's, which holds for the other groups too
            break
        if throttles and place >= len(throttles):
            submitted = replace(
                submitted, message=f"the throttle of {lowest} is used up: the rest comes later"
            )
            break
        profile = group[0].profile
        if throttles:
            profile = replace(profile, throttle=throttles[place])
        pages = {step.page.number: step.page.n_pending for step in group}
        try:
            new = submit_pages(plan, pages, holders, profile, dry_run, hours)
        except SlurmRefused as refused:
            if not submitted.jobs:
                raise
            submitted = replace(submitted, message=str(refused))
            break
        submitted = replace(
            new,
            pages=submitted.pages + new.pages,
            rows=submitted.rows + new.rows,
            jobs=submitted.jobs + new.jobs,
        )
    return replace(submitted, unsubmitted=len(steps) - submitted.pages)


def _given_up(plan: Plan, steps: list[PageStep]) -> tuple[GivenUpPages, ...]:
    remedy = f"astra resume {plan.pk}"
    return tuple(
        GivenUpPages(
            s.pages, str(s.state), s.explanation, f"{remedy} {retry_policy.remedy(s.state)}"
        )
        for s in grouped(steps)
    )


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
        The pages that were run and skipped.

    Raises
    ------
    UsageError
        If there is no such plan, or it was cancelled or paused.

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
        raise UsageError(paused_message(frozen.pk, frozen.pause_reason))
    with hold_plan(frozen):
        pages, skipped, _ = _choose(frozen, failed, frozenset(), False)
        if not pages:
            return Submitted(frozen.pk, frozen.task, 0, 0, skipped=skipped)
        run = LocalRun(frozen, start_local(frozen, pages), pages, row_timeout, setup)
    return replace(run.run(n_processes, progress), skipped=skipped)


def _choose(
    plan: Plan,
    failed: bool,
    only: frozenset[SlurmState],
    dry_run: bool,
    slurm_answer: SlurmAnswer | None = None,
) -> tuple[list[Page], dict[str, int], Pages]:
    """Return the pages to submit, the numbers of others by state, and the states of all pages.

    Pages that have been claimed since their states were read count as running.
    """
    statuses, _ = current_pages(plan, slurm_answer)
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
    seen = {row.number: row.attempt_pk for row in statuses.stored.rows if row.number in chosen}
    claimed = {p.number for p in pages if p.attempt_pk != seen[p.number]}
    if claimed:
        skipped[PageState.RUNNING.value] += len(claimed)
    wanted = [p for p in pages if p.n_pending or (failed and dry_run)]
    return [p for p in wanted if p.number not in claimed], dict(skipped), statuses


def _is_wanted(page: PageStatus, failed: bool, only: frozenset[SlurmState]) -> bool:
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
    """Make the failed rows of these pages pending again."""
    with connection(), writing():
        failed = Page.select().where((Page.plan == plan.pk) & (Page.n_failed > 0))
        pages = [page for page in failed if page.number in numbers]
        reset_deaths(pages)
        for page in pages:
            was = bytes(page.outcomes)
            outcomes = was.replace(bytes([Outcome.FAILURE]), bytes([Outcome.PENDING]))
            as_read = (Page.pk == page.pk) & (Page.outcomes == page.outcomes)
            Page.update(outcomes=outcomes, n_failed=0).where(as_read).execute()


def checked_states(texts: Iterable[str]) -> frozenset[SlurmState]:
    """Return Slurm states by their names, in upper or lower case.

    Raises
    ------
    UsageError
        If a name is not a Slurm state.
    """
    names = {state.value for state in SlurmState if state is not SlurmState.ABSENT}
    states = set()
    for text in texts:
        if text.upper() not in names:
            raise UsageError(f"--only {text}: not a Slurm state. {nearest(text.upper(), names)}")
        states.add(SlurmState(text.upper()))
    return frozenset(states)
