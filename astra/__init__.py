"""Batch orchestration for science archives.

``@task`` makes a generator function a task; ``generate_queries_for_task`` finds the input rows that
have no up-to-date result. Plans, Slurm arrays and reports are based on these two: see
``astra --help``, and ``astra.api`` for programs.
"""

__version__ = "0.8.1"

TYPE_CHECKING = False  # type checkers assume True; an import here would delay every command
if TYPE_CHECKING:
    from logging import Logger

    from astra.plan.pending import generate_queries_for_task
    from astra.results.rows import End
    from astra.tasks.decorator import task

    #: The package's logger, ``astra``; programs that use the package configure it.
    log: Logger

__all__ = ["End", "__version__", "generate_queries_for_task", "log", "task"]

_HOME_OF = {
    "End": "astra.results.rows",
    "generate_queries_for_task": "astra.plan.pending",
    "task": "astra.tasks.decorator",
}


def __getattr__(name: str) -> object:
    # Imported on first use, so that `astra --help` does not wait for the database driver.
    if name == "log":
        import logging

        globals()["log"] = logger = logging.getLogger("astra")
        return logger
    if name not in _HOME_OF:
        raise AttributeError(f"module 'astra' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
