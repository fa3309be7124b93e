"""Database work in a thread of its own, and so on a connection of its own."""

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from queue import SimpleQueue
from typing import Any

from astra.database.connection import T, connected, dialect, drop_connection


def in_background(work: Callable[[], T]) -> Callable[[], T]:
    """Begin `work()` in a thread of its own; return a function that waits for its result.

    What a task left open on this thread's connection can neither swallow nor block the work. A
    database in memory is known to one connection alone: there, `work` is called by the caller.
    """
    if dialect().url.endswith(":memory:"):
        return work
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="astra background", daemon=True)
    thread.start()

    def result() -> T:
        try:
            thread.join()
        except BaseException:
            thread.join()  # a signal came: what was begun is finished, and not begun twice at once
            raise
        if failed:
            raise failed[0]
        return done[0]

    return result


#: Rows that a query is read by in a thread of its own.
CHUNK = 50


def read_in_background(query: Any) -> Iterator[Any]:
    """Read the rows of a query, as they are wanted, in a thread of its own.

    They are as they were when the reading began, whatever is written meanwhile, and the caller's
    connection is free for everything else.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    chunks: SimpleQueue[list[Any] | BaseException] = SimpleQueue()

    def read() -> None:
        try:
            connected()
            rows = iter(query.iterator())
            while wanted.get():
                chunks.put(list(islice(rows, CHUNK)))
        except BaseException as error:
            chunks.put(error)
        finally:
            drop_connection()

    thread = threading.Thread(target=read, name="astra reader", daemon=True)
    thread.start()
    try:
        while True:
            wanted.put(True)
            chunk = chunks.get()
            if isinstance(chunk, BaseException):
                raise chunk
            if not chunk:
                return
            yield from chunk
    finally:  # also where a caller that left early is collected as garbage
        wanted.put(False)
        thread.join()
