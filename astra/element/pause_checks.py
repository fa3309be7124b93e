"""The controls of a plan that its running elements obey: pause and throttle.

Elements read them from the database before each page. Slurm's own throttle would not do: it limits
how many elements start, not how many continue.
"""

import logging
from datetime import timedelta

from peewee import SQL, ColumnBase, Query, Value

from astra.config import settings
from astra.database.connection import dialect, tuples
from astra.database.statements import statement
from astra.errors import NoFurtherPage, Superseded
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import paused_message
from astra.states import AttemptState

log = logging.getLogger(__name__)


def check_controls(plan: Plan, submission: Submission, element: int) -> None:
    """Check, inside the transaction of a claim, that an element may take a page.

    Raises
    ------
    NoFurtherPage
        If the plan is paused, or as many others run as its throttle allows.
    Superseded
        If the submission is gone: its plan was removed, or the database is in an earlier state.
    """
    if not (found := _controls(plan=plan.pk, token=submission.token)):
        raise Superseded(
            f"plan {plan.pk}, or its submission {submission.token}, is no longer in the database: "
            "the plan was removed, or the database was restored to an earlier state; this element "
            "does nothing"
        )
    ((paused, reason, throttle),) = found
    if paused is not None:
        raise NoFurtherPage(paused_message(plan.pk, reason))
    if throttle is None:
        return
    if dialect().name == "postgresql":  # elements that claim at once are counted one by one
        throttle = Plan.select(Plan.throttle).where(Plan.pk == plan.pk).for_update().scalar()
    if _is_reached(throttle, plan, submission, element):
        raise NoFurtherPage(
            f"plan {plan.pk} already has as many elements as its throttle allows ({throttle}): "
            f"astra throttle {plan.pk} --off"
        )


@statement
def _controls(plan: Value, token: Value) -> Query:
    """Select the controls of a plan that has a submission with this token."""
    controls = Plan.select(Plan.paused, Plan.pause_reason, Plan.throttle).join(Submission)
    return controls.where((Plan.pk == plan) & (Submission.token == token))


def is_throttled(plan: Plan, submission: Submission, element: int) -> bool:
    """Return whether as many other elements of a plan run as its throttle allows."""
    throttle = Plan.select(Plan.throttle).where(Plan.pk == plan.pk).scalar()
    return _is_reached(throttle, plan, submission, element)


def _is_reached(throttle: int | None, plan: Plan, submission: Submission, element: int) -> bool:
    """Return whether as many other elements of a plan run a page."""
    if throttle is None:
        return False
    is_other = (Attempt.submission_pk != submission.pk) | (Attempt.element != element)
    others = (
        Attempt.select(Attempt.submission_pk, Attempt.element)
        .join(Page, on=Page.attempt_pk == Attempt.pk)
        .where((Page.plan == plan.pk) & is_at_work() & is_other)
        .distinct()
    )
    return int(others.count()) >= throttle


def is_at_work() -> ColumnBase:
    """Return a clause: an attempt runs, and had a heartbeat within its lease."""
    since = dialect().now() - timedelta(seconds=settings.current().element.lease_s)
    return (Attempt.state == AttemptState.RUNNING.value) & (Attempt.seen > since)


def all_break(plan_pk: int) -> bool:
    """Return whether the last `max_broken` pages of a plan that ended are all broken."""
    max_broken = settings.current().element.max_broken
    ends = (
        Attempt.select(Attempt.state)
        .join(Page)
        .where(
            (Page.plan == plan_pk)
            & Attempt.state.in_([AttemptState.BROKEN.value, AttemptState.DONE.value])
        )
        .order_by(Attempt.ended.desc())
        .limit(max_broken)
    )
    states = [state for (state,) in tuples(ends)]
    return len(states) == max_broken and AttemptState.DONE.value not in states


def pause_if_all_break(plan_pk: int) -> None:
    """Pause a plan whose last pages all broke, inside a transaction.

    Otherwise a node or a task that breaks every page would continue until all pages are broken.
    """
    if not all_break(plan_pk):
        return
    n = settings.current().element.max_broken
    which = "page that ended is" if n == 1 else f"{n} pages that ended are all"
    reason = f"the last {which} broken"
    paused = Plan.update(paused=SQL(dialect().now_sql), pause_reason=reason).where(
        (Plan.pk == plan_pk) & Plan.paused.is_null()
    )
    if paused.execute():
        log.error("plan %d is paused: %s", plan_pk, reason)
