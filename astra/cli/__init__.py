"""The command line: named parameters, one call each.

``group`` holds what all commands share; the others hold the commands, in the order of a night.
"""

from astra.cli import begin, nights, progress, results, slam, work
from astra.cli.group import main

__all__ = ["begin", "main", "nights", "progress", "results", "slam", "work"]
