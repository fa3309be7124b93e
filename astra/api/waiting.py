"""Wait for plans."""

import time
from collections.abc import Callable, Iterable
from typing import overload

from astra.api.submitting import number_of
from astra.plan.plan import Planned
from astra.states import PlanState
from astra.status.status import PlanStatus, status
from astra.submit.submit import Submitted

#: The first pause of :func:`wait` between two queries, in s; each pause is 1.5 times the last.
_FIRST_PAUSE_S = 1.0


@overload
def wait(
    submission: int | Planned | Submitted,
    timeout_s: float | None = None,
    every_s: float = 30.0,
    notify: Callable[[PlanStatus], None] | None = None,
) -> PlanStatus: ...


@overload
def wait(
    submission: Iterable[int | Planned | Submitted],
    timeout_s: float | None = None,
    every_s: float = 30.0,
    notify: Callable[[PlanStatus], None] | None = None,
) -> list[PlanStatus]: ...


def wait(
    submission: int | Planned | Submitted | Iterable[int | Planned | Submitted],
    timeout_s: float | None = None,
    every_s: float = 30.0,
    notify: Callable[[PlanStatus], None] | None = None,
) -> PlanStatus | list[PlanStatus]:
    """Wait until no element of a plan, or of several plans, is running or waiting.

    The state is then ``whole``, ``failed rows``, ``cancelled``, or ``attention``: rows are left,
    and an action such as :func:`resume` is needed.

    Parameters
    ----------
    submission : Planned, Submitted or int, or an iterable of these
        From :func:`create_plan` or :func:`submit`, or the number of a plan.
    timeout_s : float, optional
        Longest time to wait for each plan [s]; default no bound.
    every_s : float
        Longest pause between two queries of Slurm [s]; the first pauses are shorter.
    notify : callable, optional
        Called with the status after each query.

    Returns
    -------
    PlanStatus or list of PlanStatus
        A list where several plans were given.

    Raises
    ------
    TimeoutError
        If a plan is still running after `timeout_s`. Its elements continue.

    Examples
    --------
    >>> from astra.api import wait
    >>> wait(1, timeout_s=3600).state.value
    'whole'
    """
    if not isinstance(submission, Iterable):
        return _wait(number_of(submission), timeout_s, every_s, notify)
    return [_wait(number_of(item), timeout_s, every_s, notify) for item in submission]


def _wait(
    plan: int, timeout_s: float | None, every_s: float, notify: Callable[[PlanStatus], None] | None
) -> PlanStatus:
    began, pause_s = time.monotonic(), _FIRST_PAUSE_S
    while True:
        plan_status = status(plan)
        if notify is not None:
            notify(plan_status)
        if plan_status.state is not PlanState.RUNNING:
            return plan_status
        rest_s = None if timeout_s is None else began + timeout_s - time.monotonic()
        if rest_s is not None and rest_s <= 0:
            raise TimeoutError(
                f"plan {plan} is still running after {timeout_s:g} s; its elements continue: "
                f"astra status {plan}"
            )
        time.sleep(min(pause_s, every_s, every_s if rest_s is None else rest_s))
        pause_s *= 1.5
