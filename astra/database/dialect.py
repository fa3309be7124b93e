"""What both dialects share: quoting, batches of results, and statements in common."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, reduce
from operator import and_
from types import ModuleType
from typing import Any, NamedTuple

import peewee
from peewee import SQL

from astra.database import queries
from astra.errors import DatabaseError, TaskError
from astra.records import dataclass


@dataclass(frozen=True)
class Batch:
    """Rows of one table that set the same columns.

    ``columns`` maps a column name to its values in database form; ``key`` names the columns that
    point to the input row, ``conflict`` those of the unique constraint; ``condition`` is that of
    its index, if the index is partial; ``primary`` is the primary key.
    """

    table: str
    columns: dict[str, Sequence[Any]]
    key: tuple[str, ...]
    conflict: tuple[str, ...]
    condition: str
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
    def target(self) -> tuple[str, ...]:
        """The table, and the columns that the rows set."""
        return (self.table, *self.columns)

    @property
    def keys(self) -> list[tuple[Any, ...]]:
        """The keys of the rows, in database form."""
        return list(zip(*(self.columns[name] for name in self.key), strict=True))


class Column(NamedTuple):
    """A column of a table, as it is in the database."""

    kind: str  # its type, with its precision
    is_not_null: bool
    is_computed: bool
    has_default: bool  # or is numbered by the database


NO_COLUMN = Column("", is_not_null=False, is_computed=False, has_default=False)


class CopyRefused(Exception):
    """A COPY failed, and its savepoint has to be rolled back; inserting the batch may succeed."""


class NotStored(ValueError):
    """The database accepted a result without an error, but did not store it unchanged."""

    def __init__(
        self,
        table: str,
        column: str | None = None,
        stored: str | None = None,
        has_others: bool = False,
    ) -> None:
        if has_others:
            effect = f"stored others beside it: a trigger or a rule of the table {table} kept or "
            effect += "added results of its row"
        elif column is None:
            effect = f"did not store it: a trigger or a rule of the table {table} discarded it"
        else:
            value = "NULL" if stored is None else stored
            effect = f"stored {value} in the column {column}: its type, a trigger or a rule of the "
            effect += f"table {table} changed what was yielded"
        super().__init__(f"the database took the result and {effect}")


def no_moment(field: Any, kind: str | None) -> TaskError:
    """Return the error to raise about a column that cannot hold when a row was modified."""
    problem = (
        f"is of the type {kind}, which holds neither dates nor times"
        if kind
        else "is not in its table"
    )
    return TaskError(
        f"{field.model.__name__}.{field.name} {problem}: modified in its class Meta must "
        "name a column of dates or times"
    )


class Common:
    """What both dialects have."""

    database: peewee.Database
    now_sql: str  # the database's clock
    wanted_key: SQL  # the text of a key in rows of a query
    queries: ModuleType  # the dialect's statements
    is_in_memory = False  # it exists in one connection only

    def log_sequences(self, schema: str | None) -> None:
        """Make sure that a copied database never assigns the numbers of its rows again."""

    def schema_of_new_tables(self, model: Any) -> str | None:
        """Return the schema of a model's table if new tables would be created in another one."""
        return None

    def places(self, models: Sequence[Any], beside: Any) -> str | None:
        """Name the tables of models as they are found, relative to another model's table."""
        return None

    def drop_not_null(self, model: Any, column: str) -> bool:
        """Let rows have no value in a column; return False if that is impossible."""
        return False

    known_role: str | None = None  #: what session_role() has found

    def session_role(self) -> str | None:
        """Return the role that this process has logged in as; None where there are no roles."""
        return None

    def run(self, sql: str, parameters: Sequence[Any] = (), **parts: object) -> Any:
        """Run a statement, in which each ``{name}`` is replaced by the part of that name."""
        return self.database.execute_sql(sql.format(**parts) if parts else sql, parameters)

    def fetch_value(self, sql: str, parameters: Sequence[Any] = (), **parts: object) -> Any:
        """Run a query that has one value."""
        return self.run(sql, parameters, **parts).fetchone()[0]

    def fetch_column(self, sql: str, parameters: Sequence[Any] = (), **parts: object) -> list[Any]:
        """Run a query that has one column."""
        return [value for (value,) in self.run(sql, parameters, **parts).fetchall()]

    def quote(self, name: str) -> str:
        """Quote the name of a table, schema or column.

        Characters that would end a name, or mark a parameter for the driver, are refused.
        """
        return _quoted(name)

    def storable(self, text: str) -> str:
        """Escape the characters of a text that the database's encoding lacks."""
        return text

    def table(self, model: Any, beside: str | None = None) -> str:
        """Return the quoted name of a model's table, or of what is `beside` it, with its schema."""
        schema, name = model._meta.schema, beside or model._meta.table_name
        return ".".join(map(self.quote, [schema, name] if schema else [name]))

    def literal(self, value: Any) -> str:
        """Write a value as a statement without parameters has it."""
        raise NotImplementedError

    def checked(self, field: peewee.Field, value: Any) -> Any:
        """Return a value in database form, or raise if it is not of its column's type."""
        raise NotImplementedError

    def add_column(self, model: Any, field: peewee.Field, default: Any) -> None:
        """Add a column, with a value for existing rows."""
        context = model._schema._create_context()
        column, _ = context.sql(field.ddl(context)).query()
        given = default is not None
        value = f" DEFAULT {self.literal(self.checked(field, default))}" if given else ""
        self.run(queries.ADD_COLUMN, table=self.table(model), column=column, default=value)

    def catalogue_name(self, model: Any) -> str:
        """Return the name by which queries of the catalogue find a model's table."""
        return self.table(model)

    def columns(self, model: Any) -> dict[str, Column]:
        """Return the columns of a table by name; none where there is no such table."""
        rows = self.run(self.queries.COLUMNS, (self.catalogue_name(model),)).fetchall()
        return {name: Column(*described) for name, *described in rows}

    def has_unique(self, model: Any, columns: Sequence[str], condition: str) -> bool:
        """Return whether a valid index of any name keeps these columns unique.

        An index with a condition counts only if it is this one.
        """
        return any(
            is_immediate and (not stored or _bare(stored) == _bare(condition))
            for stored, is_immediate, _ in self.unique_indexes(model, columns)
        )

    def keeps_unique(self, model: Any, columns: Sequence[str]) -> bool:
        """Return whether the database itself keeps these columns unique, and none of them NULL."""
        return any(
            condition is None and is_never_null
            for condition, _, is_never_null in self.unique_indexes(model, columns)
        )

    def unique_indexes(
        self, model: Any, columns: Sequence[str]
    ) -> Iterable[tuple[str | None, bool, bool]]:
        """Describe each unique index of exactly these columns.

        A description has the condition of the index, whether it is checked at once, and whether it
        covers every row of the table and these columns are NULL in none.
        """
        raise NotImplementedError

    #: Writes a list as one value.
    list_text: Callable[[list[Any]], str]

    def pack_list(self, keys: Iterable[Any], item: str) -> str:
        """Return a list of keys, of the type of a model's list, as one value."""
        return self.list_text(list(map(int if item == "integer" else str, keys)))

    def wanted_values(self, fields: Sequence[Any]) -> list[str]:
        """Return the expressions for the values in a key's text, in the types of its columns."""
        raise NotImplementedError

    def may_be_written_differently(self, fields: Sequence[Any]) -> bool:
        """Return whether keys of different texts may be equal: 1.0 and 1.00, or Vega and VEGA."""
        raise NotImplementedError

    def keys_as_rows(self, fields: Sequence[Any], keys: Sequence[Any]) -> tuple[Any, Any]:
        """Return texts of keys as rows of a query, and the clause that a row has such a key."""
        pairs = zip(fields, map(SQL, self.wanted_values(fields)), strict=True)
        clauses = [peewee.Expression(field, "=", value) for field, value in pairs]
        return SQL(self.queries.WANTED_KEYS, (self.pack_list(keys, "text"),)), reduce(and_, clauses)

    def among_pending(self, key: Any, pages: Any) -> Any:
        """Return the clause that a `key` is of a row that has not ended in one of some pages.

        `pages` selects their columns of keys and of outcomes, under these names. The server
        compares in the type of the columns if keys that are equal may have different texts.
        """
        sql, parameters = pages.sql()
        column, values = key.column, [self.wanted_key.sql]
        if not key.is_whole and self.may_be_written_differently(key.fields):
            column, values = peewee.EnclosedNodeList(key.fields), self.wanted_values(key.fields)
        clause = self.queries.AMONG_PENDING.format(pages=sql, values=", ".join(values))
        return peewee.NodeList((column, SQL(clause, parameters)))


def _bare(condition: str) -> str:
    """Return a condition as it is compared, however its database writes it."""
    return re.sub(r'[\s()"`\[\]]', "", condition).lower()


@lru_cache(maxsize=4096)  # each checkpoint names every column several times
def _quoted(name: str) -> str:
    if not re.fullmatch(r'[^\0"%\ud800-\udfff]{1,255}', name, re.DOTALL):
        raise DatabaseError(
            f"astra cannot use the name {name[:300]!r} of a table, column or schema: it is empty, "
            'longer than 255 characters, or holds one of " and %; read the table through a view'
        )
    return f'"{name}"'


def on_conflict(dialect: Common, batch: Batch, every: set[str]) -> str:
    """Return the clause that replaces an earlier result; `every` names the table's columns."""
    constant = {*batch.conflict, batch.primary, "created", "modified", "v_astra_major_minor"}
    changed = [dialect.quote(name) for name in sorted(every - constant)]
    columns = ", ".join(f"{name} = excluded.{name}" for name in changed)
    where = batch.condition and f"WHERE {batch.condition}"
    parts = {"where": where, "columns": columns, "now": dialect.now_sql}
    return queries.ON_CONFLICT.format(target=", ".join(map(dialect.quote, batch.conflict)), **parts)


#: A context in which errors of the driver are raised as peewee's, for calls past peewee.
peewee_errors = peewee.__exception_wrapper__  # type: ignore[attr-defined]
