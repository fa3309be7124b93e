"""Input rows as objects, with their sources: what peewee makes of them, in a third of its time.

An element reads thousands of rows while its task computes. peewee sets every column of every row
by an attribute; here the values of a row are taken at once, and only those converted that the
driver does not give as they are. A model with ways of its own is left to peewee.
"""

from collections.abc import Callable, Sequence
from functools import cache
from inspect import getattr_static
from typing import Any

import peewee
from peewee import FieldAccessor, ForeignKeyAccessor, ForeignKeyField

from astra.database import database
from astra.models.source import Source

#: Fields whose values the driver gives as they are.
_PLAIN = {
    peewee.AutoField, peewee.BigAutoField, peewee.IntegerField, peewee.BigIntegerField,
    peewee.SmallIntegerField, peewee.FloatField, peewee.DoubleField, peewee.TextField,
    peewee.CharField,
}  # fmt: skip


def read_rows(query: Any) -> list[Any]:
    """All rows of a query that :func:`astra.pending.rows_with_source` made."""
    model = query.model
    on_source = issubclass(model, Source)
    if not (_is_plain(model) and _is_plain(Source)):
        return list(query)
    with peewee.__exception_wrapper__:
        found = database.execute(query).fetchall()
    make = _maker(model)
    if on_source:
        return [make(row) for row in found]
    width, make_source, key_place = len(model._meta.sorted_fields), _maker(Source), _key_place()
    rows = []
    for values in found:
        row, source = make(values[:width]), values[width:]
        # The source of a row that has none, and is not asked for again when it is looked up.
        row.__rel__["source"] = None if source[key_place] is None else make_source(source)
        rows.append(row)
    return rows


def _maker(model: Any) -> Callable[[Sequence[Any]], Any]:
    """Makes an object of the values of a row, in the order of SELECT, as peewee's own does."""
    new, fields = model.__new__, model._meta.sorted_fields
    names = [f.name for f in fields]
    converters = [(f.name, f.python_value) for f in fields if type(_referred(f)) not in _PLAIN]

    def make(values: Sequence[Any]) -> Any:
        made = new(model)
        made.__data__ = data = dict(zip(names, values, strict=True))
        made._dirty, made.__rel__ = set(), {}
        for name, convert in converters:
            if data[name] is not None:
                data[name] = convert(data[name])
        return made

    return make


@cache
def _key_place() -> int:
    return [field.name for field in Source._meta.sorted_fields].index("pk")


def _referred(field: Any) -> Any:
    return field.rel_field if type(field) is ForeignKeyField else field


@cache
def _is_plain(model: Any) -> bool:
    """Whether rows of a model come to be as peewee's own do."""
    if model.__init__ is not peewee.Model.__init__ or model.__setattr__ is not object.__setattr__:
        return False
    accessors = {type(getattr_static(model, name)) for name in model._meta.fields}
    return accessors <= {FieldAccessor, ForeignKeyAccessor}
