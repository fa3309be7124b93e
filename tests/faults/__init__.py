"""Inject faults into a running plan, and check that every row ends as in a serial run.

    python -m tests.faults --seeds 100 [--first 1] [--jobs 2] [--slurm]

A seed determines a task, its rows, pages and batches, and a schedule of faults (scenario.py). The
kinds of faults are registered by the modules on_*.py (kinds.py). The plan is run to its end with
``astra resume``, as a user would run it, on a real PostgreSQL (runner.py), while the nemesis injects
the faults (nemesis.py). Then ``astra verify`` must find no breach; every row must have ended with the
same values as in a serial run, and must not have been computed again after it was stored (judge.py).
A seed that fails prints the command that repeats it.
"""

from tests.faults import on_archives, on_database, on_processes, on_tables

__all__ = ["on_archives", "on_database", "on_processes", "on_tables"]
