"""Notice that this process has no memory or files left, before a connection or a thread waits."""

import mmap
import os
import threading
from collections.abc import Callable

from astra.errors import OutOfFiles, OutOfMemory

#: Bytes that a connection or a new thread needs at most: more than a page of a file, the buffers of
#: libpq, or what Python allocates before a thread runs.
_NEEDED = 1 << 20


def check_memory(error: Exception | None = None) -> None:
    """Raise OutOfMemory if this process cannot allocate what a connection or a thread needs.

    Drivers report this as an I/O error, or as an unreachable server: `error` is what they reported.
    """
    try:
        mmap.mmap(-1, _NEEDED).close()
    except OSError as full:
        raise OutOfMemory(
            f"this process has no memory left to use the database ({full.strerror}): request more, "
            "or raise the limit that the task sets for itself"
        ) from error


def check_files(error: Exception) -> None:
    """Raise OutOfFiles if this process cannot open what a connection needs.

    Drivers report this as an unreachable server: `error` is what they reported.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as full:
        raise OutOfFiles(
            f"this process has no file descriptor left to use the database ({full.strerror}): "
            "close the files that the task opens, or raise the limit (ulimit -n)"
        ) from error


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread, and return it.

    Python itself would wait forever for a thread that has no memory to begin.

    Raises
    ------
    OutOfMemory
        If this process has no memory left for it.
    """
    check_memory()
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
