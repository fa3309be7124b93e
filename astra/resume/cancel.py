"""Cancel a plan: ask its elements to stop, and release its rows.

A row is released when no attempt can write it: immediately if no attempt has its page, otherwise
when that attempt has ended.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from peewee import SQL

from astra.config import settings
from astra.database.connection import connection, dialect, retrying, writing
from astra.errors import BusyError, SlurmError, SlurmUnknown, UsageError
from astra.models.archive import check_archive
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.pages import PageStatus, pages_without_keys, release
from astra.processes import command_of, is_element, is_running
from astra.records import dataclass
from astra.slurm import client, parse
from astra.states import ALIVE, AttemptState, PageState
from astra.status.page_states import current_pages, slurm_jobs
from astra.submit.intent import plan_lock, recover_intents

#: How long elements may take to end after the grace of a row; how long to wait for the lock.
_STOPPING_S, _LOCK_S = 5.0, 30.0

#: After that, how long processes of this machine may still take before they are killed; and how
#: long they may take to end then, as one whose disk is away does.
_STORING_S, _KILLED_S = 20.0, 30.0


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cancelled:
    """The result of cancelling; :func:`astra.api.cancel` returns it.

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
    """Terminate the elements of a plan and release its rows, or terminate the element of a page.

    Yielded results are stored. Call it again if elements have not ended.

    Parameters
    ----------
    plan : int
        Number of the plan.
    page : int, optional
        Terminate only the element of this page; the plan stays, unless it was cancelled before.

    Returns
    -------
    Cancelled
        What was terminated and released.

    Raises
    ------
    UsageError
        If there is no such plan or page, or a process of another machine runs the page.
    SlurmError
        If Slurm could not be notified. The plan is cancelled nevertheless: running elements end at
        their next checkpoint.

    Examples
    --------
    >>> from astra.api import cancel
    >>> cancel(1).whole  # every row had ended: nothing was done
    True
    """
    frozen = get_plan(plan)
    check_archive()
    if page is not None and frozen.cancelled is None:  # else no page is to be resumed
        return _cancel_page(frozen, page)
    if _n_pending(frozen) == 0:
        return Cancelled(frozen.pk, (), (), whole=True)
    # Mark the plan first: an element that starts in the meantime then does nothing.
    with connection():
        Plan.update(cancelled=SQL(dialect().now_sql)).where(
            (Plan.pk == frozen.pk) & Plan.cancelled.is_null()
        ).execute()
    processes = _end_processes(_running(frozen))
    jobs = _end_jobs(frozen)
    _wait_for_ends(frozen)
    _kill_hanging(frozen, processes)
    _release_dead(frozen)
    held = sum(a.page.n_pending for a in _running(frozen))
    return Cancelled(
        frozen.pk, tuple(map(str, jobs)), tuple(processes),
        rows_freed=_n_pending(frozen) - held, rows_held=held,
    )  # fmt: skip


def _n_pending(plan: Plan) -> int:
    with connection():
        return sum(page.n_pending for page in pages_without_keys(plan))


def _end_jobs(plan: Plan) -> list[int]:
    """Cancel the arrays of a plan that may be alive, including those whose answer was lost."""
    marked = (
        f"plan {plan.pk} is cancelled: no further element begins, and running elements end at "
        f"their next checkpoint, which releases their rows. astra cancel {plan.pk} asks again"
    )
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            with plan_lock(plan):
                unknown = recover_intents(plan)
                alive = _slurm_jobs(plan)
                _cancel_each(alive)
            break
        except BusyError as error:  # a submission ends soon: it checks the mark before each array
            if time.monotonic() > deadline:
                raise BusyError(f"{error}. {marked}") from error
            time.sleep(0.2)
        except SlurmError as error:
            kind = SlurmUnknown if isinstance(error, SlurmUnknown) else SlurmError
            raise kind(f"{error}. {marked}") from error
    if unknown:
        raise SlurmUnknown(f"{'; '.join(unknown)}. {marked}")
    return [job.job_id for job in alive]


def _cancel_each(jobs: Iterable[parse.JobId]) -> None:
    """Cancel jobs, although Slurm refuses some of them, as those of another user.

    Raises
    ------
    SlurmError
        If it has refused one.
    """
    refusals = []
    for job in jobs:
        try:
            client.cancel(job)
        except SlurmUnknown:  # it would not answer about the others either
            raise
        except SlurmError as error:
            refusals.append(str(error))
    if refusals:
        raise SlurmError("; ".join(refusals))


def _slurm_jobs(plan: Plan) -> list[parse.JobId]:
    """Return the jobs of a plan that may be alive."""
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
    """Return the attempts that have a page of the plan and have not recorded their end."""

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


def _end_processes(attempts: Iterable[Attempt], number: int = signal.SIGTERM) -> list[int]:
    """Ask the elements of the local executor on this machine to stop, or send another signal.

    Those of another user are left out. In a cancelled plan, they end at their next checkpoint.
    """
    signalled = []
    for pid in _processes(attempts):
        with suppress(PermissionError, ProcessLookupError):
            os.kill(pid, number)
            signalled.append(pid)
    return signalled


def _processes(attempts: Iterable[Attempt]) -> Iterator[int]:
    """Yield the processes of elements of the local executor on this machine.

    Only the command line of a process identifies it as an element: the process ids in the database
    could be those of any process.
    """
    for attempt in attempts:
        is_local = attempt.job_id is None and attempt.host == socket.gethostname()
        if is_local and is_running(attempt.pid, attempt.pid_began):
            query = Submission.select(Submission.token)
            with connection():
                token = query.where(Submission.pk == attempt.submission_pk).scalar()
            if is_element(command_of(attempt.pid), token):
                yield attempt.pid


def _may_signal(pid: int) -> bool:
    try:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(pid, 0)
    except PermissionError:
        return False
    return True


def _wait_for_ends(plan: Plan, numbers: Iterable[int] | None = None) -> None:
    """Wait for elements to store their results and end, within the time allowed."""
    longest_s = settings.current().element.grace_s + _STOPPING_S
    _wait_until(lambda: not _running(plan, numbers), longest_s)


def _kill_hanging(
    plan: Plan, processes: Iterable[int], numbers: Iterable[int] | None = None
) -> None:
    """Kill those of the processes of this machine that do not end, as Slurm does with its jobs."""
    signalled = set(processes)

    def have_ended() -> bool:
        return signalled.isdisjoint(_processes(_running(plan, numbers)))

    if not _wait_until(have_ended, _STORING_S):
        for pid in _end_processes(_running(plan, numbers), signal.SIGKILL):
            log.warning(
                "process %d hangs, and is killed; the rows that it did not store are pending", pid
            )
        _wait_until(have_ended, _KILLED_S)


def _wait_until(is_over: Callable[[], bool], longest_s: float) -> bool:
    """Wait until a condition holds, but not for longer; return whether it does."""
    deadline = time.monotonic() + longest_s
    while not is_over():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _release_dead(plan: Plan) -> None:
    """Release the pages of attempts that are known to have ended without a record."""
    if not (running := _running(plan)):
        return
    alive = {page.page for page in current_pages(plan) if page.state in ALIVE}
    dead = [attempt for attempt in running if attempt.page.number not in alive]
    with connection(), writing():
        release(dead, "ended without a record before its plan was cancelled")


def _cancel_page(plan: Plan, number: int) -> Cancelled:
    """Withdraw a free page, or terminate the element of a page and release its pages."""
    if not 1 <= number <= plan.n_pages:
        raise UsageError(f"plan {plan.pk} has pages 1 to {plan.n_pages}, not {number}")
    statuses = current_pages(plan)
    page = statuses[number - 1]
    if page.state not in ALIVE or page.job is None:
        return Cancelled(plan.pk, (), ())
    if page.is_local and page.state is PageState.RUNNING and page.node != socket.gethostname():
        raise UsageError(
            f"page {number} of plan {plan.pk} is run by a process of {page.node}: nothing was "
            "cancelled; type the command there"
        )
    if page.is_local and not all(map(_may_signal, _processes(_running(plan, [number])))):
        raise UsageError(
            f"page {number} of plan {plan.pk} is run by a process of another user: nothing was "
            f"cancelled; the user who ran astra resume {plan.pk} --local can"
        )
    jobs: list[str] = []
    if statuses.element_in_set_up(statuses.rows[number - 1]):
        jobs = _cancel_element(plan, page)
    of_page = (Page.plan == plan.pk) & (Page.number == number)
    with connection():
        waited = Page.update(submission_pk=None, free=None).where(of_page & Page.free).execute()
        # Prevents the element from giving the page back when it stops.
        pulled = Page.update(free=None).where(of_page & ~Page.free).execute()
    if waited:
        return Cancelled(plan.pk, tuple(jobs), (), (number,))
    # An element may have been assigned several pages: they end together.
    numbers = [s.page for s in statuses if s.job == page.job and s.element == page.element]
    if pulled:
        numbers = [number]
    processes = []
    if page.is_local:
        processes = _end_processes(_running(plan, numbers))
    else:
        jobs = _cancel_element(plan, page)
    _wait_for_ends(plan, numbers)
    _kill_hanging(plan, processes, numbers)
    still = {attempt.page.number: attempt.page.n_pending for attempt in _running(plan, numbers)}
    ended = [n for n in numbers if n not in still]
    with connection():
        # The pages are free before Slurm forgets the element, which cannot claim them again.
        Page.update(submission_pk=None).where(
            (Page.plan == plan.pk) & Page.number.in_(ended) & (Page.attempt_pk.is_null() | _ENDED)
        ).execute()
    held = sum(still.values())
    return Cancelled(plan.pk, tuple(jobs), tuple(processes), tuple(numbers), rows_held=held)


_ENDED = Page.attempt_pk.in_(
    Attempt.select(Attempt.pk).where(Attempt.state != AttemptState.RUNNING.value)
)


def _cancel_element(plan: Plan, page: PageStatus) -> list[str]:
    """Cancel the element of a page, if it belongs to a submission of the plan."""
    number, _, index = str(page.job).partition("_")
    with connection():
        of_job = (Submission.plan == plan.pk) & (Submission.job_id == int(number))
        submission = Submission.select().where(of_job).order_by(Submission.pk.desc()).first()
    if submission is None or page.element not in submission.elements:
        raise UsageError(
            f"the database assigns page {page.page} to element {page.element} of job {number}, "
            f"which plan {plan.pk} did not submit: nothing was cancelled; astra verify {plan.pk}"
        )
    client.cancel(submission.job, [int(index)])
    return [str(page.job)]
