"""Statements that are written once in a process, and executed with other parameters.

peewee takes about as long to write a statement as a server to answer it, and an element executes
the same few at each of its pages and checkpoints.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import peewee

from astra.database.connection import database


class _Parameter(str):
    """The name of a parameter, instead of its value."""

    __slots__ = ()


def statement(make: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Make a function that executes a query, and returns its rows, of one that makes it.

    The query is made once for each database, with placeholders as the keyword arguments: its form
    must not depend on their values. Neither these nor the rows are converted by peewee's fields.
    """

    @wraps(make)
    def execute(**values: Any) -> list[Any]:
        sql, parameters = _written(make, database.bound(), tuple(values))
        given = [values[p] if type(p) is _Parameter else p for p in parameters]
        # All of them: SQLite has not done an UPDATE before its last row was fetched.
        return database.execute_sql(sql, given).fetchall()

    return execute


@lru_cache(maxsize=64)
def _written(
    make: Callable[..., Any], bound: peewee.Database, names: tuple[str, ...]
) -> tuple[str, list[object]]:
    """Write a query for a database; each parameter is represented by its name."""
    query = make(**{name: peewee.Value(_Parameter(name), converter=False) for name in names})
    sql, parameters = query.bind(bound).sql()
    return sql, list(parameters)
