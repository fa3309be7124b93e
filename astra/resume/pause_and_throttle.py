"""Pause, throttle and continue plans; elements read these controls before each page."""

from collections.abc import Iterable

from peewee import SQL

from astra.database.connection import connection, dialect, tuples
from astra.element.pause_checks import is_at_work
from astra.errors import AstraError, UsageError
from astra.models.attempts import Attempt
from astra.models.plans import IS_LIVE, Page, Plan, Submission
from astra.plan import spool
from astra.plan.lookup import get_plan, plan_numbers
from astra.plan.spool import Recovered
from astra.processes import user_name
from astra.records import dataclass
from astra.resume.resume import resume
from astra.submit.intent import plan_lock
from astra.submit.submit import Submitted, refuse_cancelled


@dataclass(frozen=True)
class Control:
    """The controls of a plan, which its elements obey.

    Examples
    --------
    >>> from astra.api import continue_plans
    >>> continue_plans([1])[0].throttle is None
    True
    """

    plan: int  #: number of the plan
    paused: bool  #: whether it is paused
    reason: str | None  #: why it is paused
    throttle: int | None  #: how many elements may take a further page; None for all
    running: int  #: pages that are being processed; they are not interrupted
    submitted: Submitted | None = None  #: what was submitted, when a plan continues


def live_plans() -> list[int]:
    """Return the plans that have pending rows and were not cancelled."""
    with connection():
        return [pk for (pk,) in tuples(Plan.select(Plan.pk).where(IS_LIVE).order_by(Plan.pk))]


def pause(plans: int | Iterable[int], reason: str | None = None) -> list[Control]:
    """Pause plans: their elements finish their pages and take no further ones.

    Parameters
    ----------
    plans : int, or an iterable of int
        Numbers of the plans, or of one.
    reason : str, optional
        Shown by ``astra status`` and in the logs of elements; by default, the user's name.

    Returns
    -------
    list of Control
        One for each plan.

    Raises
    ------
    UsageError
        If there is no such plan, or it was cancelled.

    Examples
    --------
    >>> from astra.api import continue_plans, pause
    >>> [control.paused for control in pause([1], reason="maintenance")]
    [True]
    >>> [control.paused for control in continue_plans([1])]
    [False]
    """
    values = {"paused": SQL(dialect().now_sql), "pause_reason": reason or f"by {user_name()}"}
    return [_set_controls(plan, values) for plan in plan_numbers(plans)]


def _set_controls(number: int, values: dict[str, object]) -> Control:
    plan = get_plan(number)
    refuse_cancelled(plan)
    with connection():
        Plan.update(values).where(Plan.pk == plan.pk).execute()
    return _control(plan.pk)


def throttle(plan: int, limit: int | None) -> Control:
    """Limit how many elements of a plan take a further page.

    Other elements end after their current page, except for the watcher of each submission. A higher
    limit does not restart elements that have ended: those in the queue start, and ``resume``
    submits others for the pages that are free.

    Parameters
    ----------
    plan : int
        Number of the plan.
    limit : int or None
        How many elements may take a further page; None for no limit.

    Returns
    -------
    Control
        The controls of the plan.

    Raises
    ------
    UsageError
        If the limit is below 1, there is no such plan, or it was cancelled.

    Examples
    --------
    >>> from astra.api import throttle
    >>> throttle(1, 4).throttle
    4
    >>> throttle(1, None).throttle is None
    True
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"a throttle is at least 1, not {limit}; "
            f"to let no element take pages: astra pause {plan}"
        )
    return _set_controls(plan, {"throttle": limit})


def continue_plans(plans: int | Iterable[int]) -> list[Control]:
    """Continue paused plans: submit the pages that have no element, or too few.

    Parameters
    ----------
    plans : int, or an iterable of int
        Numbers of the plans, or of one.

    Returns
    -------
    list of Control
        One for each plan, with what was submitted.

    Raises
    ------
    UsageError
        If there is no such plan, or it was cancelled.
    SlurmError
        If Slurm refuses the pages of one; :func:`astra.api.resume` submits them later.

    Examples
    --------
    >>> from astra.api import continue_plans
    >>> continue_plans([1])[0].paused
    False
    """
    continued, errors = [], []
    for plan in plan_numbers(plans):
        try:
            continued.append(_continue(plan))
        except AstraError as error:  # what keeps one plan from continuing keeps no other
            errors.append(error)
    if errors:
        raise errors[0]
    return continued


def _continue(plan: int) -> Control:
    control = _set_controls(plan, {"paused": None, "pause_reason": None})
    with connection():
        kinds = Submission.select(Submission.kind).where(Submission.plan == plan)
        last = kinds.order_by(Submission.pk.desc()).limit(1).scalar()
    if last != "slurm":
        return control
    try:
        return _control(plan, resume(plan))
    except AstraError as error:
        error.args = (
            f"plan {plan} is no longer paused, but pages could not be submitted: {error}",
        )
        raise


def recover(plan: int) -> Recovered:
    """Store the results in a plan's spool files, without computing them again.

    Parameters
    ----------
    plan : int
        Number of the plan.

    Returns
    -------
    Recovered
        How many files and rows were stored.

    Raises
    ------
    UsageError
        If there is no such plan.
    BusyError
        If another process submits or resumes the plan at this moment.

    Examples
    --------
    >>> from astra.api import recover
    >>> recover(1).files
    0
    """
    frozen = get_plan(plan)
    with plan_lock(frozen):
        return spool.recover(frozen)


def _control(pk: int, submitted: Submitted | None = None) -> Control:
    plan = get_plan(pk)
    with connection():
        running = (
            Attempt.select()
            .join(Page, on=Page.attempt_pk == Attempt.pk)
            .where((Page.plan == pk) & is_at_work())
            .count()
        )
    return Control(
        pk, plan.paused is not None, plan.pause_reason, plan.throttle, running, submitted
    )
