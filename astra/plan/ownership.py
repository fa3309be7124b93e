"""Ownership of a table of results: it holds one result for each row, of one task."""

from collections.abc import Callable

from peewee import SQL, ColumnBase, Model, ModelSelect

from astra.errors import TaskError
from astra.models.keys import TRUE, table_name
from astra.models.pipeline import OutputModel, link_of
from astra.models.plans import IS_LIVE, MadeBy, Plan
from astra.models.source import Source
from astra.tasks.declared import declared_by
from astra.tasks.signature import task_name
from astra.version import CURRENT


def check_own_results(
    function: Callable[..., object], model: type[Model], output: type[OutputModel]
) -> None:
    """Refuse to plan a task whose results would replace those of another task.

    Raises
    ------
    TaskError
        If another task has results there, or will have some; the message names it.
    """
    name = task_name(function)
    is_origin = (MadeBy.output_table == table_name(output)) & (MadeBy.task != name)
    others = is_origin & CURRENT.shares_results(MadeBy.v_astra)
    if not MadeBy.select(SQL("1")).where(others).limit(1).exists():
        return
    pks = MadeBy.select(MadeBy.pk).where(others)
    result = output.alias("result")
    made_by = (
        result.select(result.made_by)
        .join(model, on=link_of(output, model).is_result_of(result, model))
        .where(result.made_by.in_(pks) & (result.v_astra_major_minor == CURRENT.major_minor))
        .limit(1)
        .scalar()
    )
    has_results = made_by is not None
    if not has_results:
        made_by = _live_plan_of(pks, model, output)
    if made_by is None:
        return
    origin = MadeBy.get_by_id(made_by)
    other, plan = origin.task, origin.plan_pk
    if has_results:
        whose, cancel = f"has results of {other}", ""
    else:
        whose = f"will get results of plan {plan}, of {other}"
        cancel = f" If that plan is not needed: astra cancel {plan}."
    raise TaskError(
        f"the table {table_name(output)} has one result for each row of {model.__name__}, and "
        f"{whose}, which those of {name} would replace. "
        f"Give {name} an output model of its own: class Other{output.__name__}({output.__name__}): "
        f"pass   (then astra initdb).{cancel}"
    )


def check_many(function: Callable[..., object], output: type[OutputModel]) -> None:
    """Refuse to plan a task that had ``many=True`` and lost it: when a row is processed again, only
    the first of its results would be replaced.

    Raises
    ------
    TaskError
        If the task has stored further results of rows at this version.
    """
    if declared_by(function).many:
        return
    name, pks = task_name(function), MadeBy.select(MadeBy.pk)
    is_current = output.v_astra_major_minor == CURRENT.major_minor
    is_own = is_current & output.made_by.in_(pks.where(MadeBy.task == name))
    if output.select(SQL("1")).where(is_own & (output.result_number > 0)).limit(1).exists():
        raise TaskError(
            f"the table {table_name(output)} has several results of some rows, from when {name} "
            "was declared with many=True, and a task without it would replace only the first "
            "ones. Declare it with many=True again: its rows may as well have one result each. "
            "Once all of them do (--redo all), many=True can be removed"
        )


def _live_plan_of(
    origins: "ModelSelect[MadeBy]", model: type[Model], output: type[OutputModel]
) -> int | None:
    """Return the `made_by` of a live plan whose results may be of rows of `model`.

    The results of a task on sources may be of any spectrum.
    """
    same_rows: ColumnBase = Plan.input_table == table_name(model)
    if output.gathers(model):
        same_rows = TRUE
    elif output.gathers(Source):
        same_rows |= Plan.input_table == table_name(Source)
    query = Plan.select(Plan.made_by).where(Plan.made_by.in_(origins) & same_rows & IS_LIVE)
    made_by: int | None = query.limit(1).scalar()
    return made_by
