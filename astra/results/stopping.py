"""Stop a run early: on request, on a termination signal, or after too many failures."""

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from astra.config.value_checks import entry, flag, number, whole
from astra.database.connection import T, retrying
from astra.errors import BrokenElement, Terminated
from astra.records import dataclass

if TYPE_CHECKING:
    from astra.results.rows import Refusal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The settings of a task: from the call, the decorator or the defaults, in this order."""

    live: bool = entry(False, flag)
    batch_size: int = entry(1000, whole(1))
    write_frequency: float = entry(300, number(0))
    write_to_database: bool = entry(True, flag)
    re_raise_exceptions: bool = entry(True, flag)


SignalHandler = Callable[[int, FrameType | None], object] | int | None


class Stop:
    """A request to end the run, after the row in progress or soon after."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.is_wanted = False  # the same, for code that does not wait: it is read at every row
        self.reason = ""
        self.is_loading = False  # the task is imported, which may be interrupted like a row
        #: Ends the handlers of signals that the task has set, and returns them. What they have
        #: received until then is known.
        self.take_back_signals: Callable[[], dict[int, SignalHandler]] = dict

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Allow that the block is interrupted."""
        self.is_loading = True
        try:
            yield
        finally:
            self.is_loading = False

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.is_wanted = True
        self.wanted.set()

    def was_asked(self) -> bool:
        """Return whether a stop is wanted, also by the signal at which a handler of the task's own
        has raised. Such a handler does not interrupt what follows."""
        own = self.take_back_signals()
        if self.is_wanted:
            return True
        for caught, handler in own.items():
            signal.signal(caught, handler)
        return False

    def retrying(self, work: Callable[[], T], bound_s: float | None = None) -> T:
        """Call `work()` as :func:`retrying` does, for LAST_WAIT_S once a stop is wanted."""
        return retrying(work, bound_s, self.wanted)


@dataclass
class Tally:
    """Count how an element's rows ended: if nearly all fail, the task is broken, not the rows."""

    share: float = 1.0  # of the rows that may fail
    after: int = 20  # rows; with fewer nothing is concluded
    n_ended: int = 0
    n_failed: int = 0
    n_mistakes: int = 0  # failures that are mistakes of the task or of its table
    last: str = ""  # the last failure: what was raised, and where
    n_stored: int = 0  # rows with a stored result, or a record that they have none
    #: The keys of the page's rows that failed before: failing again, they blame nothing else.
    failed_before: Container[str] = ()

    def _blamable(self, failures: "Iterable[Refusal]") -> "list[Refusal]":
        """Return the failures that the task, or the node, may be to blame for: not those of rows
        that failed before, nor those with a further result that was refused."""
        return [
            f for f in failures if not f.refused and str(f.handed.key) not in self.failed_before
        ]

    def count(self, failures: "Iterable[Refusal]") -> None:
        """Count rows that have failed."""
        for failure in self._blamable(failures):
            self.n_failed += 1
            self.n_mistakes += failure.is_mistake
            self.last = failure.summary

    def check(self, task: str, refused: "Sequence[Refusal]" = ()) -> None:
        """Check the share of failures among the rows so far, with those about to fail.

        Raises
        ------
        BrokenElement
            If more than the share of rows has failed.
        """
        refused = self._blamable(refused)
        n_failed = self.n_failed + len(refused)
        last = refused[-1].summary if refused else self.last
        if self.n_ended >= self.after and n_failed > self.share * self.n_ended:
            raise BrokenElement(
                f"{n_failed} of {self.n_ended} rows of this element failed, more than the "
                f"share of {self.share:g} ([element] max_failures): {task} is considered broken, "
                "not its rows; failures that are not yet stored are discarded, and their rows "
                "stay pending" + (f"; the last: {last}" if last else "")
            )

    def check_end(self, task: str) -> None:
        """Check the failures at the end of a page.

        Raises
        ------
        BrokenElement
            If there are several rows, and all of them failed by errors that any row would meet.
        """
        if not self.n_stored and self.n_failed == self.n_mistakes > 1:
            raise BrokenElement(
                f"{self.last}: all {self.n_failed} rows so far failed for a reason that is not "
                f"in the rows, such as a mistake in {task} or a trigger of its table; the rows "
                "stay pending"
            )


#: Exceptions that end a run. Any other one is a failure of a row, even if it is no `Exception`,
#: such as the panic of an extension in Rust or a cancelled coroutine. In an element, only the first
#: ends it.
INTERRUPTIONS = (Terminated, KeyboardInterrupt, GeneratorExit)


class ActiveRuns:
    """The active runs of this process, the innermost last.

    They are interrupted when the process is asked to stop, and their results are stored before the
    interpreter ends. A SIGTERM that has no other handler interrupts them at once; an element has a
    handler of its own (see signals.py).
    """

    runs: list[Any] = []  # each has a `writer`, a `stop`, a `clock` and a `thread`
    previous: Any = None  # the earlier handler of SIGTERM
    pid = 0  # of the process that started the runs; its forks have nothing to write
    status = 0  # the exit status of the process once it was interrupted

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
        if any(other.stop.is_wanted for other in cls.runs):
            # A task within the task of an element that has to stop.
            cls.runs[-1].writer.wait_no_longer()

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
        """Store the yielded results of all runs."""
        if cls.pid == os.getpid():
            with ExitStack() as all_runs:  # all of them, also if some cannot
                for run in cls.runs:
                    all_runs.callback(run.writer.write_all)

    @classmethod
    def are_computing(cls) -> bool:
        """Return whether this thread computes: its innermost run does not read or write.

        A run whose caller works on a result of it is not the innermost one.
        """
        thread = threading.get_ident()
        runs = [run for run in cls.runs if run.thread == thread and not run.is_waiting]
        return bool(runs) and runs[-1].clock.is_running()

    @classmethod
    def on_sigterm(cls, number: int, frame: object) -> None:
        """End the process; waiting rows are written as the runs or the interpreter end."""
        cls.interrupt(128 + number)

    @classmethod
    def interrupt(cls, status: int) -> NoReturn:
        """Raise :class:`Terminated`, from a signal handler, in the code of the main thread."""
        cls.status = status
        raise Terminated(status)

    @classmethod
    def check(cls) -> None:
        """End a run whose task has caught the exception that should have ended it.

        End a process, too, that the task forked, and that goes on as if it were the task.
        """
        if cls.status and cls.pid != os.getpid():
            log.error("a process that the task forked returned or yielded: it is ended")
            os._exit(1)
        if cls.status:
            raise Terminated(cls.status)


def _forget_runs() -> None:
    """Forget the runs in a process that a task forked: its parent writes their results.

    The module of a task may fork processes as it is imported, too.
    """
    if ActiveRuns.runs:
        ActiveRuns.runs, ActiveRuns.status = [], 1
    # multiprocessing ends its workers by SIGTERM, which must not run the parent's handlers.
    for caught in _handled_signals():
        default = signal.default_int_handler if caught == signal.SIGINT else signal.SIG_DFL
        signal.signal(caught, default)
        signal.set_wakeup_fd(-1)
    _deliver_signals()


def _handled_signals() -> list[signal.Signals]:
    """Return the signals that have a handler of astra's."""
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    modules = [str(getattr(signal.getsignal(number), "__module__", "")) for number in caught]
    return [n for n, module in zip(caught, modules, strict=True) if module.startswith("astra.")]


_at_fork = threading.local()  # `mask`: the signals that this thread held before it forked


def _hold_signals() -> None:
    """Hold signals while a process forks: one that is sent to the new process at once, as a pool
    ends its workers, would run the parent's handlers there, and ask the parent to stop."""
    _at_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _handled_signals())


def _deliver_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _at_fork.mask)


def end_forked(error: BaseException) -> NoReturn:
    """End a process that the task has forked, and in which it raised instead of calling _exit.

    It has no thread that writes, and its connections are those of the process that forked it.
    """
    code = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(error, SystemExit):
        log.error("a process that the task forked raised %s", type(error).__name__, exc_info=error)
    os._exit(code if isinstance(code, int) else int(code is not None))


os.register_at_fork(
    before=_hold_signals, after_in_parent=_deliver_signals, after_in_child=_forget_runs
)
