"""The tree of errors that astra raises on purpose, with the exit statuses of commands.

The command line catches only this tree. Other exceptions are bugs and keep their traceback.
The statuses 3 (running) and 4 (needs attention) belong to ``astra status``: see states.py.
"""

from collections.abc import Iterable


class AstraError(Exception):
    """An error that the user can fix; the message says how."""

    exit_status = 1


class UsageError(AstraError):
    """A wrong argument, name or value."""

    exit_status = 2


class BadSpectrum(UsageError):
    """The file of a spectrum cannot be used: its row fails, and the task is not to blame."""


class Untrusted(UsageError):
    """Code of another role's plan that the user does not trust."""


class ConfigError(UsageError):
    """A mistake in the configuration; the message has file, key and the nearest right one."""


class TaskError(UsageError):
    """A task that cannot be found, or used as it is written."""


class ScriptError(UsageError):
    """A template that cannot be rendered."""


class MissingExtra(UsageError):
    """A package is not installed: no row is to blame."""

    def __init__(self, extra: str, package: str, purpose: str) -> None:
        super().__init__(
            f"{package} is not installed, and is needed {purpose}: "
            f"pip install 'sdss-astra[{extra}]'"
        )


class DatabaseError(AstraError):
    """The database has no connection, or other tables than this version needs."""

    exit_status = 5


class NotAllowed(DatabaseError):
    """The role lacks a privilege."""


class SlurmError(AstraError):
    """Slurm refused, or one of its commands is missing."""

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
    """Slurm gave no answer, so the state of its jobs is unknown."""


class BusyError(AstraError):
    """Another process is changing the same plan."""

    exit_status = 7


class OutOfHours(AstraError):
    """The hours of a night are over: an element begins no page."""

    exit_status = 74


class NoFurtherPage(AstraError):
    """A plan is paused, or runs as many elements as its throttle allows: not a failure."""

    exit_status = 0


class Interrupted(AstraError):
    """The element was asked to stop; its yielded results are stored."""

    exit_status = 75


class Superseded(AstraError):
    """Another attempt holds the page; nothing more is written."""

    exit_status = 76


class BrokenElement(AstraError):
    """The task failed outside of any row: its pages stay pending."""

    exit_status = 77


class OutOfMemory(BrokenElement):
    """A row, or the task before it, exhausted the memory."""


class OutOfFiles(OutOfMemory):
    """A row, or the task before it, has opened as many files as its process may."""


class Terminated(SystemExit):
    """The process was asked to stop. It ends even if the task catches this exception."""


def error_text(error: BaseException) -> str:
    """Return the text of an exception, even if its own ``__str__`` raises."""
    try:
        return str(error)
    except Exception as another:
        return f"(its text is unavailable: {type(another).__name__} in __str__)"


def shown(value: object) -> str:
    """Return a value as a message shows it; Python writes no number of more than 4,300 digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def count(n: int, word: str, verb: str = "") -> str:
    """Write a number with its noun, and with its verb.

    >>> count(1, "row"), count(20000, "page"), count(1, "row", "are"), count(2, "row", "have")
    ('1 row', '20,000 pages', '1 row is', '2 rows have')
    """
    if n == 1:
        of_one = {"": "", "are": "is", "have": "has"}.get(verb, f"{verb}s")
        return f"1 {word} {of_one}".rstrip()
    return f"{n:,} {word}s {verb}".rstrip()


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
