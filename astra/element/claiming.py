"""Claiming: a process becomes the only attempt that may write a page.

A claim is one conditional UPDATE. The same transaction ends an earlier attempt that still counts as
running; if that one died without recording its end, its rows in progress become suspects.
"""

import os
import socket
from dataclasses import replace
from pathlib import Path

from peewee import SQL, IntegrityError, Query, Value, fn

from astra.config import settings
from astra.database.connection import dialect, writing
from astra.database.statements import statement
from astra.element.page_pool import take_page
from astra.element.pause_checks import check_controls
from astra.element.suspects import Death, record_death, suspects_of
from astra.errors import BusyError, Superseded
from astra.models.attempts import Attempt, Suspect
from astra.models.plans import Page, Plan, Submission
from astra.plan.pages import is_cancelled, release
from astra.processes import is_here, is_running, process_began
from astra.records import dataclass
from astra.results.claim import Claim, claim_of
from astra.states import KILLED, OUT_OF_MEMORY, AttemptState, Outcome, SlurmState

#: Rows that a new attempt is assumed to have in progress until it records more. They are the
#: candidates for suspects if it ends without recording how.
FIRST_IN_PROGRESS = 64


@dataclass(frozen=True)
class ElementProcess:
    """The process and the Slurm element that an attempt runs in."""

    host: str
    pid: int
    pid_began: str | None
    job_id: int | None = None
    array_index: int | None = None
    restarts: int = 0
    log: str | None = None


def this_process(kind: str, folder: Path) -> ElementProcess:
    """Return where this process runs; for a submission to Slurm, by Slurm's environment variables.

    Its log is its standard output, if that is a file in the plan's folder.
    """
    # A local run inside somebody's job is not an element of that job.
    environment = os.environ if kind == "slurm" else {}
    job = environment.get("SLURM_ARRAY_JOB_ID")
    index = environment.get("SLURM_ARRAY_TASK_ID")
    return ElementProcess(
        host=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        pid=os.getpid(),
        pid_began=process_began(os.getpid()),
        job_id=int(job) if job else None,
        array_index=int(index) if index else None,
        restarts=int(environment.get("SLURM_RESTART_COUNT") or 0),
        log=_own_log(folder),
    )


def _own_log(folder: Path) -> str | None:
    try:
        target = Path(os.readlink("/proc/self/fd/1"))
    except OSError:
        return None
    return str(target) if target.is_relative_to(folder.resolve()) and target.is_file() else None


def claim_page(
    plan: Plan,
    number: int | None,
    submission: Submission,
    element: int,
    process: ElementProcess,
    n_in_progress: int = FIRST_IN_PROGRESS,
    unacknowledged: bool = False,
) -> Claim | None:
    """Make this process the only attempt that may write a page; return None if the page is whole.

    Without a number, claim the next free page of the submission; return None if none is free.
    `n_in_progress` rows are assumed to be in progress until the attempt records more. If
    `unacknowledged`, an earlier claim of this process had no answer, and may have been committed.

    Raises
    ------
    NoFurtherPage
        If the plan is paused, or already runs as many elements as its throttle allows.
    Superseded
        If the page belongs to another submission, or to the first array of this one.
    BusyError
        If another attempt of the same submission is running the page.
    """
    with writing():
        _bind_array(submission, process)
        check_controls(plan, submission, element)
        if number is None and (number := take_page(submission, element)) is None:
            return None
        page, is_withdrawn, n_attempts, has_suspects = _page_to_claim(plan, number)
        if page.n_pending == 0:
            return None
        if is_withdrawn:
            raise Superseded(f"plan {plan.pk} was cancelled")
        _check_owner(page, submission)
        _supersede(page, submission, process, unacknowledged)
        suspects = suspects_of(page.pk) if has_suspects or page.attempt_pk else []
        n_handed = _place_after(page, {s.place for s in suspects}, n_in_progress)
        attempt = _new_attempt(page, n_attempts + 1, submission, element, process, n_handed)
        _assign_page(page, attempt)
    if process.job_id is not None:
        submission.job_id = process.job_id
    if is_cancelled(plan.pk):
        # Cancelled since the claim: another plan may have planned the rows before it could see
        # that this attempt runs.
        with writing():
            release([attempt], "the plan was cancelled when it began")
        raise Superseded(f"plan {plan.pk} was cancelled")
    return replace(claim_of(page, attempt), suspects=suspects)


def _page_to_claim(plan: Plan, number: int) -> tuple[Page, bool, int, bool]:
    """Return a page, whether its plan was cancelled, the number of its last attempt, and whether
    the page has suspects."""
    ((*values, cancelled, last_number, has_suspects),) = _page_with_attempts(
        plan=plan.pk, number=number
    )
    fields = Page._meta.sorted_fields
    page = Page(**{f.name: f.python_value(v) for f, v in zip(fields, values, strict=True)})
    return page, cancelled is not None, last_number or 0, bool(has_suspects)


@statement
def _page_with_attempts(plan: Value, number: Value) -> Query:
    cancelled = Plan.select(Plan.cancelled).where(Plan.pk == Page.plan)
    last = Attempt.select(fn.MAX(Attempt.number)).where(Attempt.page == Page.pk)
    suspects = fn.EXISTS(Suspect.select(SQL("1")).where(Suspect.page == Page.pk))
    query = Page.select(*Page._meta.sorted_fields, cancelled, last, suspects)
    return query.where((Page.plan == plan) & (Page.number == number))


def _check_owner(page: Page, submission: Submission) -> None:
    """Raise Superseded if a page belongs to another submission."""
    if page.submission_pk != submission.pk:
        raise Superseded(
            f"page {page.number} of plan {page.plan_pk} was given to submission "
            f"{page.submission_pk} since this one ({submission.pk}) was submitted; this element "
            "does nothing"
        )


def _new_attempt(
    page: Page,
    number: int,
    submission: Submission,
    element: int,
    process: ElementProcess,
    n_handed: int,
) -> Attempt:
    """Record an attempt that runs from now on.

    Raises
    ------
    BusyError
        If another process has recorded one at the same moment.
    """
    try:
        attempt = Attempt(
            page=page.pk,
            submission_pk=submission.pk,
            number=number,
            element=element,
            state=AttemptState.RUNNING.value,
            n_handed=n_handed,
            **{k: getattr(process, k) for k in process.__dataclass_fields__},
        )
        ((attempt.pk,),) = _insert_attempt(**attempt.__data__)
        return attempt
    except IntegrityError as error:
        raise _busy(page) from error


@statement
def _insert_attempt(**values: Value) -> Query:
    return Attempt.insert(values).returning(Attempt.pk)


def _assign_page(page: Page, attempt: Attempt) -> None:
    """Make an attempt the only one that may write a page.

    Raises
    ------
    BusyError
        If another attempt has claimed the page since it was read.
    """
    updated = _set_attempt(
        page=page.pk, attempt=attempt.pk, before=page.attempt_pk or 0, submission=page.submission_pk
    )
    if not updated:
        raise _busy(page)
    # What the earlier attempt wrote up to this moment counts.
    for field, value in zip(_PROGRESS, updated[0], strict=True):
        setattr(page, field.name, field.python_value(value))
    page.attempt_pk = attempt.pk


_PROGRESS = (Page.outcomes, Page.n_done, Page.n_failed, Page.n_no_result)


@statement
def _set_attempt(page: Value, attempt: Value, before: Value, submission: Value) -> Query:
    """Give a page to an attempt, unless another one than `before` (0: none) has it."""
    # It may have been released since its number was read. Outside of a pool, `free` stays NULL.
    claimed = {Page.attempt_pk: attempt, Page.free: Page.free & ~Page.free}
    is_unchanged = fn.COALESCE(Page.attempt_pk, 0) == before
    query = Page.update(claimed).where(
        (Page.pk == page) & is_unchanged & (Page.submission_pk == submission)
    )
    return query.returning(*_PROGRESS)


def _busy(page: Page) -> BusyError:
    return BusyError(f"page {page.number} of plan {page.plan_pk} was claimed by another attempt")


def _place_after(page: Page, suspected: set[int], n_rows: int) -> int:
    """Return the place after the first `n_rows` rows of a page that the task will be given."""
    for place, outcome in enumerate(page.outcomes):
        if outcome == Outcome.PENDING and place not in suspected:
            n_rows -= 1
            if n_rows < 0:
                return place
    return int(page.n_rows)


def _bind_array(submission: Submission, process: ElementProcess) -> None:
    """Bind a submission to its first array that starts; raise Superseded in any other."""
    if process.job_id is None or submission.job_id == process.job_id:  # a binding never changes
        return
    is_same = Submission.token == submission.token
    Submission.update(job_id=process.job_id, state="submitted").where(
        is_same & Submission.job_id.is_null()
    ).execute()
    job_id = Submission.select(Submission.job_id).where(is_same).scalar()
    if job_id not in (None, process.job_id):
        raise Superseded(
            f"job {process.job_id} is a second array for the pages of job {job_id}; nothing is "
            f"done here: scancel {process.job_id}"
        )


def _supersede(
    page: Page, submission: Submission, process: ElementProcess, unacknowledged: bool
) -> None:
    """End the attempt that is still recorded as running; raise BusyError if it may really run."""
    old = Attempt.get_or_none(Attempt.pk == page.attempt_pk) if page.attempt_pk else None
    if old is None or old.state != AttemptState.RUNNING:
        return
    same_submission = old.submission_pk == submission.pk
    requeued = (
        process.job_id is not None
        and (old.job_id, old.array_index) == (process.job_id, process.array_index)
        and process.restarts > old.restarts
    )
    silent_s = (dialect().now() - old.seen).total_seconds()
    can_be_seen = old.host == process.host and is_here(old.pid_began)
    dead_here = can_be_seen and not is_running(old.pid, old.pid_began)
    overdue = silent_s > settings.current().element.lease_s
    # A claim of this process that was not acknowledged: it has not been given a row.
    is_own = unacknowledged and (old.host, old.pid, old.pid_began) == (
        process.host, process.pid, process.pid_began
    )  # fmt: skip
    if same_submission and not (requeued or overdue or dead_here or is_own):
        raise BusyError(
            f"page {page.number} of plan {page.plan_pk} is run by attempt {old.number} "
            f"(process {old.pid} on {old.host}), no heartbeat for {silent_s:.0f} s"
        )
    if not (requeued or is_own):
        suspect_rows(page, old)
    Attempt.update(
        state=AttemptState.SUPERSEDED.value,
        ended=SQL(dialect().now_sql),
        message="its claim was not acknowledged" if is_own else "taken over by a later attempt",
    ).where(Attempt.pk == old.pk, Attempt.state == AttemptState.RUNNING.value).execute()


#: States of Slurm for ends that no row can have caused.
_NOT_CAUSED_BY_ROWS = frozenset(
    {
        SlurmState.NODE_FAIL.value, SlurmState.BOOT_FAIL.value, SlurmState.PREEMPTED.value,
        SlurmState.CANCELLED.value, SlurmState.DEADLINE.value,
    }
)  # fmt: skip


def suspect_rows(page: Page, old: Attempt) -> None:
    """Record as suspects the rows that may have been in progress when an attempt ended.

    Call this only for attempts that did not record their own end.
    """
    if old.n_handed < 0 or old.slurm_state in _NOT_CAUSED_BY_ROWS:
        return
    group_of = {s.place: s.group for s in suspects_of(page.pk)}
    places = [
        place
        for place, outcome in enumerate(page.outcomes)
        if outcome == Outcome.PENDING
        and (
            group_of.get(place) == old.group
            if old.group
            else place < old.n_handed and place not in group_of
        )
    ]
    if old.slurm_state == SlurmState.OUT_OF_MEMORY:
        death = Death(OUT_OF_MEMORY, "ran out of memory (Slurm: OUT_OF_MEMORY)")
    else:
        cause = f" (Slurm: {old.slurm_state})" if old.slurm_state else ""
        death = Death(KILLED, f"was being processed when its process ended without a record{cause}")
    record_death(page.pk, places, death)
