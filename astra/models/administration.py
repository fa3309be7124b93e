"""Create indexes and views for the administrator of a database, and record statements."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import peewee
from peewee import Model

from astra.database import postgresql_queries, queries
from astra.database.connection import database, dialect
from astra.database.inspection import literal, relations, stored_name
from astra.errors import DatabaseError
from astra.models.base import BaseModel, missing_indexes
from astra.models.keys import Link
from astra.models.pipeline import OutputModel, fitting_name

#: How long initdb waits for a table in use: all other processes wait behind it.
LOCK_TIMEOUT_S = 5


def one_at_a_time() -> None:
    """Let one process at a time complete tables, and limit how long it waits for those in use.

    Both are of the caller's transaction. SQLite has one writer at a time.
    """
    if dialect().name == "postgresql":
        dialect().run(postgresql_queries.LOCK_INITDB)
        dialect().run(postgresql_queries.LIMIT_WAITING, seconds=LOCK_TIMEOUT_S)


def index_while_in_use(models: Iterable[type[BaseModel]]) -> None:
    """Create the indexes that tables lack, one after the other, while others use the tables.

    It runs outside of any transaction, before the tables are completed, and does nothing on
    SQLite, which has one writer at a time.
    """
    engine = dialect()
    if engine.name != "postgresql":
        return
    for model in models:
        have = engine.columns(model)
        missing = list(missing_indexes(model)) if have else []
        if not missing or engine.other_owner(model):
            continue
        for name, columns, sql, parameters in missing:
            if have.keys() >= set(columns) and not parameters:
                # An earlier attempt may have left an invalid index.
                index = engine.table(model, stored_name(name))
                engine.run(postgresql_queries.DROP_INDEX, index=index)
                engine.run(sql.replace("INDEX IF NOT EXISTS", "INDEX CONCURRENTLY IF NOT EXISTS"))


def make_views(models: Iterable[type[BaseModel]]) -> list[str]:
    """Create a view TABLE_current of each table of results, with the newest version of each row."""
    views = []
    engine = dialect()
    for model in models:
        if not issubclass(model, OutputModel) or not (links := model.declared_links.values()):
            continue
        name = fitting_name(f"{model._meta.table_name}_current")
        view, table = engine.table(model, name), engine.table(model)
        current = " AND ".join(
            queries.IS_CURRENT.format(table=table, same_row=_same_row(model, link))
            for link in links
        )
        _replace_view(view, table, current)
        views.append(name)
    return views


def _replace_view(view: str, table: str, condition: str) -> None:
    """Create or replace a view; PostgreSQL keeps its grants, and others' views of it.

    Raises
    ------
    DatabaseError
        If its columns are not the first ones of its table, for example because one was renamed.
    """
    engine, create = dialect(), "CREATE OR REPLACE VIEW"
    if engine.name == "sqlite":
        create = "CREATE VIEW"
        engine.run(queries.DROP_VIEW, view=view)
    try:
        engine.run(queries.CREATE_VIEW, create=create, view=view, table=table, condition=condition)
    except peewee.ProgrammingError as error:
        if engine.denied(error):
            raise
        raise DatabaseError(
            f"the view {view} cannot be replaced: {engine.message(error)}; nothing was changed; "
            f"drop it (DROP VIEW {view}), and run this again"
        ) from error


def _same_row(model: type[Model], link: Link) -> str:
    """Return the condition that a later result is of the same input row."""
    quote, fields = dialect().quote, model._meta.fields
    same = [fields[name].column_name for name in link.result]
    empty = [fields[name].column_name for name in link.null]
    parts = [f"later.{quote(name)} = stored.{quote(name)}" for name in same]
    parts += [f"later.{quote(n)} IS NULL AND stored.{quote(n)} IS NULL" for n in empty]
    return " AND ".join(parts)


_CHANGES = re.compile(r"\s*(CREATE|ALTER|DROP|GRANT|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)

#: Statements that do nothing if an object of the name exists.
_IF_MISSING = re.compile(r'CREATE (UNIQUE )?(TABLE|INDEX) IF NOT EXISTS ("[^"]+"\.)?"([^"]+)"')


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Record the statements of a block that change the database, as they could be typed."""
    bound, statements, present = database.bound(), [], relations()
    execute: Callable[..., object] = bound.execute_sql

    def record(sql: str, parameters: object = None, *rest: object) -> object:
        cursor = execute(sql, parameters, *rest)
        created = _IF_MISSING.match(sql)
        exists = created and stored_name(created[4]) in present
        if _CHANGES.match(sql) and not exists:
            statements.append(literal(sql, parameters))
        return cursor

    bound.execute_sql = record  # type: ignore[method-assign]
    try:
        yield statements
    finally:
        del bound.execute_sql
