"""Batch orchestration for science archives.

``@task`` makes a generator function a task; ``generate_queries_for_task`` finds the input rows
that have no up-to-date result. Plans, Slurm arrays and the morning's status are built on these
two: see ``astra --help``, and ``astra.api`` for the same from programs.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.8.1"

#: The log of the package: ``astra`` and its children, set up by the program that uses it.
log = logging.getLogger("astra")

if TYPE_CHECKING:
    from astra.pending import generate_queries_for_task
    from astra.tasks import task

__all__ = ["__version__", "generate_queries_for_task", "log", "task"]

_HOME_OF = {"task": "astra.tasks", "generate_queries_for_task": "astra.pending"}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `astra --help` does not wait for the database driver.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'astra' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
