"""Cancel a plan: ask its elements to stop, and release its rows.

A row is free when no attempt can write it any more: at once where none runs, and otherwise when
the attempt that has its page has ended.
"""

import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from peewee import SQL

from astra.config import settings
from astra.database.connection import connection, dialect, retrying, writing
from astra.errors import BusyError, SlurmError, SlurmUnknown, UsageError
from astra.models.archive import check_archive
from astra.models.plans import Attempt, Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.pages import light_pages, release
from astra.processes import command_of, process_began
from astra.slurm import client, parse
from astra.states import ALIVE, AttemptState
from astra.status.pages import PageStatus, slurm_jobs, survey
from astra.submit.intent import plan_lock, recover_intents

#: Beyond the grace that a row has, how long elements may take to end; and the submitter.
_PATIENCE_S, _LOCK_S = 5.0, 30.0


@dataclass(frozen=True)
class Cancelled:
    """What cancelling came to; :func:`astra.api.cancel` returns it.

    Examples
    --------
    >>> from astra.api import cancel
    >>> cancel(1).rows_freed
    0
    """

    plan: int  #: number of the plan
    jobs: tuple[str, ...]  #: Slurm jobs or elements that were asked to stop
    processes: tuple[int, ...]  #: processes of this machine that were asked to stop
    pages: tuple[int, ...] = ()  #: of the element that was asked to stop; () for a whole plan
    rows_freed: int = 0  #: rows that another plan may take
    rows_held: int = 0  #: rows of attempts that have not ended yet
    whole: bool = False  #: every row had ended: nothing was done


def cancel(plan: int, page: int | None = None) -> Cancelled:
    """Terminate the elements of a plan, and release its rows; or of one page alone.

    What they yielded is stored. It can be called again as long as elements have not ended.

    Parameters
    ----------
    plan : int
        Number of the plan.
    page : int, optional
        Terminate only the element of this page; the plan stays.

    Returns
    -------
    Cancelled
        What was terminated and released.

    Raises
    ------
    UsageError
        If there is no such plan or page.
    SlurmError
        If Slurm could not be notified. The plan is cancelled all the same: elements that run end
        at their next checkpoint.

    Examples
    --------
    >>> from astra.api import cancel
    >>> cancel(1).whole  # every row had ended: nothing was done
    True
    """
    frozen = get_plan(plan)
    check_archive()
    if page is not None:
        return _cancel_page(frozen, page)
    if _n_pending(frozen) == 0:
        return Cancelled(frozen.pk, (), (), whole=True)
    # First the mark: an element that starts meanwhile sees it and does nothing.
    with connection():
        Plan.update(cancelled=SQL(dialect().now_sql)).where(
            (Plan.pk == frozen.pk) & Plan.cancelled.is_null()
        ).execute()
    processes = _end_processes(_running(frozen))
    jobs = _end_jobs(frozen)
    _wait_for_ends(frozen)
    _release_dead(frozen)
    held = sum(a.page.n_pending for a in _running(frozen))
    return Cancelled(
        frozen.pk, tuple(map(str, jobs)), tuple(processes),
        rows_freed=_n_pending(frozen) - held, rows_held=held,
    )  # fmt: skip


def _n_pending(plan: Plan) -> int:
    with connection():
        return sum(page.n_pending for page in light_pages(plan))


def _end_jobs(plan: Plan) -> list[int]:
    """Cancel the arrays of a plan that may still live, those too that nobody knows of yet."""
    marked = (
        f"plan {plan.pk} is cancelled: no further element begins, and those that run end at their "
        f"next checkpoint, which frees their rows. astra cancel {plan.pk} asks them again"
    )
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            with plan_lock(plan):
                unknown = recover_intents(plan)
                alive = _slurm_jobs(plan)
                for job in alive:
                    client.cancel(job)
            break
        except BusyError as error:  # a submission ends soon: it asks for the mark before each array
            if time.monotonic() > deadline:
                raise BusyError(f"{error}. {marked}") from error
            time.sleep(0.2)
        except SlurmError as error:
            kind = SlurmUnknown if isinstance(error, SlurmUnknown) else SlurmError
            raise kind(f"{error}. {marked}") from error
    if unknown:
        names = ", ".join(submission.job_name for submission in unknown)
        raise SlurmUnknown(
            f"whether {names} was made is not known: Slurm does not answer. {marked}"
        )
    return [job.job_id for job in alive]


def _slurm_jobs(plan: Plan) -> list[parse.JobId]:
    """Jobs of the plan that may still live."""
    with connection():
        jobs = slurm_jobs(Submission.select().where(Submission.plan == plan.pk))
    if not jobs:
        return []
    answer = client.elements(jobs)
    if not answer.queue:
        return jobs
    alive = {job for (job, _), e in answer.executions.items() if e.state is None or e.state.alive}
    return [job for job in jobs if job.key in alive or job.key in answer.unsettled]


def _running(plan: Plan, numbers: Iterable[int] | None = None) -> list[Attempt]:
    """Attempts that have a page of the plan, and said nothing of an end."""

    def work() -> list[Attempt]:
        query = (
            Attempt.select(Attempt, Page)
            .join(Page)
            .where(
                (Page.plan == plan.pk)
                & (Attempt.pk == Page.attempt_pk)
                & (Attempt.state == AttemptState.RUNNING.value)
            )
        )
        return list(query if numbers is None else query.where(Page.number.in_(list(numbers))))

    return retrying(work)


def _end_processes(attempts: Iterable[Attempt]) -> list[int]:
    """Ask the elements of the local executor on this machine to stop.

    A process counts as one by its own command line alone: elements write their numbers into the
    database, where a role that may do so could name any process.
    """
    ended = []
    for attempt in attempts:
        mine = attempt.job_id is None and attempt.host == socket.gethostname()
        if mine and attempt.pid_began and process_began(attempt.pid) == attempt.pid_began:
            words = command_of(attempt.pid)
            if "run-page" in words and _token_of(attempt) in words:
                os.kill(attempt.pid, signal.SIGTERM)
                ended.append(attempt.pid)
    return ended


def _token_of(attempt: Attempt) -> str | None:
    with connection():
        query = Submission.select(Submission.token).where(Submission.pk == attempt.submission_pk)
        return query.scalar()


def _wait_for_ends(plan: Plan, numbers: Iterable[int] | None = None) -> None:
    """Give the elements the time that they need to store what they yielded."""
    deadline = time.monotonic() + settings.current().element.grace_s + _PATIENCE_S
    while _running(plan, numbers) and time.monotonic() < deadline:
        time.sleep(0.2)


def _release_dead(plan: Plan) -> None:
    """Take pages from attempts that Slurm, or this machine, knows to have ended without a word."""
    if not (running := _running(plan)):
        return
    statuses, _ = survey(plan)
    alive = {page.page for page in statuses if page.state in ALIVE}
    dead = [attempt for attempt in running if attempt.page.number not in alive]
    with connection(), writing():
        release(dead, "ended without a record before its plan was cancelled")


def _cancel_page(plan: Plan, number: int) -> Cancelled:
    if not 1 <= number <= plan.n_pages:
        raise UsageError(f"plan {plan.pk} has pages 1 to {plan.n_pages}, not {number}")
    statuses, _ = survey(plan)
    page = statuses[number - 1]
    if page.state not in ALIVE or page.job is None:
        return Cancelled(plan.pk, (), ())
    of_page = (Page.plan == plan.pk) & (Page.number == number)
    with connection():
        waited = Page.update(submission_pk=None, free=None).where(of_page & Page.free).execute()
        # The element that is asked to stop gives nothing back.
        pulled = Page.update(free=None).where(of_page & ~Page.free).execute()
    if waited:
        return Cancelled(plan.pk, (), (), (number,))
    # An element may have been assigned several pages: they end together.
    numbers = [s.page for s in statuses if s.job == page.job and s.element == page.element]
    if pulled:
        numbers = [number]
    jobs, processes = [], []
    if page.job.startswith("local:"):
        processes = _end_processes(_running(plan, numbers))
    else:
        jobs = _cancel_element(plan, page)
    _wait_for_ends(plan, numbers)
    still = {attempt.page.number for attempt in _running(plan, numbers)}
    ended = [n for n in numbers if n not in still]
    with connection():
        # Nobody has to wait for Slurm to forget the element: it cannot claim them any more.
        Page.update(submission_pk=None).where(
            (Page.plan == plan.pk) & Page.number.in_(ended) & (Page.attempt_pk.is_null() | _ENDED)
        ).execute()
    return Cancelled(plan.pk, tuple(jobs), tuple(processes), tuple(numbers))


_ENDED = Page.attempt_pk.in_(
    Attempt.select(Attempt.pk).where(Attempt.state != AttemptState.RUNNING.value)
)


def _cancel_element(plan: Plan, page: PageStatus) -> list[str]:
    """Cancel the element of a page, where it is one of a submission of the plan."""
    number, _, index = str(page.job).partition("_")
    with connection():
        of_job = (Submission.plan == plan.pk) & (Submission.job_id == int(number))
        found = Submission.select().where(of_job).order_by(Submission.pk.desc()).first()
    if found is None or page.element not in found.elements:
        raise UsageError(
            f"page {page.page} is said to be computed by the element {page.element} of job "
            f"{number}, which plan {plan.pk} did not submit: nothing was cancelled; astra verify "
            f"{plan.pk}"
        )
    client.cancel(found.job, [int(index)])
    return [str(page.job)]
