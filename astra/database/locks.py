"""A lock in PostgreSQL that is released when the process that holds it stops answering.

A lock is a row of a table that is locked FOR UPDATE: a role that may only read cannot take it, two
schemas of one database have locks of their own, and the row says who holds it and since when.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.errors

from astra.database import postgresql_queries as queries
from astra.database.timeouts import PatientCursor, bounded, shut

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who wants a lock."""

    host: str
    pid: int
    user: str
    purpose: str = ""  # what it is held for, where that matters to those who wait


class RowLock:
    """The lock of a name, held by a transaction on a connection of its own.

    A transaction, so that it works through PgBouncer. The server ends it, and so releases the
    lock, when its holder was silent for `silence_s`: a thread asks the server something
    four times as often, and takes the lock again where the connection was lost, if nobody else did
    meanwhile. A holder that was stopped or cut off for longer goes on without it: the lock keeps
    processes out of each other's way, and no invariant rests on it.

    Parameters
    ----------
    connect : makes a connection.
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
        """Whether it is ours, until :meth:`release`."""
        ours = self._try()
        if ours:
            self._thread = threading.Thread(target=self._keep, name="astra lock", daemon=True)
            self._thread.start()
        return ours

    def release(self) -> None:
        self._over.set()
        if self._thread is None:
            return
        self._thread.join(1.0)
        if self._thread.is_alive() and (waiting := self._connection) is not None:
            shut(waiting)

    def sign(self) -> bool:
        """Write down who holds the lock, if nobody does at this moment."""
        with closing(self._connect()) as connection:
            return self._sign(connection)

    def _try(self) -> bool:
        connection = self._connect()
        try:
            # Signed and committed first, so that others can read it while the lock is held. Whoever
            # comes between the two transactions signs later, and holds it.
            ours = self._sign(connection) and self._lock(connection, f"{self._begin}; ")
        except BaseException:
            connection.close()
            raise
        if not ours:
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

    def _keep(self) -> None:
        try:
            while not self._over.wait(self._silence_s / 4):
                if not self._is_held() and (self._over.is_set() or not self._again()):
                    return
        finally:
            if self._connection is not None:
                self._connection.close()

    def _is_held(self) -> bool:
        if self._connection is None:
            return False
        try:
            return bool(self._ask(self._connection, "SELECT true"))
        except psycopg2.Error as error:
            log.info("the connection that holds the lock %r was lost: %s", self.name, error)
            self._connection.close()
            self._connection = None
            return False

    def _again(self) -> bool:
        """Take it again; whether there is any use in looking after it further."""
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
