"""Write the results of rows: all of a row's results are stored together, or none."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import chain
from operator import and_

from peewee import ColumnBase, NodeList

from astra.database.connection import dialect
from astra.database.dialect import NotStored
from astra.errors import BrokenElement
from astra.models.keys import Link, as_tuple
from astra.models.pipeline import OutputModel
from astra.results.batch_writing import Written, check, store_batch, write_or_halve
from astra.results.claim import Claim
from astra.results.columns import as_columns, group_alike
from astra.results.rows import Refusal, Target, YieldedResult
from astra.results.valid_results import Row, good_rows, refused_by_database
from astra.version import CURRENT

log = logging.getLogger(__name__)

#: What identifies results: their table, and the row that they point to.
Key = tuple[type[OutputModel], Link, object]

#: The most keys that one statement names.
_MAX_KEYS = 500


def write_rows(
    results: list[YieldedResult], target: Target, claim: Claim | None
) -> tuple[list[YieldedResult], list[Refusal]]:
    """Write results; return those that were stored, and the refusals of the others.

    Raises
    ------
    BrokenElement
        If none of the rows is to blame that their results are not stored.
    """
    refused: list[Refusal] = []
    rows = good_rows(results, target, claim, refused)
    parts: list[list[Written]] = []
    stored = write_or_halve(
        range(len(rows)),
        lambda part, may_copy: _write_together(rows[part], target, may_copy, parts),
        lambda place, error: refused.append(refused_by_database(rows[place][0], error)),
    )
    if len(parts) > 1:
        _check_together(parts)
    return stored, refused


def _check_together(parts: list[list[Written]]) -> None:
    """Check that no result was changed or deleted as those of other rows were written.

    Raises
    ------
    BrokenElement
        If one was: none of these rows is to blame.
    """
    try:
        check([written for part in parts for written in part])
    except NotStored as error:
        table = parts[0][0].model._meta.table_name
        raise BrokenElement(
            f"results of other rows were changed or deleted as a result was written: {error}; the "
            f"rows stay pending: repair the table {table}, then astra resume"
        ) from error


def _write_together(
    rows: list[Row], target: Target, may_copy: bool, parts: list[list[Written]]
) -> list[YieldedResult]:
    """Write all results of rows; return those of the rows whose results were stored.

    The statements are added to `parts`, as one of them.
    """
    stored: list[Row] = []
    written: list[Written] = []
    for part in _without_common_results(rows, target):
        stored += _write_part(part, target, may_copy, written)
    check(written)
    if target.many and not all(part.is_plain for part in written):
        _check_alone(stored, written, target)
    parts.append(written)
    return list(chain.from_iterable(stored))


def _without_common_results(rows: list[Row], target: Target) -> list[list[Row]]:
    """Split rows so that no two of a part have results of one spectrum, or one row of a group.

    The results of the later row then replace the others, as they would at the next checkpoint.
    """
    if not target.gathers:
        return [rows]
    parts: list[list[Row]] = []
    last_parts: dict[Key, int] = {}
    for row in rows:
        keys = _keys_of([row], target)
        number = 1 + max(last_parts.get(key, -1) for key in keys)
        if number == len(parts):
            parts.append([])
        parts[number].append(row)
        last_parts.update(dict.fromkeys(keys, number))
    return parts


def _write_part(
    rows: list[Row], target: Target, may_copy: bool, written: list[Written]
) -> list[Row]:
    """Write all results of rows that have none in common; return the rows whose were stored."""
    # The first result of a row decides whether the stored ones are older. If they are, further
    # statements replace the others.
    firsts = list(_upsert([row[0] for row in rows], target, may_copy))
    written += firsts
    if sum(len(part.results) for part in firsts) < len(rows):
        newer = {yielded for part in firsts for yielded in part.results}
        for first in (row[0] for row in rows if row[0] not in newer):
            key = target.link_value_of(first.result)
            log.warning("%s %s: a later result was kept", target.task, key)
        rows = [row for row in rows if row[0] in newer]
    if target.many:
        written += _delete_further(rows, target)
    if target.gathers:
        further = [yielded for row in rows for yielded in row[1:]]
        written += _upsert(further, target, may_copy)
    return rows


def _upsert(results: list[YieldedResult], target: Target, may_copy: bool) -> Iterator[Written]:
    """Write results, each by the unique index that applies to it."""
    for alike in group_alike(results):
        by_link: defaultdict[Link | None, list[YieldedResult]] = defaultdict(list)
        if target.gathers or target.output is None:
            for yielded in alike:
                by_link[target.index_of(yielded.result)].append(yielded)
        else:
            by_link[target.index_of(alike[0].result)] = alike
        for link, members in by_link.items():
            if link is not None:  # `good_rows` made sure of it
                columns = as_columns([yielded.result for yielded in members])
                part = store_batch(members, columns, link, may_copy)
                if target.page is None:  # an element that runs a page does not use its results
                    _set_primary_keys(part)
                yield part


def _set_primary_keys(part: Written) -> None:
    """Set on results, for the caller, the primary keys that they were stored with."""
    for yielded, (_, pk) in zip(part.results, sorted(part.pks.items()), strict=True):
        yielded.result.__data__["task_pk"] = pk
        yielded.result._dirty.clear()


def _delete_further(rows: list[Row], target: Target) -> Iterator[Written]:
    """Delete the further results that rows had before."""
    for model, is_of_keys in _clauses(rows, target):
        further = model.delete().where(is_of_keys & (model.result_number > 0))
        deleted = further.returning(model.task_pk).execute()
        yield Written(model, {place: row.task_pk for place, row in enumerate(deleted)})


def _check_alone(rows: list[Row], written: list[Written], target: Target) -> None:
    """Check that rows have no other results than those written: a trigger may have kept some.

    Raises
    ------
    NotStored
        If a row has.
    """
    for model, is_of_keys in _clauses(rows, target):
        own = [pk for part in written if part.model is model for pk in part.pks.values()]
        is_own = dialect().among(model.task_pk, own)
        if model.select(model.task_pk).where(is_of_keys & ~is_own).exists():
            raise NotStored(model._meta.table_name, has_others=True)


def _keys_of(rows: Iterable[Row], target: Target) -> set[Key]:
    """Return what the results of rows are identified by: spectra, or rows of their groups."""
    links = ((target.index_of(y.result), y.result) for row in rows for y in row)
    return {(type(r), link, link.of_result(r)) for link, r in links if link is not None}


def _clauses(rows: list[Row], target: Target) -> Iterator[tuple[type[OutputModel], ColumnBase]]:
    """Yield, by the keys of rows' results, the clause that a result has one, at this version."""
    by_link: defaultdict[tuple[type[OutputModel], Link], list[object]] = defaultdict(list)
    for model, link, key in _keys_of(rows, target):
        by_link[model, link].append(key)
    for (model, link), keys in by_link.items():
        columns = [getattr(model, name) for name in link.result]
        is_current = [model.v_astra_major_minor == CURRENT.major_minor]
        is_current += [getattr(model, name).is_null() for name in link.null]
        for start in range(0, len(keys), _MAX_KEYS):
            are_equal = [_are_equal(columns, key) for key in keys[start : start + _MAX_KEYS]]
            yield model, reduce(and_, [*is_current, NodeList(are_equal, " OR ", parens=True)])


def _are_equal(columns: list[ColumnBase], key: object) -> ColumnBase:
    pairs = zip(columns, as_tuple(key), strict=True)
    return reduce(and_, (column == value for column, value in pairs))
