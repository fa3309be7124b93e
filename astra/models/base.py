"""The base of every table: its database, names in snake case, times by the database's clock."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, cast

import peewee
from peewee import SQL, Field, Model, ModelBase

from astra.database.connection import (
    connection,
    database,
    database_is_unset,
    dialect,
    listen_to_schema,
)
from astra.database.inspection import indexes, stored_name
from astra.errors import DatabaseError
from astra.glossary import describe


class TimeField(peewee.DateTimeField):
    """A moment, UTC. By default the one at which the row is written, by the database's clock.

    PostgreSQL keeps ``TIMESTAMPTZ``; SQLite text in one form, ``YYYY-MM-DD HH:MM:SS.ffffff``, so
    that comparing texts compares times. Values come back aware; naive ones are taken for UTC.
    """

    field_type = "MOMENT"

    def __init__(self, *args: object, now: bool = False, **options: object) -> None:
        self.now = now
        super().__init__(*args, **options)

    def clone(self) -> "TimeField":
        return deepcopy(self)

    def ddl_datatype(self, ctx: object) -> Any:
        return SQL(dialect().timestamp_type)

    def ddl(self, ctx: object) -> Any:
        default = [SQL(f"DEFAULT {dialect().now_sql}")] if self.now else []
        return peewee.NodeList((super().ddl(ctx), *default))

    def adapt(self, value: object) -> Any:
        value = super().adapt(value)  # type: ignore[no-untyped-call]
        if not isinstance(value, datetime):
            return value
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)

    def db_value(self, value: object) -> Any:
        value = self.adapt(value)
        if isinstance(value, datetime) and dialect().name == "sqlite":
            # Not strftime, which takes twenty times as long.
            return value.replace(tzinfo=None).isoformat(" ", "microseconds")
        return value

    def python_value(self, value: object) -> Any:
        if value is None or (type(value) is datetime and value.tzinfo is UTC):  # as it mostly is
            return value
        return self.adapt(value)


class RoleField(peewee.TextField):
    """The role that inserted the row, by the server's own word; NULL on SQLite, which has none."""

    def ddl(self, ctx: object) -> Any:
        default = _database_default(self)
        by_server = [SQL(f"DEFAULT {default}")] if default else []
        return peewee.NodeList((super().ddl(ctx), *by_server))


class KeysField(Field):
    """A list of integer keys: ``BIGINT[]`` on PostgreSQL, JSON on SQLite."""

    def ddl_datatype(self, ctx: object) -> Any:
        return SQL(dialect().keys_type)

    def db_value(self, value: Sequence[int] | None) -> Any:
        return None if value is None else dialect().pack_keys(value)

    def python_value(self, value: object) -> list[int] | None:
        if value is None:
            return None
        try:
            keys = dialect().unpack_keys(value)
        except ValueError:
            keys = None
        if not isinstance(keys, list):
            where = f"{self.model._meta.table_name}.{self.column_name}"
            raise DatabaseError(
                f"{where} holds {str(value)[:60]!r}, which is no list: somebody changed it by "
                "hand; astra verify lists such values of a plan"
            )
        return keys


class KeyTextsField(KeysField):
    """A list of keys as texts: ``TEXT[]`` on PostgreSQL, JSON on SQLite."""

    def ddl_datatype(self, ctx: object) -> Any:
        return SQL(dialect().key_texts_type)

    def db_value(self, value: Any) -> Any:
        return None if value is None else dialect().pack_texts(value)


class ModelMeta(ModelBase):
    """peewee's, with the fields of mixins that are not models themselves."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], attrs: dict[str, object], **kw: object
    ) -> Any:
        own_key = any(isinstance(v, Field) and v.primary_key for v in attrs.values())
        mixins = [k for base in bases for k in base.__mro__ if not hasattr(k, "_meta")]
        for mixin in mixins:
            for hook in ("is_input", "fill_keys", "row_key", "loaded_with"):
                if hook in vars(mixin):
                    attrs.setdefault(hook, vars(mixin)[hook])
            for key, field in vars(mixin).items():
                if isinstance(field, Field) and not (field.primary_key and own_key):
                    attrs.setdefault(key, deepcopy(field))
        made = super().__new__(cls, name, bases, attrs, **kw)  # type: ignore[no-untyped-call]
        for field in made._meta.sorted_fields if hasattr(made, "_meta") else ():
            field.help_text = field.help_text or describe(field.name)
        return made


class BaseModel(peewee.Model, metaclass=ModelMeta):
    """The root of all tables. A subclass in your own module is a table, and is not registered.

    Examples
    --------
    >>> import peewee
    >>> from astra.models import BaseModel
    >>> class Station(BaseModel):
    ...     name = peewee.TextField(unique=True)
    >>> Station._meta.table_name
    'station'
    """

    class Meta:
        database = database
        legacy_table_names = False

    @classmethod
    def validate_model(cls) -> None:
        # Called by peewee when the class is made: a table defined after the database was
        # bound stands in the same schema as the others.
        is_root = (
            cls.__base__ is peewee.Model
        )  # made as the first thing after the database was bound
        if not is_root and not database_is_unset() and (siblings := BaseModel.__subclasses__()):
            cls._meta.schema = siblings[0]._meta.schema

    @classmethod
    def create_table(cls, safe: bool = True, **options: object) -> None:
        """Make or complete the table with all that astra relies on: columns, indexes, triggers.

        Raises
        ------
        DatabaseError
            If rows that are there would have no value for a column.
        """
        with connection():
            _add_columns(cls)
            _create(cls, safe, options)
            cls.complete_table()

    @classmethod
    def complete_table(cls) -> None:
        """What peewee cannot declare for both databases; can be run again."""
        for field in cls._meta.sorted_fields:
            if isinstance(field, KeysField):
                dialect().compress_quickly(cls, field)
        if cls.is_input:
            keep_inputs_in_order(cls)

    @classmethod
    def own_indexes(cls) -> Iterator[tuple[str, list[str], str]]:
        """Indexes that peewee does not declare: name, columns, and the statement that makes it."""
        if cls.is_input:
            yield order_index(cls, _key_columns(cls), "modified")

    #: Whether rows of the table are inputs of tasks.
    is_input = False
    #: Gives rows that are about to be inserted the keys that they lack; spectra have it.
    fill_keys: Any = None

    def save(self, *args: Any, **options: Any) -> Any:
        if self.fill_keys is not None and getattr(self, "spectrum_pk", None) is None:
            for name, value in self.fill_keys([{}])[0].items():
                setattr(self, name, value)
        return super().save(*args, **options)

    @classmethod
    def insert_many(cls, rows: Any, fields: Any = None) -> Any:
        """peewee's; spectra given as dictionaries without a ``spectrum_pk`` get a new one."""
        rows = list(rows)
        if cls.fill_keys is not None and not fields and rows and isinstance(rows[0], dict):
            rows = cls.fill_keys(rows)
        return super().insert_many(rows, fields)


def _add_columns(model: type[Model]) -> None:
    """Add columns and defaults that a model was given after its table was made."""
    have = dialect().columns(model)
    for field in model._meta.sorted_fields if have else ():
        by_database = _database_default(field)
        if field.column_name in have:
            if by_database:
                dialect().set_default(model, field, by_database)
            continue
        default = field.default() if callable(field.default) else field.default
        is_known = default is not None or by_database or field.null
        if field.primary_key or not is_known:
            raise DatabaseError(
                f"the table {model._meta.table_name!r} has no column {field.column_name!r}, and "
                f"its rows would have no value for it: give {model.__name__}.{field.name} "
                f"null=True or a default and run astra initdb {model.__module__} again, or add "
                f"the column by hand{_if_renamed(model, field, have)}"
            )
        dialect().add_column(model, field, None if by_database else field.db_value(default))


def columns_gone(model: type[Model], have: set[str]) -> list[str]:
    """The columns of a table that its model does not have, or has no more."""
    return sorted(have - {field.column_name for field in model._meta.sorted_fields})


def _if_renamed(model: type[Model], field: Field, have: set[str]) -> str:
    """What to type if the column had another name before."""
    if not (gone := columns_gone(model, have)):
        return ""
    quote = dialect().quote
    return (
        f"; if it was {gone[0]!r} before: ALTER TABLE {dialect().table(model)} RENAME COLUMN "
        f"{quote(gone[0])} TO {quote(field.column_name)}"
    )


def _create(model: Any, safe: bool, options: dict[str, object]) -> None:
    """Make a table, and the indexes that it lacks.

    To ask for one that is there would wait for all that write to the table.
    """
    model._schema.create_table(safe, **options)
    for index in missing_indexes(model):
        database.execute(model._schema._create_index(index, safe))


def missing_indexes(model: Any) -> list[Any]:
    """The indexes of a model's fields that its table lacks, as peewee declares them."""
    there = indexes(model)
    declared = model._meta.fields_to_index()
    return [index for index in declared if stored_name(index._name) not in there]


def _database_default(field: Field) -> str | None:
    """The default that the database itself gives to a column, as SQL; None where it gives none."""
    if getattr(field, "now", False):  # SQLite adds no column whose default is computed
        return dialect().now_sql if dialect().name == "postgresql" else None
    if isinstance(field, RoleField):
        return "session_user" if dialect().name == "postgresql" else None
    declared = (getattr(constraint, "sql", "") for constraint in field.constraints or ())
    return next((sql[8:] for sql in declared if sql.upper().startswith("DEFAULT ")), None)


def keep_inputs_in_order(model: type[Model]) -> None:
    """For a table of inputs: ``modified`` is kept by the database, and has its index.

    Pending rows come most recent first, ties broken by key: one index serves that order.
    """
    keys = _key_columns(model)
    name, _, sql = order_index(model, keys, "modified")
    if stored_name(name) not in indexes(model):
        dialect().run(sql)
    if dialect().name == "sqlite" or not dialect().keeps_modified(model, "modified"):
        dialect().keep_modified(model, keys, "modified")  # which waits for all that use the table


def _key_columns(model: type[Model]) -> list[str]:
    key = cast("Field", model._meta.primary_key)
    return [key.column_name]


def order_index(
    model: type[Model], keys: list[str], moment: str, nulls: bool = False
) -> tuple[str, list[str], str]:
    """The index that serves the order of pending rows: name, columns, and its statement."""
    quote, name = dialect().quote, f"{model._meta.table_name}_by_modified"
    # In an index of SQLite NULL comes last where the order is descending.
    last = " NULLS LAST" if nulls and dialect().name == "postgresql" else ""
    columns = [f"{quote(moment)} DESC{last}", *(f"{quote(key)} DESC" for key in keys)]
    table = dialect().table(model)
    sql = f"CREATE INDEX IF NOT EXISTS {quote(name)} ON {table} ({', '.join(columns)})"
    return name, [moment, *keys], sql


def every_subclass(root: type) -> Iterator[Any]:
    """All models below `root`, each once, in the order in which they were defined."""
    seen: dict[Any, None] = {}
    queue: list[Any] = [root]
    while queue:
        for child in queue.pop(0).__subclasses__():
            if child not in seen:
                seen[child] = None
                queue.append(child)
    return iter(seen)


def _set_schema(schema: str | None) -> None:
    for model in every_subclass(BaseModel):
        model._meta.schema = schema


listen_to_schema(_set_schema)
