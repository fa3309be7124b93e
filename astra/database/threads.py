"""Database work in a thread and on a connection of its own, beside what the caller does."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

from astra.database.connection import (
    T,
    connected,
    connection,
    database,
    database_is_unset,
    dialect,
    drop_connection,
    in_transaction,
)
from astra.database.sqlite import SQLite


def aside(work: Callable[[], T]) -> T:
    """`work()` in a thread of its own, and so on a connection of its own.

    What a task left open on this thread's connection can neither swallow nor block it. A database
    in memory is known to one connection alone: there, `work` is simply called.
    """
    return begun_aside(work)()


def begun_aside(work: Callable[[], T]) -> Callable[[], T]:
    """`work()` as :func:`aside`, begun now: what is given back waits for its end."""
    if dialect().url.endswith(":memory:"):
        return work
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="astra aside", daemon=True)
    thread.start()

    def ended() -> T:
        try:
            thread.join()
        except BaseException:
            thread.join()  # a signal came: what was begun is finished, and not begun twice at once
            raise
        if failed:
            raise failed[0]
        return done[0]

    return ended


def apart(work: Callable[[], T]) -> T:
    """`work()`, which writes, where it does not disturb what the caller reads.

    SQLite does not say what a cursor sees whose own connection writes, and refuses the write of
    a connection whose cursor sees an older state. With a connection aside, the cursor reads on in
    the state that it began in.
    """
    reads = not database_is_unset() and not database.obj.is_closed()
    if dialect().name == "sqlite" and reads and not in_transaction():
        return aside(work)
    return work()


#: Seconds that a :class:`Beside` waits for another who writes.
AT_ONCE_S = 1.0


class Beside:
    """A connection to SQLite beside the one that this thread may be using.

    What a task left open on its own can neither swallow nor block what is written by this one.
    peewee knows one connection of a thread: its own is laid aside meanwhile.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def at_once(self, work: Callable[[], T]) -> T:
        """`work()`, which writes, if the file is free.

        Raises
        ------
        DatabaseError, or peewee's exceptions
            If it is not; nothing is tried again.
        """
        with self._in_its_place():
            if connected():
                cast(SQLite, dialect()).wait_for_lock(AT_ONCE_S)
            try:
                with connection():
                    return work()
            except BaseException:
                drop_connection()
                raise

    def close(self) -> None:
        if self.state:
            with self._in_its_place():
                drop_connection()

    @contextmanager
    def _in_its_place(self) -> Iterator[None]:
        of_thread = vars(database.bound()._state)  # of a threading.local: what this thread sees
        theirs = dict(of_thread)
        if self.state:
            of_thread.update(self.state)
        else:
            database.obj._state.reset()
        try:
            yield
        finally:
            self.state = dict(of_thread)
            of_thread.update(theirs)


#: Rows that a query in a thread of its own is read by, and how many such chunks may wait.
CHUNK, CHUNKS_AHEAD = 50, 2


def read_aside(query: Any) -> Iterator[Any]:
    """The rows of a query, read as they are wanted, in a thread and on a connection of its own.

    They are as they were when the reading began, whatever is written meanwhile, and the caller's
    connection is free for everything else.
    """
    ready: queue.Queue[tuple[list[Any], BaseException | None]] = queue.Queue(CHUNKS_AHEAD)
    left = threading.Event()

    def put(chunk: list[Any], error: BaseException | None = None) -> None:
        while not left.is_set():
            try:
                return ready.put((chunk, error), timeout=0.2)
            except queue.Full:
                continue

    def read() -> None:
        try:
            with connection():
                rows = iter(query.iterator())
                while not left.is_set() and (chunk := list(islice(rows, CHUNK))):
                    put(chunk)
            put([])
        except BaseException as error:
            put([], error)

    thread = threading.Thread(target=read, name="astra reader", daemon=True)
    thread.start()
    try:
        while True:
            chunk, error = ready.get()
            if error is not None:
                raise error
            if not chunk:
                return
            yield from chunk
    finally:
        left.set()
        thread.join()
