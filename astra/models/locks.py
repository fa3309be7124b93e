"""Locks between processes: one at a time works on a plan or night, and others see which one."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from peewee import IntegerField, TextField

from astra.config import settings
from astra.database.connection import connection, dialect, errors_explained
from astra.database.locks import Holder
from astra.errors import BusyError
from astra.models.base import BaseModel, TimeField
from astra.processes import user_name

log = logging.getLogger(__name__)


class Lock(BaseModel):
    """A lock and its last holder. It is held while its row, or its byte of a file, is locked."""

    name = TextField(primary_key=True)
    host = TextField()
    pid = IntegerField()
    user = TextField()
    purpose = TextField()
    since = TimeField(now=True, null=False)

    class Meta:
        table_name = "astra_lock"


class LockHeld(BusyError):
    """Another process holds a lock."""

    def __init__(self, message: str, purpose: str) -> None:
        super().__init__(message)
        self.purpose = purpose  # why the lock is held


@contextmanager
def hold(name: str, activity: str, see: str, purpose: str = "") -> Iterator[None]:
    """Hold the lock of a name across all hosts; it is released when this process dies.

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
    silence_s = settings.current().database.answer_timeout_s
    with ExitStack() as stack:
        trying = dialect().try_lock(dialect().table(Lock), name, _me(purpose), silence_s)
        with errors_explained():
            is_taken = stack.enter_context(trying)
        if not is_taken:
            lock = _lock(name)
            message = f"{_who(lock)} {activity}; see {see}, and try again"
            raise LockHeld(message, lock.purpose if lock else "")
        yield


def lock_row(name: str, activity: str) -> None:
    """Hold the lock of a name until the caller's transaction ends, which is `writing(waits=True)`.

    If another process holds it, log which one, and wait.
    """
    table, silence_s = dialect().table(Lock), settings.current().database.answer_timeout_s
    if not dialect().sign_lock(table, name, _me(""), silence_s):
        log.warning("waiting for %s, which %s", _who(_lock(name)), activity)
    dialect().wait_for_row(table, name)


def _me(purpose: str) -> Holder:
    return Holder(socket.gethostname(), os.getpid(), user_name(), purpose)


def _lock(name: str) -> Lock | None:
    with connection():
        lock: Lock | None = Lock.get_or_none(Lock.name == name)
        return lock


def _who(lock: Lock | None) -> str:
    if lock is None:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M:%S", lock.since.astimezone().timetuple())
    return f"process {lock.pid} of {lock.user} on {lock.host}, since {since},"
