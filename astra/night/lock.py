"""Whose turn it is to work on a night: one process at a time, and how long others wait for it."""

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import peewee

from astra.database.connection import connection, drop_connection, is_away, try_lock, writing
from astra.errors import AstraError, BusyError, SlurmRefused, SlurmUnknown
from astra.models.nights import NightHolder
from astra.processes import user_name

log = logging.getLogger(__name__)


T = TypeVar("T")

#: How long `astra nightly`, which cron called, waits for a Slurm or a database that is away, and
#: a finalizer for another process that works on the night, in seconds.
PATIENCE_S = 600.0


class StepAtWork(BusyError):
    """A finalizer is at its step of the night, which ends by itself and soon."""


@contextmanager
def night_lock(name: str, step: bool = False) -> Iterator[None]:
    """One process at a time works on a night, from whatever host; freed when it dies.

    Parameters
    ----------
    step : whether this is a finalizer's step, for whose end others may wait.

    Raises
    ------
    BusyError
        If another one does; it says which, and since when.
    """
    with try_lock(f"night {name}") as ours:
        if not ours:
            raise _busy(name)
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "user": user_name()}
        mine |= {"step": step}
        with connection(), writing():
            NightHolder.delete().where(NightHolder.name == name).execute()
            NightHolder.create(name=name, **mine)
        try:
            yield
        finally:
            with suppress(AstraError, peewee.PeeweeException), connection():
                NightHolder.delete().where(NightHolder.name == name).execute()


def _busy(name: str) -> BusyError:
    for _ in range(10):  # it holds the lock a moment before its name is there
        with connection():
            holder = NightHolder.get_or_none(NightHolder.name == name)
        if holder is not None:
            since = holder.since.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            who = f"process {holder.pid} of {holder.user} on {holder.host}, since {since},"
            kind = StepAtWork if holder.step else BusyError
            return kind(f"{who} works on the night {name!r}; see astra nights {name}")
        time.sleep(0.1)
    return StepAtWork(f"another process works on the night {name!r}; see astra nights {name}")


def in_turn(work: Callable[[], T], bound_s: float, waits_for: type[BusyError]) -> T:
    """`work()`, patiently, and once others have let go of the night, where these end soon."""
    end = time.monotonic() + min(bound_s, PATIENCE_S)
    while True:
        try:
            return patiently(work, bound_s)
        except waits_for:
            if time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - jitter


def patiently(work: Callable[[], T], bound_s: float) -> T:
    """`work()`, which can be repeated, again with growing pauses while others are away."""
    end, pause_s = time.monotonic() + bound_s, 1.0
    while True:
        try:
            return work()
        except (AstraError, peewee.PeeweeException) as error:
            limit = isinstance(error, SlurmRefused) and error.limit
            away = isinstance(error, SlurmUnknown) or limit or is_away(error)
            left_s = end - time.monotonic()
            if not away or left_s <= 0:
                raise
            if is_away(error):
                drop_connection()
            log.warning("again in %.0f s: %s", min(pause_s, left_s), str(error).strip())
            time.sleep(min(pause_s * random.uniform(0.5, 1.5), left_s))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, 120.0)
