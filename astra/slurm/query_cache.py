"""Cache the output of Slurm's query commands for a few seconds, to reduce the load on slurmctld.

Each query has a small file in the user's own cache folder, which the next command reads. Only
commands that show states use the cache; no decision is based on it. If it cannot be written, Slurm
is queried. The output of a slow query is kept for longer.
"""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from astra.config.run_folder import write_whole
from astra.errors import AstraError

log = logging.getLogger(__name__)


#: The output of a query is used for at least this many times the duration of the query.
SLOW = 3.0


def cached_output(args: Sequence[str], source: str, recent_s: float, ask: Callable[[], str]) -> str:
    """Return the output of a command: cached output up to `recent_s` old, or new output.

    A file is used from the time in its first line until its time of modification, which lies ahead.
    Both are by the clock of this machine, unlike other times of a file on a server.

    Parameters
    ----------
    args : the command and its arguments.
    source : the machine and the configuration of the cluster, on which the output depends too.
    recent_s : 0 to run the query, and keep nothing.
    ask : runs the query.
    """
    if not recent_s or (folder := _folder()) is None:
        return ask()
    name = hashlib.sha256("\0".join([source, *args]).encode()).hexdigest()[:32]
    path = folder / f"{args[0]}-{name}.txt"
    if (cached := _read(path)) is not None:
        log.info("%s: cached output", args[0])
        return cached
    at, began = time.time(), time.monotonic()
    text = ask()
    used_until = at + max(recent_s, SLOW * (time.monotonic() - began))
    with suppress(AstraError, OSError):
        write_whole(path, f"{at}\n{text}")
        os.utime(path, (used_until, used_until))
        _forget(folder, older_than=at)
    return text


def forget_all() -> None:
    """Clear the cache, because something was submitted or cancelled."""
    if (folder := _folder(make=False)) is not None:
        _forget(folder, older_than=float("inf"))


def _folder(make: bool = True) -> Path | None:
    """Return the user's cache folder, if only the user can write to it; otherwise None."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(root) / "astra"
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.lstat()
    except (OSError, ValueError):
        return None
    is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return folder if is_private and not status.st_mode & 0o077 else None


def _read(path: Path) -> str | None:
    """Return the text of a file that may still be used."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8", newline="") as file:
            # The clock may have been put back since the file was written.
            began, used_until = float(file.readline()), os.fstat(descriptor).st_mtime
            return file.read() if began <= time.time() < used_until else None
    except (OSError, ValueError):
        return None  # there is none, or it is damaged


def _forget(folder: Path, older_than: float) -> None:
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):
                if file.suffix == ".txt" and file.lstat().st_mtime < older_than:
                    file.unlink()
