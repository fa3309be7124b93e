"""Plans: the pending rows of one task and input model, frozen, cut into pages."""

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict, cast

import peewee
from peewee import SQL, Case, ColumnBase, Model, ModelSelect, NodeList, fn

from astra.config import settings
from astra.config.value_checks import MAX_PAGE_ROWS
from astra.database.connection import dialect, tuples
from astra.database.threads import in_background
from astra.errors import TaskError
from astra.models.archive import check_archive
from astra.models.failures import Failure
from astra.models.importing import import_path
from astra.models.keys import all_rows, check_keys, key_of, modified_field, table_name
from astra.models.locks import transaction_with_locks
from astra.models.pipeline import OutputModel, link_of
from astra.models.plans import Page, Plan
from astra.models.table_checks import check_guards, check_key_types, check_tables, current_tables
from astra.plan.ownership import check_many, check_own_results
from astra.plan.pages import live_pages, planning_lock, release_without_heartbeat
from astra.plan.pending import whole_number
from astra.plan.selection import Choice, Selection, ended
from astra.plan.task_import import check_importable, current_folder, import_root
from astra.processes import user_name
from astra.records import dataclass
from astra.states import QUARANTINED
from astra.tasks.arguments import as_stored, parse_arguments
from astra.tasks.declared import bind_call, declared_by
from astra.tasks.provenance import (
    arguments_of,
    code_version,
    digest_of,
    provenance_of,
    store_provenance_of_plan,
)
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
    """The result of planning for one input model; :func:`astra.api.create_plan` returns it.

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
    held: int  #: pending rows left out because a live plan has them
    failed: int  #: rows left out because they ended as a failure and were not modified since
    no_result: int  #: rows left out because they ended without a result, not modified since
    quarantined: int = 0  #: failed rows that crashed their process
    live_plans: tuple[int, ...] = ()  #: plans that have the held rows
    tracks_changes: bool = True  #: whether the input table records when a row was modified
    unknown_keys: tuple[int | str, ...] = ()  #: keys asked for that no row has
    is_empty: bool = False  #: whether the input table has no rows


class Planning(TypedDict, total=False):
    """The optional parameters of :func:`create_plan`."""

    input_model: type[Model] | str | None
    sdss_ids: Iterable[int] | None
    limit: int | None
    max_rows: int | None
    arguments: Mapping[str, object] | None
    again: bool
    new_first: bool
    keys: Iterable[object] | None
    where: str | None
    redo: str | None
    dry_run: bool


def create_plan(
    task: Callable[..., object] | str,
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
    dry_run: bool = False,
) -> list[Planned]:
    """Freeze the pending rows of a task: one plan for each of its input models that has any.

    Parameters
    ----------
    task : callable or str
        A task, or its name.
    input_model : class or str, optional
        One of the task's input models, or its name; default all.
    sdss_ids, keys : iterable, optional
        Only rows of these sources; only rows with these keys, tuples for a key of several columns.
    limit : int, optional
        Rows per page; default the configured ``[plan] limit``.
    max_rows : int, optional
        At most this many rows, the first in their order.
    arguments : mapping, optional
        Arguments of the task, by name: values of the annotated types, or texts that are parsed.
    again, new_first : bool
        Also take rows that ended as a failure or without a result; take rows without any result
        before modified rows. Otherwise the most recently modified rows come first.
    where : str, optional
        Only rows that meet this condition, such as ``"snr > 10 and release in ['dr19', 'dr20']"``.
    redo : str, optional
        Also take rows that have ended: ``all``, ``changed``, ``failed`` or ``older-than DATE``.
    dry_run : bool
        Make a plan that is cancelled from the beginning, so that it takes no row from another.

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
    selection = Selection(sdss_ids, keys, where, redo, again, new_first, max_rows)
    return _plan(task, input_model, limit, arguments or {}, selection, dry_run)


def _plan(
    task: Callable[..., object] | str,
    input_model: type[Model] | str | None,
    limit: int | None,
    arguments: Mapping[str, object],
    selection: Selection,
    dry_run: bool,
) -> list[Planned]:
    """Check the task, its tables and its arguments, and freeze a plan for each input model."""
    function, models, output = _checked_task(task, input_model)
    values = parse_arguments(function, arguments)
    if not bind_call(function, ((),), values)[0].write_to_database:
        raise TaskError(
            f"{task_name(function)} is called or declared with write_to_database=False: a plan of "
            "it could never end, as no result is stored; remove that, or call the task from a "
            "program"
        )
    limit = settings.current().plan.limit if limit is None else limit
    limit = whole_number("limit", limit, bits=MAX_PAGE_ROWS.bit_length())
    known = in_background(lambda: code_version(function))  # git runs while tables are checked
    with current_tables(), _readable(models):
        check_archive()
        check_tables(*models, output)
        check_guards(*models, output)
        for model in models:
            check_keys(model)
        check_key_types(output, *models)
        known()
        provenance = provenance_of(function, arguments_of(function, values), output)
        choices = [Choice(selection, function, model, output, provenance) for model in models]
        try:
            return [_freeze(choice, values, limit, dry_run) for choice in choices]
        except (peewee.DataError, peewee.ProgrammingError) as error:
            if (where := selection.where) is None:
                raise
            reason = dialect().message(error)
            raise TaskError(
                f"--where {where!r} cannot be computed for every row: {reason}"
            ) from error


@contextmanager
def _readable(models: Iterable[type[Model]]) -> Iterator[None]:
    """Explain that the database cannot compute a row, as of a view with a failing expression, or
    that a key is no text in UTF-8."""
    try:
        yield
    except (peewee.DataError, UnicodeDecodeError) as error:
        tables = " or ".join(map(table_name, models))
        raise TaskError(
            f"a row of {tables} cannot be read: {dialect().message(error)}; correct the row, or "
            "the view that computes it"
        ) from error


def _checked_task(
    task: Callable[..., object] | str, input_model: type[Model] | str | None
) -> tuple[Callable[..., object], list[type[Model]], type[OutputModel]]:
    """Return a task that elements can import, the wanted input models, and the output model."""
    function = find_task(task)
    models = choose_model(function, input_model)
    output = output_model(function)
    declared_by(function)  # raises if it is not decorated
    check_importable(function)
    for model in models:
        link_of(output, model)
    return function, models, output


def with_lists(planning: Planning) -> Planning:
    """Return the parameters for several calls: an iterator could be read by the first one only."""
    lists = {name: list(v) for name, v in planning.items() if isinstance(v, Iterator)}
    return cast("Planning", {**planning, **lists})


def plan_at_most(task: Callable[..., object] | str, planning: Planning) -> list[Planned]:
    """Plan a task with at most ``max_rows`` rows over all of its input models together."""
    if (left := planning.get("max_rows")) is None:
        return create_plan(task, **planning)
    planning = with_lists(planning)
    plans: list[Planned] = []
    for model in choose_model(find_task(task), planning.get("input_model")):
        if left or not plans:
            wanted: Planning = {**planning, "input_model": model, "max_rows": left}
            plans += create_plan(task, **wanted)
            left -= plans[-1].rows
    return plans


def _freeze(choice: Choice, arguments: dict[str, object], limit: int, dry_run: bool) -> Planned:
    """Freeze the rows of one input model, in one transaction that no other planning overlaps."""
    name, table, model, output = choice.task, choice.table, choice.model, choice.output
    locks = (planning_lock(name, table), f"results in {table_name(output)}")
    with transaction_with_locks(locks, f"plans {name} on {table}"):
        check_own_results(choice.function, model, output)
        release_without_heartbeat(name, table)
        held_pages = live_pages(name, table)
        query = held_pages.select(Page.plan).distinct().order_by(Page.plan)
        live = [pk for (pk,) in tuples(query)]
        pending, left_out = _without_left_out(choice, held_pages if live else None)
        plan = _record(choice, arguments, limit, dry_run)
        pages, rows = _write_pages(plan, pending, choice)
        if not rows:
            plan.delete_instance()
        else:
            check_many(choice.function, output)
            made_by = store_provenance_of_plan(choice.provenance, plan)
            numbers = {"n_pages": pages, "n_rows": rows, "made_by": made_by}
            Plan.update(numbers).where(Plan.pk == plan.pk).execute()
        return Planned(
            plan.pk if rows else None, name, model.__name__, pages, rows, limit,
            held=left_out["held"], failed=left_out["failed"],
            no_result=left_out["no_result"], quarantined=left_out["quarantined"],
            live_plans=tuple(live) if left_out["held"] else (),
            tracks_changes=modified_field(model) is not None,
            unknown_keys=choice.unknown_keys,
            is_empty=not rows and not all_rows(model).exists(),
        )  # fmt: skip


def _without_left_out(
    choice: Choice, live: "ModelSelect[Page] | None"
) -> tuple[ModelSelect, Counter[str]]:
    """Return the pending rows that a plan takes, and count the others in one query.

    A row is held by a live page, or has ended without a result; its first reason counts.
    """
    reasons: list[tuple[ColumnBase, str]] = []
    if live is not None:
        key = key_of(choice.model)
        keys = getattr(Page, key.page_column).alias("keys")
        pages = live.select(keys, Page.outcomes.alias("outcomes"))
        reasons.append((dialect().among_pending(key, pages), "held"))
    for kind, clause in choice.left_out():
        if kind.select().where(kind.task == choice.task).exists():
            if kind is Failure:
                crashed = ended(kind, choice.model, choice.task, QUARANTINED)
                reasons.append((clause & crashed, "quarantined"))
            reasons.append((clause, "failed" if kind is Failure else "no_result"))
    pending = choice.pending()
    if not reasons:
        return pending, Counter()
    why = Case(None, reasons)
    # By its place, as a column of the table may have any name.
    rows = pending.select(why, fn.COUNT(SQL("*"))).group_by(SQL("1")).order_by()
    counts = Counter({reason: n for reason, n in tuples(rows) if reason is not None})
    counts["failed"] += counts["quarantined"]
    for clause, reason in reasons:
        if reason != "quarantined":  # these are among the failed
            pending = pending.where(NodeList((SQL("NOT"), clause)))
    return pending, counts


def _write_pages(plan: Plan, pending: ModelSelect, choice: Choice) -> tuple[int, int]:
    """Write the keys of the rows into the plan's pages; return the numbers of pages and rows."""
    key, order = key_of(choice.model), choice.order()
    columns = [column.alias(f"order_{n}") for n, (column, _) in enumerate(order)]
    by = [f"order_{n} {how}" for n, (_, how) in enumerate(order)]
    keys = pending.select(key.column.alias("key"), *columns).order_by(*map(SQL, by))
    keys = keys.limit(choice.selection.max_rows)
    return dialect().freeze(keys, Page, plan.pk, plan.limit, ", ".join(by), key.page_column)


def _record(choice: Choice, arguments: dict[str, object], limit: int, dry_run: bool) -> Plan:
    """Store a plan without pages."""
    selection, function, stored = choice.selection, choice.function, as_stored(arguments)
    return Plan.create(
        task=choice.task,
        task_path=import_path(function),
        import_root=import_root(function, source_file(function)),
        input_model=import_path(choice.model),
        input_table=choice.table,
        output_model=import_path(choice.output),
        tables=dialect().places([choice.model, choice.output], Plan),
        arguments=stored,
        arguments_digest=digest_of(stored),
        limit=limit,
        n_pages=0,
        n_rows=0,
        v_astra=CURRENT.number,
        commit=choice.provenance["commit"],
        redo=selection.redo,
        where=selection.where,
        created_by=user_name(),
        created_on=socket.gethostname(),
        cwd=current_folder(),
        **(dict.fromkeys(("created", "cancelled"), dialect().now()) if dry_run else {}),
    )
