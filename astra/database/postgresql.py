"""PostgreSQL: its SQL, its errors, its roles, and COPY."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from shlex import quote
from typing import Any

import peewee
import psycopg2
from peewee import SQL
from psycopg2.extensions import (
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
    parse_dsn,
)

from astra.config.secrets import hide
from astra.database import postgresql_queries as queries
from astra.database.postgresql_connection import PostgresqlDatabase
from astra.database.postgresql_keys import Keys
from astra.database.postgresql_writing import Target
from astra.database.statement_timeout import PatientCursor
from astra.errors import DatabaseError
from astra.processes import process_label

#: SQLSTATEs of temporary conditions: connection, resources, shutdown, serialization failures and
#: deadlocks, timeouts of locks and transactions, a server that is in recovery, or read-only after a
#: failover (PostgreSQL manual, appendix A).
_TRANSIENT = ("08", "40", "53", "57", "25P03", "25P04", "25006", "55P03")

_LOCKED = (
    "other sessions are using the same tables, and pg_stat_activity shows which: run it again, "
    "best while no elements run (astra status)"
)

#: What to do if such a condition persists, or others that no row is to blame for.
_REMEDIES = {
    "40": _LOCKED,
    "55P03": _LOCKED,
    "57014": f"a statement_timeout is too short, or {_LOCKED}",
    "25P04": f"a transaction_timeout is too short, or {_LOCKED}",
    "53100": "the server's disk is full: have its administrator make room, then run it again",
    "54": "PostgreSQL has such limits: declare fewer columns, of keys up to 30",
    "55": "have the owner of that table allow it, then run it again",
    "58": "have the server's administrator look at its log and its disks, then run it again",
    "25006": "the server is read-only, as a standby is: name the primary in ASTRA_DATABASE_URL; or "
    "this role or database is (default_transaction_read_only): have its administrator reset that "
    "(PgBouncer keeps it until RECONNECT)",
}

#: What to do if the server answers, but gives no connection.
_NO_CONNECTION = {
    r"too many (connections|clients)|connection slots|no more connections": (
        "the server has no free connection: try again, or have its administrator allow more; "
        "astra throttle and astra pause let elements use fewer"
    ),
    r"not (currently|yet) accepting connections|(is starting up|is shutting down|recovery mode)$": (
        "the server starts or stops, or its administrator has closed the database: try again later"
    ),
}

#: What a role may not use, as the server says in English or German.
_DENIED = r"(?i) f[oü]r (schema|database|Datenbank) (.+)$"

#: What the server itself says of a login, in its own language: its severity comes first.
_ANSWER = r" failed: \w+\s?:  "

#: SQLSTATEs for which one value is to blame: data, integrity, raised by a trigger.
_ROWS_FAULT = ("22", "23", "P0001", "54")


def _driver_error(error: BaseException | None) -> BaseException | None:
    while error is not None and not isinstance(error, psycopg2.Error):
        error = error.__cause__ or error.__context__
    return error


def _sqlstate(error: BaseException) -> str | None:
    return getattr(_driver_error(error), "pgcode", None)


#: The tables that planners change; elements change all others.
_PLANNERS = {"plan", "submission", "exclusion", "night", "night_plan", "astra_lock"}

_PAGE_OF_ELEMENTS = re.compile(r"\bSET\b.*?\"(outcomes|attempt_pk)\" =", re.DOTALL)


def _identifier(name: str) -> str:
    """Return the name of a schema, database or role as SQL that a message shows has it."""
    return '"' + name.replace('"', '""') + '"'


def _kind(message: str, statement: str) -> str | None:
    """Return the kind of role (see roles.py) that may run a refused statement."""
    if "must be owner" in message or "to create" in message:
        return None
    verb = re.search(r"\b(INSERT|UPDATE|DELETE|CREATE|ALTER|GRANT|DROP)\b", statement)
    if verb is None:
        return "reads"
    if verb[0] not in ("INSERT", "UPDATE", "DELETE"):
        return None
    table = message.rpartition(" ")[2].strip('"').removesuffix("_pk_seq")
    if table == "page":
        return "writes" if _PAGE_OF_ELEMENTS.search(statement) else "plans"
    return "plans" if table in _PLANNERS else "writes"


def _keeper_of(column: str) -> str:
    """Return the name of the function that keeps a column, as PostgreSQL truncates it."""
    return f"astra_keep_{column}".encode()[:63].decode(errors="ignore")


class PostgreSQL(Keys):
    name = "postgresql"

    def __init__(self, url: str, connect_timeout_s: int) -> None:
        """Describe the database of a URL; raise ValueError if libpq cannot read it."""
        self.url = url
        try:
            parameters = parse_dsn(url)
        except psycopg2.ProgrammingError as error:
            raise ValueError(str(error)) from error
        # Several hosts may have several ports. libpq refuses a wrong one only when it connects, and
        # that would count as an outage.
        for port in filter(None, parameters.get("port", "").split(",")):
            if not 0 < int(port) < 65536:
                raise ValueError(f"there is no port {port}")
        # Half-open connections are noticed in about a minute instead of two hours.
        defaults = {
            "connect_timeout": connect_timeout_s,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
            "application_name": f"astra {process_label()}",
        }
        # statement_timeout.py limits how long a server, or a proxy in front of it, may be silent.
        # Texts are sent in UTF-8, whatever encoding the URL names: the server converts them.
        options: dict[str, Any] = {"cursor_factory": PatientCursor, "client_encoding": "UTF8"}
        options |= {key: value for key, value in defaults.items() if key not in parameters}
        # libpq knows both names of the scheme, peewee only one.
        self.database: PostgresqlDatabase = PostgresqlDatabase(
            url.replace("postgres://", "postgresql://", 1), **options
        )
        self._types: dict[str, dict[str, str]] = {}
        self._targets: dict[tuple[str, ...], Target] = {}
        self.database.dialect = self

    def storable(self, text: str) -> str:
        codec = self.database.codec
        if codec in ("utf_8", "ascii"):  # a database in SQL_ASCII stores any bytes
            return text
        return text.encode(codec, "backslashreplace").decode(codec)

    queries = queries
    timestamp_type = "TIMESTAMPTZ"
    #: Half of each block is left for new versions of its rows, so that updates change no index.
    with_room = "WITH (fillfactor = 50)"
    wanted_key = SQL("wanted.key")
    is_same = "IS NOT DISTINCT FROM"
    now_sql = "clock_timestamp()"

    def now(self) -> datetime:
        return self.fetch_value(f"SELECT {self.now_sql}").astimezone(UTC)

    def connections_for(self, headroom: int) -> int:
        """Return how many connections this role may use, except those that are left to others."""
        return max(int(self.fetch_value(queries.CONNECTION_LIMIT)) - headroom, 0)

    def is_transient(self, error: BaseException) -> bool:
        """Return whether the same work may succeed in a moment."""
        code = _sqlstate(error)
        if code is None:  # an error of libpq: the connection failed, or was lost
            # psycopg2 raises a bare DatabaseError if it sees a lost connection by an empty result.
            is_lost = isinstance(error, peewee.OperationalError | peewee.InterfaceError)
            return (is_lost or type(error) is peewee.DatabaseError) and (
                self.database.was_open or not _is_refused_login(str(error))
            )
        return code.startswith(_TRANSIENT) and not self.is_triggers(error)

    @staticmethod
    def is_of_other_tables(error: BaseException) -> bool:
        """Return whether a table, a column, or a type that can be compared, is missing."""
        return _sqlstate(error) in ("42P01", "42703", "42883", "42804")

    @staticmethod
    def remedy(error: BaseException) -> str | None:
        """Describe what to do if the server answers, but refuses to work."""
        code = _sqlstate(error) or ""
        return next((text for begin, text in _REMEDIES.items() if code.startswith(begin)), None)

    def advice(self, message: str) -> str:
        """Describe what to check if no connection can be opened."""
        setting = "ASTRA_DATABASE_URL, or [database] url"
        if "does not exist" in message and "database" in message:
            return f"create it (createdb), or name another in {setting}"
        for found, text in _NO_CONNECTION.items():
            if re.search(found, message):
                return text
        if _is_refused_login(message) or re.search(_ANSWER, message):
            return (
                "the server runs, but refused the login: check the user and the database in "
                f"{setting}, and the password (~/.pgpass)"
            )
        return (
            f"check that the server runs and {setting}; if that is PgBouncer's, that its pool_mode "
            "is not statement"
        )

    def is_lock(self, error: BaseException) -> bool:
        """Return whether only a lock is held by another, and the connection is intact."""
        return False  # the server waits for locks by itself

    def is_rows_fault(self, error: BaseException) -> bool:
        """Return whether one value is to blame, so that the other rows can be stored."""
        code = _sqlstate(error)
        if code is None:
            return isinstance(error, ValueError | TypeError | OverflowError | peewee.DataError)
        return code.startswith(_ROWS_FAULT) or self.is_triggers(error)

    def is_tables_fault(self, error: BaseException, model: Any, columns: set[str]) -> bool:
        """Return whether no value of these columns is to blame, so that other rows may fail, too.

        A column that the model lacks needs a value, a constraint is on such columns alone, a
        partition is missing, or the sequence of the primary key has ended.
        """
        cause, code = _driver_error(error), _sqlstate(error) or ""
        if not isinstance(cause, psycopg2.Error) or self.is_triggers(error):
            return False
        if not code.startswith("23"):
            return code == "2200H"
        diag = cause.diag
        if diag.column_name is not None:
            return diag.column_name not in columns
        if diag.constraint_name is None or diag.table_name is None:
            return diag.table_name is not None  # a partition is missing; or a domain's constraint
        names = (diag.schema_name, diag.table_name, diag.constraint_name, self.table(model))
        constrained = self.fetch_column(queries.CONSTRAINED_COLUMNS, names)
        return bool(constrained) and columns.isdisjoint(constrained)

    @staticmethod
    def is_triggers(error: BaseException) -> bool:
        """Return whether a trigger refused the row, whatever SQLSTATE it used, or a policy did."""
        cause = _driver_error(error)
        source = cause.diag.source_function if isinstance(cause, psycopg2.Error) else None
        return source in ("exec_stmt_raise", "exec_stmt_assert", "ExecWithCheckOptions")

    def denied(self, error: BaseException) -> str | None:
        """Say which right the role lacks, and who can grant it, if the error is about one."""
        if _sqlstate(error) != "42501":
            return None
        # From the connection: after an error, the transaction runs no more queries.
        role, message = self.database.connection().info.user, self.message(error)
        statement = getattr(getattr(_driver_error(error), "cursor", None), "query", None) or b""
        remedy = "only the owner of the tables, who created them with astra initdb, may do this"
        found = re.search(_DENIED, message)
        kind = _kind(message, statement.decode())
        own_schemas = (getattr(self.database, "schema", None), "public")
        if kind == "reads" and found and found[2] not in own_schemas:
            schema, to = _identifier(found[2]), _identifier(role)
            remedy = (
                f"the owner of that schema can allow it: GRANT USAGE ON SCHEMA {schema} TO {to}, "
                f"and GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {to}"
            )
        elif kind:
            grant = quote(f"{role}:{kind}")
            remedy = f"the owner of the tables can grant it: astra initdb --grant {grant}"
        elif found:
            kind = "schema" if found[1].lower() == "schema" else "database"
            on, to = _identifier(found[2]), _identifier(role)
            remedy = (
                "the owner of the tables has to do this; if there are none yet, the owner of this "
                f"{kind} can allow it: GRANT CREATE ON {kind.upper()} {on} TO {to}"
            )
        elif found := re.search(r"must be owner of ((?!table|relation).+)$", message):
            remedy = f"the owner of the {found[1]} has to do this, or drop it"
        place = f"of the database {hide(self.url)}"
        return f"the role {role!r} may not do this: {message}, {place}; {remedy}"

    def message(self, error: BaseException) -> str:
        """Return the server's message, without the statement that it quotes."""
        cause = _driver_error(error)
        if isinstance(cause, psycopg2.Error) and cause.diag.message_primary:
            detail = cause.diag.message_detail
            return cause.diag.message_primary + (f" ({detail})" if detail else "")
        return str(error).strip()

    # -- tables -------------------------------------------------------------------------

    def keep_modified(self, model: Any, keys: Sequence[str], column: str) -> None:
        """Create a trigger by which every update increases the column, by the server's clock.

        The column never keeps its value, and never decreases: saving a row that was loaded earlier
        cannot hide a change that somebody else made meanwhile.
        """
        table, function = self.table(model), self.table(model, _keeper_of(column))
        body = queries.KEEP_MODIFIED_BODY.format(column=self.quote(column))
        heirs = [
            name.replace("%", "%%") for name in self.fetch_column(queries.INHERITING, (table,) * 2)
        ]
        for name in (table, *heirs):
            self.run(queries.KEEP_MODIFIED, table=name, function=function, body=body)

    def keeps_modified(self, model: Any, column: str) -> bool:
        """Return whether an enabled trigger of any name keeps the column."""
        body = queries.KEEP_MODIFIED_BODY.format(column=self.quote(column))
        parameters = (self.table(model), _keeper_of(column), body)
        return bool(self.fetch_value(queries.KEEPS_MODIFIED, parameters))

    def unique_indexes(
        self, model: Any, columns: Sequence[str]
    ) -> Iterable[tuple[str | None, bool, bool]]:
        parameters = (self.table(model), sorted(columns))
        return list(self.run(queries.UNIQUE_INDEXES, parameters).fetchall())

    @contextmanager
    def snapshot(self, models: Sequence[Any] = ()) -> Iterator[None]:
        """Begin a transaction that reads, and sees one state of the database throughout.

        The tables of `models` are locked against changes of their columns: a table that is
        rewritten after the snapshot was taken looks empty in it. Taking a lock takes no snapshot.
        """
        with self.database.atomic():
            self.run(queries.SNAPSHOT)
            for model in models:
                self.run(queries.LOCK_SHARED, table=self.table(model))
            yield

    def other_owner(self, model: Any) -> str | None:
        """Return the owner of a table, if this role does not act for it."""
        owners = self.fetch_column(queries.OTHER_OWNER, (self.table(model),))
        return owners[0] if owners else None

    def literal(self, value: Any) -> str:
        with self.database.connection().cursor() as cursor:
            return cursor.mogrify("%s", (value,)).decode().replace("%", "%%")

    def add_column(self, model: Any, field: peewee.Field, default: Any) -> None:
        self._types.pop(self.table(model), None)
        super().add_column(model, field, default)

    def set_default(self, model: Any, field: peewee.Field, default: str) -> None:
        """Set a column's default in the database."""
        name, value = self.quote(field.column_name), default.replace("%", "%%")
        self.run(queries.SET_DEFAULT, table=self.table(model), column=name, value=value)

    def drop_not_null(self, model: Any, column: str) -> bool:
        keys, _ = self.key_and_types(model._meta.table_name, model._meta.schema)
        if column in keys:
            return False
        self.run(queries.DROP_NOT_NULL, table=self.table(model), column=self.quote(column))
        return True

    def create_schema(self, schema: str) -> None:
        if not self.fetch_value(queries.HAS_SCHEMA, (schema,)):
            self.run(queries.CREATE_SCHEMA, schema=self.quote(schema))

    def schema_of_new_tables(self, model: Any) -> str | None:
        """Return the schema of a model's table if new tables would be created in another one, and
        this role may create tables in it.

        Raises
        ------
        DatabaseError
            If no table can be created in any schema.
        """
        first, own = self.run(queries.SCHEMA_OF_NEW_TABLES, (self.table(model),)).fetchone()
        if first is None and own is None:
            raise DatabaseError(
                "the search_path of this role names no schema that exists and that it may use: "
                "name one in [database] schema, which astra initdb creates"
            )
        return None if own == first else own

    def places(self, models: Sequence[Any], beside: Any) -> str | None:
        """Name the tables of models as they are found, relative to another model's table."""
        parameters = [self.table(model) for model in models], self.table(beside)
        return self.fetch_value(queries.PLACES, parameters)

    def log_sequences(self, schema: str | None) -> None:
        self.run(queries.LOG_SEQUENCES, (schema,))

    # -- roles --------------------------------------------------------------------------

    def session_role(self) -> str | None:
        """Return the role that this process has logged in as."""
        if self.known_role is None:
            self.known_role = str(self.fetch_value(queries.SESSION_ROLE))
        return self.known_role

    def roles(self) -> list[str]:
        return self.fetch_column(queries.ROLES)

    def granted(self, model: Any, privilege: str) -> list[str]:
        """Return the roles other than the owner that have a privilege on a table by name."""
        return self.fetch_column(queries.GRANTED_ROLES, (self.table(model), privilege))

    def grant_schema(self, role: str, model: Any) -> None:
        """Grant the use of a table's schema, and reading tables that this role creates in it."""
        to = self._role(role)
        name, is_own_schema = self.run(queries.SCHEMA_OF_TABLE, (self.table(model),)).fetchone()
        name = name.replace("%", "%%")
        if is_own_schema:  # of the schema "public" everybody has it
            self.run(queries.GRANT_SCHEMA, schema=name, role=to)
        self.run(queries.GRANT_LATER_TABLES, schema=name, role=to)

    def grant(self, role: str, model: Any, privilege: str) -> None:
        """Grant a privilege on a table; with INSERT, also the sequence of its primary key."""
        to, table = self._role(role), self.table(model)
        self.run(queries.GRANT_TABLE, privilege=privilege, table=table, role=to)
        if privilege.startswith("INSERT") and model._meta.primary_key:
            key = model._meta.primary_key.column_name
            if sequence := self.fetch_value(queries.SEQUENCE, (table, key)):
                sequence = sequence.replace("%", "%%")
                self.run(queries.GRANT_SEQUENCE, sequence=sequence, role=to)

    def _role(self, role: str) -> str:
        """Quote a role's name for SQL, with percent signs doubled for the driver."""
        return str(self.fetch_value(queries.QUOTED, (role,))).replace("%", "%%")

    # -- locks --------------------------------------------------------------------------

    def in_transaction(self) -> bool:
        """Return whether this thread's connection is in a transaction, however it was begun."""
        status = self.database.connection().info.transaction_status
        return status in (TRANSACTION_STATUS_INTRANS, TRANSACTION_STATUS_INERROR)

    @staticmethod
    def begin_to_write(silence_s: float, waits: bool, is_durable: bool) -> dict[str, Any]:
        """Return the arguments with which ``atomic()`` begins a transaction that takes locks."""
        level = "READ COMMITTED" if waits else None
        return {"isolation_level": level, "silence_s": silence_s, "is_durable": is_durable}

    def location(self, schema: str | None = None) -> str:
        """Identify the server, the database, and the tables in a schema, the same for every role.

        A schema that was copied within its database, or restored into it, has other tables.
        """
        server, number, table, port, timeline = self.run(queries.PLACE, (schema,)).fetchone()
        return (
            f"the database {number} of the PostgreSQL server {server}, table {table}, "
            f"port {port}, timeline {timeline}"
        )

    @staticmethod
    def is_same_location(stored: str, current: str) -> bool:
        """Return whether two places are the same.

        A standby that has become the primary may have another port, on a later timeline.
        """
        before, after = (re.fullmatch(_PLACE, place) for place in (stored, current))
        if before is None or after is None or before[1] != after[1]:
            return False
        return before[2] == after[2] or int(after[3]) > int(before[3])


#: The server with its database and table, the port, and the timeline.
_PLACE = r"(.*), port (\d+), timeline (\d+)"


def _is_refused_login(message: str) -> bool:
    return any(
        text in message
        for text in ("password authentication failed", "no password supplied", "pg_hba.conf")
    ) or ("FATAL" in message and "does not exist" in message)
