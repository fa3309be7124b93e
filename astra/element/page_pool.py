"""The page pool: pages that any element of a submission may take, and which one it takes next.

A column of its own says whether a page is free. It changes when the page is claimed or released. An
index holds the free pages, and checkpoints do not change it.
"""

import logging
import os
from dataclasses import replace

from peewee import ColumnBase, ModelSelect, Query, Value

from astra.config.units import time_limit_s, warning_lead_s
from astra.database.connection import dialect
from astra.database.statements import statement
from astra.errors import AstraError
from astra.models.attempts import Attempt
from astra.models.plans import N_PENDING, Page, Submission
from astra.processes import process_start_s
from astra.states import AttemptState

log = logging.getLogger(__name__)


def left_in(submission_pk: int | Value) -> ColumnBase:
    """Return a clause: the page belongs to a submission's pool, and has rows left."""
    return (Page.submission_pk == submission_pk) & (N_PENDING > 0)


def take_page(submission: Submission, preferred: int) -> int | None:
    """Take the page `preferred` if it is free, otherwise the free page with the most rows left.

    Return its number, or None if no page is free. Pages that other elements have locked in order to
    take them are skipped. If no other page is free, wait for these locks: an element that is taking
    a page may still fail.
    """
    for take in (_take_unlocked, _take) if dialect().name == "postgresql" else (_take,):
        for (number,) in take(submission=submission.pk, preferred=preferred):
            return int(number)
    return None


@statement
def _take_unlocked(submission: Value, preferred: Value) -> Query:
    return _taking(_first_free(submission, preferred).for_update(skip_locked=True))


@statement
def _take(submission: Value, preferred: Value) -> Query:
    free = _first_free(submission, preferred)
    return _taking(free.for_update() if dialect().name == "postgresql" else free)


def _first_free(submission: Value, preferred: Value) -> "ModelSelect[Page]":
    return (
        Page.select(Page.pk)
        .where(left_in(submission) & Page.free)
        .order_by((Page.number == preferred).desc(), N_PENDING.desc(), Page.number)
        .limit(1)
    )


def _taking(free: "ModelSelect[Page]") -> Query:
    return Page.update(free=False).where(Page.pk == free).returning(Page.number)


#: States of an attempt whose page its element continues when it is started again.
_CONTINUED = (
    AttemptState.RUNNING.value, AttemptState.DIED.value, AttemptState.INTERRUPTED.value
)  # fmt: skip


def claimed_page(submission: Submission, element: int) -> int | None:
    """Return the page that an earlier process of this element claimed, and neither ended nor
    released, because it crashed or Slurm requeued the element."""
    return (
        Page.select(Page.number)
        .join(Attempt, on=Attempt.pk == Page.attempt_pk)
        .where(
            left_in(submission.pk)
            & ~Page.free
            & (Attempt.submission_pk == submission.pk)
            & (Attempt.element == element)
            & Attempt.state.in_(_CONTINUED)
        )
        .order_by(Attempt.pk.desc())
        .limit(1)
        .scalar()
    )


def end_of_element(submission: Submission) -> float | None:
    """Return when this element is warned of its time limit, by the clock of ``now_s``, if ever.

    Slurm 23.02 and later report when a job began and when it will end, which ``--time-min`` may
    bring forward. These times are of slurmctld's clock, from which that of the node may differ.
    """
    options = submission.options
    lead_s = warning_lead_s(options.get("signal"))
    limit_s = time_limit_s(options.get("time", ""))
    if submission.kind == "slurm":
        times = [os.environ.get(f"SLURM_JOB_{name}_TIME", "") for name in ("START", "END")]
        if all(text.isdecimal() for text in times):
            limit_s = int(times[1]) - int(times[0])
    return limit_s and process_start_s(os.getppid()) + limit_s - lead_s


def close_pool(submission: Submission) -> None:
    """Cancel the waiting elements of a submission if all of its pages have ended."""
    pages_left = Page.select(Page.pk).where(left_in(submission.pk))
    if may_have_waiting(submission) and pages_left.limit(1).scalar() is None:
        cancel_waiting(submission)


def may_have_waiting(submission: Submission) -> bool:
    """Return whether a submission can have elements that have not started."""
    return submission.kind == "slurm" and len(submission.elements) > 1


#: States of an attempt whose element may have been requeued, and wait again.
_PERHAPS_REQUEUED = (
    AttemptState.INTERRUPTED.value, AttemptState.SUPERSEDED.value, AttemptState.DIED.value
)  # fmt: skip


def cancel_waiting(submission: Submission) -> None:
    """Cancel the elements of a submission that wait in the queue, unless another element has."""
    started = Attempt.select(Attempt.element).where(Attempt.submission_pk == submission.pk)
    requeued = started.where(Attempt.state.in_(_PERHAPS_REQUEUED)).exists()
    if not requeued and started.distinct().count() == len(submission.elements):
        return
    still_open = (Submission.token == submission.token) & (Submission.state == "submitted")
    if not Submission.update(state="ended").where(still_open).execute():
        return  # another element has cancelled them
    from astra.slurm import client, command  # imported here, as few elements need it

    if not command.available():  # in a container: the elements will find no page, and end
        return
    # This element belongs to the job, so its cluster need not be looked up. Whether the number is
    # still the job's is asked: slurmctld may have lost its state, and given it to another job.
    job = replace(submission.job, home=None)
    try:
        client.cancel(job, waiting_only=True)
    except AstraError as error:
        log.info("waiting elements could not be cancelled: %s", error)
