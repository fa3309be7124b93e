"""Plans: the pending rows of one task and input model, frozen, cut into pages."""

import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import peewee
from peewee import SQL, Model, ModelSelect, NodeList, fn

from astra.config import settings
from astra.database.connection import connection, dialect, tuples, writing
from astra.errors import TaskError
from astra.models.archive import check_archive
from astra.models.importing import import_path
from astra.models.keys import Key, check_keys, key_of, modified_field, table_name
from astra.models.locks import lock_row
from astra.models.pipeline import OutputModel, link_of
from astra.models.plans import Attempt, Failure, Page, Plan
from astra.models.schema import check_guards, check_tables, check_version
from astra.plan.origin import _check_importable, _current_folder, import_root
from astra.plan.ownership import check_own_results
from astra.plan.pages import release_silent
from astra.plan.pending import whole_number
from astra.plan.selection import Selection, ended
from astra.processes import user_name
from astra.states import QUARANTINED, AttemptState
from astra.tasks.arguments import as_stored, parse_arguments
from astra.tasks.made_by import arguments_of, making_of, note_making
from astra.tasks.signature import (
    choose_model,
    find_task,
    output_model,
    source_file,
    task_name,
)
from astra.version import CURRENT


@dataclass(frozen=True)
class Planned:
    """What planning came to, for one input model: what :func:`astra.api.create_plan` returns.

    Examples
    --------
    >>> from astra.api import create_plan
    >>> (planned,) = create_plan("slam.slam", "BossCombinedSpectrum")
    >>> planned.plan is None, planned.rows
    (True, 0)
    """

    plan: int | None  #: number of the plan; None: nothing was pending
    task: str  #: name of the task
    input_model: str  #: name of the input model
    pages: int  #: number of pages
    rows: int  #: number of rows
    limit: int  #: rows per page
    held: int  #: pending rows left out: a live plan has them
    failed: int  #: rows left out: ended as a failure, and were not modified since
    no_result: int  #: rows left out: ended without a result, and were not modified since
    quarantined: int = 0  #: of the failed: ended their process
    live_plans: tuple[int, ...] = ()  #: plans that have the held rows
    tracks_changes: bool = True  #: False: nothing says when an input row was modified
    unknown_keys: tuple[int | str, ...] = ()  #: keys asked for that no row has
    is_empty: bool = False  #: the input table has no row at all


def create_plan(
    task: Any,
    input_model: type[Model] | str | None = None,
    sdss_ids: Iterable[int] | None = None,
    limit: int | None = None,
    max_rows: int | None = None,
    arguments: Mapping[str, object] | None = None,
    again: bool = False,
    new_first: bool = False,
    keys: Iterable[object] | None = None,
    where: str | None = None,
    redo: str | None = None,
) -> list[Planned]:
    """Freeze the pending rows of a task: one plan for each of its input models that has any.

    Parameters
    ----------
    task : callable or str
        A task, or its name.
    input_model : class or str, optional
        One of the task's input models, or its name; default all.
    sdss_ids : iterable of int, optional
        Only rows of these sources.
    limit : int, optional
        Rows per page; by default the configured ``[plan] limit``.
    max_rows : int, optional
        At most this many rows, the first in their order.
    arguments : mapping, optional
        Arguments of the task, by name: values of the annotated types, or texts that are parsed.
    again : bool
        Also take rows that ended as a failure or without a result.
    new_first : bool
        Rows without any result come before those that were modified since theirs; otherwise, and
        within these two, the most recently modified come first.
    keys : iterable, optional
        Only the rows with these keys; tuples, where the key has several columns.
    where : str, optional
        Only rows for which this condition on the columns of the input holds, such as
        ``"snr > 10 and release in ['dr19', 'dr20']"``.
    redo : str, optional
        Also take rows that have ended: ``"all"``; ``"changed"``, those whose results were made
        with other arguments, other contents of named files or another revision;
        ``"older-than 2026-01-31"``; or ``"failed"``. Their results stay until each is replaced.

    Returns
    -------
    list of Planned
        One for each input model; its ``plan`` is None where nothing was pending.

    Raises
    ------
    TaskError
        If the task, an argument or a value cannot be used; nothing is stored.

    Examples
    --------
    >>> from astra.api import create_plan
    >>> (planned,) = create_plan("slam.slam", "BossVisitSpectrum", limit=2, max_rows=4)
    >>> planned.rows, planned.pages
    (4, 2)
    """
    function, models, output = _checked_task(task, input_model)
    values = parse_arguments(function, arguments or {})
    limit = whole_number("limit", settings.current().plan.limit if limit is None else limit)
    if max_rows is not None:
        max_rows = whole_number("max_rows", max_rows)
    selection = Selection.of(
        sdss_ids, keys, where, redo, again=again, new_first=new_first, max_rows=max_rows
    )
    check_version()
    check_archive()
    with connection():
        check_tables(*models, output)
        check_guards(*models, output)
        for model in models:
            check_keys(model)
        found = {model: selection.check(model) for model in models}
    making = making_of(function, arguments_of(function, values), output)
    try:
        return [
            _freeze(function, model, values, limit, selection, making, *found[model])
            for model in models
        ]
    except (peewee.DataError, peewee.ProgrammingError) as error:
        if where is None:
            raise
        said = dialect().message(error)
        raise TaskError(f"--where {where!r} cannot be computed for every row: {said}") from error


def _checked_task(
    task: Any, input_model: type[Model] | str | None
) -> tuple[Any, list[type[Model]], type[OutputModel]]:
    """A task whose rows elements can process, the input models that are meant, and its output."""
    function = find_task(task)
    models = choose_model(function, input_model)
    output = output_model(function)
    if not hasattr(function, "__astra__"):
        raise TaskError(f"{task_name(function)} is not a task: decorate it with @task")
    if not function.__astra__.keywords.get("write_to_database", True):
        raise TaskError(
            f"{task_name(function)} is declared with write_to_database=False: a plan of it could "
            "never end; remove that, or call the task from a program"
        )
    _check_importable(function)
    for model in models:
        link_of(output, model)
    return function, models, output


def plan_at_most(task: Any, planning: Mapping[str, Any]) -> list[Planned]:
    """Plan a task with at most ``max_rows`` rows over all of its input models together."""
    if (left := planning.get("max_rows")) is None:
        return create_plan(task, **planning)
    made: list[Planned] = []
    for model in choose_model(find_task(task), planning.get("input_model")):
        if left or not made:
            made += create_plan(task, **{**planning, "input_model": model, "max_rows": left})
            left -= made[-1].rows
    return made


def _freeze(
    function: Any,
    model: type[Model],
    arguments: dict[str, object],
    limit: int,
    selection: Selection,
    making: dict[str, Any],
    known: list[object] | None,
    unknown: tuple[Any, ...],
) -> Planned:
    name, table, output = task_name(function), table_name(model), output_model(function)
    with connection(), writing():
        lock_row(f"planning {name} {table}", f"plans {name} on {table}")
        lock_row(f"results in {table_name(output)}", f"plans {name} on {table}")
        check_own_results(function, model, output)
        release_silent(name, table)
        live = _live_plans(name, table)
        pending = selection.pending(
            model, output, function.__astra__.group_by, known, name, making["digest"]
        )
        pending, n_held = _without_held(pending, model, name) if live else (pending, 0)
        pending, left_out = _without_ended(pending, selection, model, name, making["digest"])
        plan = _record(function, model, output, arguments, limit, selection, making)
        order = selection.order(model, output, name)
        pages, rows = _write_pages(plan, pending, order, key_of(model), selection.max_rows)
        if not rows:
            plan.delete_instance()
        else:
            fingerprint = f"{making['fingerprint']}-{plan.token}"
            made_by = note_making({**making, "plan_pk": plan.pk, "fingerprint": fingerprint})
            numbers = {"n_pages": pages, "n_rows": rows, "made_by": made_by}
            Plan.update(numbers).where(Plan.pk == plan.pk).execute()
        return Planned(
            plan.pk if rows else None, name, model.__name__, pages, rows, limit, held=n_held,
            live_plans=tuple(live) if n_held else (),
            tracks_changes=modified_field(model) is not None,
            unknown_keys=unknown,
            is_empty=not rows and not model.select().exists(), **left_out,
        )  # fmt: skip


def _without_held(pending: ModelSelect, model: type[Model], task: str) -> tuple[ModelSelect, int]:
    """The pending rows that no living plan has yet, and the number of those that one has."""
    key, version = key_of(model), CURRENT.major_minor
    held = dialect().held(
        key.column, task, table_name(model), version, Page, Plan, Attempt, key.page_column
    )
    return pending.where(NodeList((SQL("NOT"), held))), pending.where(held).count()


def _without_ended(
    pending: ModelSelect, selection: Selection, model: type[Model], task: str, digest: str
) -> tuple[ModelSelect, dict[str, int]]:
    """The pending rows that did not end without a result, and the numbers of those that did."""
    counts = {"failed": 0, "no_result": 0, "quarantined": 0}
    for kind, clause in selection.left_out(model, task, digest):
        if not kind.select().where(kind.task == task).exists():
            continue
        what = "failed" if kind is Failure else "no_result"
        counts[what] = pending.where(clause).count()
        if kind is Failure and counts[what]:
            deadly = ended(kind, model, task, QUARANTINED)
            counts["quarantined"] = pending.where(deadly).count()
        pending = pending.where(~clause)
    return pending, counts


def _write_pages(
    plan: Plan,
    pending: ModelSelect,
    order: list[tuple[Any, str]],
    key: Key,
    max_rows: int | None,
) -> tuple[int, int]:
    """Write the keys of the rows into the plan's pages; return the numbers of pages and rows."""
    columns = [column.alias(f"order_{n}") for n, (column, _) in enumerate(order)]
    by = [f"order_{n} {how}" for n, (_, how) in enumerate(order)]
    keys = pending.select(key.column.alias("key"), *columns).order_by(*map(SQL, by)).limit(max_rows)
    return dialect().freeze(keys, Page, plan.pk, plan.limit, ", ".join(by), key.page_column)


def _live_plans(name: str, table: str) -> list[int]:
    """Plans of the task that still have rows to end."""
    ended = Page.n_done + Page.n_failed + Page.n_no_result
    running = Attempt.select(Attempt.pk).where(
        (Attempt.pk == Page.attempt_pk) & (Attempt.state == AttemptState.RUNNING.value)
    )
    query = (
        Plan.select(Plan.pk)
        .join(Page)
        .where(
            (Plan.task == name)
            & (Plan.input_table == table)
            & CURRENT.shares_results(Plan.v_astra)
            & (Plan.cancelled.is_null() | fn.EXISTS(running))
            & (ended < Page.n_rows)
        )
        .distinct()
        .order_by(Plan.pk)
    )
    return [pk for (pk,) in tuples(query)]


def _record(
    function: Any,
    model: type[Model],
    output: type[OutputModel],
    arguments: dict[str, object],
    limit: int,
    selection: Selection,
    making: dict[str, object],
) -> Plan:
    return Plan.create(
        task=task_name(function),
        task_path=import_path(function),
        import_root=import_root(function, source_file(function)),
        input_model=import_path(model),
        input_table=table_name(model),
        output_model=import_path(output),
        arguments=as_stored(arguments),
        limit=limit,
        n_pages=0,
        n_rows=0,
        v_astra=CURRENT.number,
        commit=making["commit"],
        redo=selection.redo.text if selection.redo else None,
        where=selection.where,
        created_by=user_name(),
        created_on=socket.gethostname(),
        cwd=_current_folder(),
    )


def as_json(value: Any) -> Any:
    """A dataclass as plain values for ``--json``."""
    return asdict(value)
