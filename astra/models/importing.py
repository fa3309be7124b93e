"""Import a task or a model by its path, with a message that says what is wrong with it."""

import importlib.util
import re
import traceback as tracebacks
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astra.errors import AstraError, TaskError


def import_named(name: str) -> types.ModuleType:
    """The module of a dotted name.

    Raises
    ------
    TaskError
        If the name is none, or its import raises or ends the process.
    ModuleNotFoundError
        If it, or a module that it imports, is not there.
    """
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        parts = re.split(r"[/\\]", name.removesuffix(".py"))
        stem = ".".join(part for part in parts if part.strip("."))
        hint = f": {stem}" if stem else ""
        raise TaskError(
            f"{name!r} is not the name of a module; write it as in an import, without folders and "
            f"without .py{hint}"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise
    except (Exception, SystemExit) as error:
        raise import_failed(name, error) from error


def import_failed(name: str, error: BaseException) -> TaskError:
    """What is raised where the import of a module raised."""
    return TaskError(f"importing {name} failed: {_import_error(error)}")


def _import_error(error: BaseException) -> str:
    """What an import raised, and where."""
    said = str(error) if isinstance(error, AstraError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        said = f"it ends the process (sys.exit({error.code!r})); put that in a function"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frame = own_frame(error)
    if frame is not None:
        said += f" ({frame.filename}:{frame.lineno})"
    if isinstance(error, ModuleNotFoundError):
        said += f"; install {error.name}, or correct its name"
    return said


_PACKAGE = Path(__file__).resolve().parent.parent


def own_frame(error: BaseException) -> tracebacks.FrameSummary | None:
    """The innermost line of a traceback that is not astra's own: a mistake is shown where it is.

    The pipelines that come with astra are tasks like any other.
    """
    frames = tracebacks.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        is_ours = path.is_relative_to(_PACKAGE) and not path.is_relative_to(_PACKAGE / "pipelines")
        if not is_ours and "importlib" not in frame.filename:
            return frame
    return None


def import_path(thing: type | Callable[..., object]) -> str:
    """Return where a function or class can be imported from again: ``module:qualified.name``."""
    return f"{thing.__module__}:{thing.__qualname__}"


def load(path: str) -> Any:
    """What stands at an import path.

    Raises
    ------
    TaskError
        If it is not there any more.
    """
    module_name, _, name = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"{path} cannot be imported: {_import_error(error)}; "
            "it was there when the plan was made"
        ) from error
    return found
