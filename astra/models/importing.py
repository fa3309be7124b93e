"""Import a task or a model by its path, with a message that says what is wrong with it."""

import importlib
import os
import pkgutil
import re
import sys
import traceback as tracebacks
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from astra.errors import AstraError, DatabaseError, TaskError, Terminated, error_text

#: What ends the process that imports a module; all else that is raised is the module's mistake.
_ENDS = (Terminated, KeyboardInterrupt)


def import_named(name: str) -> types.ModuleType | None:
    """Import a module by its dotted name; return None if it, or a package above it, does not exist.

    Raises
    ------
    TaskError
        If the name is invalid, or the import raises or exits, also as a module that it imports does
        not exist.
    """
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        parts = re.split(r"[/\\]", name.removesuffix(".py"))
        stem = ".".join(part for part in parts if part.strip("."))
        hint = f": {stem}" if stem else ""
        raise TaskError(
            f"{name!r} is not the name of a module; write it as in an import, without folders and "
            f"without .py{hint}"
        )
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names and Path(f"{top}.py").exists():
        raise TaskError(
            f"{top} is a module of Python's own, which is imported in place of {top}.py in this "
            "folder; rename that file"
        )
    try:
        return importlib.import_module(name)
    except _ENDS:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            return None
        raise TaskError(f"importing {name} failed: {_import_error(error)}") from error


def _import_error(error: BaseException) -> str:
    """Describe what an import raised, and where."""
    message = error_text(error)
    if isinstance(error, SystemExit):
        message = f"it ends the process (exit status {error.code!r}); put that in a function"
    elif isinstance(error, DatabaseError):
        message += '; what uses the database belongs under `if __name__ == "__main__":`'
    elif not isinstance(error, AstraError):
        message = f"{type(error).__name__}: {message}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    if "over-determined primary key" in message:  # as peewee says
        message += ' A key of two columns is declared in Meta: primary_key = CompositeKey("a", "b")'
    frame = own_frame(error)
    if frame is not None:
        message += f" ({frame.filename}:{frame.lineno})"
    if isinstance(error, ModuleNotFoundError):
        message += f"; install {error.name}, or correct its name"
    return message


_PACKAGE = Path(__file__).resolve().parent.parent
_STDLIB = Path(os.__file__).parent
_INSTALLED = {"site-packages", "dist-packages"}
_IMPORTS = re.compile(r"importlib|/pkgutil\.py$")


def own_frame(error: BaseException) -> tracebacks.FrameSummary | None:
    """Return the innermost frame of a traceback that is the user's, not that of a library.

    The pipelines that come with astra count as the user's. If all frames are of libraries, as those
    of a task that is installed, it is the innermost one that does not belong to astra.
    """
    frames = [
        frame
        for frame in tracebacks.extract_tb(error.__traceback__)
        if not _belongs_to_astra(Path(frame.filename)) and not _IMPORTS.search(frame.filename)
    ]
    own = [frame for frame in frames if not _is_library(Path(frame.filename))]
    return next(reversed(own or frames), None)


#: Entries of a traceback that are kept, at its beginning and at its end: an endless recursion has
#: millions, if the task has raised Python's limit, and formatting them takes minutes.
_KEPT = 500


def cut_long_tracebacks(error: BaseException | None) -> None:
    """Leave out the middle of tracebacks that are too long to be formatted."""
    seen: set[int] = set()
    remaining = [error]
    while remaining:
        one = remaining.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            remaining += [one.__cause__, one.__context__]
            _cut(one)


def _cut(error: BaseException) -> None:
    entries = deque[TracebackType](maxlen=_KEPT)
    trace, last_of_beginning, n_entries = error.__traceback__, None, 0
    while trace is not None:
        n_entries += 1
        if n_entries == _KEPT:
            last_of_beginning = trace
        entries.append(trace)
        trace = trace.tb_next
    if last_of_beginning is not None and n_entries > 2 * _KEPT:
        last_of_beginning.tb_next = entries[0]


def own_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback from the first frame on that is not astra's; all of it if none is."""
    trace = error.__traceback__
    while trace is not None and _belongs_to_astra(Path(trace.tb_frame.f_code.co_filename)):
        trace = trace.tb_next
    return trace or error.__traceback__


def _belongs_to_astra(path: Path) -> bool:
    return path.is_relative_to(_PACKAGE) and not path.is_relative_to(_PACKAGE / "pipelines")


def _is_library(path: Path) -> bool:
    """Return whether a file is of the standard library or of an installed package."""
    if path.is_relative_to(_PACKAGE):
        return False
    return path.is_relative_to(_STDLIB) or not _INSTALLED.isdisjoint(path.parts)


def import_path(thing: type | Callable[..., object]) -> str:
    """Return where a function or class can be imported from again: ``module:qualified.name``."""
    return f"{thing.__module__}:{thing.__qualname__}"


def load(path: str) -> Any:
    """Import what an import path names.

    Raises
    ------
    TaskError
        If it no longer exists.
    """
    try:
        thing = pkgutil.resolve_name(path)
        if not callable(thing):
            raise TypeError(f"{thing!r} is neither a function nor a class")
    except _ENDS:
        raise
    except BaseException as error:
        raise TaskError(
            f"{path} cannot be imported: {_import_error(error)}; "
            "it was there when the plan was made"
        ) from error
    return thing
