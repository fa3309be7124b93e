"""An element that starts after the hours of its night begins no page.

It gives back the pages that no element of its array has begun, as if they had not been submitted.
"""

from contextlib import suppress

from peewee import fn

from astra.database.connection import dialect, retrying, writing
from astra.element.page_pool import cancel_waiting, left_in
from astra.errors import NotAllowed, OutOfHours
from astra.models.attempts import Attempt
from astra.models.plans import Page, Submission
from astra.policy.next_steps import ends_as_stored, ends_of


def begin(start_until: int | None, token: str) -> float:
    """Check that an element may begin; if it is too late, give back the pages of its array.

    Returns
    -------
    float
        The time by the clock of the database, in seconds since the epoch.

    Raises
    ------
    OutOfHours
        If it is too late; the retry policy recognizes the exit status.
    """
    now = retrying(lambda: dialect().now().timestamp())
    if start_until is None or now < start_until:
        return now
    n_pages = 0
    submission = retrying(lambda: Submission.get_or_none(Submission.token == token))
    if submission is not None:  # else its plan was removed
        # A role that only runs elements may not; then each of them ends with the same status.
        with suppress(NotAllowed):
            n_pages = retrying(lambda: _give_back(submission))
            retrying(lambda: cancel_waiting(submission))  # they would do the same
    raise OutOfHours(
        f"the hours of the night are over: no page is begun, and {n_pages} pages count as not "
        "submitted; the next night, or astra resume, takes them"
    )


def _give_back(submission: Submission) -> int:
    """Take back the pages of a submission that none of its attempts has claimed; count them."""
    begun = Attempt.select().where(
        (Attempt.page == Page.pk) & (Attempt.submission_pk == submission.pk)
    )
    pages = Page.select(Page.pk, Page.attempt_pk, Page.retries, Page.n_rows).where(
        left_in(submission.pk) & ~fn.EXISTS(begun)
    )
    with writing():
        return sum(
            Page.update(**_before(page))
            .where(
                (Page.pk == page.pk)
                & (Page.submission_pk == submission.pk)
                # An element that is running may have claimed it since it was read.
                & (fn.COALESCE(Page.attempt_pk, 0) == (page.attempt_pk or 0))
            )
            .execute()
            for page in list(pages)
        )


def _before(page: Page) -> dict[str, object]:
    """Return the columns of a page before its submission, without the retry that did not start."""
    last = Attempt.get_or_none(Attempt.pk == page.attempt_pk) if page.attempt_pk else None
    if last is None:
        return {"submission_pk": None, "free": None}
    ends = ends_of(page)[:-1]
    retries = ends_as_stored(ends) if ends else None
    pulled = Submission.select().where((Submission.pk == last.submission_pk) & Submission.pulls)
    free = True if pulled.exists() else None
    return {"submission_pk": last.submission_pk, "free": free, "retries": retries}
