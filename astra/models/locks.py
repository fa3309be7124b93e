"""Locks between processes: one at a time works on a plan or night, and others see which one."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import peewee
from peewee import SQL, IntegerField, TextField

from astra.config import settings
from astra.database.connection import connection, dialect, writing
from astra.database.memory import start_thread
from astra.database.statement_timeout import bounded
from astra.database.threads import in_background
from astra.errors import AstraError, BusyError
from astra.models.base import BaseModel, TimeField
from astra.processes import user_name

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
    token = TextField(null=True)  # of the holder, see _token()

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
    """
    if dialect().url.endswith(":memory:"):
        yield  # no other process uses this database
        return
    lease = _Lease(name, purpose)
    try:
        if other := in_background(lease.take)():
            message = f"{_who(other)} {activity}; see {see}, and try again"
            raise LockHeld(message, other.purpose)
        start_thread(lease.renew, "astra lock")
        yield
    finally:
        in_background(lease.release)()


def is_held(name: str) -> bool:
    """Return whether a process holds the lock of a name."""
    with connection():
        lock = Lock.get_or_none((Lock.name == name) & (Lock.until >= dialect().now()))
    return lock is not None and not _is_dead(lock)


def lock_row(name: str, activity: str) -> None:
    """Hold the lock of a name until the caller's transaction ends, which is `writing(waits=True)`.

    If another process holds it, log which one, and wait.
    """
    if dialect().name == "sqlite":
        return  # the transaction is the only one that writes
    if not in_background(partial(_sign, name))():
        log.warning("waiting for %s, which %s", _who(Lock.get_by_id(name)), activity)
    Lock.select().where(Lock.name == name).for_update().get()


class _Lease:
    """A lock that ends after ``answer_timeout_s``, unless it is renewed, four times as often.

    No transaction is open meanwhile. A holder that was stopped or cut off for longer continues
    without the lock if another process has taken it: the lock only keeps processes from interfering
    with each other, and no invariant depends on it.
    """

    def __init__(self, name: str, purpose: str) -> None:
        self._name, self._purpose, self._token = name, purpose, f"{_process()} {uuid4().hex}"
        self._lasts_s = max(settings.current().database.answer_timeout_s, 4.0)
        self._is_over = threading.Event()

    def take(self) -> Lock | None:
        """Take the lock, or return it as another process holds it."""
        with bounded(self._lasts_s), connection(), writing(waits=True):
            holder = _holder(self._purpose)
            Lock.insert(name=self._name, **holder).on_conflict_ignore().execute()
            lock: Lock = Lock.get_by_id(self._name)
            is_free = Lock.until.is_null() | (Lock.until < dialect().now())
            if _is_dead(lock):
                is_free |= Lock.token == lock.token
            holder |= {"token": self._token, "until": self._end()}
            taking = Lock.update(holder).where(Lock.name == self._name, is_free)
            return None if taking.execute() else Lock.get_by_id(self._name)

    def renew(self) -> None:
        """Renew the lock until its release, or until another process has taken it."""
        while not self._is_over.wait(self._lasts_s / 4):
            try:
                with bounded(self._lasts_s / 4), connection():
                    is_ours = self._update(until=self._end())
            except (peewee.PeeweeException, AstraError) as error:
                log.info("the lock %r cannot be renewed now: %s", self._name, error)
                continue
            if not is_ours and not self._is_over.is_set():
                log.warning("the lock %r was lost, and another process holds it now", self._name)
            if not is_ours:
                return

    def release(self) -> None:
        self._is_over.set()
        try:
            with bounded(_RELEASE_S), connection():
                self._update(until=None, token=None)  # without the token, nothing renews it
        except (peewee.PeeweeException, AstraError) as error:
            log.info("the lock %r ends by itself, as the database is away: %s", self._name, error)

    def _end(self) -> datetime:
        return dialect().now() + timedelta(seconds=self._lasts_s)

    def _update(self, **columns: object) -> int:
        ours = (Lock.name == self._name) & (Lock.token == self._token)
        return int(Lock.update(columns).where(ours).execute())


#: How long each statement may take that releases a lock: without it, the lock ends by itself.
_RELEASE_S = 5.0


def _holder(purpose: str) -> dict[str, object]:
    since = SQL(dialect().now_sql)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "user": user_name()}
    return {**me, "purpose": purpose, "since": since}


def _process() -> str:
    """Identify the machine since its start, and the space in which its processes are numbered."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"


def _is_dead(lock: Lock) -> bool:
    """Return whether the holder was a process of this machine, and has ended."""
    if lock.token is None or not lock.token.startswith(f"{_process()} "):
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
    with connection(), writing(waits=True):
        Lock.insert(name=name, **_holder("")).on_conflict_ignore().execute()
        row = Lock.select().where(Lock.name == name)
        if is_free := row.for_update(skip_locked=True).first() is not None:
            Lock.update(_holder("")).where(Lock.name == name).execute()
        return is_free


def _who(lock: Lock) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", lock.since.astimezone().timetuple())
    return f"process {lock.pid} of {lock.user} on {lock.host}, since {since},"
