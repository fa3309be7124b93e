"""Whether elements can import a plan's task, from which folder, and in which they start."""

from collections.abc import Callable
from pathlib import Path

from astra.config.value_checks import is_utf8
from astra.errors import TaskError, UsageError
from astra.models.importing import import_path, load
from astra.tasks.signature import task_name


def current_folder() -> str:
    """Return the folder in which elements start; plans store it as text, in UTF-8."""
    folder = str(Path.cwd())
    if not is_utf8(folder):
        raise UsageError(
            f"the name of the current folder, {folder!r}, is not UTF-8; rename it, or plan in "
            "another one"
        )
    return folder


def import_root(function: Callable[..., object], file: Path) -> str | None:
    """Return the folder that ``sys.path`` needs to import a task; None if the task is installed."""
    depth = function.__module__.count(".") + (1 if file.name == "__init__.py" else 0)
    root = file.parents[depth] if depth < len(file.parents) else file.parent
    return None if "site-packages" in root.parts else str(root)


def check_importable(function: Callable[..., object]) -> None:
    """Refuse a task that elements could not import by the name of its module and function."""
    path = import_path(function)
    if function.__module__ == "__main__" or "<locals>" in path:
        raise TaskError(
            f"{task_name(function)} cannot be imported by other processes: move it to the top "
            "level of a module, and name it module.function"
        )
    if load(path) is not function:
        raise TaskError(
            f"{path} is no longer the task that was given, and elements would run what has "
            "replaced it: give the task a name of its own in its module"
        )
