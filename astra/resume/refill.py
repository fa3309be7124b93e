"""Refill pools that have fewer elements than they should.

Elements end early if their plan is paused or throttled, or at their time limit. As long as one is
left, it would take all free pages, one after the other.
"""

from collections import Counter

from astra.database.connection import connection, dialect, writing
from astra.models.plans import Page, Submission
from astra.slurm.parse import never_starts
from astra.states import SlurmState
from astra.status.page_states import Pages


def withdraw_pages(pages: Pages) -> dict[int, int]:
    """Withdraw a share of the free pages of such pools, which more elements are submitted for.

    Return the numbers of the withdrawn pages, each with the number of elements that its pool lacks.
    """
    if pages.stored.plan.paused is not None:
        return {}
    alive = Counter(
        (job, execution.state)
        for (job, _), execution in pages.answer.executions.items()
        if execution.state is not None
        and execution.state.alive
        and not execution.is_completing
        and not never_starts(execution.reason)
    )
    withdrawn = {}
    for submission in pages.stored.submissions.values():
        running = alive[submission.job_name, SlurmState.RUNNING]
        n_alive = sum(n for (job, _), n in alive.items() if job == submission.job_name)
        if not running or n_alive > running:  # those that wait in the queue are enough, or none is
            continue
        wanted = _n_elements(submission, pages.stored.plan.throttle)
        missing = wanted - running
        free = [r.number for r in pages.stored.rows if r.free and r.submission_pk == submission.pk]
        if missing > 0 and (share := len(free) * missing // wanted):
            for number in _withdraw(submission, free[-share:]):
                withdrawn[number] = missing
    return withdrawn


def _n_elements(submission: Submission, throttle: int | None) -> int:
    """Return how many elements of a submission may run at once."""
    limits = (len(submission.elements), submission.stored_profile.get("throttle"), throttle)
    return min(limit for limit in limits if limit)


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
