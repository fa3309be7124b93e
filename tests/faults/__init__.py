"""Faults: a nemesis kills, stops and starves what runs a plan, and a judge knows the truth.

    python -m tests.faults --seeds 100 [--first 1] [--jobs 2] [--slurm]

From a seed are drawn a task, its rows, pages and batches, and a schedule of faults (scenario.py), of the kinds
that the modules on_*.py register (kinds.py).
The plan is run to its end with ``astra resume``, as a user would, on a real PostgreSQL (runner.py),
while the faults are done to it (nemesis.py). Then ``astra verify`` must call it sound, and every row
must have ended as in a serial run, value by value, and not have been computed again after it was
stored (judge.py). A seed that fails prints the command that repeats it.
"""

from tests.faults import on_archives, on_database, on_processes, on_tables

__all__ = ["on_archives", "on_database", "on_processes", "on_tables"]
