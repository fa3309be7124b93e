"""Rows with many results: all of a row's results are stored together, or none.

A result that points to its own row is numbered within the row. A result of another row of the
group, or of a spectrum of the source that the row is, is identified by its own key.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from astra.database.connection import database, dialect
from astra.database.dialect import Batch, NotStored
from astra.models.keys import Link
from astra.models.pipeline import OutputModel
from astra.results.claim import Claim
from astra.results.columns import (
    _alike,
    _Bad,
    _check_model,
    _complete,
    _no_key,
    _row_of,
    as_columns,
    refused_by_database,
)
from astra.results.rows import Refusal, Target, Yielded, stray
from astra.states import Outcome
from astra.version import CURRENT

#: The results of one row.
Row = list[Yielded]


def write_rows(
    results: list[Yielded], target: Target, claim: Claim | None, refused: list[Refusal]
) -> list[Yielded]:
    """Store the results of rows; refuse all results of a row if one of them cannot be stored."""
    rows: dict[int, Row] = {}
    for yielded in results:
        rows.setdefault(id(yielded.handed or yielded), []).append(yielded)
    good = []
    for row in rows.values():
        try:
            _check_row(row, target, claim)
        except _Bad as bad:
            refused.append(bad.refusal)
        else:
            good.append(row)
    return _store_rows(good, target, refused)


def _check_row(row: Row, target: Target, claim: Claim | None) -> None:
    """Complete the results of a row.

    Raises
    ------
    _Bad
        If one of them may not be stored.
    """
    handed, numbers = row[0].handed, Counter[tuple[object, ...]]()
    _complete(row, target, claim)
    for yielded in row:
        _check_model(yielded, target.output)
        result = yielded.result
        if handed is None or yielded.again:
            raise _Bad(yielded, "RowEnded", "the row that the result is of has ended", True)
        if claim is not None and claim.outcomes[claim.positions[handed.key]] == Outcome.RESULT:
            raise _Bad(yielded, "DuplicateResult", f"a second result for {handed.key}", True)
        link = target.index_of(result)
        link_value = None if link is None else link.of_result(result)
        if link_value is None:
            raise _Bad(yielded, *_no_key(result, target))
        if link == target.link and not target.groups and handed.known not in (None, link_value):
            raise _Bad(yielded, "ForeignRow", stray(link_value, target))
        if link != target.link:  # it is up to date as long as the row that it was computed from
            result.__data__["input_modified"] = handed.modified
        result.__data__["result_number"] = numbers[link, link_value]
        numbers[link, link_value] += 1
        if numbers[link, link_value] > 1 and not target.many:
            what = f"a second result for {link_value}; a task that means it says @task(many=True)"
            raise _Bad(yielded, "DuplicateResult", what)
        _row_of(yielded)


def _store_rows(rows: list[Row], target: Target, refused: list[Refusal]) -> list[Yielded]:
    """Write rows; on an error halve them, between rows, until the bad one is alone."""
    if not rows:
        return []
    try:
        with database.atomic():
            # The first result of a row decides whether the stored ones are older. If they are,
            # further statements replace the others.
            newer = {id(y.handed) for y in _upsert([row[0] for row in rows], target)}
            rest = [y for row in rows if id(row[0].handed) in newer for y in row[1:]]
            if target.many:
                _delete_further([row for row in rows if id(row[0].handed) in newer], target)
            _upsert(rest, target)
            return [y for row in rows if id(row[0].handed) in newer for y in row]
    except Exception as error:
        if not dialect().is_rows_fault(error):
            raise
        if len(rows) == 1:
            refused.append(refused_by_database(rows[0][0], error))
            return []
        half = len(rows) // 2
        return [
            *_store_rows(rows[:half], target, refused),
            *_store_rows(rows[half:], target, refused),
        ]


def _upsert(results: list[Yielded], target: Target) -> list[Yielded]:
    """Write results, each by the unique index that applies to it; return those written."""
    stored: list[Yielded] = []
    by_link: dict[Link, list[Yielded]] = {}
    for yielded in results:
        if (index := target.index_of(yielded.result)) is not None:  # `_check_row` made sure of it
            by_link.setdefault(index, []).append(yielded)
    for link, members in by_link.items():
        for alike in _alike(members):
            columns = as_columns([yielded.result for yielded in alike])
            if columns is None:
                raise ValueError("a value that cannot be stored in the database")
            batch = batch_of(type(alike[0].result), link, columns)
            written = dialect().upsert(batch)
            check_stored(alike, written, link)
            for place, pk in written.items():
                alike[place].result.__data__["task_pk"] = pk
                alike[place].result._dirty.clear()
                stored.append(alike[place])
    return stored


def check_stored(results: list[Yielded], written: Mapping[int, int], link: Link) -> None:
    """Check that each result was stored, or that a later one is in its place.

    Raises
    ------
    NotStored
        If a result is neither.
    """
    for place, yielded in enumerate(results):
        if place in written:
            continue
        result = yielded.result
        model, data = type(result), result.__data__
        later = (model.v_astra_major_minor == CURRENT.major_minor) & (
            model.result_number == data.get("result_number", 0)
        )
        for name in link.result:
            later &= getattr(model, name) == data[name]
        if data.get("input_read") is not None:
            later &= model.input_read > data["input_read"]
        if not model.select(model.task_pk).where(later).exists():
            raise NotStored(model._meta.table_name)


def batch_of(model: type[OutputModel], link: Link, columns: dict[str, Sequence[object]]) -> Batch:
    """Make a batch of results that set the same columns, with the unique index that applies."""
    key = tuple(field.column_name for field in link.key(model).fields)
    return Batch(
        dialect().table(model), columns, (*key, "result_number"),
        (*key, "v_astra_major_minor", "result_number"), link.where_clause,
        model.task_pk.column_name, model,
    )  # fmt: skip


def _delete_further(rows: list[Row], target: Target) -> None:
    """Delete the further results that rows had before."""
    for row in rows:
        model, link = type(row[0].result), target.index_of(row[0].result)
        clause = (model.result_number > 0) & (model.v_astra_major_minor == CURRENT.major_minor)
        for name in link.result if link is not None else ():
            clause &= getattr(model, name) == row[0].result.__data__[name]
        model.delete().where(clause).execute()
