"""Locks between processes: one at a time works on a plan or night, and others see which one."""

import logging
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import peewee
from peewee import SQL, ColumnBase, IntegerField, TextField

from astra.config import settings
from astra.config.units import written_moment
from astra.database.connection import (
    connection,
    dialect,
    drop_connection,
    in_transaction,
    writing,
)
from astra.database.exhaustion import start_thread
from astra.database.statement_timeout import bounded
from astra.errors import AstraError, BusyError, UsageError
from astra.models.archive import check_archive
from astra.models.base import BaseModel, TimeField
from astra.processes import process_space, user_name

log = logging.getLogger(__name__)


class Lock(BaseModel):
    """A lock and its last holder, who renews it as long as it lives."""

    name = TextField(primary_key=True)
    host = TextField()
    pid = IntegerField()
    user = TextField()
    purpose = TextField()
    since = TimeField(now=True, null=False)
    until = TimeField(null=True)  # NULL if nobody holds it
    token = TextField(null=True)  # of the holder, see process_space()

    class Meta:
        table_name = "astra_lock"


class LockHeld(BusyError):
    """Another process holds a lock."""

    def __init__(self, message: str, purpose: str) -> None:
        super().__init__(message)
        self.purpose = purpose  # why the lock is held


@contextmanager
def hold(name: str, activity: str, see: str, purpose: str = "") -> Iterator[None]:
    """Hold the lock of a name across all hosts.

    If this process dies or is cut off, others can take the lock after ``answer_timeout_s``; those
    on this host notice its death at once.

    Parameters
    ----------
    name : of the lock, such as ``plan 12``.
    activity : what its holder does, for the message: "submits, resumes or cancels plan 12".
    see : the command that shows the holder's progress.
    purpose : stored with the lock, for programs that find it held.

    Raises
    ------
    LockHeld
        If another process holds it. The message says which, and since when.
    DatabaseError
        If the database is not where its archive was created.
    UsageError
        If the caller is in a transaction: no other process would see the lock, nor what is done.
    """
    if dialect().is_in_memory:
        yield  # no other process uses this database
        return
    if in_transaction():
        raise UsageError(
            "this was called within a transaction (database.atomic(), or with database:), in which "
            "elements and other processes would not see what it does: call it outside of it"
        )
    lease = _Lease(name, purpose)
    if other := lease.take():
        message = f"{_who(other)} {activity}; see {see}, and try again"
        raise LockHeld(message, other.purpose)
    renewing = start_thread(lease.keep, "astra lock")
    try:
        yield
    finally:
        lease.is_over.set()
        renewing.join(_RELEASE_S)  # if the database does not answer, the lock ends by itself


def is_held(name: str) -> bool:
    """Return whether a process holds the lock of a name."""
    with connection():
        lock = Lock.get_or_none((Lock.name == name) & (Lock.until >= SQL(dialect().now_sql)))
    return lock is not None and not _is_dead(lock)


@contextmanager
def transaction_with_locks(names: Iterable[str], activity: str) -> Iterator[None]:
    """Begin a transaction that holds the locks of some names until it ends.

    If another process holds one of them, log which process, and wait.
    """
    # In SQLite, the transaction is the only one that writes.
    names = () if dialect().name == "sqlite" else tuple(names)
    is_free = [_sign(name) for name in names]  # committed, so that others see for whom they wait
    with writing(waits=True):
        for name, free in zip(names, is_free, strict=True):
            if not free:
                log.warning("waiting for %s which %s", _who(Lock.get_by_id(name)), activity)
            Lock.select().where(Lock.name == name).for_update().get()
        yield


class _Lease:
    """A lock that ends after ``answer_timeout_s``, unless it is renewed, four times as often.

    A thread does this, because the caller's connection may be lost, or in a transaction. No
    transaction stays open. A holder that was stopped or cut off for longer continues without the
    lock if another process has taken it: the lock only keeps processes from interfering with each
    other, and no invariant depends on it.
    """

    def __init__(self, name: str, purpose: str) -> None:
        self._name, self._purpose, self._token = name, purpose, f"{process_space()} {uuid4().hex}"
        self._lasts_s = max(settings.current().database.answer_timeout_s, 4.0)
        self.is_over = threading.Event()

    def take(self) -> Lock | None:
        """Take the lock, or return it as another process holds it."""
        with bounded(self._lasts_s), connection():
            check_archive()
            with _writing():
                if self._take_if(Lock.until.is_null() | (Lock.until < SQL(dialect().now_sql))):
                    return None
                lock: Lock = Lock.get_by_id(self._name)  # that statement has locked it
                return None if _is_dead(lock) and self._take_if(Lock.token == lock.token) else lock

    def keep(self) -> None:
        """Renew the lock until it is over, and release it."""
        while self._renew():
            pass

    def _take_if(self, is_free: ColumnBase) -> bool:
        """Take the lock if it is new, or meets the condition; return whether it was taken."""
        holder = {"name": self._name, "token": self._token, "until": self._end()}
        taking = Lock.insert(**holder, **_holder(self._purpose)).on_conflict(
            conflict_target=[Lock.name],
            preserve=[field for field in Lock._meta.sorted_fields if field is not Lock.name],
            where=is_free,
        )
        return bool(taking.as_rowcount().execute())

    def _renew(self) -> bool:
        """Renew the lock after a while, or release it at its end; return whether it is still ours.

        Without its token, nothing renews it.
        """
        is_over = self.is_over.wait(self._lasts_s / 4)
        columns: dict[str, object] = {"token": None, "until": None}
        bound_s = _RELEASE_S if is_over else self._lasts_s / 4
        for _ in range(2):  # the connection that is open may be lost
            try:
                with bounded(bound_s), connection():
                    is_ours = self._update(columns if is_over else {"until": self._end()})
            except (peewee.PeeweeException, AstraError) as error:
                log.info("the lock %r cannot be renewed or released now: %s", self._name, error)
                drop_connection()
                continue
            if not is_ours and not is_over:
                log.warning("the lock %r was lost, and another process may hold it now", self._name)
            return is_ours and not is_over
        return not is_over

    def _end(self) -> datetime:
        return dialect().now() + timedelta(seconds=self._lasts_s)

    def _update(self, columns: dict[str, object]) -> bool:
        ours = (Lock.name == self._name) & (Lock.token == self._token)
        with _writing():
            return bool(Lock.update(columns).where(ours).execute())


#: How long a command waits for the release of its lock: without it, the lock ends by itself.
_RELEASE_S = 5.0


def _writing() -> Any:
    """Begin a transaction that does not wait for the server's disk.

    If the server crashes at once, a lock ends early, or ends by itself.
    """
    return writing(waits=True, is_durable=False)


def _holder(purpose: str) -> dict[str, object]:
    since = SQL(dialect().now_sql)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "user": user_name()}
    return {**me, "purpose": purpose, "since": since}


def _is_dead(lock: Lock) -> bool:
    """Return whether the holder was a process of this machine, and has ended."""
    if lock.token is None or not lock.token.startswith(f"{process_space()} "):
        return False
    try:
        os.kill(lock.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _sign(name: str) -> bool:
    """Store who is about to lock the row of a name; return False if another process has."""
    free = Lock.select(Lock.name).where(Lock.name == name).for_update(skip_locked=True)
    with connection(), _writing():
        if Lock.update(_holder("")).where(Lock.name == free).execute():
            return True
        new = Lock.insert(name=name, **_holder("")).on_conflict_ignore()
        return bool(new.as_rowcount().execute())


def _who(lock: Lock) -> str:
    since = written_moment(lock.since)
    return f"process {lock.pid} of {lock.user} on {lock.host}, since {since},"
