"""For those who run Airflow: an operator that submits, and a sensor that waits (extra ``airflow``).

::

    submit = AstraSubmitOperator(task_id="submit", astra_task="slam.slam", profile="general")
    whole = AstraPlanSensor(task_id="whole", plans=submit.output)

Both are thin, on the functions of :mod:`astra.api`. A worker, and the triggerer, need astra's
configuration (``ASTRA_CONFIG``) and Slurm's commands. Airflow may try the operator again: rows of a
live plan are not planned again, and pages that were submitted are not submitted again.
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
    """Plan what is pending for a task, and submit it; returns the numbers of its plans.

    Where nothing is pending but what live plans hold, it returns these.

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
        planned = api.create_plan(self.astra_task, **self.planning)
        plans: dict[int, None] = {}
        for one in planned:
            plans |= dict.fromkeys([one.plan] if one.plan is not None else one.live_plans)
        for submitted in api.submit(list(plans), self.profile, **self.options):
            self.log.info("plan %s: %s pages submitted", submitted.plan, submitted.pages)
        return list(plans)


class AstraPlanSensor(BaseSensorOperator):
    """Wait until nothing of some plans goes on by itself; fail where one is not whole then.

    Parameters
    ----------
    plans : int or sequence of int
        Numbers, as :class:`AstraSubmitOperator` returns them; without any, there is nothing to do.
    deferrable : bool
        Wait in the triggerer, and leave the worker free.
    poke_interval : float
        Time between two queries, each of which asks Slurm once for all plans [s].

    Raises
    ------
    AirflowException
        If a plan is not whole in the end.

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
        return _ended(_look(self._numbers()))

    def ended(self, context: Any, event: Any) -> None:
        """The triggerer has seen the end."""
        _ended({int(plan): tuple(found) for plan, found in event["plans"].items()})

    def _numbers(self) -> list[int]:
        one = isinstance(self.plans, int | str)
        return [int(plan) for plan in ([self.plans] if one else self.plans or ())]


class AstraPlanTrigger(BaseTrigger):
    """Wait in the triggerer until nothing of some plans goes on by itself.

    Parameters
    ----------
    plans : sequence of int
        Numbers of the plans.
    every_s : float
        Time between two queries [s].

    Raises
    ------
    AstraError
        If the database or Slurm cannot be asked for good.

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
            # In a thread: it talks to the database and to Slurm, and the triggerer serves others.
            found = await asyncio.to_thread(_look, self.plans)
            if all(state != PlanState.RUNNING for state, _ in found.values()):
                yield TriggerEvent({"plans": found})
                return
            await asyncio.sleep(self.every_s)


_Look = dict[int, tuple[str, str]]  # by plan: its state, and what to type


def _look(plans: Sequence[int]) -> _Look:
    found = api.statuses(plans) if plans else []
    return {status.plan: (status.state.value, "; ".join(status.advice)) for status in found}


def _ended(found: _Look) -> bool:
    """Whether nothing goes on.

    Raises
    ------
    AirflowException
        If a plan is not whole and will not be by itself; it says what to type.
    """
    states = {state for state, _ in found.values()}
    if PlanState.RUNNING in states:
        return False
    left = [f"plan {p} is {state}: {why}" for p, (state, why) in found.items() if state != "whole"]
    if left:
        raise AirflowException("; ".join(left))
    return True
