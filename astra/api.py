"""For programs: what the commands do, as functions with types.

::

    from astra.api import create_plan, submit, wait

    plans = create_plan("slam.slam", limit=2000)
    submissions = submit(plans, profile="debug", mem="4G")
    for found in wait(submissions):
        print(found.plan, found.state, found.rows)

A task that reads several tables has a plan for each, so that lists go from call to call; one of
their items, or a plan's number, is taken just as well. Errors are those of :mod:`astra.errors`;
each message says what to do next.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, overload

from astra.cancel import Cancelled, cancel
from astra.errors import UsageError
from astra.estimate import Estimate, estimate
from astra.failures import FailedRow, failures
from astra.plan import Planned, create_plan
from astra.resume import resume, resume_local
from astra.states import PlanState
from astra.status import PlanStatus, status, statuses
from astra.submit import Submitted
from astra.submit import submit as submit_plan
from astra.verify import Verdict, verify

__all__ = [
    "Cancelled",
    "Estimate",
    "FailedRow",
    "PlanState",
    "PlanStatus",
    "Planned",
    "Submitted",
    "Verdict",
    "cancel",
    "create_plan",
    "estimate",
    "failures",
    "resume",
    "resume_local",
    "status",
    "statuses",
    "submit",
    "verify",
    "wait",
]

#: The first pause between two looks of :func:`wait`, in s; each is half as long again as the last.
_FIRST_LOOK_S = 1.0


@overload
def submit(plan: int | Planned, profile: str | None = None, **options: Any) -> Submitted: ...


@overload
def submit(
    plan: Iterable[int | Planned], profile: str | None = None, **options: Any
) -> list[Submitted]: ...


def submit(
    plan: int | Planned | Iterable[int | Planned], profile: str | None = None, **options: Any
) -> Submitted | list[Submitted]:
    """Submit those pages of a plan, or of several, that were not submitted yet, as Slurm arrays.

    Parameters
    ----------
    plan : from :func:`create_plan`, or a plan's number, or several of these. Of several, those
        without rows are passed over.
    profile : of the configuration, or one that ships.
    options : sbatch's, in snake case, ``throttle`` and ``pages_per_element``, which override the
        profile's: ``submit(plan, mem="4G", time="02:00:00")``.

    Raises
    ------
    UsageError
        If there is no such plan, it was cancelled, or it has no rows.
    SlurmError
        If Slurm refuses; the plan can be submitted again.
    """
    if isinstance(plan, int | Planned):
        return submit_plan(_number(plan), profile, options)
    given = [one for one in plan if not isinstance(one, Planned) or one.plan is not None]
    return [submit_plan(_number(one), profile, options) for one in given]


@overload
def wait(
    submission: int | Planned | Submitted,
    timeout_s: float | None = None,
    every_s: float = 30.0,
    tell: Callable[[PlanStatus], None] | None = None,
) -> PlanStatus: ...


@overload
def wait(
    submission: Iterable[int | Planned | Submitted],
    timeout_s: float | None = None,
    every_s: float = 30.0,
    tell: Callable[[PlanStatus], None] | None = None,
) -> list[PlanStatus]: ...


def wait(
    submission: int | Planned | Submitted | Iterable[int | Planned | Submitted],
    timeout_s: float | None = None,
    every_s: float = 30.0,
    tell: Callable[[PlanStatus], None] | None = None,
) -> PlanStatus | list[PlanStatus]:
    """Wait until nothing of a plan, or of several, will go on by itself; how they stand then.

    That is ``whole``, ``cancelled``, or ``attention``: rows are left, and somebody, such as
    :func:`resume`, has to do something.

    Parameters
    ----------
    submission : from :func:`submit`, or a plan's number, or several of these.
    timeout_s : longest wait for each plan; without one there is no bound.
    every_s : longest pause between two looks, each of which asks Slurm; the first are shorter.
    tell : is given what each look has found.

    Raises
    ------
    TimeoutError
        If the plan is still running after so long. Its elements go on.
    """
    if isinstance(submission, int | Planned | Submitted):
        return _wait(_number(submission), timeout_s, every_s, tell)
    return [_wait(_number(one), timeout_s, every_s, tell) for one in submission]


def _wait(
    plan: int, timeout_s: float | None, every_s: float, tell: Callable[[PlanStatus], None] | None
) -> PlanStatus:
    began, pause_s = time.monotonic(), _FIRST_LOOK_S
    while True:
        found = status(plan)
        if tell is not None:
            tell(found)
        if found.state is not PlanState.RUNNING:
            return found
        rest_s = None if timeout_s is None else began + timeout_s - time.monotonic()
        if rest_s is not None and rest_s <= 0:
            raise TimeoutError(
                f"plan {plan} is still running after {timeout_s:g} s; its elements go on: "
                f"astra status {plan}"
            )
        time.sleep(min(pause_s, every_s, every_s if rest_s is None else rest_s))
        pause_s *= 1.5


def _number(plan: int | Planned | Submitted) -> int:
    if isinstance(plan, int):
        return plan
    if plan.plan is None:
        raise UsageError(f"nothing is pending for {plan.task}: there is no plan")
    return plan.plan
