"""The pool: pages of a submission that any of its elements may take.

Whether a page is free stands in a column of its own, which changes as the page is claimed and as it
is given back. An index holds the free pages, and no checkpoint changes it.
"""

import logging
from dataclasses import replace

from peewee import ColumnBase

from astra.config.units import time_limit_s
from astra.database.connection import dialect
from astra.errors import AstraError
from astra.models.attempts import Attempt
from astra.models.plans import N_PENDING, Page, Submission
from astra.states import AttemptState

log = logging.getLogger(__name__)


def left_in(submission: Submission) -> ColumnBase:
    """A clause: the page is of a submission's pool, and has rows left."""
    return (Page.submission_pk == submission.pk) & (N_PENDING > 0)


def take_page(submission: Submission, own: int) -> int | None:
    """Take the page `own` if it is free, else the free one with most rows left; its number.

    Rows that others are taking at this moment are passed over. Where nothing else is free they are
    waited for: whoever is taking one may still fail to.
    """
    skips_locked = (True, False) if dialect().name == "postgresql" else (None,)
    for skips in skips_locked:
        free = (
            Page.select(Page.pk)
            .where(left_in(submission) & Page.free)
            .order_by((Page.number == own).desc(), N_PENDING.desc(), Page.number)
            .limit(1)
        )
        if skips is not None:
            free = free.for_update(skip_locked=skips)
        taken = list(
            Page.update(free=False).where(Page.pk == free).returning(Page.number).execute()
        )
        if taken:
            return int(taken[0].number)
    return None


#: States of an attempt whose page its element takes up again when it is started once more.
_TAKEN_UP_AGAIN = (
    AttemptState.RUNNING.value, AttemptState.DIED.value, AttemptState.INTERRUPTED.value
)  # fmt: skip


def page_in_hand(submission: Submission, element: int) -> int | None:
    """The page that an earlier process of this element has claimed, and neither ended nor given
    back: it crashed, or Slurm requeued the element."""
    return (
        Page.select(Page.number)
        .join(Attempt, on=Attempt.pk == Page.attempt_pk)
        .where(
            left_in(submission)
            & ~Page.free
            & (Attempt.submission_pk == submission.pk)
            & (Attempt.element == element)
            & Attempt.state.in_(_TAKEN_UP_AGAIN)
        )
        .order_by(Attempt.pk.desc())
        .limit(1)
        .scalar()
    )


def give_back(page: Page) -> None:
    """Let another element take a page that this one was interrupted at, if it may be taken."""
    Page.update(free=True).where(
        (Page.pk == page.pk) & (Page.attempt_pk == page.attempt_pk) & Page.free.is_null(False)
    ).execute()


def time_of_element(submission: Submission) -> int | None:
    """Seconds from the start of an element to the warning before its time limit, if it has one."""
    options = submission.options
    limit_s = time_limit_s(options.get("time", ""))
    warning = str(options.get("signal") or "").rpartition("@")[2]
    return limit_s - int(warning) if limit_s and warning.isdecimal() else limit_s


def close_pool(submission: Submission) -> None:
    """When all pages of a submission have ended, cancel those of its elements that still wait."""
    left = Page.select(Page.pk).where(left_in(submission))
    if may_have_waiting(submission) and left.limit(1).scalar() is None:
        cancel_waiting(submission)


def may_have_waiting(submission: Submission) -> bool:
    """Whether elements of a submission may not have begun."""
    return submission.kind == "slurm" and len(submission.elements) > 1


def cancel_waiting(submission: Submission) -> None:
    """Cancel the elements of a submission that have not begun, if no other element has done so."""
    begun = Attempt.select(Attempt.element).where(Attempt.submission_pk == submission.pk)
    if begun.distinct().count() == len(submission.elements):
        return
    of_pool = (Submission.pk == submission.pk) & (Submission.state == "submitted")
    if not Submission.update(state="ended").where(of_pool).execute():
        return  # another element did it
    from astra.slurm import client, command  # here, as other elements need none of it

    if not command.available():  # as in a container: they find nothing to do, and end
        return
    # This is an element of the job: its cluster need not be looked up.
    job = replace(submission.job, home=None)
    try:
        client.cancel(job, waiting_only=True)
    except AstraError as error:
        log.info("waiting elements could not be cancelled: %s", error)
