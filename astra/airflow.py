"""Airflow: an operator that submits plans, and a sensor that waits for them (extra ``airflow``).

::

    submit = AstraSubmitOperator(task_id="submit", astra_task="slam.slam", profile="general")
    whole = AstraPlanSensor(task_id="whole", plans=submit.output)

Both call functions of :mod:`astra.api`. Workers and the triggerer need astra's configuration
(``ASTRA_CONFIG``) and Slurm's commands. Airflow may retry the operator: rows of an active plan are
not planned again, and submitted pages are not submitted again.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator, BaseSensorOperator
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from astra import api
from astra.states import PlanState

__all__ = ["AstraPlanSensor", "AstraPlanTrigger", "AstraSubmitOperator"]


class AstraSubmitOperator(BaseOperator):
    """Plan the pending rows of a task and submit them; return the numbers of the plans.

    If active plans have all pending rows, return the numbers of these plans.

    Parameters
    ----------
    astra_task : str
        Name of the task, such as ``slam.slam``.
    profile : str, optional
        As for :func:`astra.api.submit`.
    options : mapping, optional
        As for :func:`astra.api.submit`.
    planning : mapping, optional
        As for :func:`astra.api.create_plan`: ``limit``, ``max_rows``, ``arguments``.

    Raises
    ------
    UsageError
        If the task or an argument cannot be used.
    SlurmError
        If Slurm refuses; Airflow's retry submits nothing twice.

    Examples
    --------
    >>> AstraSubmitOperator(task_id="submit", astra_task="slam.slam", profile="general")
    ... # doctest: +SKIP
    """

    template_fields: Sequence[str] = ("astra_task", "profile", "options", "planning")

    def __init__(
        self,
        *,
        astra_task: str,
        profile: str | None = None,
        options: Mapping[str, Any] | None = None,
        planning: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.astra_task, self.profile = astra_task, profile
        self.options, self.planning = dict(options or {}), dict(planning or {})

    def execute(self, context: Any) -> list[int]:
        results = api.create_plan(self.astra_task, **self.planning)
        plans: dict[int, None] = {}
        for planned in results:
            plans |= dict.fromkeys(
                [planned.plan] if planned.plan is not None else planned.live_plans
            )
        for submitted in api.submit(list(plans), self.profile, **self.options):
            self.log.info("plan %s: %s pages submitted", submitted.plan, submitted.pages)
        return list(plans)


class AstraPlanSensor(BaseSensorOperator):
    """Wait until no element of some plans runs or waits; fail if a plan is not whole then.

    Parameters
    ----------
    plans : int or sequence of int
        Numbers, as :class:`AstraSubmitOperator` returns them; without any, it succeeds at once.
    deferrable : bool
        Wait in the triggerer instead of a worker.
    poke_interval : float
        Time between two queries; each queries Slurm once for all plans [s].

    Raises
    ------
    AirflowException
        If a plan is not whole at the end.

    Examples
    --------
    >>> AstraPlanSensor(task_id="whole", plans=[1])  # doctest: +SKIP
    """

    template_fields: Sequence[str] = ("plans",)

    def __init__(
        self,
        *,
        plans: Any,
        deferrable: bool = True,
        poke_interval: float = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.plans, self.deferrable = plans, deferrable

    def execute(self, context: Any) -> Any:
        if not self.deferrable:
            return super().execute(context)
        if not self.poke(context):
            trigger = AstraPlanTrigger(self._numbers(), self.poke_interval)
            self.defer(trigger=trigger, method_name="ended", timeout=self.timeout)
        return None

    def poke(self, context: Any) -> bool:
        return _ended(_query(self._numbers()))

    def ended(self, context: Any, event: Any) -> None:
        """Check the states that the triggerer has found."""
        _ended({int(plan): tuple(state) for plan, state in event["plans"].items()})

    def _numbers(self) -> list[int]:
        is_single = isinstance(self.plans, int | str)
        return [int(plan) for plan in ([self.plans] if is_single else self.plans or ())]


class AstraPlanTrigger(BaseTrigger):
    """Wait in the triggerer until no element of some plans runs or waits.

    Parameters
    ----------
    plans : sequence of int
        Numbers of the plans.
    every_s : float
        Time between two queries [s].

    Raises
    ------
    AstraError
        If the database or Slurm cannot be queried permanently.

    Examples
    --------
    >>> AstraPlanTrigger([1], every_s=60)  # doctest: +SKIP
    """

    def __init__(self, plans: Sequence[int], every_s: float) -> None:
        super().__init__()
        self.plans, self.every_s = list(plans), every_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.AstraPlanTrigger", {"plans": self.plans, "every_s": self.every_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:
            # In a thread, as the queries would block other triggers.
            states = await asyncio.to_thread(_query, self.plans)
            if all(state != PlanState.RUNNING for state, _ in states.values()):
                yield TriggerEvent({"plans": states})
                return
            await asyncio.sleep(self.every_s)


#: The state of each plan, and the command to run next.
_States = dict[int, tuple[str, str]]


def _query(plans: Sequence[int]) -> _States:
    statuses = api.statuses(plans) if plans else []
    return {status.plan: (status.state.value, "; ".join(status.advice)) for status in statuses}


def _ended(plans: _States) -> bool:
    """Return whether all plans have ended.

    Raises
    ------
    AirflowException
        If a plan has ended and is not whole; the message says what to run.
    """
    states = {state for state, _ in plans.values()}
    if PlanState.RUNNING in states:
        return False
    unfinished = [
        f"plan {p} is {state}: {why}" for p, (state, why) in plans.items() if state != "whole"
    ]
    if unfinished:
        raise AirflowException("; ".join(unfinished))
    return True
