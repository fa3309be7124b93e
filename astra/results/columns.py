"""Convert the values that results set to columns of the form that the database stores.

A column is converted as a whole if all of its values are plainly of its type, as in most columns;
otherwise value by value.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from itertools import chain

import peewee

from astra.database.connection import dialect
from astra.database.values import are_in_range
from astra.errors import BrokenElement
from astra.models.base import TimeField
from astra.models.keys import RowKey, as_key
from astra.models.pipeline import BASES, OutputModel
from astra.results.claim import Claim
from astra.results.rows import (
    MESSAGE_LIMIT,
    Refusal,
    Target,
    YieldedResult,
    clean,
    error_text,
    foreign_row_message,
)
from astra.states import Outcome
from astra.version import CURRENT, Version

#: Columns that the database fills itself.
BY_DATABASE = frozenset({"task_pk", "created", "modified", "v_astra_major_minor"})

#: Fields that store a value of this type unchanged.
_PLAIN: dict[type, type] = {
    peewee.FloatField: float, peewee.DoubleField: float,
    peewee.IntegerField: int, peewee.BigIntegerField: int, peewee.SmallIntegerField: int,
    peewee.AutoField: int, peewee.BigAutoField: int,
    peewee.TextField: str, peewee.CharField: str, peewee.BooleanField: bool,
}  # fmt: skip


class BadColumn(ValueError):
    """A column holds a value that cannot be stored; :func:`check_values` finds and refuses it."""


def as_columns(results: Sequence[OutputModel]) -> dict[str, Sequence[object]]:
    """Return the values that results set, by column.

    All results are of one model and set the same columns in the same order.

    Raises
    ------
    BadColumn
        If a value cannot be stored.
    """
    fields, names = results[0]._meta.fields, list(results[0].__data__)
    columns: dict[str, Sequence[object]] = {}
    # Values are gathered row by row, as they are in memory: going through all rows for each column
    # takes longer.
    all_values = list(chain.from_iterable(result.__data__.values() for result in results))
    for place, name in enumerate(names):
        if name in BY_DATABASE:
            continue
        values = all_values[place :: len(names)]
        field, types = fields[name], set(map(type, values))
        try:
            if type(field) is TimeField and types <= {datetime, type(None)}:
                stored = {value: field.db_value(value) for value in set(values)}  # mostly few
                values = [stored[value] for value in values]
            elif not _are_plain(field, values, types):
                values = [_converted(field, value) for value in values]
        except Exception as error:  # a field of the user's own may raise anything
            raise BadColumn(name) from error
        columns[field.column_name] = values
    return columns


def _converted(field: peewee.Field, value: object) -> object:
    converted = field.db_value(value)
    if converted is None:
        return None
    if _is_changed(field, value, converted):
        raise ValueError(f"{clean(repr(value), 100)} would be stored as {converted!r}")
    return dialect().checked(field, converted)


#: Fields for which peewee coerces values, such as a fraction to an integer, or any text to true.
_EXACT = {
    peewee.IntegerField, peewee.BigIntegerField, peewee.SmallIntegerField,
    peewee.BooleanField, peewee.FixedCharField,
}  # fmt: skip


def _is_changed(field: peewee.Field, value: object, converted: object) -> bool:
    """Return whether a field changes a value: another one than yielded would be stored."""
    if type(field) is peewee.DateField and isinstance(value, datetime):
        return value.time() != time.min
    if type(field) not in _EXACT or converted == value:
        return False
    return str(converted) != str(value).strip(" ")


def _are_plain(field: peewee.Field, values: Sequence[object], types: set[type]) -> bool:
    # A foreign key holds a value of the field that it refers to.
    referred = field.rel_field if type(field) is peewee.ForeignKeyField else field
    kind = _PLAIN.get(type(referred))
    if kind is None or not types <= {kind, type(None)}:
        return False
    return dialect().name == "postgresql" or are_in_range(field, values, types)


@dataclass
class Group:
    """Results of one model that set the same columns, and the values of these columns."""

    results: list[YieldedResult]
    columns: dict[str, Sequence[object]]

    def part(self, places: slice) -> "Group":
        columns = {name: values[places] for name, values in self.columns.items()}
        return Group(self.results[places], columns)


def by_columns(
    results: list[YieldedResult], target: Target, claim: Claim | None, refused: list[Refusal]
) -> list[Group]:
    """Group results by the columns that they set; refuse those that cannot be stored."""
    storable = results
    if not _are_all_storable(results, target, claim):
        storable = _storable(results, target, claim, refused)
    try:
        return _groups(storable, target, claim)
    except BadColumn:
        refused.clear()
        storable = _storable(results, target, claim, refused, checks_values=True)
        return _groups(storable, target, claim)


def _groups(results: list[YieldedResult], target: Target, claim: Claim | None) -> list[Group]:
    set_origin(results, target, claim)
    return [
        Group(members, as_columns([yielded.result for yielded in members]))
        for members in group_alike(results)
    ]


def group_alike(results: list[YieldedResult]) -> Iterable[list[YieldedResult]]:
    """Group results that are of one model and set the same columns in the same order."""
    kinds = ((type(yielded.result), list(yielded.result.__data__)) for yielded in results)
    if (first := next(kinds, None)) is not None and all(kind == first for kind in kinds):
        return [results]  # mostly they are all alike, and hashing all names takes twice as long
    groups: dict[tuple[object, ...], list[YieldedResult]] = {}
    for yielded in results:
        groups.setdefault((type(yielded.result), *yielded.result.__data__), []).append(yielded)
    return groups.values()


def _are_all_storable(results: list[YieldedResult], target: Target, claim: Claim | None) -> bool:
    """Return whether :func:`_key_to_store` would certainly refuse none of the results."""
    if {type(yielded.result) for yielded in results} != {target.output}:
        return False
    versions = [yielded.result.__data__.get("v_astra") for yielded in results]
    return (
        set(map(type, versions)) == {int}
        and set(versions) == {CURRENT.number}
        and not any(yielded.again for yielded in results)
        and (keys := _plain_keys(results, target)) is not None
        and len(set(keys)) == len(keys)
        and (claim is None or _are_pending(keys, claim))
    )


def _plain_keys(results: list[YieldedResult], target: Target) -> list[object] | None:
    """Return the keys of the rows of results; None if one of them has to be looked at by itself."""
    link = target.link
    if link is None or not link.is_whole:
        rows = [
            y.handed
            for y in results
            if y.handed and y.handed.link_value == target.link_value_of(y.result)
        ]
        if len(rows) < len(results) or any(handed.link_value is None for handed in rows):
            return None
        return [handed.link_value if handed.key is None else handed.key for handed in rows]
    keys = [yielded.result.__data__.get(link.result[0]) for yielded in results]
    plain = set(map(type, keys)) == {int} and -(2**63) <= min(keys) <= max(keys) < 2**63
    return keys if plain and keys == [y.handed.key for y in results if y.handed] else None


def _are_pending(keys: list[object], claim: Claim) -> bool:
    places = [place for place in map(claim.positions.get, keys) if place is not None]
    ended = {claim.outcomes[place] for place in places}
    return len(places) == len(keys) and Outcome.RESULT.value not in ended


def _storable(
    results: list[YieldedResult],
    target: Target,
    claim: Claim | None,
    refused: list[Refusal],
    checks_values: bool = False,
) -> list[YieldedResult]:
    """Return the results that may be stored, and refuse the others; a refused one takes no key."""
    seen: set[object] = set()
    good = []
    for yielded in results:
        try:
            key = _key_to_store(yielded, target, claim, seen)
            if checks_values:
                check_values(yielded)
        except ResultRefused as error:
            refused.append(error.refusal)
        else:
            seen.add(key)
            good.append(yielded)
    return good


def check_values(yielded: YieldedResult) -> None:
    """Refuse a result with a value that cannot be stored."""
    result = yielded.result
    for name, value in result.__data__.items():
        if name in BY_DATABASE:
            continue
        try:
            _converted(result._meta.fields[name], value)
        except Exception as error:  # a field of the user's own may raise anything
            message = clean(f"column {name}: {error_text(error)}", MESSAGE_LIMIT)
            raise ResultRefused(yielded, type(error).__name__, message) from error


class ResultRefused(Exception):
    def __init__(
        self,
        yielded: YieldedResult,
        kind: str,
        message: str,
        refused: bool = False,
        is_mistake: bool = False,
    ) -> None:
        handed, is_mistake = yielded.handed, is_mistake or kind in _MISTAKES
        if handed is None:
            # A result that was yielded for no row is identified by the key that it holds.
            key = as_key(yielded.link_value)
            self.refusal = Refusal(
                key, kind, message, place=yielded.place, refused=refused, is_mistake=is_mistake
            )
            return
        refused = refused or yielded.again
        self.refusal = Refusal(
            handed.key, kind, message, handed.modified, yielded.place, refused=refused,
            table=handed.table, link_value=handed.link_value, is_mistake=is_mistake,
        )  # fmt: skip


#: Refusals that are mistakes of the task: any of its rows may meet them.
_MISTAKES = frozenset({"WrongModel", "WrongVersion", "NoKey", "NotStored", "ForeignRow"})


def refused_by_database(yielded: YieldedResult, error: Exception) -> Refusal:
    """Return why the database refused a result.

    Raises
    ------
    BrokenElement
        If it would refuse every row of the task, so that none of them is to blame.
    """
    model = type(yielded.result)
    message = clean(dialect().message(error), MESSAGE_LIMIT)
    if dialect().is_tables_fault(error, model, set(model._meta.columns) - BY_DATABASE):
        raise BrokenElement(
            f"the table {model._meta.table_name} takes no result of {model.__name__}: {message}; "
            "its rows stay pending: repair the table, then astra resume"
        ) from error
    kind, by_trigger = type(error.__cause__ or error).__name__, dialect().is_triggers(error)
    return ResultRefused(yielded, kind, message, is_mistake=by_trigger).refusal


def _key_to_store(
    yielded: YieldedResult, target: Target, claim: Claim | None, seen: set[object]
) -> RowKey | object:
    """Return the key of a result's row, or else the value by which the result points to it.

    Raises
    ------
    ResultRefused
        If the result may not be stored.
    """
    result = yielded.result
    if type(result) is not target.output or result.__data__.get("v_astra") != CURRENT.number:
        check_model(yielded, target.output)
    key, handed = target.link_value_of(result), yielded.handed
    if key is None:
        raise ResultRefused(yielded, *key_problem(result, target))
    if handed is not None and handed.known not in (None, key):  # it was changed since
        raise ResultRefused(yielded, "ForeignRow", foreign_row_message(key, target))
    if handed is not None and handed.key is not None:  # pages identify rows by texts of their keys
        key = handed.key
    is_second = yielded.again or key in seen
    if claim is not None and not is_second:
        is_second = claim.outcomes[claim.positions[key]] == Outcome.RESULT.value
    if is_second:
        raise ResultRefused(yielded, "DuplicateResult", second_result(key), True)
    return key


def set_origin(results: Iterable[YieldedResult], target: Target, claim: Claim | None) -> None:
    """Set on results when their rows were read, which attempt stores them, and what made them."""
    attempt_pk = claim.attempt.pk if claim is not None else None
    for yielded in results:
        data, handed = yielded.result.__data__, yielded.handed
        if handed is not None:
            data["input_read"] = handed.read
            if data.get("input_modified") is None:
                data["input_modified"] = handed.modified
        data["attempt_pk"] = attempt_pk
        data["made_by"] = target.made_by


def check_model(yielded: YieldedResult, output: type[OutputModel] | None) -> None:
    """Refuse what is not a result of this version in the table that the task writes."""
    result = yielded.result
    name = type(result).__name__
    if isinstance(result, type):
        name = f"the class {result.__name__} itself"
    if output is None:
        is_right = isinstance(result, OutputModel) and type(result) not in BASES
        expected = "a row of a subclass of OutputModel"
    else:
        is_right, expected = type(result) is output, output.__name__
    if not is_right:
        raise ResultRefused(yielded, "WrongModel", f"{name} was yielded, not {expected}")
    version = result.__data__.get("v_astra")
    if not isinstance(version, int) or Version(version).major_minor != CURRENT.major_minor:
        message = f"v_astra={version!r}: leave it out; it is that of this astra, {CURRENT.number}"
        raise ResultRefused(yielded, "WrongVersion", message)


def second_result(key: object) -> str:
    """Return the message of a further result of a row that has one."""
    return f"a second result for {key}; a task that means it says @task(many=True)"


def key_problem(result: OutputModel, target: Target) -> tuple[str, str]:
    link = target.link_for(result)
    if link is None:
        name, model = type(result).__name__, getattr(target.model, "__name__", "its row")
        return "NoKey", f"{name} does not say how it points to {model}: declare result_of({model})"
    key_values = {name: result.__data__.get(name) for name in link.result}
    names = " and ".join(key_values)
    if all(value is None for value in key_values.values()):
        hint = "make results by from_spectrum() or from_row(), with the row that each is of"
        return "NoKey", f"the result has no {names}; {hint}"
    value = clean(
        repr(next(iter(key_values.values()))) if len(key_values) == 1 else repr(key_values), 200
    )
    kind = "a whole number of 64 bits" if link.is_whole else "the key of a row"
    return "BadKey", f"{names}={value} is not a key: {kind}"
