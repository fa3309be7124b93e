"""Run database work in another thread, and so on a connection of its own."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from itertools import islice
from queue import SimpleQueue
from typing import Any

from astra.database.connection import T, connected, database, dialect, drop_connection
from astra.database.memory import start_thread


def join(thread: threading.Thread) -> None:
    """Wait until a daemon thread has ended.

    A generator that the interpreter collects as it ends does not wait: from Python 3.13 on, daemon
    threads stand still by then, and it would wait for ever.
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
    if dialect().url.endswith(":memory:"):
        return work
    future = in_thread(work, "astra background")

    def result() -> T:
        try:
            return future.result()
        finally:
            wait([future])  # after a signal too, the work ends before it could begin again

    return result


#: The number of rows that the other thread reads at once.
CHUNK = 50


def read_in_background(query: Any) -> Iterator[Any]:
    """Read the rows of a query in another thread, chunk by chunk as they are needed.

    Rows are as they were when reading began, whatever is written meanwhile, and the caller's
    connection is free for other work.
    """
    requests: SimpleQueue[bool] = SimpleQueue()
    chunks: SimpleQueue[list[Any] | BaseException] = SimpleQueue()

    bound = database.obj  # who stops early may have bound another when the thread ends

    def read() -> None:
        try:
            connected()
            rows = iter(query.iterator())
            while requests.get():
                chunks.put(list(islice(rows, CHUNK)))
        except BaseException as error:
            chunks.put(error)
        finally:
            drop_connection(bound)

    thread = start_thread(read, "astra reader")
    try:
        while True:
            requests.put(True)
            chunk = chunks.get()
            if isinstance(chunk, BaseException):
                raise chunk
            if not chunk:
                return
            yield from chunk
    finally:  # also if the caller stops early, and the generator is collected
        requests.put(False)
        join(thread)
