"""``astra run-page``: one element, as the array's script starts it.

Thousands of elements begin at once, so this is separate from the command line: neither click nor
rich is imported, and nothing that only the task's process needs is imported before the fork.
"""

import sys
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from astra.config import settings
from astra.config.secrets import hide
from astra.config.startup import printable, start_command
from astra.element.progress_board import ProgressBoard
from astra.element.supervisor import supervised
from astra.errors import AstraError, OutOfMemory, UsageError
from astra.processes import now_s, open_streams

_OPTIONS: dict[str, Callable[[str], object]] = {
    "--plan": int, "--job": str, "--element": int, "--planned-by": str,
    "--row-timeout": float, "--start-until": int, "--stop-at": int,
}  # fmt: skip
_REQUIRED = ("--plan", "--job", "--element")


def main(arguments: Sequence[str]) -> int:
    """Run the element that the arguments of the command line name; return its exit status."""
    start_command()
    try:
        options = _parsed(arguments)
        row_timeout_s = options.get("--row-timeout", settings.current().element.row_timeout_s)
    except AstraError as error:
        return _refused(error)
    return supervised(lambda board: _run(options, board), row_timeout_s)


def _parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the options, each of which is followed by its value.

    Raises
    ------
    UsageError
        If an option is unknown, lacks a value or is missing.
    """
    texts = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if len(arguments) % 2 or not texts.keys() <= _OPTIONS.keys():
        raise UsageError(
            f"astra run-page {' '.join(arguments)}: each of {', '.join(_OPTIONS)} takes one value, "
            "and there is no other option; scripts of arrays call it"
        )
    options = {}
    for option, text in texts.items():
        try:
            options[option] = _OPTIONS[option](text)
        except ValueError as error:
            raise UsageError(f"astra run-page {option} {text}: not a number") from error
    if missing := [option for option in _REQUIRED if option not in options]:
        raise UsageError(f"astra run-page lacks {', '.join(missing)}; scripts of arrays call it")
    return options


def _run(options: dict[str, Any], board: ProgressBoard) -> int:
    """Run the element's pages, in the process that may die; return its exit status."""
    from astra.element.element import run_element

    try:
        start_until, stop_at = options.get("--start-until"), options.get("--stop-at")
        if not board.stop_at_s and (start_until is not None or stop_at is not None):
            from astra.element.late_start import begin

            now = begin(start_until, options["--job"])
            board.stop_at_s = now_s() + stop_at - now if stop_at else inf
        try:
            runs = run_element(
                options["--plan"], options["--element"], options["--job"], board=board,
                planned_by=options.get("--planned-by"),
            )  # fmt: skip
        finally:
            open_streams()  # the task may have closed them
    except OutOfMemory as error:  # between two pages: the parent starts a new process
        board.run_out(error)
        return _refused(error)
    except AstraError as error:
        return _refused(error)
    except Exception as error:
        from astra.database.connection import as_database_error

        if (explained := as_database_error(error)) is None:
            raise
        return _refused(explained)
    for run in runs:
        for line in run.lines():
            print(printable(hide(line)))
    return max((run.exit_status for run in runs), default=0)


def _refused(error: AstraError) -> int:
    print(f"astra: {printable(hide(str(error)))}", file=sys.stderr)
    return error.exit_status
