"""The second thread of a run ends whenever it is told to."""

import threading

from astra.results.background import Background


class Idle:
    """Nothing is ever due."""

    def seconds_until_due(self) -> None:
        return None

    def write_due(self) -> None:
        raise AssertionError("nothing was due")

    def fail_for_good(self, error: BaseException) -> None:
        raise error


class ClosedOnceAsked(threading.Event):
    """Is set by another thread just after it was looked at."""

    def __init__(self, woken: threading.Event) -> None:
        super().__init__()
        self.woken = woken

    def is_set(self) -> bool:
        was_set = super().is_set()
        self.set()
        self.woken.set()
        return was_set


def test_a_run_that_ends_as_its_thread_looks_for_work_does_not_wait_for_ever():
    background = Background(Idle(), heartbeat=None, keeps_connection=False)
    background.over = ClosedOnceAsked(background.woken)
    thread = threading.Thread(target=background._run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
