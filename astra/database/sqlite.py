"""SQLite: a file, or a database in memory, with one writer at a time."""

import json
import os
import re
import socket
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any
from urllib.parse import quote

import peewee
from peewee import SQL, fn

from astra.database import sqlite_queries as queries
from astra.database.dialect import no_moment
from astra.database.sqlite_writing import Writing
from astra.database.values import FORMED
from astra.database.values import check as check_value
from astra.errors import TaskError

#: Types of columns that may hold dates, with their times.
_DATED = frozenset(
    {"DATE", "DATETIME", "MOMENT", "TIMESTAMP", "TIMESTAMPTZ", "TEXT", "VARCHAR", "CHAR"}
)

#: Parts of the messages of temporary errors. "locking protocol" is that of a transaction that lost
#: a race with others for a log which a dead process has left.
_TRANSIENT = ("locked", "busy", "locking protocol", "disk I/O", "is full")


#: Decodes a text. For one that is not in UTF-8, it raises an error of a value; the driver itself
#: would raise an OperationalError, as for a file that cannot be read.
_decoded = partial(str, encoding="utf-8")


class _Savepoint(peewee._savepoint):
    def rollback(self, begin: bool = True) -> None:
        """Roll back; if SQLite has rolled back everything instead, say so, and why."""
        if not self.db.connection().in_transaction:
            raise peewee.OperationalError(
                f"{sys.exception()}; SQLite has rolled back the whole transaction for it, as "
                "a trigger or constraint with ROLLBACK has it do"
            )
        super().rollback(begin)


class _SQLiteDatabase(peewee.SqliteDatabase):
    """Opens a file only for reading if it, or its folder, may not be written.

    A file with a log is read with the log. A file without one has been closed by everybody, and is
    read as immutable, because SQLite cannot create a log in a folder that may not be written.
    """

    dialect: "SQLite"

    def savepoint(self) -> _Savepoint:
        return _Savepoint(self)

    def _connect(self) -> sqlite3.Connection:
        connection = self._opened()
        connection.text_factory = _decoded
        return connection

    def _opened(self) -> sqlite3.Connection:
        path = self.database
        if path == ":memory:" or not os.path.exists(path) or _is_writable(path):
            return super()._connect()  # type: ignore[misc]
        options = "mode=ro" if os.path.exists(f"{path}-wal") else "mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(
                f"file:{quote(path)}?{options}", uri=True, timeout=self._timeout,  # type: ignore[attr-defined]
                isolation_level=None, **self.connect_params,
            )  # fmt: skip
            connection.execute(queries.READ_SCHEMA)
        except sqlite3.OperationalError as error:
            raise sqlite3.OperationalError(
                f"{error}: you may only read this file or its folder, and its log ({path}-wal, "
                "-shm), which others are writing to, cannot be read"
            ) from error
        return connection

    def rollback(self) -> None:
        """Roll back, unless SQLite has done so itself, as it does if the disk is full."""
        if self.is_closed() or self.connection().in_transaction:
            super().rollback()


def rows_apart(path: str, query: Any) -> Iterator[Any]:
    """Read the rows of a query on a connection of their own, as they were when reading began.

    Which rows a cursor of SQLite returns is undefined while its connection writes. Whichever thread
    asks for a row reads it. A query for which that connection lacks something, such as a function
    that was registered or a temporary table, is read at once where it belongs.
    """
    apart = _SQLiteDatabase(path, thread_safe=False, timeout=30, check_same_thread=False)
    with apart.connection_context():
        try:
            rows = query.clone().bind(apart).iterator()
        except peewee.OperationalError as error:
            if "no such" not in str(error):
                raise
            rows = list(query)
        yield from rows


def _is_writable(path: str) -> bool:
    return os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)


@cache
def _max_arguments() -> int:
    """Return how many arguments a function of this SQLite takes."""
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.getlimit(sqlite3.SQLITE_LIMIT_FUNCTION_ARG)


class SQLite(Writing):
    name = "sqlite"
    queries = queries
    timestamp_type = "TEXT"
    with_room = None  # SQLite changes rows in place
    wanted_key = SQL("wanted.value")
    is_same = "IS"
    now_sql = queries.NOW

    def __init__(self, path: str) -> None:
        self.is_in_memory = path == ":memory:"
        self.path = path if self.is_in_memory else os.path.abspath(os.path.expanduser(path))
        self.url = "sqlite:///" + self.path
        self.database = _SQLiteDatabase(
            self.path,
            pragmas={"journal_mode": "wal", "foreign_keys": 1, "synchronous": 1},
            timeout=30,
        )
        self._targets = {}
        self.database.dialect = self

    def now(self) -> datetime:
        text = self.fetch_value(f"SELECT {self.now_sql}")
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    def connections_for(self, headroom: int) -> int:
        """Return a large number: a file has no limit of connections."""
        return 1000

    def is_transient(self, error: BaseException) -> bool:
        return isinstance(error, peewee.OperationalError) and any(
            text in str(error) for text in _TRANSIENT
        )

    def advice(self, message: str) -> str:
        """Describe what to check if the file cannot be opened."""
        return (
            "check that its folder is there and its disk not full, that it is a file that you may "
            "read and write, and ASTRA_DATABASE_URL, or [database] url"
        )

    @staticmethod
    def is_of_other_tables(error: BaseException) -> bool:
        return bool(re.match(r"no such (table|column)|table \S+ has no column", str(error)))

    @staticmethod
    def remedy(error: BaseException) -> str | None:
        """Describe what to do if a file that was opened cannot be written."""
        if "locked" in str(error) or "busy" in str(error):
            return (
                "another process is writing to the file: wait for its end (fuser shows which it is)"
            )
        return "make room on its disk" if "is full" in str(error) else None

    def is_lock(self, error: BaseException) -> bool:
        return isinstance(error, peewee.OperationalError) and "locked" in str(error)

    def is_rows_fault(self, error: BaseException) -> bool:
        if isinstance(error, peewee.ProgrammingError | peewee.InterfaceError):
            return "binding" in str(error)
        return isinstance(
            error,
            peewee.IntegrityError | peewee.DataError | ValueError | TypeError | OverflowError,
        )

    def is_tables_fault(self, error: BaseException, model: Any, columns: set[str]) -> bool:
        """Return whether a column that the model lacks needs a value, so that every row fails."""
        match = re.search(r"NOT NULL constraint failed: [^\n]+\.([^.\n]+)$", str(error))
        return match is not None and match[1] not in columns

    @staticmethod
    def is_triggers(error: BaseException) -> bool:
        cause = error.__cause__ or error.__context__ or error
        return getattr(cause, "sqlite_errorname", "") == "SQLITE_CONSTRAINT_TRIGGER"

    def message(self, error: BaseException) -> str:
        if isinstance(error, UnicodeDecodeError):
            return f"{error.object[:60]!r} is no text in UTF-8"
        return str(error).strip()

    def denied(self, error: BaseException) -> str | None:
        """Say so if the file may not be written: SQLite has no roles."""
        if "readonly" not in str(error):
            return None
        return f"you may not write this file, or its folder, which holds its log: {self.url}"

    def checked(self, field: peewee.Field, value: Any) -> Any:
        """Check a value in database form as PostgreSQL would: columns of SQLite accept any."""
        if isinstance(value, peewee.Function) and value.name == "json":
            (value,) = value.arguments or ()  # a document, which SQLite stores as text
        check_value(field, value)
        return value

    def keep_modified(self, model: Any, keys: Sequence[str], column: str) -> None:
        """Create triggers as on PostgreSQL, which also give every time the same format, because
        SQLite compares times as texts."""
        is_this_row = " AND ".join(f"{key} = NEW.{key}" for key in map(self.quote, keys))
        for suffix, keeper in self._keepers(model, column).items():
            trigger = self.quote(f"{model._meta.table_name}_modified_{suffix}")
            self.run(queries.DROP_TRIGGER, trigger=trigger)
            self.run(queries.CREATE_KEEPER, trigger=trigger, keeper=keeper, row=is_this_row)

    def _keepers(self, model: Any, column: str) -> dict[str, str]:
        """Return the triggers that keep a column, up to the condition for the row."""
        table, moment = self.table(model), self.quote(column)
        new, old = f"NEW.{moment}", f"OLD.{moment}"
        pattern = "GLOB '????-??-?? ??:??:??.??????'"
        form = f"({new} IS NULL OR {new} NOT {pattern})"
        later = (
            f"max({self.now_sql}, coalesce("
            f"strftime('%Y-%m-%d %H:%M:%f', {old}, '+0.001 seconds') || '000', ''))"
        )
        formed = f"coalesce(strftime('%Y-%m-%d %H:%M:%f', {new}) || '000', {self.now_sql})"
        # Times in this format compare as texts; one that a trigger is converting does not.
        back = f"{new} {pattern} AND {old} {pattern} AND {new} < {old}"
        keeps = f"{new} IS {old} OR ({back})"
        formed_later = f"CASE WHEN {formed} <= {old} THEN {later} ELSE {formed} END"
        return {
            suffix: queries.KEEPER.format(
                event=event, table=table, condition=when, column=moment, value=value
            )
            for suffix, event, when, value in (
                ("update", "UPDATE", keeps, later),
                ("form_insert", "INSERT", form, formed),
                ("form_update", "UPDATE", form, formed_later),
            )
        }

    def in_transaction(self) -> bool:
        return bool(self.database.connection().in_transaction)

    @staticmethod
    def begin_to_write(silence_s: float, waits: bool, is_durable: bool) -> dict[str, Any]:
        """Take the lock at the beginning: a transaction that has read cannot wait for it."""
        return {"lock_type": "IMMEDIATE"}

    def location(self, schema: str | None = None) -> str:
        """Identify the file."""
        if self.is_in_memory:
            return "memory"
        inode = os.stat(self.path).st_ino
        return f"the file {os.path.realpath(self.path)} (inode {inode}, {socket.gethostname()})"

    @staticmethod
    def is_same_location(stored: str, current: str) -> bool:
        """Return whether two places are the same, by the inode or by the path and the host.

        A renamed file keeps its inode, and one that was restored in its place has the same path.

        A copy on another filesystem may have the same inode: then the original still exists.
        """
        before, after = (
            re.fullmatch(r"the file (.*) \(inode (\d+)(?:, (.*))?\)", place, re.DOTALL)
            for place in (stored, current)
        )
        if stored == current or before is None or after is None:
            return stored == current
        if before[1] == after[1]:
            return before[2] == after[2] or before[3] in (None, after[3])
        is_left = os.path.exists(before[1]) and not os.path.samefile(before[1], after[1])
        return before[2] == after[2] and not is_left

    def among(self, field: Any, keys: Iterable[Any], item: str = "integer") -> peewee.Expression:
        return peewee.Expression(field, "IN", SQL(queries.LIST, (self.pack_list(keys, item),)))

    def type_of_lists(self, item: str) -> str:
        return "TEXT"

    list_text = staticmethod(json.dumps)

    def key_text(self, fields: Sequence[Any]) -> Any:
        if len(fields) == 1:
            return fields[0].cast("text")
        if len(fields) > (most := _max_arguments()):
            raise TaskError(
                f"{fields[0].model._meta.table_name}: its key has {len(fields)} columns, and "
                f"SQLite can compare at most {most}: give the table a key of fewer columns"
            )
        return fn.json_array(*fields).cast("text")

    def wanted_values(self, fields: Sequence[Any]) -> list[str]:
        if len(fields) == 1:
            return ["wanted.value"]
        return [f"json_extract(wanted.value, '$[{place}]')" for place in range(len(fields))]

    def may_be_written_differently(self, fields: Sequence[Any]) -> bool:
        return any(map(self.collation, fields))

    def may_change_keys(self, fields: Sequence[Any], stored: Sequence[Any]) -> bool:
        return any(field.field_type in FORMED for field in stored)

    def changed_keys(
        self,
        fields: Sequence[Any],
        stored: Sequence[Any],
        keys: Sequence[Any],
        values: Sequence[Sequence[Any]],
    ) -> list[int]:
        """Return the places of keys that results would store in another form."""
        formed = [n for n, field in enumerate(stored) if field.field_type in FORMED]
        parts = [[key] if len(fields) == 1 else json.loads(key) for key in keys]
        pairs = enumerate(zip(parts, values, strict=True))
        return [n for n, (part, row) in pairs if any(str(part[i]) != str(row[i]) for i in formed)]

    def collation(self, field: Any) -> str | None:
        """Return the collation of a column, if texts that differ may be equal by it."""
        if field.column_name not in self.columns(field.model):
            return None
        parts = {"column": self.quote(field.column_name), "table": self.table(field.model)}
        equal = self.fetch_column(queries.EQUAL_BY_COLLATION, **parts)
        return {"A": "NOCASE", "b ": "RTRIM"}[equal[0]] if equal else None

    def differing_types(self, one: Any, other: Any) -> tuple[str, str] | None:
        """Return None: SQLite compares values of any types."""
        return None

    def as_moment(self, field: Any) -> Any:
        """Convert a column of dates or times to the format in which moments are compared.

        A number would be taken for a Julian day.
        """
        if field.field_type not in _DATED:
            raise no_moment(field, field.field_type)
        return fn.strftime("%Y-%m-%d %H:%M:%f", field).concat("000")

    def nearest_moment(self, moment: Any) -> Any:
        """Return the moment: SQLite's functions know the years from 0000 to 9999."""
        return moment

    def rounded(self, moment: datetime) -> datetime:
        """Return a moment with the precision of SQLite's functions, milliseconds."""
        whole = (moment.microsecond + 500) // 1000 * 1000
        return moment + timedelta(microseconds=whole - moment.microsecond)

    def key_and_types(self, table: str, schema: str | None) -> tuple[list[str], dict[str, str]]:
        """Return the columns of a table's primary key; any value may be in any column."""
        return self.fetch_column(queries.PRIMARY_COLUMNS, (table,)), {}

    def schemas_of_table(self, table: str) -> list[str]:
        """Return the schemas that have a table of this name: SQLite has no schemas."""
        return []

    def unique_indexes(
        self, model: Any, columns: Sequence[str]
    ) -> Iterator[tuple[str | None, bool, bool]]:
        table, wanted = model._meta.table_name, set(columns)
        described = self.run(queries.KEY_COLUMNS, (table,)).fetchall()
        primary = [(name, kind.upper()) for name, kind, _, place in described if place]
        if len(primary) == 1 and primary == [(name, "INTEGER") for name in columns]:
            yield None, True, True  # the number of the row, which needs no index
        is_never_null = wanted <= {name for name, _, is_not_null, _ in described if is_not_null}
        for index, is_partial, sql in self.run(queries.UNIQUE_INDEXES, (table,)).fetchall():
            if set(self.fetch_column(queries.INDEX_COLUMNS, (index,))) == wanted:
                condition = re.split(r"(?i)\bWHERE\b", sql, maxsplit=1)[1] if is_partial else None
                yield condition, True, is_never_null

    def is_key_of_page(self, column: Any, key: Any) -> Any:
        keys, key = fn.json_each(column), peewee.Value(key, converter=False)
        return peewee.NodeList((key, SQL("IN (SELECT value FROM"), keys, SQL(")")))

    def freeze(
        self, query: Any, page: Any, plan_pk: int, limit: int, order: str, column: str
    ) -> tuple[int, int]:
        sql, parameters = query.sql()
        table = self.table(page)
        freeze = queries.FREEZE.format(page=table, keys=column, order=order, pending=sql)
        self.run(freeze, (plan_pk, limit, *parameters))
        if column == "key_texts":  # reading shows those that are no texts
            self.fetch_column(queries.KEYS_OF_PLAN, (plan_pk,), page=table, keys=column)
        pages, rows = self.run(queries.SIZE_OF_PLAN, (plan_pk,), page=table).fetchone()
        return int(pages), int(rows)

    def keeps_modified(self, model: Any, column: str) -> bool:
        """Return whether triggers of any names keep the column."""
        triggers = self.fetch_column(queries.TRIGGERS, (model._meta.table_name,))
        keepers = self._keepers(model, column).values()
        return all(any(f" {keeper} WHERE " in sql for sql in triggers) for keeper in keepers)

    @contextmanager
    def snapshot(self, models: Sequence[Any] = ()) -> Iterator[None]:
        with self.database.atomic():
            yield

    def other_owner(self, model: Any) -> str | None:
        """Return None: SQLite has no roles."""
        return None

    def catalogue_name(self, model: Any) -> str:
        return str(model._meta.table_name)

    def literal(self, value: Any) -> str:
        return str(self.fetch_value(queries.LITERAL, (value,)))

    def set_default(self, model: Any, field: peewee.Field, default: str) -> None:
        """Do nothing: SQLite sets a column's default when its table is created."""

    def create_schema(self, schema: str) -> None:
        """Do nothing: SQLite has no schemas."""
