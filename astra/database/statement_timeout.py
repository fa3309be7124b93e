"""Limit how long a statement waits for the server before its connection is abandoned.

A connection can be open and silent: a proxy hangs, a firewall has dropped it. The kernel's
keepalives notice this only if nothing in between answers for the server, and libpq itself waits for
ever. A thread shuts the socket of a statement that has waited too long: libpq then reports a lost
connection, and the work is retried like after any other.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from astra.database.exhaustion import start_thread


class _Own(threading.local):
    """How long the statements of this thread may take, in seconds."""

    bound_s: float | None = None


_own = _Own()


class _Watch:
    """The statements that wait for an answer, and the thread that watches them."""

    def __init__(self) -> None:
        self.start_anew()
        # A fork has no such thread, and only its parent's connections.
        os.register_at_fork(after_in_child=self.start_anew)

    def start_anew(self) -> None:
        self.lock = threading.Condition()
        self.waiting: dict[object, tuple[float, Any]] = {}  # by statement: deadline, connection
        self.max_s = float("inf")  # for every statement, once the process was asked to stop
        self.wakes_at = float("inf")
        self.thread: threading.Thread | None = None

    def enter(self, statement: object, connection: Any, bound_s: float) -> None:
        with self.lock:
            until = time.monotonic() + min(bound_s, self.max_s)
            self.waiting[statement] = until, connection
            if self.thread is None:
                self.thread = start_thread(self._close_expired, "astra timeouts")
            elif until < self.wakes_at:
                self.lock.notify()

    def leave(self, statement: object) -> bool:
        """Stop watching a statement; return whether it was in time."""
        with self.lock:
            return self.waiting.pop(statement, None) is not None

    def limit_all(self, max_s: float) -> None:
        with self.lock:
            self.max_s = max_s
            self.limit_waiting(max_s)

    def limit_waiting(self, max_s: float) -> None:
        with self.lock:
            until = time.monotonic() + max_s
            for statement, (end, connection) in self.waiting.items():
                self.waiting[statement] = min(end, until), connection
            self.lock.notify()

    def _close_expired(self) -> None:
        """Close the connections of statements without an answer, each when its time is over."""
        with self.lock:
            while True:
                now = time.monotonic()
                for statement, (end, connection) in list(self.waiting.items()):
                    if end <= now:
                        del self.waiting[statement]
                        shut_connection(connection)
                ends = (end for end, _ in self.waiting.values())
                self.wakes_at = min(ends, default=float("inf"))
                # An idle process wakes up without need, but only once an hour.
                self.lock.wait(min(self.wakes_at - time.monotonic(), 3600.0))


def shut_connection(connection: Any) -> None:
    """Shut a connection, so that a statement that waits on it fails."""
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as link:
            link.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg2.Error):
        pass  # it was closed already


_watch = _Watch()

#: Limit every statement, also one that is running, because the process is to end.
limit_all = _watch.limit_all

#: Limit the statements that are running, and no later ones.
limit_waiting = _watch.limit_waiting


@contextmanager
def bounded(bound_s: float) -> Iterator[None]:
    """Limit each statement of this thread to `bound_s` seconds, within any earlier limit."""
    before = _own.bound_s
    _own.bound_s = bound_s if before is None else min(bound_s, before)
    try:
        yield
    finally:
        _own.bound_s = before


#: Numbers are read with all of their digits, and intervals as the texts that pages hold as keys,
#: whichever connection of a pool stands behind this one: a session's setting is of one of them. The
#: server ends a statement whose connection was given up: while a table is locked, each retry would
#: otherwise leave a connection that waits for it, and then does what it was sent to do.
_READ_SETTINGS = (
    "SET LOCAL extra_float_digits = 1; SET LOCAL IntervalStyle = 'postgres'; "
    "SET LOCAL client_connection_check_interval = '1s'"
)

#: A statement that has waited for a table sees it as it is then, whatever the default isolation
#: level is: in an older snapshot, a table that was rewritten meanwhile looks empty.
_LATEST = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

_RETURNS_ROWS = re.compile(r"[\s(]*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


class PatientCursor(Cursor):
    """Apply the time limit of the thread to each statement, and have values read in one form."""

    def execute(self, query: Any, vars: Any = None) -> None:
        if self.connection.info.transaction_status == TRANSACTION_STATUS_IDLE:
            query = _with_read_settings(query)
        with self._bounded():
            super().execute(query, vars)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        with self._bounded():
            super().copy_expert(sql, file, size)

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        bound_s = _own.bound_s
        if bound_s is None:
            yield
            return
        statement = object()
        _watch.enter(statement, self.connection, bound_s)
        try:
            yield
        except psycopg2.Error as error:
            if not _watch.leave(statement):
                raise psycopg2.OperationalError(
                    f"the database did not answer within {min(bound_s, _watch.max_s):g} s "
                    "([database] answer_timeout_s), so that its connection was closed"
                ) from error
            raise
        finally:
            _watch.leave(statement)


def _with_read_settings(query: Any) -> Any:
    """Add the settings to a transaction, or to a statement that is one by itself."""
    if not isinstance(query, str):
        return query
    if query.startswith("BEGIN"):
        return f"{query}; {_READ_SETTINGS}"
    return f"{_LATEST}; {_READ_SETTINGS}; {query}" if _RETURNS_ROWS.match(query) else query
