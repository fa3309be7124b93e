"""The errors that astra raises on purpose, with the exit status of a command that raises them.

::

    AstraError                  1
    ├── UsageError              2   a wrong argument, name or value
    │   ├── ConfigError             configuration: file, key and the nearest right one
    │   ├── TaskError               a task that cannot be found, or used as written
    │   ├── ScriptError             a template that cannot be rendered
    │   └── MissingExtra            a package that is not installed, and the extra that installs it
    ├── DatabaseError           5   no connection, wrong schema version
    │   └── NotAllowed              the role lacks a privilege
    ├── SlurmError              6   Slurm refused, or one of its commands is missing
    │   ├── SlurmRefused            Slurm refused, with its message
    │   └── SlurmUnknown            Slurm gave no answer, so that its state is unknown
    ├── BusyError               7   another process is changing the same plan
    ├── OutOfHours             74   the hours of a night are over: an element begins no page
    ├── PlanPaused              0   a plan is paused: an element takes no page
    ├── PlanThrottled           0   as many elements take pages as its throttle allows
    ├── Interrupted            75   asked to stop; its yielded results are stored
    ├── Superseded             76   another attempt holds the page; nothing more is written
    └── BrokenElement          77   the task failed outside of any row: its pages stay pending
        └── OutOfMemory             a row, or the task before it, exhausted the memory

The command line catches only this tree. Other exceptions are bugs and keep their traceback.
The statuses 3 (running) and 4 (needs attention) belong to ``astra status``: see states.py.
"""

from collections.abc import Iterable


class AstraError(Exception):
    """An error that the user can fix; the message says how."""

    exit_status = 1


class UsageError(AstraError):
    exit_status = 2


class Untrusted(UsageError):
    """Code of another role's plan that the user does not trust."""


class ConfigError(UsageError):
    pass


class TaskError(UsageError):
    pass


class ScriptError(UsageError):
    pass


class MissingExtra(UsageError):
    """A package is not installed, which no row is to blame for."""

    def __init__(self, extra: str, package: str, purpose: str) -> None:
        super().__init__(
            f"{package} is not installed, and is needed {purpose}: "
            f"pip install 'sdss-astra[{extra}]'"
        )


class DatabaseError(AstraError):
    exit_status = 5


class NotAllowed(DatabaseError):
    pass


class SlurmError(AstraError):
    exit_status = 6


class SlurmRefused(SlurmError):
    """Slurm refused, and made no job.

    Attributes
    ----------
    limit : whether it may accept the job, or a part of it, when other jobs have ended.
    closed : whether it may accept the job when an administrator opens the partition again.
    """

    def __init__(self, message: str, limit: bool = False, closed: bool = False) -> None:
        super().__init__(message)
        self.limit, self.closed = limit, closed


class SlurmUnknown(SlurmError):
    pass


class BusyError(AstraError):
    exit_status = 7


class OutOfHours(AstraError):
    exit_status = 74


class PlanPaused(AstraError):
    """A plan is paused, so that its element takes no further page: not a failure."""

    exit_status = 0


class PlanThrottled(AstraError):
    """As many elements of a plan run as its throttle allows, so that no other takes a page."""

    exit_status = 0


class Interrupted(AstraError):
    exit_status = 75


class Superseded(AstraError):
    exit_status = 76


class BrokenElement(AstraError):
    exit_status = 77


class OutOfMemory(BrokenElement):
    pass


def shown(value: object) -> str:
    """Return a value as a message shows it; Python writes no number of more than 4,300 digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a sentence for the end of a message: the nearest known names, or all of them.

    >>> nearest("partitoin", ["partition", "time"])
    "Did you mean 'partition'?"
    >>> nearest("x", ["a", "b"])
    'Known: a, b.'
    """
    choices = sorted(choices)
    from difflib import get_close_matches  # only when an error is raised

    near = get_close_matches(name, choices, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"Known: {', '.join(choices)}." if choices else "There are none."
