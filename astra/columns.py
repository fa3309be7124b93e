"""What results set, by column, in database form.

A column at a time where its values are plainly of its type, which most are; else value by value.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Any

import peewee

from astra.database import dialect
from astra.models.base import TimeField
from astra.values import are_in_range

#: Columns that the database fills itself.
BY_DATABASE = frozenset({"task_pk", "created", "modified", "v_astra_major_minor"})

#: Fields whose database form of such a value is the value.
_PLAIN: dict[type, type] = {
    peewee.FloatField: float, peewee.DoubleField: float,
    peewee.IntegerField: int, peewee.BigIntegerField: int, peewee.SmallIntegerField: int,
    peewee.TextField: str, peewee.CharField: str, peewee.BooleanField: bool,
}  # fmt: skip


class BadColumn(Exception):
    """A value that has no form in the database; what it raised is the cause."""

    def __init__(self, name: str) -> None:
        self.name = name


def as_row(result: Any) -> dict[str, Any]:
    """What a result sets, by column.

    Raises
    ------
    BadColumn
        If a value cannot be stored.
    """
    fields, row = result._meta.fields, {}
    for name, value in result.__data__.items():
        if name in BY_DATABASE:
            continue
        try:
            row[fields[name].column_name] = _converted(fields[name], value)
        except Exception as error:  # a field of the user's own may raise anything
            raise BadColumn(name) from error
    return row


def as_columns(results: Sequence[Any]) -> dict[str, Sequence[Any]] | None:
    """What results of one model set, who all set the same in one order; None if a value is bad."""
    fields, names = results[0]._meta.fields, list(results[0].__data__)
    columns: dict[str, Sequence[Any]] = {}
    # Row by row, as they lie in memory: to go through all rows for each column takes longer.
    every = list(chain.from_iterable(result.__data__.values() for result in results))
    for place, name in enumerate(names):
        if name in BY_DATABASE:
            continue
        values = every[place :: len(names)]
        field, types = fields[name], set(map(type, values))
        try:
            if type(field) is TimeField and types <= {datetime, type(None)}:
                known = {value: field.db_value(value) for value in set(values)}  # mostly few
                values = [known[value] for value in values]
            elif not _are_plain(field, values, types):
                values = [_converted(field, value) for value in values]
        except Exception:  # which it is, and what it raised, is found row by row
            return None
        columns[field.column_name] = values
    return columns


def _converted(field: peewee.Field, value: Any) -> Any:
    value = field.db_value(value)
    return value if value is None else dialect().checked(field, value)


def _are_plain(field: peewee.Field, values: Sequence[Any], types: set[type]) -> bool:
    kind = _PLAIN.get(type(field))
    if kind is None or not types <= {kind, type(None)}:
        return False
    return dialect().name == "postgresql" or are_in_range(field, values, types)
