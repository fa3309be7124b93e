"""Ownership of a table of results: it holds one result for each row, of one task."""

from collections.abc import Callable

from peewee import SQL, ColumnBase, Model, ModelSelect, fn

from astra.database.connection import connection, dialect, tuples, writing
from astra.errors import NotAllowed, TaskError, UsageError, nearest
from astra.models.failures import Failure, NoResult
from astra.models.importing import import_path
from astra.models.keys import TRUE, table_name
from astra.models.pipeline import OutputModel, link_of
from astra.models.plans import IS_LIVE, MadeBy, Plan
from astra.models.source import Source
from astra.models.table_checks import check_version
from astra.plan.task_import import check_importable, import_root
from astra.tasks.declared import declared_by
from astra.tasks.provenance import fingerprint
from astra.tasks.signature import (
    choose_model,
    find_task,
    output_model,
    source_file,
    task_name,
)
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
        f"pass   (then astra initdb).{cancel} "
        f"If it is the same task, renamed: astra rename {other} {name}"
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


def rename_task(old: str, task: str) -> int:
    """Assign what a task made under a former name to its present name.

    Plans, results, failures and rows without a result refer to their task by its name.

    Parameters
    ----------
    old : str
        The former name, as ``astra plans`` shows it.
    task : str
        The present name.

    Returns
    -------
    int
        The number of plans that were renamed.

    Raises
    ------
    UsageError
        If nothing was made under the former name, or a plan of that name is active.
    NotAllowed
        If the tables belong to another role.

    Examples
    --------
    >>> from astra.api import rename_task
    >>> rename_task("mytasks.old_name", "mytasks.new_name")  # doctest: +SKIP
    3
    """
    function = find_task(task)
    check_importable(function)
    new, output = task_name(function), output_model(function)
    root = import_root(function, source_file(function))
    check_version()
    with connection(), writing():
        _check_renaming(old, new)
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
        _rename_origins(old, new, output)
    return int(n_plans)


def _check_renaming(old: str, new: str) -> None:
    """Refuse to rename a task that is unknown or active, or whose tables another role owns."""
    if owner := dialect().other_owner(Plan):
        raise NotAllowed(
            f"the tables belong to the role {owner!r}, who alone may rename a task: have "
            f"{owner} run this command"
        )
    tasks = [name for (name,) in tuples(MadeBy.select(MadeBy.task).distinct())]
    if old not in (former := {*tasks} - {new}):
        hint = nearest(old, former)
        raise UsageError(f"there are no plans and no results of a former task {old!r}. {hint}")
    living = Plan.select(Plan.pk).where((Plan.task == old) & IS_LIVE).limit(1).scalar()
    if living is not None:
        raise UsageError(
            f"plan {living} of {old} is active: wait for its end, or astra cancel {living}, first"
        )


def _rename_origins(old: str, new: str, output: type[OutputModel]) -> None:
    """Rename the task in provenance records. Direct calls may have made equal ones under the new
    name: all of them remain, as results refer to them by their numbers."""
    for origin in MadeBy.select().where(MadeBy.task == old):
        origin.task, origin.output_table = new, table_name(output)
        whose = origin.fingerprint.partition("-")[2] or f"renamed{origin.pk}"
        origin.fingerprint = f"{fingerprint(origin)}-{whose}"
        origin.save()


def _rename_records(kind: type[Failure] | type[NoResult], old: str, new: str) -> None:
    """Rename records of ends; where a row has ended under both names, keep that of the new one."""
    later = kind.alias("later")
    is_same_row = [
        getattr(later, name) == getattr(kind, name)
        for name in ("input_table", "key", "v_astra_major_minor")
    ]
    again = later.select(SQL("1")).where((later.task == new), *is_same_row)
    kind.delete().where((kind.task == old) & fn.EXISTS(again)).execute()
    kind.update(task=new).where(kind.task == old).execute()
