"""Row keys: what identifies a row, in its table, in its results and in the pages of a plan.

An input model is any peewee ``Model`` with a primary key. It may have two more attributes:
``row_key``, the name of another unique column that its results point to, and ``loaded_with``, the
name of a foreign key whose row is loaded together with each row.
"""

import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, reduce
from typing import cast

import peewee
from peewee import JOIN, SQL, ColumnBase, CompositeKey, Field, Model, ModelSelect

from astra.database.connection import database, dialect
from astra.errors import TaskError, nearest
from astra.models.base import BaseModel, M, TimeField
from astra.records import dataclass

#: A key as pages hold it: a whole number, or the text that the server makes of the key.
RowKey = int | str

#: Clauses that hold for every row, and for none.
TRUE, FALSE = SQL("1 = 1"), SQL("1 = 0")

_WHOLE = frozenset({"AUTO", "BIGAUTO", "INT", "BIGINT", "SMALLINT"})
_UNFIT = frozenset({"BLOB", "JSON", "JSONB"})
#: Numbers with fractions, which lose digits as texts, and types that SQLite stores as bytes.
_UNFIT_IN_SQLITE = frozenset({"FLOAT", "DOUBLE", "DECIMAL", "UUIDB"})


@dataclass(frozen=True)
class Key:
    """The columns that identify a row, of an input model or of its results."""

    fields: tuple[Field, ...]

    @cached_property
    def is_whole(self) -> bool:
        """Whether the key is one whole number, which is stored as it is."""
        return len(self.fields) == 1 and self.fields[0].field_type in _WHOLE

    @property
    def page_column(self) -> str:
        """The column of a page that holds such keys."""
        return "keys" if self.is_whole else "key_texts"

    @property
    def column(self) -> ColumnBase:
        """The key as pages hold it, in a query on its table."""
        return self.fields[0] if self.is_whole else dialect().key_text(self.fields)

    @property
    def text(self) -> ColumnBase:
        """The key as it is stored with a failure."""
        return cast("ColumnBase", dialect().key_text(self.fields))

    def narrowed(self, query: "ModelSelect[M]", keys: Sequence[object]) -> "ModelSelect[M]":
        """Restrict a query on the key's table to the rows of these keys.

        The server compares, in the type of the columns; :attr:`given` is the key by which each row
        was requested.
        """
        if self.is_whole:
            return query.where(dialect().among(self.fields[0], keys))
        rows, clause = dialect().keys_as_rows(self.fields, keys)
        *tables, last = query._from_list  # type: ignore[attr-defined]
        return query.from_(*tables, _Joined(last, rows, clause))

    @property
    def given(self) -> ColumnBase:
        return self.fields[0] if self.is_whole else dialect().wanted_key

    def equals(self, other: "Key") -> ColumnBase:
        """Return the clause that two keys are of the same row."""
        pairs = zip(self.fields, other.fields, strict=True)
        clause: ColumnBase = reduce(operator.and_, (one == another for one, another in pairs))
        return clause


class _Joined(peewee.Join):
    """A table joined with the rows of a function, which peewee does not support."""

    def __init__(self, table: type[Model], rows: object, clause: object) -> None:
        super().__init__(table, rows, JOIN.INNER, clause)


@dataclass(frozen=True)
class Link:
    """How the results of an output model point to the rows of an input model.

    ``row`` and ``result`` name the fields that are equal. Where some results of a row have another
    key, this one is unique among the others, whose fields ``null`` are NULL.
    """

    row: tuple[str, ...]
    result: tuple[str, ...]
    is_whole: bool
    null: tuple[str, ...] = ()

    @property
    def condition(self) -> str:
        """The condition of the unique index of the results; empty if it has none."""
        return " AND ".join(f"{dialect().quote(name)} IS NULL" for name in self.null)

    def key(self, output: type[Model]) -> Key:
        """Return the columns of the results that identify their rows."""
        return Key(tuple(output._meta.fields[name] for name in self.result))

    def is_result_of(self, result: object, model: type[Model]) -> ColumnBase:
        """Return the clause that a result is of a row of an input model."""
        result_key = Key(tuple(getattr(result, name) for name in self.result))
        return result_key.equals(Key(tuple(getattr(model, name) for name in self.row)))

    def of_row(self, row: object) -> object:
        """Return the values of a row that its results repeat."""
        return self._value(row, self.row)

    def of_result(self, result: object) -> object:
        """Return the values by which a result names its row; None where no row has such values."""
        return self._value(result, self.result)

    def _value(self, of: object, names: tuple[str, ...]) -> object:
        data = getattr(of, "__data__", None)
        if not isinstance(data, dict):
            return None
        if self.is_whole:
            return as_key(data.get(names[0]))
        values = tuple(data.get(name) for name in names)
        value = values[0] if len(values) == 1 else values
        try:
            hash(value)
        except TypeError:
            return None
        return None if any(v is None for v in values) else value


def as_key(value: object) -> int | None:
    """Return a value as a whole number of 64 bits; None where it is something else."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    import numpy as np

    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return None
    return int(value) if -(2**63) <= value < 2**63 else None


def as_tuple(value: object) -> tuple[object, ...]:
    """Return the values of a key's columns, also where there is only one."""
    return value if isinstance(value, tuple) else (value,)


def bound_to_database(model: type[M]) -> type[M]:
    """Bind a model to astra's database, if it has none of its own."""
    if model._meta.database is None:
        model._meta.set_database(database)
    return model


def primary_fields(model: type[Model]) -> tuple[Field, ...]:
    """Return the columns of a table's primary key; none where it has no primary key."""
    primary = model._meta.primary_key
    if isinstance(primary, CompositeKey):
        return tuple(model._meta.fields[name] for name in primary.field_names)
    return (primary,) if isinstance(primary, Field) else ()


def key_of(model: type[Model]) -> Key:
    """Return the key by which pages and results identify the rows of an input model.

    Raises
    ------
    TaskError
        If the model has no primary key, or one of a type that pages cannot hold.
    """
    name = getattr(model, "row_key", None)
    fields = (model._meta.fields[name],) if name else primary_fields(model)
    _check_types(model, fields, _UNFIT)
    if not fields:
        raise TaskError(
            f"{model.__name__} has no primary key: declare the columns that identify its rows, "
            "by primary_key=True or in class Meta: primary_key = CompositeKey('a', 'b')"
        )
    return Key(fields)


def _check_types(model: type[Model], fields: Iterable[Field], unfit: Container[str]) -> None:
    for field in fields:
        if field.field_type in unfit:
            raise TaskError(
                f"{model.__name__}.{field.name} is a key of type {field.field_type}, which no page "
                "can hold: declare another unique column as the primary key of the model"
            )


def modified_field(model: type[Model]) -> Field | None:
    """Return the column that holds when a row of an input model changed; None without one.

    Raises
    ------
    TaskError
        If ``class Meta: modified`` names no column.
    """
    name = getattr(model._meta, "modified", None)
    if name is None:
        name = "modified" if getattr(model, "is_input", False) else None
    if name is None:
        return None
    if name not in model._meta.combined:
        raise TaskError(
            f"{model.__name__}: class Meta: modified = {name!r} is not a column of the model. "
            f"{nearest(str(name), model._meta.columns)}"
        )
    return cast("Field", model._meta.combined[name])


def moment_of(model: type[Model]) -> ColumnBase | None:
    """Return when a row changed, as results store it; None where the model does not record it."""
    field = modified_field(model)
    if field is None or isinstance(field, TimeField):
        return field
    return cast("ColumnBase", dialect().as_moment(field))


def moment_in(row: object) -> datetime | None:
    """Return when a row that peewee has read changed, as :func:`moment_of` has it."""
    if not isinstance(row, Model) or (field := modified_field(type(row))) is None:
        return None
    value = row.__data__.get(field.name)
    if value is None or isinstance(field, TimeField):
        return cast("datetime | None", value)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    value = value if value.tzinfo else value.replace(tzinfo=UTC)
    return dialect().rounded(value)


def moments(model: type[Model], keys: Sequence[RowKey]) -> dict[RowKey, datetime | None]:
    """Return when rows changed, as :func:`moment_of` has it, by the keys of those that exist."""
    key, moment = key_of(model), moment_of(model)
    query = key.narrowed(all_rows(model), keys)
    query = query.select(key.given, peewee.Value(None) if moment is None else moment)
    as_stored = TimeField().python_value
    return {k: as_stored(at) for k, at in database.execute(query).fetchall()}


def same_moment(stored: ColumnBase, model: type[Model]) -> ColumnBase:
    """Return the clause that a stored moment is the one at which the row changed last."""
    moment, field = moment_of(model), modified_field(model)
    if moment is None or field is None:
        return TRUE
    moment = dialect().nearest_moment(moment)
    if field.null:
        return peewee.Expression(stored, dialect().is_same, moment)
    return cast("ColumnBase", stored == moment)


def in_order(model: type[Model]) -> list[tuple[ColumnBase, str]]:
    """Return the total order of a table's rows: columns, and how each is sorted.

    The most recently modified come first, ties broken by key; without a column that holds when a
    row was modified, the order is that of the keys.
    """
    keys, moment, field = primary_fields(model), moment_of(model), modified_field(model)
    if moment is None or field is None:
        return [(key, "ASC") for key in keys]
    last = " NULLS LAST" if field.null else ""
    return [(moment, f"DESC{last}"), *((key, "DESC") for key in keys)]


def all_rows(model: type[Model]) -> ModelSelect:
    """Select all rows of an input model, over astra's own connection."""
    name = getattr(model, "loaded_with", None)
    if name is None:
        return model.select().bind(database)
    field = model._meta.fields[name]
    other = field.rel_model
    query = model.select(model, other).join(
        other, JOIN.LEFT_OUTER, on=(field == field.rel_field), attr=name
    )
    return query.bind(database)


def table_name(model: type[Model]) -> str:
    """Return the name of a table in plans and failures: with its schema if it is not astra's."""
    meta = model._meta
    is_foreign = meta.schema and not issubclass(model, BaseModel)
    return f"{meta.schema}.{meta.table_name}" if is_foreign else meta.table_name


def check_keys(model: type[Model]) -> None:
    """Refuse a key that the model declares and the table does not guarantee.

    Raises
    ------
    TaskError
        If two rows have the same key, or one has none; if the database does not return keys of its
        type unchanged.
    """
    key = key_of(model)
    _check_unique(model, key)
    if dialect().name == "sqlite":
        _check_types(model, key.fields, _UNFIT_IN_SQLITE)
        _check_stored_types(model, key)


def _check_stored_types(model: type[Model], key: Key) -> None:
    """Refuse keys of other types than their columns: a column of SQLite may hold values of any."""
    for field in key.fields:
        if isinstance(field, peewee.AutoField):  # SQLite's own number of the row
            continue
        kind = peewee.fn.TYPEOF(field)
        kinds = {name for (name,) in database.execute(model.select(kind).distinct()).fetchall()}
        is_whole = Key((getattr(field, "rel_field", field),)).is_whole
        unfit = kinds - {"integer", "null"} if is_whole else kinds & {"blob"}
        if len(key.fields) == 1 and len(kinds) > 1 and not unfit:
            texts = model.select(SQL("1")).group_by(key.text).having(peewee.fn.COUNT(SQL("*")) > 1)
            unfit = kinds if database.execute(texts.limit(1)).fetchone() else unfit
        has_nul = peewee.fn.INSTR(field, "\0") > 0  # where functions of SQLite end a text
        is_unfit = kind == min(unfit) if unfit else has_nul
        if row := database.execute(model.select(field, kind).where(is_unfit).limit(1)).fetchone():
            raise TaskError(
                f"{model.__name__}.{field.name} is a {type(field).__name__}, and the table holds "
                f"keys of the type {' and '.join(sorted(unfit) or row[1:])}, such as "
                f"{row[0]!r}: declare the key as a field of that type, convert them, "
                "or declare another unique column as the primary key of the model"
            )


def may_change(key: Key, stored: Key) -> bool:
    """Return whether results may not store some keys unchanged, by the types of the columns."""
    return not key.is_whole and bool(dialect().may_change_keys(key.fields, stored.fields))


def changed_keys(key: Key, stored: Key, rows: Mapping[RowKey, Sequence[object]]) -> list[RowKey]:
    """Return the keys that results would not store unchanged, so that they would be of other rows.

    Parameters
    ----------
    stored : the columns of the results that hold the key.
    rows : the values that Python has of the columns of each key.
    """
    values: dict[RowKey, list[object]] = {}
    for row_key, row in rows.items():
        try:
            hash(tuple(row))
            pairs = zip(stored.fields, row, strict=True)
            values[row_key] = [field.db_value(value) for field, value in pairs]
        except (TypeError, ValueError, ArithmeticError):  # a list, or what its field refuses
            continue
    keys = list(values)
    listed = list(values.values())
    places = dialect().changed_keys(key.fields, stored.fields, keys, listed) if keys else []
    return [k for k in rows if k not in values] + [keys[place] for place in places]


def _check_unique(model: type[Model], key: Key) -> None:
    if dialect().keeps_unique(model, [field.column_name for field in key.fields]):
        return
    names = ", ".join(field.name for field in key.fields)
    count = peewee.fn.COUNT(SQL("*"))
    any_null = reduce(operator.or_, (field.is_null() for field in key.fields))
    is_null = peewee.fn.MAX(peewee.Case(None, ((any_null, 1),), 0))
    query = (
        model.select(*key.fields, count, is_null)
        .group_by(*key.fields)
        .having((count > 1) | (is_null == 1))
        .limit(1)
    )
    if (row := database.execute(query).fetchone()) is None:
        return
    *values, n_rows, no_key = row
    shown = ", ".join(str(value)[:100] for value in values)
    defect = "a row without a key" if no_key else f"{n_rows} rows with the key {shown}"
    raise TaskError(
        f"{table_name(model)} has {defect}: the key of {model.__name__} ({names}) does not "
        "identify a row; declare a key with more columns, or another column"
    )
