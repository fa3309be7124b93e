"""Pending rows: input rows with no result at the current version, or modified since it."""

import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peewee import SQL, ColumnBase, Model, ModelSelect, NodeList, fn

from astra.errors import TaskError, nearest
from astra.models.keys import (
    all_rows,
    in_order,
    modified_field,
    moment_of,
    primary_fields,
    same_moment,
)
from astra.models.pipeline import OutputModel, link_of
from astra.models.source import of_sources
from astra.tasks.signature import choose_model, find_task, output_model
from astra.version import CURRENT


def generate_queries_for_task(
    task: str | Callable[..., object],
    input_model: type[Model] | str | None = None,
    sdss_ids: Iterable[int] | None = None,
    limit: int | None = None,
    page: int | None = None,
) -> Iterator[tuple[Any, ModelSelect]]:
    """Find the input rows of a task that have no up-to-date result.

    The order is total: ``modified``, most recent first, ties broken by key. Left out are rows
    that have a result at the current major.minor version, unless the row was modified since that
    result read it. Rows carry ``.source``, loaded in the same query.

    With a task's ``group_by`` only the most recently modified row of each group counts; a row
    whose group is NULL stands alone.

    Parameters
    ----------
    task : callable or str
        A function; or the name of a pipeline, a registered task, or a dotted path.
    input_model : class or str, optional
        One of the input models that the task expects, or its name; default all.
    sdss_ids : iterable of int, optional
        Only rows of these sources; none at all if empty.
    limit : int, optional
        At most this many rows for each input model.
    page : int, optional
        From 1: the `page`-th window of `limit` rows. Pages of a live query slide while others
        write results: rows move up, and later pages miss them. To share work out, freeze a plan
        (:func:`astra.api.create_plan`), whose pages stay as they are.

    Yields
    ------
    input_model : class
        An input model of the task.
    query : peewee.ModelSelect
        Its pending rows: can be counted, iterated again, and narrowed with ``.where``.

    Raises
    ------
    TaskError
        If the task, a model or a value cannot be used.

    Examples
    --------
    >>> from astra import generate_queries_for_task
    >>> for input_model, query in generate_queries_for_task("slam.slam", limit=100):
    ...     print(f"{input_model.__name__}: {query.count()} spectra to process")
    BossVisitSpectrum: 4 spectra to process
    BossCombinedSpectrum: 0 spectra to process
    """
    function = find_task(task)
    models = choose_model(function, input_model)
    output = output_model(function)
    groups = getattr(getattr(function, "__astra__", None), "group_by", ())
    ids = None if sdss_ids is None else checked_ids(sdss_ids)
    window = _checked_window(limit, page)

    def queries() -> Iterator[tuple[type[Model], ModelSelect]]:
        for model in models:
            query = pending_rows(model, output, groups, ids)
            if window:
                query = query.limit(window[0]).offset(window[1])
            yield model, query

    return queries()


def pending_rows(
    model: type[Model],
    output: type[OutputModel],
    group_by: Iterable[str] = (),
    sdss_ids: list[int] | None = None,
    stands: Callable[[object], object] | None = None,
    also: object = None,
) -> ModelSelect:
    """The pending rows of one input model, in their order.

    Of results that are to be made again, `stands` is the clause that one is not; `also` is a clause
    of rows that are taken although their results stand.
    """
    query = all_rows(model)
    if sdss_ids is not None:
        query = query.where(of_sources(model, sdss_ids))
    query = query.where(is_last_of_group(model, group_by))
    wanted = ~has_result(model, output, stands=stands)
    if also is not None:
        wanted |= also
    return query.where(wanted).order_by(*ordering(model))


def ordering(model: type[Model]) -> list[ColumnBase]:
    """The order of an input model's rows, as a query takes it."""
    return [NodeList((column, SQL(how))) for column, how in in_order(model)]


def has_result(
    model: type[Model],
    output: type[OutputModel],
    by_index: bool = False,
    stands: Callable[[object], object] | None = None,
) -> ColumnBase:
    """A clause: the row has an up-to-date result at the current major.minor version.

    A result is up to date while its input has the ``modified`` that was read with it. That needs
    no clock, and finds even a change that was committed after, but begun before, the reading.
    Where nothing says when a row was modified, any result is up to date.

    With `by_index`, for few rows, each is looked up in the index: of a table that was not analysed
    since it was empty, PostgreSQL would go through all results. An OFFSET keeps it from a join.
    """
    result = output.alias("result")
    found = result.select(1).where(_is_of(result, model, output) & is_up_to_date(result, model))
    if stands is not None:
        found = found.where(stands(result))
    return fn.EXISTS(found.offset(0) if by_index else found)


def is_up_to_date(result: Any, model: type[Model]) -> ColumnBase:
    """A clause: a result is of its input row as that is now."""
    if (field := modified_field(model)) is None:
        return SQL("1 = 1")
    if field.null:  # a result without the moment is of a row that had none
        return same_moment(result.input_modified, model)
    return same_moment(result.input_modified, model) | (
        # A result that was not written by a task counts as read when it was written.
        result.input_modified.is_null() & (result.input_read >= moment_of(model))
    )


def has_old_result(model: type[Model], output: type[OutputModel]) -> ColumnBase:
    """A clause: the row has a result at the current version, which may be out of date."""
    result = output.alias("result")
    return fn.EXISTS(result.select(1).where(_is_of(result, model, output)))


def last_ended(
    model: type[Model], output: type[OutputModel], ends: Iterable[tuple[Any, Any]]
) -> Any:
    """When the row last ended: by one of `ends`, records with their clauses, or with a result."""
    result = output.alias("result")
    moments = [record.select(fn.MAX(record.modified)).where(clause) for record, clause in ends]
    moments.append(result.select(fn.MAX(result.modified)).where(_is_of(result, model, output)))
    return fn.COALESCE(*moments)


def _is_of(result: Any, model: type[Model], output: type[OutputModel]) -> Any:
    same_version = result.v_astra_major_minor == CURRENT.major_minor
    return link_of(output, model).points(result, model) & same_version


def is_last_of_group(model: type[Model], group_by: Iterable[str]) -> ColumnBase:
    """A clause: no other row of its group was modified later; all rows, if there are no groups."""
    if not group_by:
        return SQL("1 = 1")
    other = model.alias("later")
    columns = [(getattr(other, field.name), field, how) for field, how in group_order(model)]
    later: object = None
    for one, own, how in reversed(columns):
        first = one > own if how == "DESC" else one < own
        later = first if later is None else first | ((one == own) & later)
    for name in group_by:
        field = group_column(model, name)
        later &= getattr(other, field.name) == field
    return ~fn.EXISTS(other.select(1).where(later))


def group_order(model: type[Model]) -> list[tuple[Any, str]]:
    """The fields by which the one row of a group comes before its others."""
    field = modified_field(model)
    keys = primary_fields(model)
    if field is None:
        return [(key, "ASC") for key in keys]
    return [(field, "DESC"), *((key, "DESC") for key in keys)]


def group_column(model: type[Model], name: str) -> Any:
    """The column of an input model that `name` means; names are looked up, never evaluated."""
    meta = model._meta
    if name not in meta.combined:
        raise TaskError(
            f"group_by: {model.__name__} has no column {name!r}. {nearest(name, meta.columns)}"
        )
    return meta.combined[name]


def checked_ids(sdss_ids: Iterable[int]) -> list[int]:
    """SDSS identifiers as a list of int, each once.

    Raises
    ------
    TaskError
        If the iterable is a text, or holds anything but whole numbers of 64 bits.
    """
    try:
        values = None if isinstance(sdss_ids, str | bytes) else iter(sdss_ids)
    except TypeError:  # an array without dimensions says that it can be iterated over
        values = None
    if values is None:
        raise TaskError(
            f"sdss_ids={sdss_ids!r}: give an iterable of int, for instance [{_digits(sdss_ids)}]"
        )
    found: dict[int, None] = {}
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TaskError(f"sdss_ids holds {value!r}, which is not an int")
        if not -(2**63) <= int(value) < 2**63:
            raise TaskError(f"sdss_ids holds {value}, which does not fit in 64 bits")
        found[int(value)] = None
    return list(found)


def _digits(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if text.isdigit() else "54392544, 54392545"


def whole_number(name: str, value: object, least: int = 1) -> int:
    """`value` as an int of at least `least`; a TaskError names it otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise TaskError(f"{name}={value!r}: give a whole number from {least}")
    number = int(value)
    if number >= 2**63:
        raise TaskError(f"{name}={value}: give a whole number below 2**63")
    return number


def _checked_window(limit: object, page: object) -> tuple[int, int] | None:
    if limit is None:
        if page is not None:
            raise TaskError(f"page={page!r} needs limit, the number of rows per page")
        return None
    rows = whole_number("limit", limit)
    number = whole_number("page", 1 if page is None else page)
    if rows * number >= 2**63:
        raise TaskError(
            f"page={page} of {rows} rows: no table has that many rows; give a smaller page"
        )
    return rows, rows * (number - 1)
