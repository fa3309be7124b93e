"""Start a command, with its log and the search path of modules, and end it whatever a task does."""

import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from astra.config.secrets import hide

if TYPE_CHECKING:
    from logging import _SysExcInfoType as SysExcInfoType

#: The package's logger, ``astra.log``; programs that use the package configure it.
log = logging.getLogger("astra")

#: Characters that are commands to a terminal, or change the order in which others are shown. Logs
#: and messages contain other people's texts.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

#: Characters of the longest record of a log: an exception may have all of its data in its text.
_MAX_LOGGED = 100_000


def printable(text: str) -> str:
    """Escape control characters, so that a terminal does not act on them."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def start_command(verbose: bool = False) -> None:
    """Log to standard error without secrets, and find modules in the current folder."""
    warnings.simplefilter("default" if verbose else "ignore", ResourceWarning)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_Hiding("%(asctime)s %(levelname)s %(message)s"))
    sys.excepthook = _show_bug
    threading.excepthook = lambda bug: _show_bug(bug.exc_type, bug.exc_value, bug.exc_traceback)
    import_from(str(Path.cwd()))


_STDLIB = {str(Path(os.__file__).parent / folder) for folder in ("", "lib-dynload")}


def import_from(folder: str) -> None:
    """Find modules in a folder first, but after Python's own: its `types.py` hides no other."""
    if folder not in sys.path:
        own = [path for path in sys.path if path in _STDLIB]
        sys.path[:] = [*own, folder, *(path for path in sys.path if path not in _STDLIB)]


class _Hiding(logging.Formatter):
    """Removes passwords from messages and tracebacks: logs are kept, and shown to others."""

    with_traceback = True

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        left_out = "" if len(text) <= _MAX_LOGGED else " … (the rest is left out)"
        text = printable(hide(text[:_MAX_LOGGED])) + left_out
        return text if self.with_traceback else " ".join(text.splitlines())

    def formatException(self, info: "SysExcInfoType") -> str:  # noqa: N802 - logging's name
        return super().formatException(info) if self.with_traceback else ""


def one_line_for_each_error() -> None:
    """Log exceptions without their tracebacks."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Hiding):
            handler.formatter.with_traceback = False


def _show_bug(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    sys.stderr.write(printable(hide("".join(traceback.format_exception(kind, error, trace)))))


@contextmanager
def exits_raised() -> Iterator[None]:
    """Raise SystemExit where code of a task calls ``os._exit``, which would end a command halfway,
    maybe with the status of success. A thread ends the command; a forked process ends as usual."""
    end, pid = os._exit, os.getpid()

    def raise_exit(status: int) -> NoReturn:
        if os.getpid() == pid and threading.current_thread() is threading.main_thread():
            raise SystemExit(status)
        end(status if os.getpid() != pid else status or 1)

    os._exit = raise_exit
    try:
        yield
    finally:
        os._exit = end


def end_within(seconds: float, status: int) -> None:
    """End this process by itself, unless it has ended before: a thread that a task has left
    running, or what is called at the end of the interpreter, may keep it for ever."""

    def end() -> None:
        sys.stderr.write("astra: the command has ended, and what its task left running with it\n")
        sys.stderr.flush()
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
