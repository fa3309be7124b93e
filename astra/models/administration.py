"""What the administrator of a database asks for: indexes without a queue, views, the SQL itself."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import peewee
from peewee import Model

from astra.database.connection import database, dialect
from astra.database.inspection import indexes, literal, relations, stored_name
from astra.errors import DatabaseError
from astra.models.base import BaseModel, missing_indexes
from astra.models.keys import Link
from astra.models.pipeline import OutputModel

#: How long initdb waits for a table that is in use; meanwhile everybody else waits behind it.
LOCK_TIMEOUT_S = 5


@contextmanager
def no_queue() -> Iterator[None]:
    """Give up where a table is in use for longer, in the caller's transaction.

    Raises
    ------
    DatabaseError
        If it was; nothing is changed then.
    """
    if dialect().name == "postgresql":
        dialect().run(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
    try:
        yield
    except peewee.OperationalError as error:
        if "lock timeout" not in str(error):
            raise
        raise DatabaseError(
            f"a table is in use, and was not free within {LOCK_TIMEOUT_S} s, so that nothing was "
            "changed; pg_stat_activity shows by whom: run astra initdb again when that has ended"
        ) from error


def index_while_in_use(models: Iterable[type[BaseModel]]) -> None:
    """Make the indexes that tables lack, one after the other, while others read and write them.

    Outside of any transaction, before the tables are completed. SQLite has one writer at a time.
    """
    speaks = dialect()
    if speaks.name != "postgresql":
        return
    for model in models:
        have = speaks.columns(model)
        if not have or speaks.other_owner(model):
            continue
        for name, columns, sql in _missing(model):
            if set(columns) <= have:
                prefix = f"{speaks.quote(model._meta.schema)}." if model._meta.schema else ""
                # One that was begun before, and is not valid.
                speaks.run(
                    f"DROP INDEX CONCURRENTLY IF EXISTS {prefix}{speaks.quote(stored_name(name))}"
                )
                speaks.run(sql.replace("INDEX IF NOT EXISTS", "INDEX CONCURRENTLY IF NOT EXISTS"))


def _missing(model: type[BaseModel]) -> Iterator[tuple[str, list[str], str]]:
    """The indexes that a table lacks: name, columns, statement."""
    for name, columns, statement in missing_indexes(model):
        sql, parameters = statement.query()
        if not parameters:
            yield name, columns, sql
    there = indexes(model)
    for name, columns, sql in model.own_indexes():
        if stored_name(name) not in there:
            yield name, columns, sql


def make_views(models: Iterable[type[BaseModel]]) -> list[str]:
    """Make a view TABLE_current of each table of results: of each row those of its last version."""
    made = []
    speaks = dialect()
    for model in models:
        if not issubclass(model, OutputModel) or not (links := list(model.links())):
            continue
        name = f"{model._meta.table_name}_current"
        prefix = f"{speaks.quote(model._meta.schema)}." if model._meta.schema else ""
        view, table = f"{prefix}{speaks.quote(name)}", speaks.table(model)
        later = " AND ".join(
            f"NOT EXISTS (SELECT 1 FROM {table} AS later WHERE {_same_row(model, link)} AND "
            "later.v_astra_major_minor > stored.v_astra_major_minor)"
            for link, _ in links
        )
        speaks.run(f"DROP VIEW IF EXISTS {view}")
        speaks.run(f"CREATE VIEW {view} AS SELECT stored.* FROM {table} AS stored WHERE {later}")
        made.append(name)
    return made


def _same_row(model: type[Model], link: Link) -> str:
    """A condition: a later result is of the same input row."""
    quote, fields = dialect().quote, model._meta.fields
    same = [fields[name].column_name for name in link.result]
    empty = [fields[name].column_name for name in link.null]
    parts = [f"later.{quote(name)} = stored.{quote(name)}" for name in same]
    parts += [f"later.{quote(n)} IS NULL AND stored.{quote(n)} IS NULL" for n in empty]
    return " AND ".join(parts)


_CHANGES = re.compile(r"\s*(CREATE|ALTER|DROP|GRANT|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)

#: What does nothing where there is one of the name.
_IF_MISSING = re.compile(r'CREATE (UNIQUE )?(TABLE|INDEX) IF NOT EXISTS ("[^"]+"\.)?"([^"]+)"')


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The statements of a block that change the database, as they could be typed."""
    bound, statements, there = database.bound(), [], relations()
    execute: Callable[..., object] = bound.execute_sql

    def record(sql: str, parameters: object = None, *rest: object) -> object:
        cursor = execute(sql, parameters, *rest)
        created = _IF_MISSING.match(sql)
        exists = created and stored_name(created[4]) in there
        if _CHANGES.match(sql) and not exists:
            statements.append(literal(sql, parameters))
        return cursor

    bound.execute_sql = record  # type: ignore[method-assign]
    try:
        yield statements
    finally:
        del bound.execute_sql
