"""The lock of a night: one process at a time works on it, and others wait for a limited time."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import peewee

from astra.database.connection import drop_connection, is_away
from astra.errors import AstraError, SlurmRefused, SlurmUnknown
from astra.models.locks import LockHeld, hold, is_held

log = logging.getLogger(__name__)


T = TypeVar("T")

#: How long `astra nightly`, called by cron, waits for an unavailable Slurm or database, and a
#: finalizer for another process that works on the night.
LONGEST_WAIT_S = 600.0

#: The purpose for which a finalizer holds the lock of its night: a step, which soon ends by itself.
STEP = "step"


@contextmanager
def night_lock(name: str, step: bool = False) -> Iterator[None]:
    """Hold the lock of a night against processes on any host; it is released if this one dies.

    Parameters
    ----------
    step : whether this is a finalizer's step, which others may wait for.

    Raises
    ------
    LockHeld
        If another process holds it; the message says which, and since when.
    """
    activity = f"works on the night {name!r}"
    with hold(_lock(name), activity, f"astra nights {name}", STEP if step else ""):
        yield


def is_at_work(name: str) -> bool:
    """Return whether a process works on a night."""
    return is_held(_lock(name))


def _lock(name: str) -> str:
    return f"night {name}"


def is_temporary(error: BaseException) -> bool:
    """Return whether an error is temporary: Slurm or the database is down, full or closed."""
    later = isinstance(error, SlurmRefused) and (error.limit or error.closed)
    return isinstance(error, SlurmUnknown) or later or is_away(error)


def call_when_released(work: Callable[[], T], bound_s: float, wait_for_all: bool) -> T:
    """Return `work()`; repeat it while the night's lock is held, and after temporary errors.

    With `wait_for_all`, wait for every holder of the lock; otherwise only for a finalizer's step.
    The pauses after temporary errors grow.
    """
    began, pause_s = time.monotonic(), 1.0
    while True:
        try:
            return work()
        except LockHeld as held:
            left_s = began + min(bound_s, LONGEST_WAIT_S) - time.monotonic()
            if left_s <= 0 or not (wait_for_all or held.purpose == STEP):
                raise
            time.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        except (AstraError, peewee.PeeweeException) as error:
            left_s = began + bound_s - time.monotonic()
            if not is_temporary(error) or left_s <= 0:
                raise
            if is_away(error):
                drop_connection()
            log.warning("trying again in %.0f s: %s", min(pause_s, left_s), str(error).strip())
            time.sleep(min(pause_s * random.uniform(0.5, 1.5), left_s))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, 120.0)
