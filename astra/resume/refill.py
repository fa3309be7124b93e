"""Refill pools that have fewer elements than they should.

Elements end early if their plan is paused or throttled, or at their time limit. As long as one is
left, it would take all free pages, one after the other.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable

from astra.database.connection import connection, dialect, writing
from astra.models.plans import Page, Plan, Submission
from astra.records import dataclass
from astra.slurm.parse import never_starts
from astra.states import SlurmState
from astra.status.page_states import Pages


@dataclass(frozen=True)
class Refill:
    """Pages that were withdrawn from a pool, for elements that it lacks."""

    submission: Submission
    pages: list[int]  # their numbers
    running: int  # elements that the pool has
    missing: int


def withdraw_pages(pages: Pages) -> list[Refill]:
    """Withdraw a share of the free pages of such pools, which more elements are submitted for."""
    if pages.plan.paused is not None:
        return []
    alive = Counter(
        (job, execution.state)
        for (job, _), execution in pages.answer.executions.items()
        if execution.state is not None
        and execution.state.alive
        and not execution.is_completing
        and not never_starts(execution.reason)
    )
    sizes = Counter(row.submission_pk for row in pages.rows)
    refills = []
    for submission in pages.submissions.values():
        running = alive[submission.job_name, SlurmState.RUNNING]
        n_alive = sum(n for (job, _), n in alive.items() if job == submission.job_name)
        if not running or n_alive > running:  # those that wait in the queue are enough, or none is
            continue
        throttle = pages.plan.throttle
        wanted = min(_n_elements(submission, throttle), sizes[submission.pk])
        missing = wanted - running
        free = [r.number for r in pages.rows if r.free and r.submission_pk == submission.pk]
        if missing > 0 and (share := len(free) * missing // wanted):
            withdrawn = _withdraw(submission, free[-share:])
            refills.append(Refill(submission, withdrawn, running, missing))
    return refills


def _n_elements(submission: Submission, throttle: int | None) -> int:
    """Return how many elements of a submission may run at once, if it has as many pages.

    At a limit of Slurm's, fewer were submitted than it allows.
    """
    profile = submission.stored_profile
    allowed = profile.get("max_elements") or len(submission.elements)
    return min(limit for limit in (allowed, profile.get("throttle"), throttle) if limit)


def _withdraw(submission: Submission, numbers: list[int]) -> list[int]:
    """Withdraw pages that are still free, so that no element of the submission takes them."""
    with connection(), writing():
        withdrawn = (
            Page.update(free=None)
            .where(
                (Page.submission_pk == submission.pk)
                & dialect().among(Page.number, numbers)
                & Page.free
            )
            .returning(Page.number)
        )
        return [page.number for page in withdrawn.execute()]


def put_back(plan: Plan, chosen: Iterable[Page], refills: Iterable[Refill]) -> None:
    """Return pages to their submissions if no array was submitted for them because of a limit.

    A pool whose pages were submitted for other elements needs no further element.
    """
    numbers: defaultdict[tuple[int, bool | None], list[int]] = defaultdict(list)
    for page in chosen:
        if page.submission_pk is not None:
            numbers[page.submission_pk, page.free].append(page.number)
    with connection(), writing():
        for (submission, free), of_submission in numbers.items():
            _return(plan, of_submission, submission, free)
        for refill in refills:
            if _return(plan, refill.pages, refill.submission.pk, True) < len(refill.pages):
                profile = {**refill.submission.stored_profile, "max_elements": refill.running}
                is_same = Submission.pk == refill.submission.pk
                Submission.update(profile=json.dumps(profile)).where(is_same).execute()


def _return(plan: Plan, numbers: list[int], submission: int, free: bool | None) -> int:
    """Return pages to a submission unless they have another; return how many."""
    is_withdrawn = (Page.submission_pk == submission) & Page.free.is_null()
    return int(
        Page.update(submission_pk=submission, free=free)
        .where(
            (Page.plan == plan.pk)
            & dialect().among(Page.number, numbers)
            & (Page.submission_pk.is_null() | is_withdrawn)
        )
        .execute()
    )
