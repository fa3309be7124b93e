"""Batch orchestration for science archives.

``@task`` makes a generator function a task; ``generate_queries_for_task`` finds the input rows that
have no up-to-date result. Plans, Slurm arrays and reports are based on these two: see
``astra --help``, and ``astra.api`` for programs.
"""

from astra.lazy import on_first_use

__version__ = "0.8.1"

TYPE_CHECKING = False  # type checkers assume True; an import here would delay every command
if TYPE_CHECKING:
    from astra.config.startup import log
    from astra.plan.pending import generate_queries_for_task
    from astra.results.rows import End
    from astra.tasks.decorator import task

__all__ = ["End", "__version__", "generate_queries_for_task", "log", "task"]

__getattr__, __dir__ = on_first_use(__name__)
