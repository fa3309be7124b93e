"""The buffer of results that a run has yielded and that are not yet stored."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from astra.models.pipeline import OutputModel
from astra.results.rows import Checkpoint, HandedRow, Refusal, YieldedResult


class Buffer:
    """Hold rows until their checkpoint. Two threads use it: one adds rows, one takes them.

    In the most frequent case the task's thread only appends a result to ``fresh``. The rest of the
    work is done for all fresh results together, when the waiting rows are next needed. This takes a
    fraction of the time that it would take after each row, when the processor's caches are full of
    the task's data.
    """

    def __init__(self) -> None:
        self.mutex = threading.RLock()  # guards all of the following
        self.changed = threading.Condition(self.mutex)
        #: Results, and the rows that they end, in their order.
        self.fresh: deque[tuple[OutputModel, HandedRow]] = deque()
        #: Does the rest of the work for a fresh result.
        self.finish_fresh: Callable[[OutputModel, HandedRow], None] = lambda result, handed: None
        self.waiting = Checkpoint()
        self.in_writing = Checkpoint()
        self.since: float | None = None  # when the oldest waiting row was added
        self.stored: deque[object] = deque()  # results that may be passed on to the caller

    @property
    def n_waiting(self) -> int:
        return len(self.waiting) + len(self.fresh)

    def note_fresh(self) -> bool:
        """Note that there are fresh results; return whether they are the first waiting rows."""
        with self.mutex:
            return bool(self.fresh) and self._start_clock()

    def add(
        self,
        results: Iterable[YieldedResult] = (),
        no_results: Iterable[HandedRow] = (),
        failures: Iterable[Refusal] = (),
        found: Iterable[HandedRow] = (),
    ) -> bool:
        """Add what goes into one checkpoint; return whether these are the first waiting rows."""
        with self.mutex:
            self._collect()
            self.waiting.results += results
            self.waiting.no_results += no_results
            self.waiting.failures += failures
            self.waiting.found += found
            return self._start_clock()

    def forget_failures(self) -> None:
        """Drop the failures that wait, so that their rows stay pending."""
        with self.mutex:
            self.waiting.failures.clear()

    def _start_clock(self) -> bool:
        if self.since is not None or not self.n_waiting:
            return False
        self.since = time.monotonic()
        return True

    def _collect(self) -> None:
        """Add the fresh results to the waiting ones. The caller holds the mutex."""
        while self.fresh:
            result, handed = self.fresh.popleft()
            self.finish_fresh(result, handed)
            self.waiting.results.append(YieldedResult(result, handed))

    def unwritten(self) -> Checkpoint:
        """Return everything that was added and is not known to be stored."""
        with self.mutex:
            self._collect()
            return self.in_writing + self.waiting

    def take(self) -> Checkpoint:
        """Return all waiting rows, to be written now."""
        with self.mutex:
            # Before fresh results are collected: one that comes later starts the clock again.
            self.since = None
            self._collect()
            # Together with what an exception, such as Ctrl-C, kept from being written. Both are set
            # at once, as another exception may come with any call.
            taken, none = self.in_writing + self.waiting, Checkpoint()
            self.in_writing, self.waiting = taken, none
            for yielded in taken.results:
                yielded.taken = True
            return taken

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Put back a checkpoint that could not be written, before the rows added since."""
        with self.mutex:
            self.waiting, self.in_writing = checkpoint + self.waiting, Checkpoint()
            self.since = time.monotonic()
            self.changed.notify_all()

    def finish(self, results: Iterable[object]) -> None:
        """Note that the checkpoint is stored; its `results` may be passed on to the caller."""
        with self.mutex:
            self.in_writing = Checkpoint()
            self.stored.extend(results)
            self.changed.notify_all()
