"""Convert the values that results set to columns of the form that the database stores.

A column is converted as a whole if all of its values are plainly of its type, as in most columns;
otherwise value by value.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import datetime, time
from itertools import chain
from sys import getrefcount
from types import NoneType
from typing import Any

import peewee

from astra.database.connection import dialect
from astra.database.values import are_in_range
from astra.errors import error_text
from astra.models.base import TimeField
from astra.models.pipeline import OutputModel
from astra.results.claim import Claim
from astra.results.rows import Target, YieldedResult, clean

#: Columns that the database fills itself.
BY_DATABASE = frozenset({"task_pk", "created", "modified", "v_astra_major_minor"})

#: Fields that store a value of this type unchanged.
_PLAIN: dict[type, type] = {
    peewee.FloatField: float, peewee.DoubleField: float,
    peewee.IntegerField: int, peewee.BigIntegerField: int, peewee.SmallIntegerField: int,
    peewee.AutoField: int, peewee.BigAutoField: int,
    peewee.TextField: str, peewee.CharField: str, peewee.BooleanField: bool,
}  # fmt: skip


#: Types of most values; nothing changes them in place.
_FIXED = frozenset({int, float, str, bool, datetime, NoneType})


def as_yielded(result: OutputModel) -> OutputModel:
    """Return a result as it is now: the task may change it, or its arrays, for its next row."""
    if getrefcount(result) != _REFERENCES:  # the task has it in a variable
        attributes, copied = vars(result), object.__new__(type(result))
        own = {name: attributes[name].copy() for name in ("__data__", "__rel__")}
        vars(copied).update(attributes | own)
        result = copied
    _keep_values(result.__data__)
    return result


def copy_of(row: object) -> object:
    """Return a copy of a row, in a tenth of the time of ``deepcopy`` where it is of a model."""
    if not isinstance(row, peewee.Model):
        return deepcopy(row)
    attributes, copied = vars(row).copy(), object.__new__(type(row))
    data, changed = attributes.pop("__data__").copy(), attributes.pop("_dirty").copy()
    related = {name: copy_of(other) for name, other in attributes.pop("__rel__").items()}
    _keep_values(data)
    own = {"__data__": data, "_dirty": changed, "__rel__": related}
    vars(copied).update(deepcopy(attributes) if attributes else {}, **own)
    return copied


def _keep_values(data: dict[str, object]) -> None:
    if not _FIXED.issuperset(map(type, data.values())):
        for name, value in data.items():
            kind = type(value)
            # Single numbers of numpy's are fixed, too.
            if kind not in _FIXED and (kind.__module__ != "numpy" or hasattr(kind, "__setitem__")):
                with suppress(Exception):  # what cannot be copied is stored as it is by then
                    data[name] = _copy(value)


def _references(result: object) -> int:
    return getrefcount(result)


def _made() -> int:
    result = object()
    return _references(result)


#: The references to a result that nothing but a variable of the caller of :func:`as_yielded` holds.
_REFERENCES = _made()


def _copy(value: Any) -> object:
    if isinstance(value, memoryview):
        items: Any = memoryview(value.tobytes())
        return items.cast(value.format, value.shape)
    try:
        return deepcopy(value)
    except RuntimeError:  # a tensor with a gradient; one with a single value is that number
        return value.item()


class BadColumn(ValueError):
    """A column holds a value that cannot be stored."""


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
                stored = {value: field.db_value(value) for value in set(values)}  # usually few
                values = [stored[value] for value in values]
            elif not _are_plain(field, values, types):
                values = [_converted(field, value) for value in values]
        except Exception as error:  # a field of the user's own may raise anything
            raise BadColumn(f"column {name}: {error_text(error)}") from error
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


#: Fields of a single value: not an array, which numpy abridges as text, nor a value with a unit.
_SINGLE = _EXACT | {peewee.TextField, peewee.CharField, peewee.FloatField, peewee.DoubleField}


def _is_changed(field: peewee.Field, value: object, converted: object) -> bool:
    """Return whether a field changes a value: another one than yielded would be stored."""
    if type(field) is peewee.DateField and isinstance(value, datetime):
        return value.time() != time.min
    if type(field) not in _SINGLE:
        return False
    is_array = bool(getattr(value, "ndim", 0))
    if is_array or hasattr(converted, "__setitem__"):
        what = "an array; the column holds one value" if is_array else "no single value"
        raise ValueError(f"{clean(repr(value), 100)} is {what}")
    if converted == value or type(field) not in _EXACT:
        return False
    return str(converted) != str(value).strip(" ")


def _are_plain(field: peewee.Field, values: Sequence[object], types: set[type]) -> bool:
    # A foreign key holds a value of the field that it refers to.
    referred = field.rel_field if type(field) is peewee.ForeignKeyField else field
    kind = _PLAIN.get(type(referred))
    if kind is None or not types <= {kind, type(None)}:
        return False
    return dialect().name == "postgresql" or are_in_range(field, values, types)


def group_alike(results: list[YieldedResult]) -> Iterable[list[YieldedResult]]:
    """Group results that are of one model and set the same columns in the same order."""
    types = {type(yielded.result) for yielded in results}
    data = [yielded.result.__data__ for yielded in results]
    if len(types) == 1 and all(map(list(data[0]).__eq__, map(list, data))):
        return [results]  # usually all are alike, and hashing all names takes twice as long
    groups: dict[tuple[object, ...], list[YieldedResult]] = {}
    for yielded in results:
        groups.setdefault((type(yielded.result), *yielded.result.__data__), []).append(yielded)
    return groups.values()


def set_origin(results: Iterable[YieldedResult], target: Target, claim: Claim | None) -> None:
    """Set on results when their rows were read, which attempt stores them, and what made them."""
    attempt_pk = claim.attempt.pk if claim is not None else None
    for yielded in results:
        data, handed = yielded.result.__data__, yielded.handed
        data["input_read"] = handed.read
        own = None if target.groups else handed.modified  # in a group it may be of another row
        data["input_modified"] = own or data.get("input_modified") or handed.modified
        data["attempt_pk"] = attempt_pk
        data["made_by"] = target.made_by
