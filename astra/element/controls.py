"""The controls of a plan that its running elements obey: pause and throttle.

They read it before each page. Slurm is not asked: its throttle bounds how many elements begin, and
not how many go on.
"""

from datetime import timedelta

from peewee import SQL

from astra.config import settings
from astra.database.connection import dialect, tuples
from astra.errors import Held
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.states import AttemptState


def check_controls(plan: Plan, submission: Submission, element: int) -> None:
    """Make sure, inside the transaction of a claim, that an element may take a page.

    Raises
    ------
    Held
        If the plan is paused, or as many others run as its throttle allows.
    """
    now = Plan.select(Plan.pk, Plan.paused, Plan.pause_reason, Plan.throttle)
    found = now.where(Plan.pk == plan.pk).get()
    if found.paused is not None:
        raise Held(f"plan {plan.pk} is paused ({found.pause_reason}): astra continue {plan.pk}")
    if found.throttle is None:
        return
    if dialect().name == "postgresql":  # elements that ask at once are counted one after the other
        found = now.where(Plan.pk == plan.pk).for_update().get()
    if found.throttle is not None and _n_others(plan, submission, element) >= found.throttle:
        raise Held(f"plan {plan.pk} is throttled to {found.throttle} elements, which already run")


def _n_others(plan: Plan, submission: Submission, element: int) -> int:
    """How many other elements of a plan run a page."""
    since = dialect().now() - timedelta(seconds=settings.current().element.lease_s)
    others = (Attempt.submission_pk != submission.pk) | (Attempt.element != element)
    return (
        Attempt.select(Attempt.submission_pk, Attempt.element)
        .join(Page, on=Page.attempt_pk == Attempt.pk)
        .where(
            (Page.plan == plan.pk)
            & (Attempt.state == AttemptState.RUNNING.value)
            & (Attempt.seen > since)
            & others
        )
        .distinct()
        .count()
    )


def pause_if_all_break(plan_pk: int) -> str | None:
    """Pause a plan whose last pages all broke, inside a transaction; why, if it is paused so.

    A node, or a task, that breaks each page would have them all broken otherwise.
    """
    most = settings.current().element.max_broken
    ends = (
        Attempt.select(Attempt.state)
        .join(Page)
        .where(
            (Page.plan == plan_pk)
            & Attempt.state.in_([AttemptState.BROKEN.value, AttemptState.DONE.value])
        )
        .order_by(Attempt.ended.desc())
        .limit(most)
    )
    states = [state for (state,) in tuples(ends)]
    if len(states) < most or AttemptState.DONE.value in states:
        return None
    reason = f"the last {most} pages that ended are all broken"
    paused = Plan.update(paused=SQL(dialect().now_sql), pause_reason=reason).where(
        (Plan.pk == plan_pk) & Plan.paused.is_null()
    )
    return reason if paused.execute() else None
