"""Rows on their way from the task to the database: handed over, yielded, refused."""

import traceback as tracebacks
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from astra.config import secrets
from astra.models.pipeline import PipelineOutputModel
from astra.models.plans import Plan

#: Stored tracebacks and messages are cut to so many characters; the end says most.
TRACEBACK_LIMIT = 20_000

MESSAGE_LIMIT = 2_000


@dataclass(eq=False, slots=True)
class Handed:
    """An input row that was given to the task and has not ended yet."""

    key: int | None
    row: Any  # the row itself, or None where it can be read again
    modified: datetime | None = None
    read: datetime | None = None
    t_spent_s: float = 0.0
    table: str | None = None  # that the row stands in; None for the target's own


@dataclass(eq=False, slots=True)
class Yielded:
    """A result that the task yielded, and the row that it is for."""

    result: Any
    handed: Handed | None
    again: bool = False  # a further result of a row that has one
    taken: bool = False  # by a checkpoint: what changes later is not in it


@dataclass(frozen=True)
class Refusal:
    """Why a row has no result: what was raised, and where."""

    key: int | None
    exception: str
    message: str
    modified: datetime | None = None
    place: str | None = None
    traceback: str | None = None
    refused: bool = False  # a further result of a row that has one
    table: str | None = None  # that the row stands in; None for the target's own


@dataclass
class Checkpoint:
    """What one transaction is to write."""

    results: list[Yielded] = field(default_factory=list)
    failures: list[Refusal] = field(default_factory=list)
    no_results: list[Handed] = field(default_factory=list)

    n_refused: int = 0  # of the results, once it is written

    def __len__(self) -> int:
        return len(self.results) + len(self.failures) + len(self.no_results)

    def __add__(self, other: "Checkpoint") -> "Checkpoint":
        return Checkpoint(
            self.results + other.results,
            self.failures + other.failures,
            self.no_results + other.no_results,
        )


@dataclass(frozen=True)
class Target:
    """Whose results are written: the task, and the table of its inputs."""

    task: str
    input_table: str
    on_source: bool
    output: Any = None  # the output model, where it is known
    plan_pk: int | None = None
    page: int | None = None

    @property
    def key_name(self) -> str:
        """The column of a result that names its row."""
        return "source_pk" if self.on_source else "spectrum_pk"


def refusal(error: BaseException, handed: Handed) -> Refusal:
    """What is kept of an exception that a task raised on a row."""
    frames = tracebacks.extract_tb(error.__traceback__)
    own = [f for f in frames if "/astra/tasks/run.py" not in f.filename]
    text = "".join(tracebacks.format_exception(error))
    place = f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else None
    return Refusal(
        handed.key,
        type(error).__name__,
        clean(words_of(error), MESSAGE_LIMIT),
        handed.modified,
        place,
        clean(text, TRACEBACK_LIMIT),
        table=handed.table,
    )


def words_of(error: BaseException) -> str:
    """The text of an exception, whose own method for it may raise too."""
    try:
        return str(error)
    except Exception as another:
        return f"(its text cannot be had: {type(another).__name__} in __str__)"


def clean(text: str, limit: int) -> str:
    """`text` as it may be stored: no password, no NUL, cut at the front."""
    text = secrets.hide(text.replace("\0", "\\0"))
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else "… " + text[-limit:]


def key_of_result(result: Any, on_source: bool) -> int | None:
    """The key of the row that a result is for; None where it bears none that could be one."""
    if not isinstance(result, PipelineOutputModel):
        return None
    return as_key(result.__data__.get("source_pk" if on_source else "spectrum_pk"))


def as_key(value: Any) -> int | None:
    """A value as the key of a row: a whole number of 64 bits; None where it is something else."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    import numpy as np

    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return None
    return int(value) if -(2**63) <= value < 2**63 else None


def target_of(plan: Plan, model: Any, output: Any, page: int) -> Target:
    """Whose results a plan's are."""
    from astra.models.source import Source

    on_source = issubclass(model, Source)
    return Target(plan.task, plan.input_table, on_source, output, plan.pk, page)
