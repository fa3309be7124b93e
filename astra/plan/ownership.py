"""Ownership of a table of results: it holds one result for a row, and that of one task."""

from typing import Any

from peewee import SQL, ColumnBase, Model, fn

from astra.database.connection import connection, tuples, writing
from astra.errors import TaskError, UsageError, nearest
from astra.models.importing import import_path
from astra.models.keys import table_name
from astra.models.pipeline import link_of
from astra.models.plans import N_PENDING, Failure, MadeBy, NoResult, Page, Plan
from astra.models.schema import check_version
from astra.models.source import Source
from astra.plan.origin import _check_importable, import_root
from astra.tasks.signature import (
    choose_model,
    find_task,
    output_model,
    source_file,
    task_name,
)
from astra.version import CURRENT


def check_own_results(function: Any, model: type[Model], output: Any) -> None:
    """Refuse to plan a task whose results would stand in the place of another's.

    Raises
    ------
    TaskError
        It says which task has results there, or will, and what to do.
    """
    name = task_name(function)
    others = _makings(output) & (MadeBy.task != name)
    if not MadeBy.select(SQL("1")).where(others).limit(1).exists():
        return
    pks = MadeBy.select(MadeBy.pk).where(others)
    result = output.alias("result")
    found = (
        result.select(result.made_by)
        .join(model, on=link_of(output, model).points(result, model))
        .where(result.made_by.in_(pks) & (result.v_astra_major_minor == CURRENT.major_minor))
        .limit(1)
        .scalar()
    )
    if found is None:
        found = _living(pks, model, output)
    if found is None:
        return
    other = MadeBy.get_by_id(found).task
    raise TaskError(
        f"the table {table_name(output)} has one result for each row of {model.__name__}, and "
        f"those of {other} are there, or will be: the results of {name} would take their place. "
        f"Give {name} an output model of its own: class Other{output.__name__}({output.__name__}): "
        f"pass   (then astra initdb). If it is the same task, renamed: astra rename {other} {name}"
    )


def _makings(output: Any) -> ColumnBase:
    same_version = CURRENT.shares_results(MadeBy.v_astra)
    return (MadeBy.output_table == table_name(output)) & same_version


def _living(makings: object, model: type[Model], output: Any) -> int | None:
    """What makes the results of a living plan that rows of a model may get; None if there is none.

    The results of a task on sources may be of any spectrum.
    """
    same_rows: object = Plan.input_table == table_name(model)
    if output.gathers(model):
        same_rows = SQL("1 = 1")
    elif output.gathers(Source):
        same_rows |= Plan.input_table == table_name(Source)
    query = (
        Plan.select(Plan.made_by)
        .join(Page)
        .where(Plan.made_by.in_(makings) & Plan.cancelled.is_null() & same_rows & (N_PENDING > 0))
    )
    found: int | None = query.limit(1).scalar()
    return found


def rename_task(old: str, task: str) -> int:
    """Give what the task of a former name has made to the same task as it is called now.

    Plans, results, failures and rows without a result are known by the name of their task.

    Parameters
    ----------
    old : str
        The former name, as ``astra plans`` shows it.
    task : str
        The task, by its name now.

    Returns
    -------
    int
        How many plans there were.

    Raises
    ------
    UsageError
        If nothing was made under the former name, or a plan of that name is living.
    """
    function = find_task(task)
    _check_importable(function)
    new, output = task_name(function), output_model(function)
    root = import_root(function, source_file(function))
    check_version()
    with connection(), writing():
        known = [name for (name,) in tuples(MadeBy.select(MadeBy.task).distinct())]
        if old not in known or old == new:
            raise UsageError(f"there is nothing of a task {old!r}. {nearest(old, known)}")
        of_old = (Plan.task == old) & Plan.cancelled.is_null()
        living = Plan.select(Plan.pk).join(Page).where(of_old & (N_PENDING > 0)).limit(1).scalar()
        if living is not None:
            raise UsageError(
                f"plan {living} of {old} is active: wait for its end, or astra "
                f"cancel {living}, first"
            )
        for model in choose_model(function, None):
            same_input = (Plan.task == old) & (Plan.input_table == table_name(model))
            Plan.update(input_model=import_path(model)).where(same_input).execute()
        n_plans = (
            Plan.update(
                task=new, task_path=import_path(function), import_root=root,
                output_model=import_path(output),
            )
            .where(Plan.task == old)
            .execute()
        )  # fmt: skip
        for kind in (Failure, NoResult):
            _rename_records(kind, old, new)
        MadeBy.update(task=new, output_table=table_name(output)).where(MadeBy.task == old).execute()
    return int(n_plans)


def _rename_records(kind: Any, old: str, new: str) -> None:
    """Where a row has ended under both names, the record of the new one stays."""
    later = kind.alias("later")
    same = [
        getattr(later, name) == getattr(kind, name)
        for name in ("input_table", "key", "v_astra_major_minor")
    ]
    again = later.select(SQL("1")).where((later.task == new), *same)
    kind.delete().where((kind.task == old) & fn.EXISTS(again)).execute()
    kind.update(task=new).where(kind.task == old).execute()
