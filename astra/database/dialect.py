"""What both dialects share."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import peewee

from astra.errors import DatabaseError

#: Each database's own.
dialects: WeakKeyDictionary[peewee.Database, Any] = WeakKeyDictionary()


@dataclass(frozen=True)
class Batch:
    """Rows of one table that set the same columns.

    ``columns`` maps a column name to its values in database form; ``key`` names the columns that
    point to the input row, ``conflict`` those of the unique constraint, which ``where`` completes
    where the index is partial; ``primary`` is the primary key.
    """

    table: str
    columns: dict[str, Sequence[Any]]
    key: tuple[str, ...]
    conflict: tuple[str, ...]
    where: str
    primary: str
    model: Any

    @property
    def declared(self) -> dict[str, str]:
        """The type of each column, as the model declares it."""
        schema, fields = self.model._schema, self.model._meta.columns
        types = {}
        for name in self.columns:
            context = schema._create_context()
            types[name] = context.sql(fields[name].ddl_datatype(context)).query()[0]
        return types

    @property
    def keys(self) -> list[tuple[Any, ...]]:
        """The keys of the rows, in database form."""
        return list(zip(*(self.columns[name] for name in self.key), strict=True))


class NotStored(ValueError):
    """The database took a result without an error, and did not store it, or not as it was."""

    def __init__(self, table: str, column: str | None = None, stored: str | None = None) -> None:
        if column is None:
            said = f"did not store it: a trigger or a rule of the table {table} discarded it"
        else:
            value = "NULL" if stored is None else stored
            said = f"stored {value} in the column {column}: its type, a trigger or a rule of the "
            said += f"table {table} changed what was yielded"
        super().__init__(f"the database took the result and {said}")


@dataclass(frozen=True)
class Denied:
    """What a role may not do, and which kind of role may (see roles.py)."""

    role: str
    what: str  # "may not INSERT into the table plan"
    kind: str | None  # None: only the owner


class Common:
    database: peewee.Database
    now_sql: str  # the database's clock

    def session_role(self) -> str | None:
        """The role that this process has logged in as; None where there are no roles."""
        return None

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        return self.database.execute_sql(sql, parameters)

    def fetch_value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Run a query that has one value."""
        return self.run(sql, parameters).fetchone()[0]

    def fetch_column(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Run a query that has one column."""
        return [value for (value,) in self.run(sql, parameters).fetchall()]

    def quote(self, name: str) -> str:
        """A name of a table or column as SQL takes it, whatever characters it holds.

        peewee writes names into its statements as they are: what would end one there, or be
        taken for a parameter by the driver, is refused.
        """
        return _quoted(name)

    def storable(self, text: str) -> str:
        """Escape the characters of a text that the database's encoding does not have."""
        return text

    def table(self, model: Any) -> str:
        """The quoted name of a model's table, with its schema."""
        meta = model._meta
        parts = [meta.schema, meta.table_name] if meta.schema else [meta.table_name]
        return ".".join(map(self.quote, parts))

    def set_at(self, model: Any, pk: int, moment: peewee.Field, values: dict[str, Any]) -> None:
        """Set columns of one row, and a moment to now.

        For what is done at each checkpoint: peewee takes longer to write such a statement than a
        database to obey it.
        """
        key, mark = model._meta.primary_key.column_name, self.database.param
        sets = [f"{self.quote(name)} = {mark}" for name in values]
        sets.append(f"{self.quote(moment.column_name)} = {self.now_sql}")
        self.run(
            f"UPDATE {self.table(model)} SET {', '.join(sets)} WHERE {self.quote(key)} = {mark}",
            (*values.values(), pk),
        )


def is_condition(found: str | None, wanted: str) -> bool:
    """Whether the condition of an index, if it has one, is the ``WHERE`` that is wanted."""
    bare = (re.sub(r'[\s()"`\[\]]', "", c).lower() for c in (found or "", wanted))
    return not found or next(bare) == next(bare).removeprefix("where")


@lru_cache(maxsize=4096)  # each checkpoint names every column several times
def _quoted(name: str) -> str:
    if not re.fullmatch(r'[^\0"%\ud800-\udfff]{1,255}', name, re.DOTALL):
        raise DatabaseError(f"{name[:300]!r} cannot be the name of a table, column or schema")
    return f'"{name}"'


def adding_column(
    dialect: Common, model: Any, field: peewee.Field, default: Any, literal: str
) -> str:
    """The statement that adds a column to a table; rows that are there get the literal."""
    context = model._schema._create_context()
    sql, _ = context.sql(field.ddl(context)).query()
    value = f" DEFAULT {literal}" if default is not None else ""
    return f"ALTER TABLE {dialect.table(model)} ADD COLUMN {sql}{value}"


def on_conflict(dialect: Common, batch: Batch, every: set[str]) -> str:
    """What becomes of a row that has a result: the one that was read later stands."""
    kept = {*batch.conflict, batch.primary, "created", "modified", "v_astra_major_minor"}
    changed = [dialect.quote(name) for name in sorted(every - kept)]
    sets = ", ".join(f"{name} = excluded.{name}" for name in changed)
    target = ", ".join(map(dialect.quote, batch.conflict))
    return f"""ON CONFLICT ({target}) {batch.where}
        DO UPDATE SET {sets}, "modified" = {dialect.now_sql}
        WHERE stored."input_read" IS NULL OR excluded."input_read" >= stored."input_read" """


@contextmanager
def peewee_errors() -> Iterator[None]:
    """Errors of the driver as peewee's, for the calls that peewee has no name for."""
    with peewee.__exception_wrapper__:  # type: ignore[attr-defined]
        yield
