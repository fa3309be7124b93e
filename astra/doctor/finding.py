"""A finding of astra doctor: its state, and what to type if something is wrong."""

from collections.abc import Callable, Iterable, Iterator

import peewee

from astra.config.secrets import hide
from astra.database.connection import dialect
from astra.errors import AstraError, NotAllowed
from astra.records import dataclass

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True)
class Finding:
    """A line of ``astra doctor``."""

    part: str  # "python", "configuration", "database", "slurm", "run directory", "night NAME"
    state: str  # "ok", "warning": it works without, or "failed"
    message: str
    remedy: str | None = None  # what to type, or to change


def ok(part: str, message: str) -> Finding:
    return Finding(part, OK, hide(message))


def warning(part: str, message: str, remedy: str) -> Finding:
    return Finding(part, WARNING, hide(message), hide(remedy))


def failed(part: str, message: str, remedy: str) -> Finding:
    return Finding(part, FAILED, hide(message), hide(remedy))


def of_error(part: str, error: Exception) -> Finding:
    """Make a finding of an error, whose message ends with the remedy after a semicolon."""
    problem, _, remedy = str(error).rpartition("; ")
    if not problem:
        return failed(part, str(error), "fix what this line names")
    return failed(part, problem, remedy)


def findings(part: str, check: Callable[[], Iterable[Finding] | None]) -> Iterator[Finding]:
    """Yield the findings of a check, if it has any; an error that ends it is the last one."""
    try:
        yield from check() or ()
    except AstraError as error:
        yield of_error(part, error)
    except peewee.PeeweeException as error:
        if denied := dialect().denied(error):
            yield of_error(part, NotAllowed(denied))
        else:
            yield failed(part, str(error).strip(), "see the log of the server, or the file")
