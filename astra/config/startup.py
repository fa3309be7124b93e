"""Start a command: set up its log, the hiding of secrets, and the search path of modules."""

import logging
import re
import sys
import threading
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

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
    # As with `python -m`, tasks of modules in this folder can be imported.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


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
