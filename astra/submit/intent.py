"""An intent: the record of a submission, committed before sbatch is called.

Its token is part of the job's name. If the answer of sbatch is lost, the job is looked up by that
name, and submitted again only when it certainly does not exist.
"""

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from peewee import fn

from astra.config.profiles import Profile
from astra.config.secrets import hide, hide_secret
from astra.database.connection import connection, dialect, retrying, writing
from astra.errors import BusyError, DatabaseError, SlurmError, SlurmUnknown, UsageError
from astra.models.locks import hold
from astra.models.plans import Page, Plan, Submission
from astra.plan import spool
from astra.plan.lookup import check_trust
from astra.plan.pages import is_cancelled
from astra.processes import process_began, user_name
from astra.slurm import client, parse
from astra.slurm.refusals import at_limit

log = logging.getLogger(__name__)


#: Pauses before each search for a job whose answer was lost: slurmctld may still create it.
_LOOK_AGAIN_S = (0.5, 1.0, 2.0, 4.0)


@contextmanager
def plan_lock(plan: Plan) -> Iterator[None]:
    """Lock a plan: one process at a time submits, resumes or cancels it.

    The lock is released when the process dies.

    Raises
    ------
    BusyError
        If another process holds the lock.
    """
    activity = f"submits, resumes or cancels plan {plan.pk}"
    with hold(f"plan {plan.pk}", activity, f"astra status {plan.pk}"):
        yield


@contextmanager
def hold_plan(plan: Plan) -> Iterator[None]:
    """Lock a plan, resolve its lost submissions, and store its spooled results.

    The holder may start elements, which import the plan's code with the user's privileges.
    """
    check_trust(plan, plan.cwd)
    with plan_lock(plan):
        recover_intents(plan)
        spool.recover(plan)
        yield


def new_submission(
    plan: Plan,
    elements: Iterable[int],
    offset: int,
    pages_per_element: int,
    kind: str,
    profile: Profile | None = None,
    pulls: bool = False,
    token: str | None = None,
    default_time: str | None = None,
) -> Submission:
    """Return a submission with its own token, which is not stored yet.

    The time limit that its elements have by default is recorded, and left to Slurm.
    """
    token = token or secrets.token_hex(6)
    local = kind == "local"
    return Submission(
        plan=plan,
        token=token,
        kind=kind,
        state="submitted" if local else "intent",
        job_name=f"astra-{plan.pk}-{token}",
        host=socket.gethostname(),
        elements=list(elements),
        offset=offset,
        pages_per_element=pages_per_element,
        pulls=pulls,
        profile=json.dumps(_describe(profile, default_time) if profile else {}, default=str),
        cluster=profile.clusters if profile else None,
        created_by=user_name(),
        job_id=os.getpid() if local else None,
        pid_began=process_began(os.getpid()) if local else None,
    )


def _describe(profile: Profile, default_time: str | None = None) -> dict[str, object]:
    had = {"time": default_time} if default_time else {}
    return {
        "name": profile.name,
        "options": {k: hide_secret(k, v) for k, v in profile.options.items()} | had,
        "default_time": default_time,
        "given": {k: v for k, v in profile.given.items() if "***" not in hide_secret(k, v)},
        "throttle": profile.throttle,
        "max_elements": profile.max_elements,
        "setup": [hide(line) for line in profile.setup],
    }


def make_intent(submission: Submission, pages: Iterable[Page]) -> None:
    """Commit a submission, and assign the pages to it.

    Raises
    ------
    UsageError
        If the plan was cancelled in the meantime.
    BusyError
        If another process submitted one of the pages, since this one no longer held the lock, or an
        element has claimed one.
    """
    seen = {page.number: page for page in pages}
    commit_intent(submission, list(seen), seen)


def commit_intent(submission: Submission, pages: list[int], seen: Mapping[int, Page]) -> None:
    """Commit a submission of pages by their numbers, if nobody has taken them since.

    Those that belonged to a submission when they were read are in `seen`, by their numbers.
    """
    plan, tries = submission.plan, count()

    def work() -> None:
        with writing():
            if next(tries):
                stored = Submission.select(Submission.pk).where(
                    Submission.token == submission.token
                )
                if (pk := stored.scalar()) is not None:  # only the answer of the commit was lost
                    submission.pk = pk
                    return
            submission.pk = None  # type: ignore[assignment]
            submission.save(force_insert=True)
            _assign_pages(plan, pages, seen, submission)

    retrying(work, bound_s=30)


def _assign_pages(
    plan: Plan, pages: list[int], seen: Mapping[int, Page], submission: Submission
) -> None:
    """Assign pages to a submission, if they belong to none, or as they were seen.

    An element of their present submission may have claimed one since it was found to be lost: a
    process that was started after another had crashed, or an element that Slurm requeued.
    """
    first, last = min(pages, default=1), max(pages, default=0)
    in_range = Page.number.between(first, last)  # an index finds them, however many
    if len(pages) <= last - first:
        in_range &= dialect().among(Page.number, pages)
    held = [seen[number] for number in pages if number in seen]
    attempts = [page.attempt_pk for page in held if page.attempt_pk is not None]
    as_seen = Page.submission_pk.in_({page.submission_pk for page in held} - {None})
    as_seen &= Page.attempt_pk.is_null() | dialect().among(Page.attempt_pk, attempts)
    as_seen |= Page.submission_pk.is_null()  # no element can claim it
    live = fn.EXISTS(Plan.select(1).where((Plan.pk == plan.pk) & Plan.cancelled.is_null()))
    changed = (
        Page.update(submission_pk=submission.pk, free=True if submission.pulls else None)
        .where((Page.plan == plan.pk) & in_range & as_seen & live)
        .execute()
    )
    if changed != len(pages):
        if is_cancelled(plan.pk):
            raise UsageError(f"plan {plan.pk} was cancelled in the meantime; nothing is submitted")
        raise BusyError(
            f"another process submitted {len(pages) - changed} of these pages of plan {plan.pk} in "
            "the meantime, or an element began them; this one submits none of them: "
            f"astra status {plan.pk}"
        )


def submit_once(
    path: Path,
    job: parse.JobId,
    if_unknown: str,
    choose: Callable[[list[parse.JobId]], parse.JobId],
    args: Sequence[str] = (),
    begun: Callable[[], parse.JobId] | None = None,
) -> parse.JobId:
    """Call sbatch; if its answer is lost, look the job up, and call again if there is none.

    Parameters
    ----------
    job : its name and cluster identify it; no other job has the name.
    path : the script.
    if_unknown : the end of the message if it remains unknown whether the job exists.
    choose : chooses one of several jobs with the name.
    args : further arguments of sbatch.
    begun : waits for the answer of a call of sbatch that has begun, which is then the first call.

    Raises
    ------
    SlurmRefused
        If Slurm refuses the job.
    SlurmUnknown
        If it remains unknown whether the job exists.
    """
    now = partial(client.submit, path, args)
    for call in (begun or now, now):
        try:
            return call()
        except SlurmUnknown as error:
            lost = error
            log.warning("sbatch gave no clear answer (%s): looking for the job by its name", lost)
            try:
                jobs = _look_up(job)
            except SlurmUnknown as unknown:
                raise SlurmUnknown(
                    f"sbatch gave no clear answer ({lost}), so the job may or may not exist: "
                    f"{unknown}; {if_unknown}"
                ) from lost
            if jobs:
                return choose(jobs)
            if limit := at_limit(str(lost)):
                raise limit from lost
    raise SlurmUnknown(f"sbatch gave no clear answer twice ({lost}); {if_unknown}") from lost


def _look_up(job: parse.JobId) -> list[parse.JobId]:
    """Return the jobs with the name of a job; none if they certainly do not exist."""
    for pause_s in _LOOK_AGAIN_S:
        time.sleep(pause_s)
        if jobs := client.find(job):
            return jobs
    return []


def keep_one_job(submission: Submission, jobs: list[parse.JobId]) -> parse.JobId:
    """Return the first array of a name; cancel further ones, whose elements could do nothing.

    If Slurm does not cancel one, nothing else has to wait for it.
    """
    with connection():
        is_same = Submission.token == submission.token
        bound = Submission.select(Submission.job_id).where(is_same).scalar()
    kept = next((job for job in jobs if job.job_id == bound), min(jobs, key=lambda j: j.job_id))
    for job in jobs:
        if job != kept:
            try:
                client.cancel(job)
            except SlurmError as error:
                log.warning(
                    "job %d is a second array for the pages of job %d: %s; its elements will start "
                    "and do nothing: scancel %d",
                    job.job_id, kept.job_id, error, job.job_id,
                )  # fmt: skip
    return kept


def bind_job(submission: Submission, job: parse.JobId) -> None:
    """Bind a submission to a job, unless it is bound to another."""
    job_id = fn.COALESCE(Submission.job_id, job.job_id)
    home = {"cluster_name": job.cluster} if job.cluster else {}
    query = Submission.update(state="submitted", cluster=job.cluster, job_id=job_id, **home)
    query = query.where(Submission.token == submission.token)
    if not retrying(query.execute, bound_s=30):
        raise DatabaseError(
            f"the database has lost submission {submission.token} of plan {submission.plan_pk}, as "
            f"after a failover or a restored backup; its job {job.job_id} does nothing: "
            f"scancel {job.job_id}"
        )


def withdraw(submission: Submission, state: str, message: str | None = None) -> None:
    """End a submission that failed, and take its pages back."""
    message = hide(message) if message else None

    def work() -> None:
        with writing():
            is_same = Submission.token == submission.token
            if Submission.update(state=state, message=message).where(is_same).execute():
                Page.update(submission_pk=None, free=None).where(
                    Page.submission_pk == submission.pk
                ).execute()

    retrying(work, bound_s=30)


def recover_intents(plan: Plan) -> list[str]:
    """Resolve submissions whose process died or whose answer was lost; the plan is locked.

    Return which jobs may or may not exist, and why that is not known.
    """
    with connection():
        intents = list(
            Submission.select().where(
                (Submission.plan == plan.pk)
                & (Submission.state == "intent")
                & (Submission.kind == "slurm")
            )
        )
    unknown = []
    for submission in intents:
        try:
            jobs = client.find(submission.job)
        except SlurmUnknown as error:
            unknown.append(f"job {submission.job_name} may or may not exist: {error}")
            continue
        if jobs:
            bind_job(submission, keep_one_job(submission, jobs))
        else:
            withdraw(submission, "absent")
    return unknown
