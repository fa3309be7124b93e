"""Pending rows: input rows without a result at the current version, or modified since."""

import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from peewee import SQL, ColumnBase, Expression, Field, Model, ModelAlias, ModelSelect, NodeList, fn

from astra.database.connection import dialect
from astra.errors import TaskError, nearest, shown
from astra.models.failures import Failure, NoResult
from astra.models.key_parsing import listed
from astra.models.keys import (
    TRUE,
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

#: An alias of a table of ends: results, failures, or rows without a result.
Record: TypeAlias = "ModelAlias[OutputModel] | ModelAlias[Failure] | ModelAlias[NoResult]"

#: The table of results, or an alias of it.
Results: TypeAlias = "type[OutputModel] | ModelAlias[OutputModel]"


def generate_queries_for_task(
    task: str | Callable[..., object],
    input_model: type[Model] | str | None = None,
    sdss_ids: Iterable[int] | None = None,
    limit: int | None = None,
    page: int | None = None,
) -> Iterator[tuple[type[Model], ModelSelect]]:
    """Find the input rows of a task that have no up-to-date result.

    A row is left out if it has a result at the current major.minor version and was not modified
    since. The most recently modified rows come first, ties broken by key. Rows have ``.source``
    loaded. With ``group_by`` only the most recently modified row of each group counts.

    Parameters
    ----------
    task : callable or str
        A task, or its name.
    input_model : class or str, optional
        One of the task's input models, or its name; default all.
    sdss_ids : iterable of int, optional
        Only rows of these sources.
    limit : int, optional
        At most this many rows for each input model.
    page : int, optional
        The `page`-th window of `limit` rows, from 1. Pages of plans do not shift; windows do.

    Yields
    ------
    input_model : class
        An input model of the task.
    query : peewee.ModelSelect
        Its pending rows.

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
    models, output = choose_model(function, input_model), output_model(function)
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
    sdss_ids: Iterable[int] | None = None,
    is_kept: Callable[[Record], ColumnBase] | None = None,
    also: ColumnBase | None = None,
) -> ModelSelect:
    """Return the pending rows of one input model, in their order.

    Parameters
    ----------
    is_kept : returns the clause that a result is not to be replaced.
    also : a clause of rows that are taken although their results stand.
    """
    query = all_rows(model)
    if sdss_ids is not None:
        query = query.where(of_sources(model, sdss_ids))
    query = query.where(is_last_of_group(model, group_by))
    is_pending = ~has_result(model, output, is_kept=is_kept)
    if also is not None:
        is_pending |= also
    order = [NodeList((column, SQL(how))) for column, how in in_order(model)]
    return query.where(is_pending).order_by(*order)


def has_result(
    model: type[Model],
    output: type[OutputModel],
    by_index: bool = False,
    is_kept: Callable[[Record], ColumnBase] | None = None,
) -> ColumnBase:
    """Return the clause that a row has an up-to-date result at the current major.minor version.

    A result is up to date while its input has the ``modified`` that was read with it. This needs no
    clock, and detects a change that began before the row was read and was committed afterwards.
    Where the table does not record when a row was modified, any result is up to date.

    With `by_index`, for few rows, each row is looked up in the index: PostgreSQL would read all
    results of a table that was not analysed since it was empty. OFFSET prevents the join.
    """
    result = output.alias("result")
    query = result.select(1).where(_is_of(result, model, output) & is_up_to_date(result, model))
    if is_kept is not None:
        query = query.where(is_kept(result))
    return fn.EXISTS(query.offset(0) if by_index else query)


def is_up_to_date(result: Results, model: type[Model]) -> ColumnBase:
    """Return the clause that a result was computed from the present state of its input row."""
    if (field := modified_field(model)) is None:
        return TRUE
    if field.null:  # a result without the moment is of a row without one
        return same_moment(result.input_modified, model)
    return same_moment(result.input_modified, model) | (
        # A result that no task wrote counts as read at the moment when it was written.
        result.input_modified.is_null() & (result.input_read >= moment_of(model))
    )


def has_old_result(model: type[Model], output: type[OutputModel]) -> ColumnBase:
    """Return the clause that a row has a result at the current version, even an outdated one."""
    result = output.alias("result")
    return fn.EXISTS(result.select(1).where(_is_of(result, model, output)))


def last_ended(
    model: type[Model], output: type[OutputModel], ends: Iterable[tuple[Record, ColumnBase]]
) -> ColumnBase:
    """Return the expression for when a row last ended, with a result or as one of `ends`."""
    result = output.alias("result")
    records: list[tuple[Record, ColumnBase]] = [*ends, (result, _is_of(result, model, output))]
    moments = [record.select(fn.MAX(record.modified)).where(clause) for record, clause in records]
    return fn.COALESCE(*moments)


def _is_of(result: Results, model: type[Model], output: type[OutputModel]) -> ColumnBase:
    """Return the clause that a result is of a row, and of this version."""
    same_version = result.v_astra_major_minor == CURRENT.major_minor
    return link_of(output, model).is_result_of(result, model) & same_version


def is_last_of_group(model: type[Model], group_by: Iterable[str]) -> ColumnBase:
    """Return the clause that a row is the last modified of its group; true without groups."""
    if not group_by:
        return TRUE
    other, moment = model.alias("later"), modified_field(model)
    columns = [*primary_fields(model)] if moment is None else [moment, *primary_fields(model)]
    later: ColumnBase | None = None
    for value in reversed(columns):
        other_value = getattr(other, value.name)
        is_later = other_value < value if moment is None else other_value > value
        is_same: ColumnBase = other_value == value
        if value.null:  # a row that was never modified comes after all others
            is_later |= value.is_null() & other_value.is_null(False)
            is_same = Expression(other_value, dialect().is_same, value)
        later = is_later if later is None else is_later | (is_same & later)
    for name in group_by:
        field = group_column(model, name)
        later &= getattr(other, field.name) == field
    return ~fn.EXISTS(other.select(1).where(later))


def group_column(model: type[Model], name: str) -> Field:
    """Return the column of an input model with a name."""
    meta = model._meta
    if name not in meta.combined:
        raise TaskError(
            f"group_by: {model.__name__} has no column {name!r}. {nearest(name, meta.columns)}"
        )
    return meta.combined[name]


def checked_ids(sdss_ids: Iterable[int]) -> list[int]:
    """Return SDSS identifiers as a list of int, without duplicates.

    Raises
    ------
    TaskError
        If the iterable is a text, or holds a value that is not a whole number of 64 bits.
    """
    ids: dict[int, None] = {}
    for value in listed("sdss_ids", sdss_ids):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TaskError(f"sdss_ids holds {value!r}, which is not an int")
        if not -(2**63) <= int(value) < 2**63:
            raise TaskError(f"sdss_ids holds {shown(value)}, which does not fit in 64 bits")
        ids[int(value)] = None
    return list(ids)


def whole_number(name: str, value: object, bits: int = 63) -> int:
    """Return `value` as an int of at least 1, or raise a TaskError that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise TaskError(f"{name}={shown(value)}: give a whole number from 1")
    number = int(value)
    if number >= 2**bits:
        raise TaskError(f"{name}={shown(value)}: give a whole number below 2**{bits}")
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
