"""The base of every table: its database, names in snake case, times by the database's clock."""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import TypeVar, cast

import peewee
from peewee import SQL, Field, Model, ModelBase, ModelInsert, NodeList

from astra.database.connection import (
    connection,
    database,
    database_is_unset,
    dialect,
    schema,
)
from astra.database.inspection import indexes, stored_name
from astra.errors import DatabaseError, UsageError
from astra.glossary import describe

M = TypeVar("M", bound=Model)


class TimeField(peewee.DateTimeField):
    """A moment in UTC; with `now`, by default the database's time at which the row is written.

    PostgreSQL stores ``TIMESTAMPTZ``; SQLite a text of one form, ``YYYY-MM-DD HH:MM:SS.ffffff``, so
    that comparing texts compares times. Values that are read are aware; naive ones count as UTC.
    """

    field_type = "MOMENT"

    def __init__(self, *args: object, now: bool = False, **options: object) -> None:
        self.now = now
        super().__init__(*args, **options)

    def ddl_datatype(self, ctx: object) -> SQL:
        return SQL(dialect().timestamp_type)

    def ddl(self, ctx: object) -> NodeList:
        default = [SQL(f"DEFAULT {dialect().now_sql}")] if self.now else []
        return NodeList((super().ddl(ctx), *default))

    def adapt(self, value: object) -> datetime | None:
        moment: datetime | None = super().adapt(value)  # type: ignore[no-untyped-call]
        if not isinstance(moment, datetime):
            return moment
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)

    def db_value(self, value: object) -> datetime | str | None:
        moment = self.adapt(value)
        if isinstance(moment, datetime) and dialect().name == "sqlite":
            # Not strftime, which takes twenty times as long.
            return moment.replace(tzinfo=None).isoformat(" ", "microseconds")
        return moment

    def python_value(self, value: object) -> datetime | None:
        if value is None or (type(value) is datetime and value.tzinfo is UTC):  # as it mostly is
            return value
        return self.adapt(value)


class RoleField(peewee.TextField):
    """The role that inserted the row, as the server fills it in; NULL on SQLite, without roles."""

    def ddl(self, ctx: object) -> NodeList:
        default = _database_default(self)
        by_server = [SQL(f"DEFAULT {default}")] if default else []
        return NodeList((super().ddl(ctx), *by_server))


class KeysField(Field):
    """A list of integer keys: ``BIGINT[]`` on PostgreSQL, JSON on SQLite."""

    #: The type of the items, as JSON has it.
    item_type = "integer"

    def ddl_datatype(self, ctx: object) -> SQL:
        return SQL(dialect().type_of_lists(self.item_type))

    def db_value(self, value: Iterable[int | str] | None) -> object:
        return None if value is None else dialect().pack_list(value, self.item_type)

    def python_value(self, value: object) -> list[int] | None:
        if value is None:
            return None
        try:
            keys = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            keys = None
        if not isinstance(keys, list):
            column = f"{self.model._meta.table_name}.{self.column_name}"
            raise DatabaseError(
                f"{column} holds {str(value)[:60]!r}, which is no list: somebody changed it by "
                "hand; astra verify lists such values of a plan"
            )
        return keys


class KeyTextsField(KeysField):
    """A list of keys as texts: ``TEXT[]`` on PostgreSQL, JSON on SQLite."""

    item_type = "text"


class ModelMeta(ModelBase):
    """Adds the fields of mixins that are not models themselves."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], attrs: dict[str, object], **kw: object
    ) -> "ModelMeta":
        _check_columns(name, attrs)
        own_key = any(isinstance(v, Field) and v.primary_key for v in attrs.values())
        mixins = [k for base in bases for k in base.__mro__ if not hasattr(k, "_meta")]
        for mixin in mixins:
            _check_columns(mixin.__name__, vars(mixin))
            for hook in ("is_input", "fill_keys", "row_key", "loaded_with"):
                if hook in vars(mixin):
                    attrs.setdefault(hook, vars(mixin)[hook])
            for key, field in vars(mixin).items():
                if isinstance(field, Field) and not (field.primary_key and own_key):
                    attrs.setdefault(key, deepcopy(field))
        model: ModelMeta = super().__new__(  # type: ignore[no-untyped-call]
            cls, name, bases, attrs, **kw
        )
        for field in model._meta.sorted_fields if hasattr(model, "_meta") else ():
            field.help_text = field.help_text or describe(field.name)
        return model


def _check_columns(model: str, attributes: Mapping[str, object]) -> None:
    """Refuse what was meant as a column of a model, and would silently be none."""
    for name, value in attributes.items():
        if isinstance(value, type) and issubclass(value, Field) and value.__name__ != name:
            kind = value.__name__
            raise UsageError(f"{model}.{name} is the class {kind}: write {kind}()")
        if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], Field):
            raise UsageError(f"{model}.{name} is a tuple: remove the comma after the column")


class BaseModel(peewee.Model, metaclass=ModelMeta):
    """The root of all tables. A subclass in your own module is a table without registration.

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
        # Called by peewee when the class is made: a table that is defined after the database was
        # bound belongs to the same schema as the others.
        if not database_is_unset():
            cls._meta.schema = schema()

    @classmethod
    def create_table(cls, safe: bool = True, **options: object) -> None:
        """Create or complete the table with all that astra needs: columns, indexes, triggers.

        Raises
        ------
        DatabaseError
            If existing rows would have no value for a column.
        """
        with connection():
            if not _add_columns(cls):
                if cls.changes_often:
                    cls._meta.table_settings = dialect().with_room
                peewee.SchemaManager(cls).create_table(safe, **options)
            # Asking for an index that exists would wait for everybody who writes to the table.
            for _, _, sql, parameters in missing_indexes(cls):
                database.execute_sql(sql, parameters)
            cls._complete_table()

    @classmethod
    def _complete_table(cls) -> None:
        """Add what peewee cannot declare for both databases; can be run again."""
        # Creating a trigger waits for all who use the table.
        if cls.is_input and not dialect().keeps_modified(cls, "modified"):
            key = cast("Field", cls._meta.primary_key)
            dialect().keep_modified(cls, [key.column_name], "modified")

    @classmethod
    def own_indexes(cls) -> Iterator[peewee.Index]:
        """Yield the indexes that the fields and ``class Meta`` do not declare."""
        if cls.is_input:
            yield order_index(
                cls, [cast("Field", cls._meta.primary_key)], cls._meta.fields["modified"]
            )

    #: Whether rows of the table are inputs of tasks.
    is_input = False

    #: Whether its rows change at each checkpoint, which should not change the indexes.
    changes_often = False

    @classmethod
    def fill_keys(cls, rows: list[dict[object, object]]) -> list[dict[object, object]]:
        """Give rows that are about to be inserted the keys that they lack: spectra have some."""
        return rows

    def save(self, force_insert: bool = False, only: Sequence[Field] | None = None) -> int:
        if getattr(self, "spectrum_pk", None) is None:
            for name, value in self.fill_keys([{}])[0].items():
                setattr(self, str(name), value)
        return super().save(force_insert, only)

    @classmethod
    def insert_many(
        cls, rows: Iterable[object], fields: Sequence[Field | str] | None = None
    ) -> ModelInsert:
        """Insert rows; spectra given as dictionaries without a ``spectrum_pk`` get a new one."""
        rows = list(rows)
        if not fields and all(isinstance(row, dict) for row in rows):
            rows = cls.fill_keys(cast("list[dict[object, object]]", rows))
        return super().insert_many(rows, fields)


def _add_columns(model: type[Model]) -> bool:
    """Add columns and defaults that a model was given after its table was created.

    Returns whether there is a table. It may be in a later schema of the ``search_path`` than the
    one in which PostgreSQL would create another table, which would hide it.
    """
    have = dialect().columns(model)
    for field in model._meta.sorted_fields if have else ():
        by_database = _database_default(field)
        if field.column_name in have:
            if by_database and not have[field.column_name].has_default:
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
    return bool(have)


def columns_gone(model: type[Model], have: Iterable[str]) -> list[str]:
    """Return the columns of a table that its model does not have."""
    return sorted({*have} - {field.column_name for field in model._meta.sorted_fields})


def missing_columns(model: type[Model], have: Container[str]) -> list[str]:
    """Return the columns of a model that its table does not have."""
    return [f.column_name for f in model._meta.sorted_fields if f.column_name not in have]


def _if_renamed(model: type[Model], field: Field, have: Iterable[str]) -> str:
    """Describe what to type if the column had another name before."""
    if not (dropped := columns_gone(model, have)):
        return ""
    quote = dialect().quote
    return (
        f"; if it was {dropped[0]!r} before: ALTER TABLE {dialect().table(model)} RENAME COLUMN "
        f"{quote(dropped[0])} TO {quote(field.column_name)}"
    )


def missing_indexes(
    model: type[BaseModel],
) -> Iterator[tuple[str, list[str], str, Sequence[object]]]:
    """Yield the indexes that a table lacks: name, columns, statement and its parameters."""
    present, manager = indexes(model), peewee.SchemaManager(model)
    for index in (*model._meta.fields_to_index(), *model.own_indexes()):
        if stored_name(index._name) not in present:
            # The schema may have been unknown when the index was declared.
            index._table = model._meta.table
            statement = manager._create_index(index)  # type: ignore[attr-defined]
            yield index._name, columns_of(index), *statement.query()


def columns_of(index: peewee.Index) -> list[str]:
    """Return the names of the columns of an index."""
    return [column.unwrap().column_name for column in index._expressions]  # type: ignore[attr-defined]


def _database_default(field: Field) -> str | None:
    """Return the default that the database itself gives to a column, as SQL; None without one."""
    if getattr(field, "now", False):  # SQLite adds no column whose default is computed
        return dialect().now_sql if dialect().name == "postgresql" else None
    if isinstance(field, RoleField):
        return "session_user" if dialect().name == "postgresql" else None
    declared = (getattr(constraint, "sql", "") for constraint in field.constraints or ())
    return next((sql[8:] for sql in declared if sql.upper().startswith("DEFAULT ")), None)


def order_index(
    model: type[Model], keys: Iterable[Field], moment: Field, nulls: bool = False
) -> peewee.Index:
    """Return the index that serves the order of pending rows."""
    # In an index of SQLite NULL comes last where the order is descending.
    last = "LAST" if nulls and dialect().name == "postgresql" else None
    columns = [moment.desc(nulls=last), *(key.desc() for key in keys)]
    name = f"{model._meta.table_name}_by_modified"
    return peewee.Index(name, model._meta.table, columns, safe=True)


def every_subclass(root: type[M]) -> Iterator[type[M]]:
    """Iterate over all models below `root`, each once, in the order of their definition."""
    seen: dict[type[M], None] = {}
    queue = [root]
    while queue:
        for child in queue.pop(0).__subclasses__():
            if child not in seen:
                seen[child] = None
                queue.append(child)
    return iter(seen)


def _set_schema(bound: peewee.Database | None) -> None:
    for model in every_subclass(BaseModel):
        model._meta.schema = schema()


database.attach_callback(_set_schema)  # type: ignore[no-untyped-call]
