"""Inspect a database server: its version, its settings, and the rights of the role."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from astra.database import postgresql_queries, sqlite_queries
from astra.database.connection import dialect, schema
from astra.records import dataclass

_SETTINGS = (
    "server_encoding", "fsync", "full_page_writes", "transaction_read_only", "statement_timeout",
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A server, or the library that reads a file."""

    name: str  # "PostgreSQL 15.3"
    least: str | None = None  # the oldest supported version, where this one is older
    role: str | None = None
    max_connections: int | None = None  # connections that the role may have
    used: int | None = None  # connections of all roles
    is_standby: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


def server() -> Server:
    """Describe the server of the open connection."""
    engine = dialect()
    if engine.name == "sqlite":
        import sqlite3

        mode = engine.fetch_value(sqlite_queries.JOURNAL_MODE)
        old = sqlite3.sqlite_version_info[:2] < (3, 35)
        name = f"SQLite {sqlite3.sqlite_version}"
        return Server(name, "3.35" if old else None, settings={"journal_mode": mode})
    number, role, used, standby = engine.run(postgresql_queries.SERVER).fetchone()
    rows = engine.run(postgresql_queries.SERVER_SETTINGS, (list(_SETTINGS),)).fetchall()
    least = None if number >= 140_000 else "14"
    return Server(
        f"PostgreSQL {number // 10_000}.{number % 10_000}", least, role,
        engine.connections_for(0), used, standby, dict(rows),
    )  # fmt: skip


def lacking(privileges: Iterable[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Return those of (model, privilege) that the role of the connection lacks; tables exist.

    A privilege is written as in roles.py: ``UPDATE (a, b)`` is one of some columns.
    """
    engine, pairs = dialect(), list(privileges)
    if engine.name == "sqlite":
        return []
    names = [privilege.split(" ")[0] for _, privilege in pairs]
    tables = [engine.table(model) for model, _ in pairs]
    places = engine.fetch_column(postgresql_queries.LACKING, (tables, names))
    return [pairs[place - 1] for place in places]


def indexes(model: Any) -> set[str]:
    """Return the names of the valid indexes of a table."""
    engine = dialect()
    return set(engine.fetch_column(engine.queries.INDEXES, (engine.catalogue_name(model),)))


def literal(sql: str, parameters: Any) -> str:
    """Write the parameters of a statement into it."""
    engine = dialect()
    text = "\n".join(line.strip() for line in sql.strip().splitlines())
    if engine.name == "sqlite":
        for value in parameters or ():
            text = text.replace("?", engine.literal(value), 1)
    elif parameters:
        with engine.database.connection().cursor() as cursor:
            text = cursor.mogrify(text, parameters).decode()
    return f"{text};"


def relations() -> set[str]:
    """Return the names of all tables, indexes and views in the schema of astra's tables."""
    engine = dialect()
    if engine.name == "sqlite":
        return set(engine.fetch_column(sqlite_queries.RELATIONS))
    return set(engine.fetch_column(postgresql_queries.RELATIONS, (schema(),)))


def stored_name(name: str) -> str:
    """Return the name of an object as the database stores it: PostgreSQL keeps 63 bytes."""
    is_cut = dialect().name == "postgresql"
    return name.encode()[:63].decode(errors="ignore") if is_cut else name
