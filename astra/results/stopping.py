"""Stop a run early: on request, on a termination signal, or after too many failures."""

import atexit
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from astra.errors import BrokenElement

if TYPE_CHECKING:
    from astra.results.rows import Refusal


@dataclass(frozen=True)
class Settings:
    """The keywords of a task, resolved: call beats decorator beats default."""

    live: bool = False
    batch_size: int = 1000
    write_frequency: float = 300
    write_to_database: bool = True
    re_raise_exceptions: bool = True


class Stop:
    """A request that the run ends: after the row in hand, or soon."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.reason = ""
        self.is_loading = False  # the task is imported, which may be interrupted like a row

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.wanted.set()


@dataclass
class Tally:
    """How the rows of an element fared: a task that fails them all is not the rows' fault."""

    share: float = 1.0  # of the rows that may fail
    after: int = 20  # rows; with fewer nothing is concluded
    n_ended: int = 0
    n_failed: int = 0
    n_mistakes: int = 0  # of the failures, that are mistakes of the task or of its table
    mistake: str = ""  # the last of them: what was raised, and where
    n_stored: int = 0  # rows with a result, or rightly none, that the database has taken

    def count(self, failures: "Iterable[Refusal]") -> None:
        """Count rows that have failed."""
        for failure in failures:
            self.n_failed += 1
            if failure.is_mistake:
                self.n_mistakes += 1
                self.mistake = failure.said

    def check(self, task: str, refused: "Sequence[Refusal]" = ()) -> None:
        """Judge the rows up to now, and those that are about to fail.

        Raises
        ------
        BrokenElement
            If more than the share of rows has failed.
        """
        n_failed = self.n_failed + len(refused)
        if self.n_ended >= self.after and n_failed > self.share * self.n_ended:
            raise BrokenElement(
                f"{n_failed} of {self.n_ended} rows of this element failed, more than the "
                f"share of {self.share:g} ([element] max_failures): {task} is taken to be broken, "
                "not its rows; failures not yet stored are left out, and their rows stay pending"
                + (f"; the last: {refused[-1].said}" if refused else "")
            )

    def check_end(self, task: str) -> None:
        """Judge the rows at the end of a page.

        Raises
        ------
        BrokenElement
            If all of several rows failed by what each row would meet.
        """
        if not self.n_stored and self.n_failed == self.n_mistakes > 1:
            raise BrokenElement(
                f"{self.mistake}: all {self.n_failed} rows up to now failed by what is no row's "
                f"own fault, such as a mistake in {task} or a trigger of its table; the rows stay "
                "pending"
            )


class Terminated(SystemExit):
    """The process was asked to stop; whatever the task makes of its exceptions, it ends."""


class ActiveRuns:
    """The runs under way in this process, the innermost last.

    They are what is interrupted when the process is asked to stop, and what stores its results
    before the interpreter ends. A SIGTERM that nobody handles interrupts them at once; an element
    has a handler of its own (see signals.py).
    """

    runs: list[Any] = []  # each has a `writer` and a `clock`
    previous: Any = None  # what handled SIGTERM before
    pid = 0  # of the process that entered: a fork of it has nothing to write
    status = 0  # that the process ends with, once it was interrupted

    @classmethod
    def enter(cls, run: object) -> None:
        if not cls.runs:
            cls.pid, cls.status = os.getpid(), 0
            atexit.register(cls.flush)
            if (
                threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            ):
                cls.previous = signal.signal(signal.SIGTERM, cls.on_sigterm)
        cls.runs.append(run)

    @classmethod
    def leave(cls, run: object) -> None:
        if run in cls.runs:
            cls.runs.remove(run)
        if not cls.runs:
            atexit.unregister(cls.flush)
            if cls.previous is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, cls.previous)
                cls.previous = None

    @classmethod
    def flush(cls) -> None:
        """Store what the runs have yielded."""
        if cls.pid == os.getpid():
            for run in list(cls.runs):
                run.writer.write_all()

    @classmethod
    def are_computing(cls) -> bool:
        """Whether a task computes, and nothing of it is being written."""
        return bool(cls.runs) and cls.runs[-1].clock.is_running()

    @classmethod
    def on_sigterm(cls, number: int, frame: object) -> None:
        """End the process; the runs' own ends, or that of the interpreter, write what waits."""
        cls.interrupt(128 + number)

    @classmethod
    def interrupt(cls, status: int) -> NoReturn:
        """Raise :class:`Terminated` where the main thread stands, in a handler of a signal."""
        cls.status = status
        raise Terminated(status)

    @classmethod
    def check(cls) -> None:
        """End a run whose task has caught the exception that was to end it."""
        if cls.status:
            raise Terminated(cls.status)


def _forget_runs() -> None:
    """In a process that a task forked: the results are its parent's to write."""
    if not ActiveRuns.runs:
        return
    ActiveRuns.runs = []
    # multiprocessing ends its workers by SIGTERM, which must not wake the parent's handlers.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
        if str(getattr(signal.getsignal(number), "__module__", "")).startswith("astra."):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_runs)
