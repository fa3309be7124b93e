"""The buffer of results that a run has yielded and that are not yet stored."""

import threading
import time
from collections import deque
from collections.abc import Iterable

from astra.results.rows import Checkpoint, Handed, Refusal, Yielded


class Buffer:
    """Hold rows until their checkpoint. Two threads use it: one adds rows, one takes them."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()  # guards all of the following
        self.changed = threading.Condition(self.mutex)
        self.waiting = Checkpoint()
        self.in_writing = Checkpoint()
        self.n_waiting = 0
        self.since: float | None = None  # when the oldest waiting row was added
        self.stored: deque[object] = deque()  # results that may be passed on to the caller

    def add(self, yielded: Yielded) -> bool:
        """Add a result; return whether it is the first waiting row."""
        with self.mutex:
            self.waiting.results.append(yielded)
            self.n_waiting += 1
            return self.since is None and self._start_clock()

    def add_row(self, results: list[Yielded]) -> bool:
        """Add all results of a row, which go into one checkpoint."""
        with self.mutex:
            self.waiting.results += results
            self.n_waiting += len(results)
            return self.since is None and self._start_clock()

    def add_no_results(self, rows: Iterable[Handed]) -> bool:
        with self.mutex:
            self.waiting.no_results += rows
            self.n_waiting = len(self.waiting)
            return self.since is None and self._start_clock()

    def add_failure(self, failure: Refusal) -> bool:
        with self.mutex:
            self.waiting.failures.append(failure)
            self.n_waiting += 1
            return self.since is None and self._start_clock()

    def forget_failures(self) -> None:
        """Drop the failures that wait, so that their rows stay pending."""
        with self.mutex:
            self.waiting.failures.clear()
            self.n_waiting = len(self.waiting)

    def _start_clock(self) -> bool:
        self.since = time.monotonic()
        return True

    def unwritten(self) -> Checkpoint:
        """Return everything that was added and is not known to be stored."""
        with self.mutex:
            return self.in_writing + self.waiting

    def take(self) -> Checkpoint:
        """Return all waiting rows, to be written now."""
        with self.mutex:
            checkpoint, self.waiting = self.waiting, Checkpoint()
            self.in_writing, self.since, self.n_waiting = checkpoint, None, 0
            for yielded in checkpoint.results:
                yielded.taken = True
            return checkpoint

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint that could not be written back, before the rows added since."""
        with self.mutex:
            self.waiting, self.in_writing = checkpoint + self.waiting, Checkpoint()
            self.n_waiting = len(self.waiting)
            self.since = time.monotonic()
            self.changed.notify_all()

    def finish(self, results: Iterable[object]) -> None:
        """Note that the checkpoint is stored; its `results` may be passed on to the caller."""
        with self.mutex:
            self.in_writing = Checkpoint()
            self.stored.extend(results)
            self.changed.notify_all()
