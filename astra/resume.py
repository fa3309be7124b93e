"""Resuming: the pages that are not whole and not alive, with only their missing rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from astra import spool
from astra.database import connection, writing
from astra.element import reset_rows
from astra.errors import UsageError, nearest
from astra.local import run_local, start_local
from astra.models.orchestration import Page, Plan
from astra.plan import check_plan_version, get_plan
from astra.states import ALIVE, Outcome, PageState, SlurmState
from astra.status import PageStatus, survey
from astra.submit import (
    Submitted,
    check_ready,
    choose_profile,
    light_pages,
    plan_lock,
    recover_intents,
    submit_pages,
)
from astra.suspects import forgive


def resume(
    plan: int,
    failed: bool = False,
    only: Iterable[str] = (),
    profile_name: str | None = None,
    options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Submitted:
    """Submit the pages of a plan that are not whole and not alive.

    Called twice, or while elements run, it starts nothing twice.

    Parameters
    ----------
    failed : take rows again that are recorded as failures.
    only : Slurm states, such as ``OUT_OF_MEMORY``: only pages whose element ended so.
    profile_name, options, dry_run : as for :func:`astra.submit.submit`.
    """
    frozen = get_plan(plan)
    check_ready(frozen)
    chosen = choose_profile(profile_name, options)
    wanted = checked_states(only)
    with plan_lock(frozen):
        recover_intents(frozen)
        spool.recover(frozen)
        pages, skipped = _choose(frozen, failed, wanted, dry_run)
        done = submit_pages(frozen, pages, chosen, dry_run=dry_run)
    return Submitted(**{**vars(done), "skipped": skipped})


def resume_local(
    plan: int,
    n_processes: int = 1,
    failed: bool = False,
    progress: Callable[[int, int], None] = lambda ended, rows: None,
    row_timeout: float | None = None,
) -> Submitted:
    """The same with processes of this machine; without `failed`, as a first submission too."""
    frozen = get_plan(plan)
    check_plan_version(frozen)
    if frozen.cancelled is not None:
        raise UsageError(f"plan {frozen.pk} was cancelled; its rows can be planned again")
    with plan_lock(frozen):
        recover_intents(frozen)
        spool.recover(frozen)
        pages, skipped = _choose(frozen, failed, frozenset(), False)
        if not pages:
            return Submitted(frozen.pk, frozen.task, 0, 0, skipped=skipped)
        submission = start_local(frozen, pages)
    done = run_local(frozen, submission, pages, n_processes, progress, row_timeout)
    return Submitted(**{**vars(done), "skipped": skipped})


def _choose(
    plan: Plan, failed: bool, only: frozenset[SlurmState], dry_run: bool
) -> tuple[list[Page], dict[str, int]]:
    """The pages to submit, and how many are passed over, by state."""
    statuses, _ = survey(plan)
    chosen: list[int] = []
    skipped: Counter[str] = Counter()
    for page in statuses:
        if not _is_wanted(page, failed, only):
            skipped[page.state.value] += 1
        else:
            chosen.append(page.page)
    if failed and not dry_run:
        _reset(plan, chosen)
    numbers = set(chosen)
    with connection():
        pages = [p for p in light_pages(plan) if p.number in numbers]
    return [p for p in pages if p.n_pending or (failed and dry_run)], dict(skipped)


def _is_wanted(page: PageStatus, failed: bool, only: frozenset[SlurmState]) -> bool:
    if page.state in ALIVE:
        return False
    if not page.pending and not (failed and page.failed):
        return False
    return not only or page.slurm_state in only or page.state is PageState.UNSUBMITTED


def _reset(plan: Plan, numbers: list[int]) -> None:
    """Make the failed rows of these pages pending again."""
    with connection(), writing():
        failed = Page.select().where((Page.plan == plan.pk) & (Page.n_failed > 0))
        pages = [page for page in failed if page.number in set(numbers)]
        forgive(pages)
        for page in pages:
            reset_rows(page, (Outcome.FAILURE,))


def checked_states(words: Iterable[str]) -> frozenset[SlurmState]:
    """Slurm states from their names, in either case.

    Raises
    ------
    UsageError
        If a name is none of Slurm's.
    """
    known = {state.value for state in SlurmState if state is not SlurmState.ABSENT}
    found = set()
    for word in words:
        if word.upper() not in known:
            raise UsageError(f"--only {word}: no state of Slurm's. {nearest(word.upper(), known)}")
        found.add(SlurmState(word.upper()))
    return frozenset(found)
