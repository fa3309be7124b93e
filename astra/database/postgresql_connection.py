"""Connections to PostgreSQL, with the settings by which values arrive unchanged."""

import sys
from datetime import UTC, date, datetime
from typing import Any

import peewee
from psycopg2.extensions import (
    PYDATE,
    PYDATETIME,
    PYDATETIMETZ,
    PYINTERVAL,
    encodings,
    new_type,
    register_type,
)

from astra.database import postgresql_queries as queries
from astra.database.dialect import peewee_errors
from astra.processes import open_descriptors


def _nearest(parse: Any, first: date, last: date) -> Any:
    """Return a type like another one, whose values that Python cannot represent become its first
    or last one."""

    def nearest(text: str | bytes | None, cursor: Any) -> Any:
        try:
            return parse(text, cursor)
        except ValueError:
            return first if str(text).endswith("BC") else last

    return new_type(parse.values, f"NEAREST_{parse.name}", nearest)


def _interval(text: str | bytes | None, cursor: Any) -> Any:
    """Return an interval; as text if it has months, whose length varies, or is too long."""
    if "mon" in str(text) or "year" in str(text):
        return text
    try:
        return PYINTERVAL(text, cursor)
    except OverflowError:
        return text


#: For values that Python cannot represent: the rows that hold them are still needed.
_NEAREST = (
    new_type(PYINTERVAL.values, "INTERVAL_OR_TEXT", _interval),
    _nearest(PYDATE, date.min, date.max),
    _nearest(PYDATETIME, datetime.min, datetime.max),
    _nearest(PYDATETIMETZ, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
)


class _Context(peewee.Context):
    """Escapes percent signs in names of columns, which the driver would take for parameters."""

    def sql(self, obj: Any) -> Any:
        if isinstance(obj, peewee.Entity) and any("%" in part for part in obj._path):
            obj = peewee.Entity(*(part.replace("%", "%%") for part in obj._path))
        return super().sql(obj)


class PostgresqlDatabase(peewee.PostgresqlDatabase):
    context_class = _Context
    dialect: Any
    schema: str | None = None  # that holds the tables; by default, that of the search_path
    was_open = False  # a login succeeded once: a later refusal may be temporary
    codec = "utf_8"  # of the server's encoding, once a connection was opened

    def _connect(self) -> Any:
        open_descriptors()
        connection = super()._connect()  # type: ignore[misc]
        self.was_open = True
        for nearest in _NEAREST:
            register_type(nearest, connection)
        self.codec = encodings.get(connection.get_parameter_status("server_encoding"), "utf_8")
        return connection

    def get_tables(self, schema: str | None = None) -> list[str]:
        """Return the names of all tables, also of foreign ones and of materialized views."""
        others = self.execute_sql(queries.OTHER_TABLES, (schema,)).fetchall()
        return [*super().get_tables(schema), *(name for (name,) in others)]

    def get_columns(self, table: str, schema: str | None = None) -> list[Any]:
        """Describe the columns of a table, also of a materialized view."""
        if columns := super().get_columns(table, schema):
            return list(columns)
        rows = self.execute_sql(queries.VIEW_COLUMNS, (table, schema)).fetchall()
        return [peewee.ColumnMetadata(name, kind, True, False, table, None) for name, kind in rows]

    def begin(
        self,
        isolation_level: str | None = None,
        silence_s: float | None = None,
        is_durable: bool = True,
    ) -> None:
        """Begin a transaction; with `silence_s`, one that ends if its client is silent for so long.

        Settings of the transaction work behind PgBouncer too, and are sent in the same message.
        """
        if silence_s is None:
            super().begin(isolation_level)
            return
        with peewee_errors:
            level = f" ISOLATION LEVEL {isolation_level}" if isolation_level else ""
            cursor = self.cursor()
            # The driver decides how it quotes texts when it connects.
            escapes = cursor.mogrify("%s", ("",)).startswith(b"E")
            settings = queries.WRITE_SETTINGS.format(standard="off" if escapes else "on")
            begin = f"BEGIN{level}; {settings}; {ends_after(silence_s)}"
            if not is_durable:
                begin += f"; {queries.NOT_DURABLE}"
            cursor.execute(begin)

    def rollback(self) -> None:
        """Roll back; after Ctrl-C, which has closed the connection of a statement, that is done."""
        interrupted = isinstance(sys.exception(), KeyboardInterrupt)
        try:
            super().rollback()
        except peewee.OperationalError:
            if not interrupted:
                raise


def ends_after(silence_s: float) -> str:
    """Write the settings of a transaction that ends if its client is silent for so long."""
    max_s = max(round(silence_s), 4)
    return queries.SILENCE_SETTINGS.format(
        silence_ms=max(round(silence_s * 1000), 1),
        tcp_ms=max_s * 1000,
        idle_s=max_s // 2,
        interval_s=max(max_s // 8, 1),
    )
