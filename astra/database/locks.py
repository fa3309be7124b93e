"""A lock in PostgreSQL that is released when the process that holds it stops responding.

A lock is a row of a table, locked FOR UPDATE: a role that may only read cannot take it, each schema
of a database has its own locks, and the row says who holds the lock and since when.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.errors
from psycopg2.extensions import ISOLATION_LEVEL_READ_COMMITTED

from astra.database import postgresql_queries as queries
from astra.database.memory import start_thread
from astra.database.statement_timeout import PatientCursor, bounded, shut

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The process that requests a lock."""

    host: str
    pid: int
    user: str
    purpose: str = ""  # why it is held, if that matters to others


class RowLock:
    """The lock of a name, held by a transaction on a connection of its own.

    A transaction also works through PgBouncer. The server ends it, which releases the lock, if its
    holder is silent for `silence_s`: a thread queries the server four times as often. If the
    connection is lost, it takes the lock again unless another process has. A holder that was
    stopped or disconnected for longer continues without the lock: it only keeps processes from
    interfering with each other, and no invariant depends on it.

    Parameters
    ----------
    connect : opens a connection.
    table : the quoted name of the table of locks.
    begin : settings for the transaction.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        table: str,
        name: str,
        holder: Holder,
        begin: str,
        silence_s: float,
    ) -> None:
        self._connect, self._begin, self._silence_s = connect, begin, silence_s
        self._table, self.name, self._holder = table, name, holder
        self._over = threading.Event()
        self._connection: Any = None
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Take the lock until :meth:`release`; return whether it was free."""
        is_taken = self._try()
        if is_taken:
            self._thread = start_thread(self._keep_alive, "astra lock")
        return is_taken

    def release(self) -> None:
        self._over.set()
        if self._thread is None:
            return
        self._thread.join(1.0)
        if self._thread.is_alive() and (waiting := self._connection) is not None:
            shut(waiting)

    def sign(self) -> bool:
        """Store who is about to hold the lock, if nobody holds it at this moment."""
        with closing(self._open()) as connection:
            return self._sign(connection)

    def _open(self) -> Any:
        """Connect such that a lock can be taken right after another process has signed it."""
        connection = self._connect()
        connection.isolation_level = ISOLATION_LEVEL_READ_COMMITTED
        return connection

    def _try(self) -> bool:
        connection = self._open()
        try:
            # The holder is committed first, so that others can read it while the lock is held. A
            # process that comes between the two transactions signs later, and holds the lock.
            is_taken = self._sign(connection) and self._lock(connection, f"{self._begin}; ")
        except BaseException:
            connection.close()
            raise
        if not is_taken:
            connection.close()
            return False
        self._connection = connection
        return True

    def _sign(self, connection: Any) -> bool:
        values = {**vars(self._holder), "name": self.name}
        self._ask(connection, queries.INSERT_LOCK.format(table=self._table), values)
        connection.commit()
        if not self._lock(connection):
            return False
        self._ask(connection, queries.SIGN_LOCK.format(table=self._table), values)
        connection.commit()
        return True

    def _lock(self, connection: Any, begin: str = "") -> bool:
        sql = f"{begin}{queries.LOCK_ROW.format(table=self._table)} NOWAIT"
        try:
            return bool(self._ask(connection, sql, (self.name,)))
        except psycopg2.errors.LockNotAvailable:
            connection.rollback()
            return False

    def _ask(self, connection: Any, sql: str, parameters: Any = ()) -> Any:
        with bounded(self._silence_s), connection.cursor(cursor_factory=PatientCursor) as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone() if cursor.description else None

    def _keep_alive(self) -> None:
        try:
            while not self._over.wait(self._silence_s / 4):
                if not self._is_held() and (self._over.is_set() or not self._take_again()):
                    return
        finally:
            if self._connection is not None:
                with suppress(psycopg2.Error):
                    self._connection.rollback()  # when it returns, the server has released the lock
                self._connection.close()

    def _is_held(self) -> bool:
        if self._connection is None:
            return False
        try:
            return bool(self._ask(self._connection, queries.KEEP_ALIVE))
        except psycopg2.Error as error:
            log.info("the connection that holds the lock %r was lost: %s", self.name, error)
            self._connection.close()
            self._connection = None
            return False

    def _take_again(self) -> bool:
        """Take the lock again; return whether to continue trying."""
        try:
            if self._try():
                return True
        except psycopg2.Error as error:
            log.info("the lock %r cannot be taken again now: %s", self.name, error)
            return True
        log.warning(
            "the lock %r was lost with its connection, and another process holds it now", self.name
        )
        return False
