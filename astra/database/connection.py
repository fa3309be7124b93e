"""The connection to the database: its URL, opening and closing, and retries.

``database`` stands for the one database of the process. It is looked up in the configuration when
it is first used, never at import; :func:`bind` sets it explicitly.
"""

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import peewee

from astra.config import secrets
from astra.config import settings as config
from astra.database.exhaustion import check_files, check_memory
from astra.database.statement_timeout import bounded
from astra.errors import ConfigError, DatabaseError, NotAllowed, UsageError

if TYPE_CHECKING:
    from astra.database.postgresql import PostgreSQL
    from astra.database.sqlite import SQLite

log = logging.getLogger(__name__)


T = TypeVar("T")


class LazyDatabase(peewee.DatabaseProxy):
    """A proxy that looks up the configured database when it is first used."""

    __slots__ = peewee.DatabaseProxy.__slots__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # Python inspects the object
        if self.obj is None:
            bind()
        return getattr(self.obj, name)

    def __enter__(self) -> Any:
        return self.bound().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.bound().__exit__(*error)

    def bound(self) -> peewee.Database:
        """Return the database itself."""
        return bind() if self.obj is None else self.obj

    def savepoint(self) -> Any:
        return self.bound().savepoint()


database = LazyDatabase()

_binding = threading.RLock()


def bind(url: str | None = None) -> peewee.Database:
    """Make `url` the database of this process.

    Parameters
    ----------
    url : ``postgresql://[user@][host][:port]/[database][?options]``, which libpq reads together
        with ``~/.pgpass``, ``PGSERVICE`` and its environment; or ``sqlite:///path``. By default,
        that of the configuration, with the configured schema for the tables.

    Raises
    ------
    ConfigError
        If the URL is of neither kind.
    """
    with _binding:
        settings, schema = config.current().database, None
        if url is None:
            url, schema = settings.url, settings.schema
            if config.current().source("database.url") == "default" and not is_file(url):
                print(
                    f"No database is configured: using {url}. To use another, work in the folder "
                    "of its astra.toml, or set ASTRA_DATABASE_URL (see astra config)",
                    file=sys.stderr,
                )
            _warn_of_ignored_path(url)
        connection = _open(url, settings.connect_timeout_s)
        secrets.know_url(url)
        if not database_is_unset():
            database.obj.close()
        if connection.dialect.name == "postgresql":
            connection.schema = schema
        database.initialize(connection)
        return connection


def _warn_of_ignored_path(url: str) -> None:
    """Print that the variable with which the published package finds its database is ignored."""
    if path := os.environ.get("ASTRA_DATABASE_PATH"):
        print(
            f"ASTRA_DATABASE_PATH={path} is IGNORED: the database is {secrets.hide_password(url)}; "
            f"to use that file, set ASTRA_DATABASE_URL=sqlite:///{path}",
            file=sys.stderr,
        )


def reset() -> None:
    """Forget the database and the configuration of this process: both are looked up again."""
    with _binding:
        if not database_is_unset():
            database.obj.close()
        database.initialize(None)
        config.reset()


#: Connections of the process that forked this one. SQLite closes those that nothing refers to.
_inherited: list[Any] = []


def _leave_to_parent() -> None:
    """Have a forked process open a connection of its own, and leave that of its parent open.

    With the same connection, each would get answers to the other's statements.
    """
    if not database_is_unset() and not dialect().is_in_memory:
        _inherited.append(database.obj._state.conn)
        database.obj._state.reset()
        database.obj._lock = threading.Lock()  # another thread may have held it


os.register_at_fork(after_in_child=_leave_to_parent)


def database_is_unset() -> bool:
    return database.obj is None


def is_file(url: str) -> bool:
    """Return whether a URL names a SQLite file that exists."""
    return Path(sqlite_path(url)).exists() if url.startswith("sqlite:") else False


def sqlite_path(url: str) -> str:
    """Return the file that a ``sqlite:`` URL names, or ``:memory:``.

    >>> sqlite_path("sqlite:///data/a%20b.db"), sqlite_path("sqlite:////abs/x.db")
    ('data/a b.db', '/abs/x.db')

    Raises
    ------
    ConfigError
        If the URL lacks three slashes, names no file, or has options.
    """
    if url == "sqlite://:memory:":
        return ":memory:"
    path, mark, _ = url.removeprefix("sqlite:///").partition("?")
    if not url.startswith("sqlite:///") or not path.strip("/") or mark:
        raise ConfigError(
            f"the database URL {secrets.hide(url)!r} is not understood: write sqlite:///file.db "
            "for a file in the current folder, sqlite:////folder/file.db for any other; options "
            "after a ? are not accepted (write one in the name as %3F)"
        )
    return unquote(path)


def _open(url: str, connect_timeout_s: int) -> Any:
    scheme = url.split(":", 1)[0]
    if scheme in ("postgresql", "postgres"):
        from astra.database.postgresql import PostgreSQL  # here, as elements need one dialect

        secrets.check_quoting(url)
        try:
            return PostgreSQL(url, connect_timeout_s).database
        except ValueError:
            # libpq's own message would repeat parts of the URL.
            raise ConfigError(
                f"the database URL {secrets.hide(url)!r} is malformed: write "
                "postgresql://user@host:port/database, an IPv6 address in brackets, a port from "
                "1 to 65535; options after a ? are those of libpq"
            ) from None
    if scheme == "sqlite":
        from astra.database.sqlite import SQLite

        return SQLite(sqlite_path(url)).database
    shown = secrets.hide_password(url)
    file = "file" if "://" in url else shown
    raise ConfigError(
        f"the database URL {shown!r} begins with {scheme!r}; write "
        f"postgresql://user@host:port/database or sqlite:///{file}"
    )


def schema() -> str | None:
    """Return the schema that holds the tables; None for that of the server's ``search_path``."""
    return getattr(database.obj, "schema", None)


def dialect() -> "PostgreSQL | SQLite":
    """Return the dialect of the bound database."""
    engine: PostgreSQL | SQLite = database.bound().dialect  # type: ignore[attr-defined]
    return engine


#: Statements outside of :func:`retrying`, such as freezing a plan, may take this many times longer
#: than those of an element.
LONG = 10


@contextmanager
def connection() -> Iterator[None]:
    """Use a connection within a block: an open one, or one that is opened and closed."""
    bound = database.bound()
    is_new = bound.is_closed()
    try:
        if is_new:
            bound.connect()
    except peewee.DatabaseError as error:
        drop_connection()
        if isinstance(error, peewee.OperationalError) or dialect().is_transient(error):
            raise _Unreachable(error) from error
        raise DatabaseError(
            f"{secrets.hide(url())} cannot be used: {dialect().message(error)}; name another in "
            "ASTRA_DATABASE_URL, or [database] url"
        ) from error
    try:
        with bounded(long_s()), _errors_explained():
            yield
    finally:
        if is_new and not bound.is_closed():
            bound.close()


def tuples(query: peewee.Select | peewee.Insert) -> Iterator[tuple[Any, ...]]:
    """Iterate over the rows of a query, each as a tuple of its columns."""
    return iter(query.tuples())


@contextmanager
def keep_connected() -> Iterator[bool]:
    """Use one connection for everything that is retried within a block, if one can be opened.

    Yields whether it was opened for this block.
    """
    opened = connected()
    try:
        yield opened
    finally:
        if opened:
            drop_connection()


def connected() -> bool:
    """Open this thread's connection, if possible; return whether it had none before."""
    try:
        return bool(database.bound().connect(reuse_if_open=True))
    except (peewee.DatabaseError, peewee.InterfaceError) as error:
        log.debug("no connection in advance: %s", error)
        return False


@contextmanager
def _errors_explained() -> Iterator[None]:
    """Turn errors about missing rights and unusable texts into ones that say what to do."""
    try:
        yield
    except UnicodeEncodeError as error:  # the shell's argument may be in any encoding
        raise UsageError(
            f"{error.object[:100]!r} is not UTF-8, so nothing in the database has this name"
        ) from error
    except (peewee.ProgrammingError, peewee.OperationalError) as error:
        if (refusal := dialect().denied(error)) is None:
            raise
        raise NotAllowed(refusal) from error


class _Unreachable(DatabaseError):
    def __init__(self, error: Exception) -> None:
        self.error = error
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        remedy, name = dialect().remedy(error), secrets.hide_password(url())
        super().__init__(
            f"the database {name} did not do this in time: {first}; {remedy}"
            if remedy
            else f"no connection to the database {name}: {first}; {dialect().advice(first)}"
        )


def is_away(error: BaseException) -> bool:
    """Return whether an error means that the database cannot be reached at the moment."""
    error = error.error if isinstance(error, _Unreachable) else error
    is_databases = isinstance(error, peewee.DatabaseError | peewee.InterfaceError)
    return is_databases and dialect().is_transient(error)


def as_database_error(error: Exception) -> DatabaseError | None:
    """Return an error that says what to do, if the database is away, or its tables are others."""
    if is_away(error):
        return _Unreachable(error)
    if isinstance(error, peewee.DatabaseError) and dialect().is_of_other_tables(error):
        return DatabaseError(
            f"tables of {secrets.hide_password(url())} differ from what astra or their models "
            f"describe: {dialect().message(error)}; astra initdb MODULE adds what is missing; "
            "correct anything else in the tables or their models"
        )
    if isinstance(error, peewee.DatabaseError) and dialect().is_triggers(error):
        return DatabaseError(
            f"a trigger of the database {secrets.hide_password(url())} refused this: "
            f"{dialect().message(error)}; have its administrator allow it, then run it again"
        )
    if isinstance(error, peewee.DatabaseError) and (remedy := dialect().remedy(error)):
        name = secrets.hide_password(url())
        return DatabaseError(f"the database {name} refused this: {str(error).strip()}; {remedy}")
    if isinstance(error, peewee.IntegrityError):  # those of rows are failures of these rows
        return DatabaseError(
            f"tables were changed by hand, or restored in part: {dialect().message(error)}; "
            "astra verify, and astra verify PLAN for the last plans, say what to correct"
        )
    return None


def url() -> str:
    """Return the URL of the bound database as it is configured, maybe with a password."""
    return dialect().url


#: Seconds for retries once a process was asked to stop: less than Slurm's KillWait.
LAST_WAIT_S = 2.0


def retrying(
    work: Callable[[], T],
    bound_s: float | None = None,
    waiting: Any = None,
    statement_s: float | None = None,
) -> T:
    """Call `work()` with a connection, and again after growing pauses during an outage.

    Parameters
    ----------
    work : a unit that can be repeated: one transaction.
    bound_s : seconds from the first error to the one that is raised; by default, the configured
        ``[database] retry_for_s``.
    waiting : a ``threading.Event`` that, once set, limits the retries to :data:`LAST_WAIT_S`.
    statement_s : how long each statement may take; by default, what is left of the bound.

    Raises
    ------
    DatabaseError
        If the outage lasted for longer than the bound.
    OutOfMemory
        If this process has no memory, or files, left for a connection, which no wait changes.
    """
    if bound_s is None:
        bound_s = config.current().database.retry_for_s
    pause_s, left_s = 0.1, bound_s
    failing_since = ending_since = 0.0
    # Not after an error: what is left of a broken connection may say that it is in a transaction.
    is_callers = in_transaction()
    while True:
        try:
            with bounded(statement_s or _statement_limit_s(left_s)), connection():
                return work()
        except (peewee.DatabaseError, peewee.InterfaceError, _Unreachable) as error:
            if not dialect().is_transient(getattr(error, "error", error)) or is_callers:
                raise
            check_memory(error)
            check_files(error)
            if not dialect().is_lock(getattr(error, "error", error)):
                drop_connection()  # after a mere lock, open cursors are still needed
            # What came before the first error is no outage: the process may have been suspended.
            failing_since = failing_since or time.monotonic()
            if waiting is not None and waiting.is_set():
                ending_since = ending_since or time.monotonic()
                bound_s = min(bound_s, ending_since - failing_since + LAST_WAIT_S)
            left_s = bound_s - (time.monotonic() - failing_since)
            if left_s <= 0:
                if isinstance(error, _Unreachable):
                    raise
                raise _Unreachable(error) from error
            # Jitter, so that a thousand elements do not reconnect at the same moment.
            nap_s = min(left_s, pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            reason = str(error).strip()
            log.info("the database is unavailable (%s): next attempt in %.1f s", reason, nap_s)
            if waiting is None or waiting.is_set():
                time.sleep(nap_s)
            else:
                waiting.wait(nap_s)
            pause_s, left_s = min(pause_s * 1.6, 15.0), left_s - nap_s


def long_s() -> float:
    """Return how long each statement of a command may take."""
    return LONG * config.current().database.answer_timeout_s


def _statement_limit_s(left_s: float) -> float:
    """Return how long each statement may take if so much time is left."""
    return min(config.current().database.answer_timeout_s, max(left_s, LAST_WAIT_S))


def writing(waits: bool = False, is_durable: bool = True) -> Any:
    """Return a context manager for a transaction that writes.

    Others wait for its locks, so the server ends it if its client is silent for too long. One that
    `waits` for locks sees what their last holders stored, whatever the default isolation level is.
    One that is not durable may be lost if the server crashes, and does not wait for its disk.
    """
    silence_s = config.current().database.answer_timeout_s
    return database.atomic(**dialect().begin_to_write(silence_s, waits, is_durable))


def in_transaction() -> bool:
    """Return whether the caller is in a transaction of its own, which a retry cannot repeat."""
    if database_is_unset() or database.obj.is_closed():
        return False
    return bool(database.obj.in_transaction()) or dialect().in_transaction()


def abandon_transaction() -> bool:
    """Roll back a transaction that was left open on this thread; return whether there was one."""
    if not in_transaction():
        return False
    connection_ = database.obj
    try:
        connection_.rollback()
    except (peewee.DatabaseError, peewee.InterfaceError):
        log.debug("a transaction could not be rolled back", exc_info=True)
    while connection_.in_transaction():  # as peewee counts them
        connection_.pop_transaction()
    drop_connection()
    return True


def drop_connection() -> None:
    """Close this thread's connection, in whatever state it is."""
    try:
        if not database.obj.is_closed():
            database.obj.close()
    except (peewee.DatabaseError, peewee.InterfaceError):
        log.debug("a broken connection could not be closed", exc_info=True)
