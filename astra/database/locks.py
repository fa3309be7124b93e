"""A lock of PostgreSQL's that one process holds, and that is free again when it falls silent."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg2

from astra.database.timeouts import PatientCursor, bounded, shut

log = logging.getLogger(__name__)


class AdvisoryLock:
    """The lock of a name, held by a transaction on a connection of its own.

    A transaction, so that it works through pgbouncer. The server ends it, and frees the lock, when
    it has not heard of its holder for `silence_s`: a thread asks it something four times as often,
    and takes the lock again where the connection was lost, if nobody else did meanwhile. Whoever
    was stopped, or cut off, for longer goes on without it: the lock keeps processes out of each
    other's way, and no invariant rests on it.

    Parameters
    ----------
    connect : makes a connection.
    begin : settings for the transaction.
    """

    def __init__(self, connect: Callable[[], Any], name: str, begin: str, silence_s: float) -> None:
        self._connect, self._begin, self._silence_s = connect, begin, silence_s
        self.name = name
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

    def _try(self) -> bool:
        connection = self._connect()
        try:
            ours = self._ask(
                connection,
                f"{self._begin}; SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))",
                (f"astra {self.name}",),
            )
        except BaseException:
            connection.close()
            raise
        if not ours:
            connection.close()
            return False
        self._connection = connection
        return True

    def _ask(self, connection: Any, sql: str, parameters: Sequence[Any] = ()) -> Any:
        with bounded(self._silence_s), connection.cursor(cursor_factory=PatientCursor) as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone()[0]

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
            log.info("the lock %r cannot be taken again at present: %s", self.name, error)
            return True
        log.warning("the lock %r was lost with its connection, and another has it", self.name)
        return False
