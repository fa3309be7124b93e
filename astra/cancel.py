"""Cancelling: elements are told to end, and the plan's rows are free again."""

import os
import signal
import socket
from dataclasses import dataclass

from peewee import SQL

from astra import slurm
from astra.database import connection, dialect
from astra.element import process_began
from astra.models.orchestration import Attempt, Page, Plan, Submission
from astra.plan import get_plan
from astra.states import ALIVE, AttemptState
from astra.status import slurm_jobs, survey
from astra.submit import plan_lock, recover_intents


@dataclass(frozen=True)
class Cancelled:
    """What cancelling came to."""

    plan: int
    jobs: tuple[str, ...]  # Slurm jobs or elements that were told to end
    processes: tuple[int, ...]  # of this machine
    rows_freed: int  # that another plan may take


def cancel(plan: int, page: int | None = None) -> Cancelled:
    """Tell the elements of a plan to end, and give its rows free; or of one page alone.

    What they yielded is stored. With `page`, only its element ends and the plan stays.
    """
    frozen = get_plan(plan)
    if page is None:
        # First the mark: an element that starts meanwhile sees it and does nothing.
        with connection():
            Plan.update(cancelled=SQL(dialect().now_sql)).where(
                (Plan.pk == frozen.pk) & Plan.cancelled.is_null()
            ).execute()
        processes = _end_processes(frozen, None)
        jobs: list[str] = []
        if _slurm_jobs(frozen):
            with plan_lock(frozen):
                recover_intents(frozen)
                alive = _slurm_jobs(frozen)
                slurm.cancel(alive)
                jobs = [str(job.job_id) for job in alive]
    else:
        statuses, _ = survey(frozen)
        found = [s for s in statuses if s.page == page and s.state in ALIVE and s.job]
        jobs = [s.job for s in found if s.job and not s.job.startswith("local:")]
        slurm.cancel([_element(job) for job in jobs])
        processes = _end_processes(frozen, page)
    with connection():
        rows = [p.n_pending for p in Page.select().where(Page.plan == frozen.pk)]
    freed = sum(rows) if page is None else 0
    return Cancelled(frozen.pk, tuple(jobs), tuple(processes), freed)


def _element(job: str) -> tuple[int, int]:
    number, _, index = job.partition("_")
    return int(number), int(index)


def _slurm_jobs(plan: Plan) -> list[slurm.JobId]:
    """Jobs of the plan that may still live."""
    with connection():
        jobs = slurm_jobs(Submission.select().where(Submission.plan == plan.pk))
    if not jobs:
        return []
    answer = slurm.elements(jobs)
    if not answer.queue:
        return jobs
    alive = {job for (job, _), e in answer.executions.items() if e.state and e.state.alive}
    return [job for job in jobs if job.job_id in alive]


def _end_processes(plan: Plan, page: int | None) -> list[int]:
    """Tell the elements of the local executor on this machine to end."""
    with connection():
        query = (
            Attempt.select()
            .join(Page)
            .where(
                (Page.plan == plan.pk)
                & (Attempt.pk == Page.attempt_pk)
                & (Attempt.state == AttemptState.RUNNING.value)
                & (Attempt.host == socket.gethostname())
                & Attempt.job_id.is_null()
            )
        )
        attempts = list(query if page is None else query.where(Page.number == page))
    ended = []
    for attempt in attempts:
        if attempt.pid_began and process_began(attempt.pid) == attempt.pid_began:
            os.kill(attempt.pid, signal.SIGTERM)
            ended.append(attempt.pid)
    return ended
