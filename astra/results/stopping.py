"""Why and how a run stops early: a request, a termination signal, too many failures."""

import atexit
import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

from astra.errors import BrokenElement


@dataclass(frozen=True)
class Settings:
    """The keywords of a task, resolved: call beats decorator beats default."""

    live: bool = False
    batch_size: int = 1000
    write_frequency: float = 300
    write_to_database: bool = True
    re_raise_exceptions: bool = True


class Stop:
    """A wish that the run ends: after the row in hand, or now."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.reason = ""

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

    def check(self, task: str) -> None:
        """
        Raises
        ------
        BrokenElement
            If more than the share of rows has failed.
        """
        if self.n_ended >= self.after and self.n_failed > self.share * self.n_ended:
            raise BrokenElement(
                f"{self.n_failed} of {self.n_ended} rows of this element failed, more than the "
                f"share of {self.share:g} ([element] max_failures): {task} is taken to be broken, "
                "not its rows; failures not yet stored are left out, and their rows stay pending"
            )


class Terminated(SystemExit):
    """SIGTERM came: the process ends, whatever the task makes of its exceptions."""


class Guard:
    """Writers of the runs under way in this process: a SIGTERM that nobody handles, or the end of
    the interpreter, finds their results written."""

    writers: list[Any] = []  # each can write_all()
    previous: Any = None
    pid = 0  # of the process that entered: a fork of it has nothing to write
    told = 0  # the signal that came

    @classmethod
    def enter(cls, writer: Any) -> None:
        if not cls.writers:
            cls.pid, cls.told = os.getpid(), 0
            atexit.register(cls.flush)
            if (
                threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            ):
                cls.previous = signal.signal(signal.SIGTERM, cls.on_sigterm)
        cls.writers.append(writer)

    @classmethod
    def leave(cls, writer: Any) -> None:
        if writer in cls.writers:
            cls.writers.remove(writer)
        if not cls.writers:
            atexit.unregister(cls.flush)
            if cls.previous is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, cls.previous)
                cls.previous = None

    @classmethod
    def flush(cls) -> None:
        if cls.pid == os.getpid():
            for writer in list(cls.writers):
                writer.write_all()

    @classmethod
    def on_sigterm(cls, number: int, frame: object) -> None:
        # Raised where the program stands; the runs' own ends, or the end of the interpreter,
        # write what waits.
        cls.told = number
        raise Terminated(128 + number)

    @classmethod
    def check(cls) -> None:
        """End a run whose task has caught the end of its process."""
        if cls.told:
            raise Terminated(128 + cls.told)


def _forget_runs() -> None:
    """In a process that a task forked: the results are its parent's to write."""
    if not Guard.writers:
        return
    Guard.writers = []
    # multiprocessing ends its workers by SIGTERM, which must not wake the parent's handlers.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
        if str(getattr(signal.getsignal(number), "__module__", "")).startswith("astra."):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_runs)
