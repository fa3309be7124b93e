"""What the plans of a night came to: their sums, as they are now, stored with the night."""

import json
from collections.abc import Mapping
from typing import Any

from peewee import SQL, fn

from astra.database.connection import connection, tuples
from astra.models.nights import Night, NightPlan
from astra.models.plans import N_PENDING, Attempt, Page, Plan, Submission
from astra.policy import retry_policy


def entries_of(night: Night) -> list[NightPlan]:
    with connection():
        return list(NightPlan.select().where(NightPlan.night == night.pk).order_by(NightPlan.pk))


def plan_pks(night: Night) -> list[int]:
    return [entry.plan_pk for entry in entries_of(night) if entry.plan_pk is not None]


def pending(plan: int) -> int:
    left = fn.SUM(N_PENDING)
    with connection():
        return int(Page.select(left).where(Page.plan == plan).scalar() or 0)


def retries_of(plans: list[int]) -> int:
    """Elements that ended before their pages had, and were answered by another."""
    with connection():
        texts = Page.select(Page.retries).where(
            Page.plan.in_(plans or [0]) & Page.retries.is_null(False)
        )
        ends = [end for (text,) in tuples(texts) for end in json.loads(text)]
    return sum(end["state"] not in retry_policy.FREE for end in ends)


def refreshed(night: Night) -> list[NightPlan]:
    """The plans of a night with their sums as they are now, stored where they changed."""
    entries = entries_of(night)
    for entry in entries:
        if entry.plan_pk is None:
            continue
        with connection():
            sums = Page.select(
                fn.SUM(Page.n_rows), fn.SUM(Page.n_done), fn.SUM(Page.n_failed),
                fn.SUM(Page.n_no_result),
            ).where(Page.plan == entry.plan_pk)  # fmt: skip
            rows, done, failed, no_result = (int(n or 0) for n in next(tuples(sums)))
            mine = Attempt.began >= entry.began if entry.leftover else SQL("1 = 1")
            task_s = (
                Attempt.select(fn.SUM(Attempt.t_task_s))
                .join(Page)
                .where((Page.plan == entry.plan_pk) & mine)
                .scalar()
            )
            cpu_s = _cpu_s(entry.plan_pk, mine)
            cancelled = Plan.select(Plan.cancelled).where(Plan.pk == entry.plan_pk).scalar()
        if not rows:
            continue  # cleaned away: its last sums stand
        entry.n_rows, entry.n_done, entry.n_failed, entry.n_no_result = (
            rows,
            done,
            failed,
            no_result,
        )
        entry.n_retries = retries_of([entry.plan_pk]) - entry.retries_before
        entry.task_s, entry.cpu_s = float(task_s or 0.0), cpu_s
        entry.has_ended = rows == done + failed + no_result
        entry.message = "was cancelled" if cancelled else None
        with connection():
            entry.save()
    return entries


def _cpu_s(plan: int, mine: Any) -> float:
    """Processors that attempts held, times how long: as many as their profile asks for."""
    held = fn.SUM(fn.COALESCE(Attempt.t_start_s, 0) + fn.COALESCE(Attempt.t_rows_s, 0))
    query = (
        Attempt.select(Attempt.submission_pk, held)
        .join(Page)
        .where((Page.plan == plan) & mine)
        .group_by(Attempt.submission_pk)
    )
    profiles = Submission.select(Submission.pk, Submission.profile).where(Submission.plan == plan)
    cpus = {pk: _cpus(json.loads(text).get("options", {})) for pk, text in tuples(profiles)}
    return float(sum((seconds or 0.0) * cpus.get(pk, 1) for pk, seconds in tuples(query)))


def _cpus(options: Mapping[str, Any]) -> int:
    each, tasks = options.get("cpus_per_task", 1), options.get("ntasks", 1)
    return int(each) * int(tasks) if f"{each}{tasks}".isdecimal() else 1


def store_sums(night: Night) -> list[NightPlan]:
    """Store the sums of a night's plans with it."""
    entries = refreshed(night)
    columns = ("n_rows", "n_done", "n_failed", "n_no_result", "n_retries", "task_s", "cpu_s")
    sums = {name: sum(getattr(entry, name) for entry in entries) for name in columns}
    with connection():
        Night.update(**sums).where(Night.pk == night.pk).execute()
    return entries
