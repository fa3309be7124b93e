"""Run database work in another thread, and so on a connection of its own."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

from astra.database.connection import T, dialect
from astra.database.exhaustion import start_thread


def join(thread: threading.Thread) -> None:
    """Wait until a daemon thread has ended.

    A generator that the interpreter collects as it ends does not wait: from Python 3.13 on, daemon
    threads no longer run by then, and it would wait forever.
    """
    if not sys.is_finalizing():
        thread.join()


def in_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Start `work()` in a daemon thread; return the future of its result."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    start_thread(run, name)
    return future


def in_background(work: Callable[[], T]) -> Callable[[], T]:
    """Start `work()` in another thread; return a function that waits for its result.

    A transaction that a task left open on this thread's connection cannot affect the work. A
    database in memory has only one connection: there, the returned function does the work.
    """
    if dialect().is_in_memory:
        return work
    future = in_thread(work, "astra background")

    def result() -> T:
        try:
            return future.result()
        finally:
            wait([future])  # after a signal too, the work ends before it could begin again

    return result
