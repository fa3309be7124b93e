"""PostgreSQL: its SQL, its errors, its roles, and COPY."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import peewee
import psycopg2
from peewee import SQL
from psycopg2.extensions import (
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
)

from astra.database.dialect import (
    Denied,
    adding_column,
    dialects,
    is_condition,
    peewee_errors,
)
from astra.database.locks import Holder, RowLock
from astra.database.postgresql_connection import PostgresqlDatabase, ends_after
from astra.database.postgresql_keys import Keys
from astra.database.timeouts import PatientCursor

#: SQLSTATEs of a world that may be better in a moment: connection, resources, shutdown,
#: rollbacks by serialisation or deadlock, lock and idle timeouts, a server that recovers or
#: has become read-only after a failover (PostgreSQL manual, appendix A).
_TRANSIENT = ("08", "40", "53", "57", "25P03", "25006", "55P03")

_LOCKED = (
    "others use the same tables at this moment: run it again, best while no elements run (astra "
    "status); in pg_stat_activity it is seen who does"
)

#: What to do where such a state lasts.
_REMEDIES = {
    "40": _LOCKED,
    "55P03": _LOCKED,
    "57014": f"a statement_timeout is too short, or {_LOCKED}",
    "53100": "the server's disk is full: have its administrator make room, then run it again",
    "25006": "the server is read-only, as a standby is: name the primary in ASTRA_DATABASE_URL",
}

#: SQLSTATEs that are a value's own fault: data, integrity, raised by a trigger.
_ROWS_FAULT = ("22", "23", "P0001", "54")


def _sqlstate(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, psycopg2.Error):
            return error.pgcode
        error = error.__cause__ or error.__context__
    return None


def _driver_error(error: BaseException | None) -> BaseException | None:
    while error is not None and not isinstance(error, psycopg2.Error):
        error = error.__cause__ or error.__context__
    return error


#: Whose work a table is, by what is done to it; every other is one of results.
_PLANNERS = {"plan", "submission", "exclusion", "night", "night_plan", "astra_lock"}

_PAGE_OF_ELEMENTS = re.compile(r"\bSET\b.*?\"(outcomes|attempt_pk)\" =", re.DOTALL)


def _kind(words: str, statement: str) -> str | None:
    """The kind of role (see roles.py) that a refused statement is the work of."""
    if "must be owner" in words or "to create" in words:
        return None
    verb = re.search(r"\b(INSERT|UPDATE|DELETE|CREATE|ALTER|GRANT|DROP)\b", statement)
    if verb is None:
        return "reads"
    if verb[0] not in ("INSERT", "UPDATE", "DELETE"):
        return None
    table = words.rpartition(" ")[2].strip('"').removesuffix("_pk_seq")
    if table == "page":
        return "writes" if _PAGE_OF_ELEMENTS.search(statement) else "plans"
    return "plans" if table in _PLANNERS else "writes"


def _keeper_of(column: str) -> str:
    """The name of the function that keeps a column, as PostgreSQL cuts it."""
    return f"astra_keep_{column}".encode()[:63].decode(errors="ignore")


class PostgreSQL(Keys):
    name = "postgresql"

    def __init__(self, url: str, connect_timeout_s: int) -> None:
        self.url = url
        given = parse_qs(urlsplit(url).query)
        # Half-open connections are noticed in about a minute instead of two hours.
        defaults = {
            "connect_timeout": connect_timeout_s,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
            "application_name": "astra",
            "client_encoding": "UTF8",
        }
        # A server, or a proxy before it, that keeps a connection open and is silent: timeouts.py.
        options: dict[str, Any] = {"cursor_factory": PatientCursor}
        options |= {key: value for key, value in defaults.items() if key not in given}
        self.database: PostgresqlDatabase = PostgresqlDatabase(url, **options)
        self._types: dict[str, dict[str, str]] = {}
        self._seen_columns: dict[str, list[tuple[Any, ...]]] = {}
        self._sequences: dict[str, str | None] = {}
        self._is_plain: dict[str, bool] = {}
        dialects[self.database] = self

    def storable(self, text: str) -> str:
        codec = self.database.codec
        if codec in ("utf_8", "ascii"):  # a database in SQL_ASCII takes any bytes
            return text
        return text.encode(codec, "backslashreplace").decode(codec)

    timestamp_type = "TIMESTAMPTZ"
    keys_type = "BIGINT[]"
    key_texts_type = "TEXT[]"
    wanted_key = SQL("wanted.key")
    is_same = "IS NOT DISTINCT FROM"
    now_sql = "clock_timestamp()"

    def now(self) -> datetime:
        return self.run("SELECT clock_timestamp()").fetchone()[0].astimezone(UTC)

    def connections_for(self, headroom: int) -> int:
        """How many connections the server has for this role, less some for others."""
        (most,) = self.run(
            """
            SELECT least(
                current_setting('max_connections')::int
                    - current_setting('superuser_reserved_connections')::int
                    - coalesce(current_setting('reserved_connections', true), '0')::int,
                (SELECT nullif(datconnlimit, -1) FROM pg_database
                 WHERE datname = current_database()),
                (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user))"""
        ).fetchone()
        return max(int(most) - headroom, 0)

    def is_transient(self, error: BaseException) -> bool:
        """Whether the same work may succeed in a moment."""
        code = _sqlstate(error)
        if code is None:  # libpq's own: the connection failed, or was lost
            return isinstance(error, peewee.OperationalError | peewee.InterfaceError) and (
                self.database.was_open or not _is_refused_login(str(error))
            )
        return code.startswith(_TRANSIENT) and not self.is_triggers(error)

    @staticmethod
    def remedy(error: BaseException) -> str | None:
        """What to do about what a server said that answers, and does not do the work."""
        code = _sqlstate(error) or ""
        return next((said for begin, said in _REMEDIES.items() if code.startswith(begin)), None)

    def advice(self, message: str) -> str:
        """What to look at when the server gave no connection."""
        where = "ASTRA_DATABASE_URL, or [database] url"
        if "does not exist" in message and "database" in message:
            return f"make it (createdb), or name another in {where}"
        if _is_refused_login(message):
            return (
                f"the server runs, but refused the login: check the user in {where}, and the "
                "password (~/.pgpass)"
            )
        return f"check that the server runs and {where}"

    def is_lock(self, error: BaseException) -> bool:
        """Whether another only holds a lock, and the connection is whole."""
        return False  # the server waits for locks by itself

    def is_rows_fault(self, error: BaseException) -> bool:
        """Whether one value is to blame, so that the other rows can be stored."""
        code = _sqlstate(error)
        if code is None:
            return isinstance(error, ValueError | TypeError | OverflowError | peewee.DataError)
        return code.startswith(_ROWS_FAULT) or self.is_triggers(error)

    def is_tables_fault(self, error: BaseException, columns: set[str]) -> bool:
        """Whether a column that the model does not have wants a value, so that no row fits."""
        cause = _driver_error(error)
        if _sqlstate(error) != "23502" or not isinstance(cause, psycopg2.Error):
            return False
        return cause.diag.column_name not in columns

    @staticmethod
    def is_triggers(error: BaseException) -> bool:
        """Whether a trigger refused the row, in words and with a SQLSTATE of its own choosing."""
        cause = _driver_error(error)
        source = cause.diag.source_function if isinstance(cause, psycopg2.Error) else None
        return source in ("exec_stmt_raise", "exec_stmt_assert")

    def denied(self, error: BaseException) -> Denied | None:
        """What the role lacks, if that is what the server says."""
        if _sqlstate(error) != "42501":
            return None
        cause = _driver_error(error)
        # Not "Nobody": the login is known also where nothing can be asked any more.
        info = self.database.connection().info
        statement = getattr(getattr(cause, "cursor", None), "query", None) or b""
        words = self.message(error)
        return Denied(info.user, f"may not do this: {words},", _kind(words, statement.decode()))

    def message(self, error: BaseException) -> str:
        """The server's own words, without the statement that they quote."""
        cause = _driver_error(error)
        if isinstance(cause, psycopg2.Error) and cause.diag.message_primary:
            detail = cause.diag.message_detail
            return cause.diag.message_primary + (f" ({detail})" if detail else "")
        return str(error).strip()

    # -- tables -------------------------------------------------------------------------

    def keep_modified(self, model: Any, keys: Sequence[str], column: str) -> None:
        """A trigger: an update that does not set the column sets it by the server's clock.

        It never stays, and never goes back: no change can hide behind the time of a row that
        somebody had loaded before, and saved later.
        """
        table = self.table(model)
        prefix = self.quote(model._meta.schema) + "." if model._meta.schema else ""
        function = prefix + self.quote(_keeper_of(column))
        # In UTC, as which a column is read whose type has no time zone.
        self.run(f"""
            CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
            LANGUAGE plpgsql SET timezone = 'UTC' AS $${self._keeping(column)}$$""")
        self.run(f"""
            CREATE OR REPLACE TRIGGER astra_keep_modified BEFORE INSERT OR UPDATE ON {table}
            FOR EACH ROW EXECUTE FUNCTION {function}()""")
        # Also for changes that arrive by replication, or by session_replication_role = replica.
        self.run(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER astra_keep_modified")

    def _keeping(self, column: str) -> str:
        """The body of the function that keeps a column."""
        name = self.quote(column)
        return f"""
            BEGIN
                IF TG_OP = 'INSERT' THEN
                    NEW.{name} := coalesce(NEW.{name}, clock_timestamp());
                ELSIF NEW.{name} IS NULL OR NEW.{name} <= OLD.{name} THEN
                    NEW.{name} := greatest(
                        clock_timestamp(), OLD.{name} + interval '1 microsecond');
                END IF;
                RETURN NEW;
            END """

    def keeps_modified(self, model: Any, column: str) -> bool:
        """Whether a trigger that is enabled keeps the column, whatever it is called."""
        found = self.run(
            """SELECT 1 FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
               WHERE tgrelid = to_regclass(%s) AND NOT tgisinternal AND tgenabled IN ('O', 'A')
                 AND tgtype & 19 = 19 AND tgqual IS NULL AND tgattr = ''
                 AND proname = %s AND prosrc = %s""",
            (self.table(model), _keeper_of(column), self._keeping(column)),
        )
        return found.fetchone() is not None

    def has_unique(self, model: Any, columns: Sequence[str], where: str) -> bool:
        """Whether a valid index keeps these columns unique, whatever it is called.

        One with a condition counts if it is `where`, or nothing but that no key is NULL.
        """
        found = self.run(
            """SELECT pg_get_expr(indpred, indrelid) FROM pg_index
               WHERE indrelid = to_regclass(%s) AND indisunique AND indisvalid AND indisready
                 AND indimmediate AND indexprs IS NULL
                 AND (SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute
                      WHERE attrelid = indrelid
                        AND attnum = ANY((indkey::int2[])[0:indnkeyatts - 1])) = %s""",
            (self.table(model), sorted(columns)),
        ).fetchall()
        return any(is_condition(condition, where) for (condition,) in found)

    @contextmanager
    def snapshot(self, models: Sequence[Any] = ()) -> Iterator[None]:
        """A transaction that reads, and sees one state of the database throughout.

        No table of `models` is altered in it: one that was written anew after the snapshot was
        taken looks empty in it. A lock is taken without one.
        """
        with self.database.atomic():
            self.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            for model in models:
                self.run(f"LOCK TABLE {self.table(model)} IN ACCESS SHARE MODE")
            yield

    def columns(self, model: Any) -> set[str]:
        """The names of a table's columns; none where there is no such table."""
        rows = self.run(
            """SELECT attname FROM pg_attribute
               WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped""",
            (self.table(model),),
        )
        return {name for (name,) in rows.fetchall()}

    def other_owner(self, model: Any) -> str | None:
        """The role that a table belongs to, where it is not ours."""
        found = self.run(
            """SELECT pg_get_userbyid(relowner) FROM pg_class
               WHERE oid = to_regclass(%s) AND NOT pg_has_role(relowner, 'USAGE')""",
            (self.table(model),),
        ).fetchone()
        return found[0] if found else None

    def add_column(self, model: Any, field: peewee.Field, default: Any) -> None:
        """A column that rows which are there get this value for."""
        with self.database.connection().cursor() as cursor:
            literal = cursor.mogrify("%s", (default,)).decode()
        self._types.pop(self.table(model), None)
        self.run(adding_column(self, model, field, default, literal.replace("%", "%%")))

    def set_default(self, model: Any, field: peewee.Field, default: str) -> None:
        """Give a column that was made without it the database's own default."""
        table, column = self.table(model), field.column_name
        has_one = (
            "SELECT atthasdef FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s"
        )
        if not self.run(has_one, (table, column)).fetchone()[0]:
            name, value = self.quote(column), default.replace("%", "%%")
            self.run(f"ALTER TABLE {table} ALTER {name} SET DEFAULT {value}")

    def leave_room(self, model: Any) -> None:
        """Half of each block is left to later versions of its rows, which then stay in it: an
        update writes to no index."""
        has_it = "SELECT 'fillfactor=50' = ANY(reloptions) FROM pg_class WHERE oid = %s::regclass"
        if not self.run(has_it, (self.table(model),)).fetchone()[0]:
            self.run(f"ALTER TABLE {self.table(model)} SET (fillfactor = 50)")

    def compress_quickly(self, model: Any, field: peewee.Field) -> None:
        """Lists of keys are long enough to be compressed: with LZ4, where the server has it."""
        table, column = self.table(model), field.column_name
        known = "SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = %s"
        has_lz4 = self.run(known, ("default_toast_compression",)).fetchone()
        if not has_lz4 or not has_lz4[0]:
            return
        set_so = """SELECT attcompression = 'l' FROM pg_attribute
                    WHERE attrelid = %s::regclass AND attname = %s"""
        if not self.run(set_so, (table, column)).fetchone()[0]:
            self.run(f"ALTER TABLE {table} ALTER {self.quote(column)} SET COMPRESSION lz4")

    def create_schema(self, schema: str) -> None:
        exists = self.run("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone()
        if not exists:
            self.run(f"CREATE SCHEMA IF NOT EXISTS {self.quote(schema)}")

    # -- roles --------------------------------------------------------------------------

    def session_role(self) -> str | None:
        """The role that this process has logged in as."""
        return str(self.run("SELECT session_user").fetchone()[0])

    def roles(self) -> list[str]:
        rows = self.run("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'").fetchall()
        return [name for (name,) in rows]

    def granted(self, model: Any, privilege: str) -> list[str]:
        """The roles, but for the owner, that were given this of a table by name."""
        rows = self.run(
            """SELECT rolname FROM pg_class, aclexplode(relacl) AS given, pg_roles
               WHERE pg_class.oid = %s::regclass AND pg_roles.oid = given.grantee
                 AND given.grantee <> relowner AND privilege_type = %s ORDER BY rolname""",
            (self.table(model), privilege),
        ).fetchall()
        return [name for (name,) in rows]

    def may(self, role: str, model: Any, privilege: str) -> bool:
        found = self.run(
            "SELECT has_table_privilege(%s, %s, %s)", (role, self.table(model), privilege)
        )
        return bool(found.fetchone()[0])

    def grant_schema(self, role: str, model: Any) -> None:
        """The schema of a table may be used, and tables made in it later by us be read."""
        to = self._role(role)
        schema = self.run(
            """SELECT quote_ident(nspname), pg_has_role(nspowner, 'USAGE')
               FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
               WHERE pg_class.oid = %s::regclass""",
            (self.table(model),),
        )
        name, ours = schema.fetchone()
        name = name.replace("%", "%%")
        if ours:  # of the schema "public" everybody has it
            self.run(f"GRANT USAGE ON SCHEMA {name} TO {to}")
        self.run(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT SELECT ON TABLES TO {to}")

    def grant(self, role: str, model: Any, privilege: str) -> None:
        """One privilege on a table; with INSERT, the sequence that its keys come from."""
        to, table = self._role(role), self.table(model)
        self.run(f"GRANT {privilege} ON TABLE {table} TO {to}")
        if privilege.startswith("INSERT") and model._meta.primary_key:
            key = model._meta.primary_key.column_name
            found = self.run("SELECT pg_get_serial_sequence(%s, %s)", (table, key)).fetchone()
            if found and found[0]:
                sequence = found[0].replace("%", "%%")
                self.run(f"GRANT USAGE ON SEQUENCE {sequence} TO {to}")

    def _role(self, role: str) -> str:
        """A role's name as SQL takes it, doubled for the driver where it needs that."""
        return self.run("SELECT quote_ident(%s)", (role,)).fetchone()[0].replace("%", "%%")

    # -- locks --------------------------------------------------------------------------

    def in_transaction(self) -> bool:
        """Whether this thread's connection is in a transaction, however it was begun."""
        status = self.database.connection().info.transaction_status
        return status in (TRANSACTION_STATUS_INTRANS, TRANSACTION_STATUS_INERROR)

    @staticmethod
    def begin_to_write(silence_s: float) -> dict[str, Any]:
        """How ``atomic()`` begins a transaction that takes locks."""
        return {"silence_s": silence_s}

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One holder at a time, until the end of the transaction that this block is in.

        For what is done before there are tables; everything else has a lock of its own in one.
        """
        self.run("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"astra {name}",))
        yield

    def _row_lock(self, table: str, name: str, holder: Holder, silence_s: float) -> RowLock:
        silence_s = max(silence_s, 4.0)
        connect = partial(psycopg2.connect, self.database.database, **self.database.connect_params)
        return RowLock(connect, table, name, holder, ends_after(silence_s), silence_s)

    def place(self, schema: str | None = None) -> str:
        """Which tables of which database of which server these are, whoever asks.

        A schema that was copied within its database, or restored into it, has other tables.
        """
        sql = """SELECT system_identifier, d.oid, c.oid
            FROM pg_control_system(), pg_database AS d
            LEFT JOIN (pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace)
                ON relname = 'astra_archive' AND nspname = coalesce(%s, current_schema())
            WHERE datname = current_database()"""
        server, number, table = self.run(sql, (schema,)).fetchone()
        return f"the database {number} of the PostgreSQL server {server}, table {table}"

    @staticmethod
    def is_same_place(stored: str, here: str) -> bool:
        """What was stored without its table is known by its database."""
        return here == stored or here.startswith(f"{stored},")

    def sign_lock(self, table: str, name: str, holder: Holder, silence_s: float) -> bool:
        """Write down who is about to wait for a lock; False if somebody holds it."""
        with peewee_errors():
            return self._row_lock(table, name, holder, silence_s).sign()

    def wait_for_row(self, table: str, name: str) -> None:
        """Lock the row of a lock until the transaction ends, once its holder has ended."""
        self.run(f"SELECT true FROM {table} WHERE name = %s FOR UPDATE", (name,))

    @contextmanager
    def try_lock(self, table: str, name: str, holder: Holder, silence_s: float) -> Iterator[bool]:
        """Whether the lock is ours, for the block; released when its holder dies or is silent."""
        held = self._row_lock(table, name, holder, silence_s)
        with peewee_errors():
            ours = held.take()
        try:
            yield ours
        finally:
            held.release()


def _is_refused_login(message: str) -> bool:
    return any(
        words in message
        for words in ("password authentication failed", "no password supplied", "pg_hba.conf")
    ) or ("FATAL" in message and "does not exist" in message)
