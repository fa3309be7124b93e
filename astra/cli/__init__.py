"""The command line: each command takes its options and calls one function of the API.

``group`` holds what all commands share.
"""

from astra.cli import nights, plans, results, running, setup, slam
from astra.cli.group import main

__all__ = ["main", "nights", "plans", "results", "running", "setup", "slam"]
