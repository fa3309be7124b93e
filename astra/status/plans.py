"""List the plans, with one line for each."""

from datetime import datetime

from peewee import ModelSelect, fn

from astra.database.connection import connection
from astra.errors import UsageError, nearest
from astra.models.plans import Page, Plan
from astra.processes import user_name
from astra.records import dataclass
from astra.states import COUNTED, PlanState
from astra.status.status import statuses


@dataclass(frozen=True)
class PlanLine:
    """A plan in a list: its rows by how they ended.

    Examples
    --------
    >>> from astra.api import plans
    >>> first = plans()[-1]
    >>> first.done + first.failed + first.no_result + first.pending == first.rows
    True
    """

    plan: int  #: number of the plan
    task: str  #: name of the task
    input_model: str  #: name of the model of its input rows
    created: datetime  #: when it was made
    by: str  #: the user who made it
    pages: int  #: number of pages
    rows: int  #: number of rows
    done: int  #: rows with a result
    failed: int  #: rows that ended as failures
    no_result: int  #: rows that ended without a result
    pending: int  #: rows that have not ended
    cancelled: bool  #: whether it was cancelled

    @property
    def is_live(self) -> bool:
        """Return whether it has pending rows and was not cancelled."""
        return bool(self.pending) and not self.cancelled


def all_plans(
    limit: int | None = None,
    task: str | None = None,
    state: str | None = None,
    mine: bool = False,
    since: datetime | None = None,
) -> list[PlanLine]:
    """List the last plans, the most recent first, with their rows by outcome.

    Parameters
    ----------
    limit : int, optional
        At most this many; default all.
    task : str, optional
        Only those of a task, by its name with or without its module.
    state : str, optional
        Only those in this :class:`astra.api.PlanState`. Slurm is asked about those with rows left.
    mine : bool
        Only those that this user made.
    since : datetime, optional
        Only those made since then.

    Returns
    -------
    list of PlanLine
        One for each plan.

    Raises
    ------
    UsageError
        If there is no such state.

    Examples
    --------
    >>> from astra.api import plans
    >>> first = plans(task="slam.slam")[-1]
    >>> first.plan, first.rows, first.pending
    (1, 4, 0)
    """
    named = state
    state = state and state.replace("-", " ")  # failed-rows, as shells complete it
    if state is not None and state not in [possible.value for possible in PlanState]:
        raise UsageError(f"no state {named!r}. {nearest(state, [s.value for s in PlanState])}")
    chosen = _chosen(task, mine, since).limit(None if state else limit)
    query = (
        Plan.select(Plan, *(fn.SUM(getattr(Page, name)).alias(name) for name in COUNTED))
        .join(Page)
        .where(Plan.pk << chosen)  # first, as there may be millions of pages
        .group_by(Plan.pk)
        .order_by(Plan.pk.desc())
    )
    with connection():
        listed = [_line(plan) for plan in query]
    if state is not None:
        listed = _in_state(listed, PlanState(state))[:limit]
    return listed


def _chosen(task: str | None, mine: bool, since: datetime | None) -> "ModelSelect[Plan]":
    """Return the query of the keys of plans, the latest first."""
    query = Plan.select(Plan.pk).order_by(Plan.pk.desc())
    if task:
        query = query.where((Plan.task == task) | Plan.task.endswith(f".{task}"))
    if mine:
        query = query.where(Plan.created_by == user_name())
    if since:
        query = query.where(Plan.created >= since)
    return query


def _in_state(listed: list[PlanLine], state: PlanState) -> list[PlanLine]:
    ended = {
        p.plan: PlanState.FAILED_ROWS if p.failed else PlanState.WHOLE
        for p in listed
        if not p.pending
    }
    if state in (PlanState.WHOLE, PlanState.FAILED_ROWS):
        return [p for p in listed if ended.get(p.plan) is state]
    current = statuses([p.plan for p in listed if p.plan not in ended], include_done=False)
    chosen = {status.plan for status in current if status.state is state}
    return [p for p in listed if p.plan in chosen]


def _line(p: Plan) -> PlanLine:
    done, failed, no_result = (int(getattr(p, name) or 0) for name in COUNTED)
    return PlanLine(
        p.pk, p.task, p.input_model.rpartition(":")[2], p.created, p.created_by, p.n_pages,
        p.n_rows, done, failed, no_result, p.n_rows - done - failed - no_result,
        p.cancelled is not None,
    )  # fmt: skip
