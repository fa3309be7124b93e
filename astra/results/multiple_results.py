"""Rows with many results: all of a row's results are stored together, or none.

A result that points to its own row is numbered within the row. A result of another row of the
group, or of a spectrum of the source that the row is, is identified by its own key.
"""

from collections import Counter
from collections.abc import Iterator

from peewee import ColumnBase

from astra.database.dialect import NotStored
from astra.models.keys import Link
from astra.models.pipeline import OutputModel
from astra.results.batches import Written, check, store_batch, write_or_halve
from astra.results.claim import Claim
from astra.results.columns import (
    ResultRefused,
    as_columns,
    check_model,
    check_values,
    group_alike,
    key_problem,
    refused_by_database,
    second_result,
    set_origin,
)
from astra.results.rows import Refusal, Target, YieldedResult, foreign_row_message
from astra.states import Outcome
from astra.version import CURRENT

#: The results of one row.
Row = list[YieldedResult]

#: What identifies results: their table, and the row that they point to.
Key = tuple[type[OutputModel], Link, object]


def write_rows(
    results: list[YieldedResult],
    target: Target,
    claim: Claim | None,
    refused: list[Refusal],
    written: list[Written],
) -> list[YieldedResult]:
    """Store the results of rows; refuse all results of a row if one of them cannot be stored.

    The batches in which they were written are added to `written`.
    """
    rows: dict[int, Row] = {}
    for yielded in results:
        # What is yielded after the end of its row is refused without the row's own results.
        row = yielded if yielded.again else yielded.handed or yielded
        rows.setdefault(id(row), []).append(yielded)
    good = []
    for results in rows.values():
        try:
            _check_row(results, target, claim)
        except ResultRefused as error:
            refused.append(error.refusal)
        else:
            good.append(results)
    return write_or_halve(
        range(len(good)),
        lambda part, may_copy: _write_together(good[part], target, may_copy, written),
        lambda place, error: refused.append(refused_by_database(good[place][0], error)),
    )


def _check_row(row: Row, target: Target, claim: Claim | None) -> None:
    """Complete the results of a row.

    Raises
    ------
    ResultRefused
        If one of them may not be stored.
    """
    handed, numbers = row[0].handed, Counter[tuple[object, ...]]()
    set_origin(row, target, claim)
    for yielded in row:
        check_model(yielded, target.output)
        result = yielded.result
        if handed is None or yielded.again:
            raise ResultRefused(
                yielded, "RowEnded", "the row that the result is of has ended", True
            )
        if claim is not None and claim.outcomes[claim.positions[handed.key]] == Outcome.RESULT:
            raise ResultRefused(
                yielded, "DuplicateResult", f"a second result for {handed.key}", True
            )
        link = target.index_of(result)
        link_value = None if link is None else link.of_result(result)
        if link_value is None:
            raise ResultRefused(yielded, *key_problem(result, target))
        if link == target.link and not target.groups and handed.known not in (None, link_value):
            raise ResultRefused(yielded, "ForeignRow", foreign_row_message(link_value, target))
        of_row = target.link_for(result)
        if of_row is not None and link != of_row:  # of a spectrum of a source
            (named,) = of_row.result
            if result.__data__.setdefault(named, None) is None:
                result.__data__[named] = handed.known
            if (source := of_row.of_result(result)) != handed.known:
                raise ResultRefused(yielded, "ForeignRow", foreign_row_message(source, target))
            # It is up to date as long as the row that it was computed from.
            result.__data__["input_modified"] = handed.modified
        result.__data__["result_number"] = numbers[link, link_value]
        numbers[link, link_value] += 1
        if numbers[link, link_value] > 1 and not target.many:
            raise ResultRefused(yielded, "DuplicateResult", second_result(link_value))
        check_values(yielded)


def _write_together(
    rows: list[Row], target: Target, may_copy: bool, written: list[Written]
) -> list[YieldedResult]:
    """Write all results of rows; return those of the rows whose results were stored."""
    stored: list[YieldedResult] = []
    batches: list[Written] = []
    for part in _without_common_results(rows, target):
        stored += _write_part(part, target, may_copy, batches)
    written += batches
    return stored


def _without_common_results(rows: list[Row], target: Target) -> list[list[Row]]:
    """Split rows so that no two of a part have results of one spectrum, or one row of a group.

    The results of the later row then replace the others, as they would at the next checkpoint.
    """
    parts: list[list[Row]] = []
    last_parts: dict[Key, int] = {}
    for row in rows:
        keys = _keys_of(row, target)
        number = 1 + max(last_parts.get(key, -1) for key in keys)
        if number == len(parts):
            parts.append([])
        parts[number].append(row)
        last_parts.update(dict.fromkeys(keys, number))
    return parts


def _write_part(
    rows: list[Row], target: Target, may_copy: bool, written: list[Written]
) -> list[YieldedResult]:
    """Write all results of rows that have none in common, as :func:`_write_together` does."""
    # The first result of a row decides whether the stored ones are older. If they are, further
    # statements replace the others.
    firsts = _upsert([row[0] for row in rows], target, may_copy)
    newer = {id(yielded.handed) for part in firsts for yielded in part.results}
    rows = [row for row in rows if id(row[0].handed) in newer]
    if target.many:
        _delete_further(rows, target)
    others = _upsert([yielded for row in rows for yielded in row[1:]], target, may_copy)
    check([*firsts, *others])
    if target.many and not all(part.is_plain for part in firsts):
        _check_alone(rows, target)
    written += [*firsts, *others]
    return [yielded for row in rows for yielded in row]


def _upsert(results: list[YieldedResult], target: Target, may_copy: bool) -> list[Written]:
    """Write results, each by the unique index that applies to it."""
    written: list[Written] = []
    by_link: dict[Link, list[YieldedResult]] = {}
    for yielded in results:
        if (index := target.index_of(yielded.result)) is not None:  # `_check_row` made sure of it
            by_link.setdefault(index, []).append(yielded)
    for link, members in by_link.items():
        for alike in group_alike(members):
            columns = as_columns([yielded.result for yielded in alike])
            written.append(store_batch(alike, columns, link, may_copy))
    return written


def _delete_further(rows: list[Row], target: Target) -> None:
    """Delete the further results that rows had before."""
    for row in rows:
        for model, is_of_key in _clauses(row, target):
            model.delete().where(is_of_key & (model.result_number > 0)).execute()


def _check_alone(rows: list[Row], target: Target) -> None:
    """Check that rows have no other results than these, which a trigger or a rule may have kept.

    Raises
    ------
    NotStored
        If a row has.
    """
    for row in rows:
        for model, is_of_key in _clauses(row, target):
            own = [y.result.task_pk for y in row if type(y.result) is model]
            is_other = model.task_pk.not_in(own)
            if model.select(model.task_pk).where(is_of_key & is_other).exists():
                raise NotStored(model._meta.table_name, has_others=True)


def _keys_of(row: Row, target: Target) -> set[Key]:
    """Return what the results of a row are identified by: spectra, or rows of its group."""
    links = ((target.index_of(yielded.result), yielded.result) for yielded in row)
    return {(type(r), link, link.of_result(r)) for link, r in links if link is not None}


def _clauses(row: Row, target: Target) -> Iterator[tuple[type[OutputModel], ColumnBase]]:
    """Yield, for each key of a row's results, the clause that a result has it, at this version."""
    for model, link, key in _keys_of(row, target):
        clause: ColumnBase = model.v_astra_major_minor == CURRENT.major_minor
        for name, value in zip(link.result, key if isinstance(key, tuple) else (key,), strict=True):
            clause &= getattr(model, name) == value
        for name in link.null:
            clause &= getattr(model, name).is_null()
        yield model, clause
