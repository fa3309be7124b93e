"""Inspect a database server: its version, its settings, and the rights of the role."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from astra.database.connection import dialect, schema

_SETTINGS = (
    "server_encoding", "fsync", "full_page_writes", "transaction_read_only", "statement_timeout",
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A server, or the library that reads a file."""

    name: str  # "PostgreSQL 15.3"
    least: str | None = None  # the oldest version that will do, where this one is older
    role: str | None = None
    most: int | None = None  # connections that the role may have
    used: int | None = None  # connections of everybody
    is_standby: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


def server() -> Server:
    """Describe the server of the open connection."""
    speaks = dialect()
    if speaks.name == "sqlite":
        import sqlite3

        (mode,) = speaks.run("PRAGMA journal_mode").fetchone()
        old = sqlite3.sqlite_version_info[:2] < (3, 35)
        name = f"SQLite {sqlite3.sqlite_version}"
        return Server(name, "3.35" if old else None, settings={"journal_mode": mode})
    number, role, used, standby = speaks.run(
        """SELECT current_setting('server_version_num')::int, current_user::text,
                  (SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL),
                  pg_is_in_recovery()"""
    ).fetchone()
    rows = speaks.run(
        "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(_SETTINGS),)
    ).fetchall()
    least = None if number >= 140_000 else "14"
    return Server(
        f"PostgreSQL {number // 10_000}.{number % 10_000}", least, role,
        speaks.connections_for(0), used, standby, dict(rows),
    )  # fmt: skip


def lacking(wanted: Iterable[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Those of (model, privilege) that the role of the connection lacks; tables exist.

    A privilege is as roles.py has it: ``UPDATE (a, b)`` is one of some columns.
    """
    speaks, asked = dialect(), list(wanted)
    if speaks.name == "sqlite":
        return []
    words = [privilege.split(" ")[0] for _, privilege in asked]
    rows = speaks.run(
        """SELECT place FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY
               AS wanted(name, privilege, place)
           WHERE NOT CASE WHEN privilege = 'DELETE' THEN has_table_privilege(name, 'DELETE')
                          ELSE has_any_column_privilege(name, privilege) END ORDER BY place""",
        ([speaks.table(model) for model, _ in asked], words),
    ).fetchall()
    return [asked[place - 1] for (place,) in rows]


def indexes(model: Any) -> set[str]:
    """The names of the valid indexes of a table."""
    speaks = dialect()
    if speaks.name == "sqlite":
        sql, parameters = "SELECT name FROM pragma_index_list(?)", (model._meta.table_name,)
    else:
        sql = """SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                 WHERE indrelid = to_regclass(%s) AND indisvalid"""
        parameters = (speaks.table(model),)
    return {name for (name,) in speaks.run(sql, parameters).fetchall()}


def literal(sql: str, parameters: Any) -> str:
    """A statement with its parameters written into it."""
    speaks = dialect()
    text = "\n".join(line.strip() for line in sql.strip().splitlines())
    if speaks.name == "sqlite":
        for value in parameters or ():
            (quoted,) = speaks.database.connection().execute("SELECT quote(?)", (value,)).fetchone()
            text = text.replace("?", quoted, 1)
    elif parameters:
        with speaks.database.connection().cursor() as cursor:
            text = cursor.mogrify(text, parameters).decode()
    return f"{text};"


def relations() -> set[str]:
    """The names of all tables, indexes and views that stand where astra's tables do."""
    speaks = dialect()
    if speaks.name == "sqlite":
        rows = speaks.run("SELECT name FROM sqlite_master")
    else:
        rows = speaks.run(
            """SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
               WHERE nspname = coalesce(%s, current_schema())""",
            (schema(),),
        )
    return {name for (name,) in rows.fetchall()}


def stored_name(name: str) -> str:
    """The name that an object has in the database: PostgreSQL cuts it after 63 bytes."""
    is_cut = dialect().name == "postgresql"
    return name.encode()[:63].decode(errors="ignore") if is_cut else name
