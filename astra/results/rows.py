"""Rows on their way from the task to the database: handed to the task, yielded, or refused."""

import traceback as tracebacks
from collections.abc import Sequence
from dataclasses import field
from datetime import datetime
from functools import cached_property
from textwrap import shorten
from typing import Any

from peewee import Model

from astra.config import secrets
from astra.database.connection import dialect
from astra.errors import AstraError, BadSpectrum, error_text
from astra.models.importing import own_frame, own_traceback
from astra.models.keys import Link, RowKey, table_name
from astra.models.pipeline import OutputModel, PipelineOutputModel
from astra.models.plans import Plan
from astra.models.spectrum import SpectrumMixin
from astra.records import dataclass

#: Stored tracebacks and messages are cut to this many characters; their ends are kept.
TRACEBACK_LIMIT = 20_000

MESSAGE_LIMIT = 2_000

HOW_TO_NAME = "create results with from_spectrum() or from_row(), from the row that each belongs to"


@dataclass(eq=False, slots=True)
class HandedRow:
    """An input row that was given to the task and has not ended yet.

    ``key`` is the row's key in its page. Outside of a page a key that is not a number is unknown.
    While it is in progress, a row is known by its ``link_value``.
    """

    key: RowKey | None
    row: object  # the row itself, or None if it can be read again
    modified: datetime | None = None
    read: datetime | None = None
    t_spent_s: float = 0.0
    table: str | None = None  # of the row; None for the target's own
    link_value: object = None  # by which results point to it; None if they do not
    place: int = -1  # in its page


@dataclass(frozen=True)
class End:
    """Declare that an input row is done, in a task that takes several rows before it yields.

    Parameters
    ----------
    row : peewee.Model
        The input row, as the task was given it.

    Examples
    --------
    >>> from astra import End, task
    >>> from astra.models import BossVisitSpectrum, Slam
    >>> @task(many=True)
    ... def lines(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Slam]:
    ...     for spectrum in list(spectra):
    ...         yield Slam.from_spectrum(spectrum, teff=3500.0)
    ...         yield Slam.from_spectrum(spectrum, teff=3600.0)
    ...         yield End(spectrum)
    """

    row: object


@dataclass(eq=False, slots=True)
class YieldedResult:
    """A result that the task yielded, and the row that it is for."""

    result: Any
    handed: HandedRow  # for one of no row in progress, its key is what the result points to
    again: bool = False  # a further result of a row that has one
    is_stray: bool = False  # it belongs to no row that the task had in progress in its page
    taken: bool = False  # by a checkpoint, which does not include later changes
    place: str | None = None  # the line of the task that yielded something other than a result


@dataclass
class Refusal:
    """Why a row has no result: the exception, and where it was raised."""

    handed: HandedRow
    exception: str
    message: str
    place: str | None = None
    traceback: str | None = None
    refused: bool = False  # a further result of a row that has one
    is_mistake: bool = False  # of the task or the table, which any row may meet

    @property
    def summary(self) -> str:
        """What was raised, where, and what to write instead."""
        place = f" ({self.place})" if self.place else ""
        hint = "; create results with from_spectrum() or from_row() of that model"
        message = shorten(self.message, 300, placeholder="...")
        text = ": ".join(filter(None, (self.exception, message)))
        return f"{text}{place}{hint if self.exception == 'WrongModel' else ''}"


@dataclass
class Checkpoint:
    """The rows that one transaction writes, and how that went."""

    results: list[YieldedResult] = field(default_factory=list)
    failures: list[Refusal] = field(default_factory=list)
    no_results: list[HandedRow] = field(default_factory=list)
    found: list[HandedRow] = field(default_factory=list)  # rows that had a result already

    refused: list[Refusal] = field(default_factory=list)  # results, once the rest is written
    n_stored: int = 0  # rows with a result, or rightly none

    def __len__(self) -> int:
        return len(self.results) + len(self.failures) + len(self.no_results) + len(self.found)

    def __add__(self, other: "Checkpoint") -> "Checkpoint":
        return Checkpoint(
            self.results + other.results,
            self.failures + other.failures,
            self.no_results + other.no_results,
            self.found + other.found,
        )


@dataclass(frozen=True)
class Target:
    """The task whose results are written, and its tables."""

    task: str
    model: type[Model] | None = None  # the input model, if it is known
    output: type[OutputModel] | None = None  # the output model, if it is known
    plan_pk: int | None = None
    page: int | None = None
    many: bool = False  # a row may have several results
    groups: bool = False  # results may belong to other rows of a row's group
    made_by: int | None = None  # the row of `made_by` that results and failures refer to

    @cached_property
    def input_table(self) -> str:
        return table_name(self.model) if self.model is not None else ""

    @cached_property
    def gathers(self) -> bool:
        """Whether the results of a row are kept until its end, and stored together."""
        if self.many or self.groups or self.output is None or self.model is None:
            return self.many or self.groups
        return self.output.gathers(self.model)

    def index_of(self, result: OutputModel) -> Link | None:
        """Return the link whose unique index applies to a result."""
        link = self.link_for(result)
        return None if link is None else result.index_of(link)

    @cached_property
    def link(self) -> Link | None:
        """How results point to their rows; None if that is unknown."""
        if self.model is None:
            return PipelineOutputModel.link_to(SpectrumMixin)
        return (self.output or PipelineOutputModel).link_to(self.model)

    @cached_property
    def key_name(self) -> str | None:
        """The column of a result that holds its row's key, if that is a whole number."""
        return self.link.result[0] if self.link is not None and self.link.is_whole else None

    def link_for(self, result: object) -> Link | None:
        """Return how a result of any model points to its row; None if that is unknown."""
        if self.output is not None or not isinstance(result, OutputModel):
            return self.link
        return self.link if self.model is None else type(result).link_to(self.model)

    def link_value_of(self, result: object) -> object:
        """Return the value by which a result points to its row; None if it has none."""
        if not isinstance(result, OutputModel) or (link := self.link_for(result)) is None:
            return None
        return link.of_result(result)


def refusal(error: BaseException, handed: HandedRow) -> Refusal:
    """Make the record of an exception that a task raised on a row."""
    text = "".join(tracebacks.format_exception(type(error), error, own_traceback(error)))
    return Refusal(
        handed,
        type(error).__name__,
        clean(error_text(error), MESSAGE_LIMIT),
        place_of(error),
        clean(text, TRACEBACK_LIMIT),
        is_mistake=isinstance(error, _MISTAKES) and not isinstance(error, BadSpectrum),
    )


def foreign_row_message(named: object, target: Target) -> str:
    """Describe that a result names another row than the one in progress."""
    columns = ", ".join(target.link.result) if target.link is not None else ""
    page = "" if target.page is None else f" in page {target.page} of plan {target.plan_pk}"
    return (
        f"a result was yielded for {named} ({columns}), which is no row that the task has in "
        f"progress{page}: {HOW_TO_NAME}"
    )


def foreign_row_refusal(handed: HandedRow, named: object, target: Target) -> Refusal:
    """Make the record of a row that has no result because one names another row, or none."""
    if named is None:
        message = f"it has no result, and something was yielded that names no row; {HOW_TO_NAME}"
        return Refusal(handed, "NoKey", message, is_mistake=True)
    message = f"it has no result, and {foreign_row_message(named, target)}"
    return Refusal(handed, "ForeignRow", message, is_mistake=True)


def changed_key_message(values: Sequence[object], output: type[Model]) -> str:
    """Describe that results would not hold the key of a row."""
    return (
        f"Python has the key as {', '.join(map(repr, values))}, which is no key of the table, or "
        f"which {output.__name__} stores as another key: its result would not be found"
    )


def place_of(error: BaseException) -> str | None:
    """Return the line of the task, or of the user's code that it calls, that raised."""
    frame = own_frame(error)
    # Python replaces a StopIteration that a generator raises, and loses its place.
    if frame is None and isinstance(error.__cause__, StopIteration):
        frame = own_frame(error.__cause__)
    return f"{frame.filename}:{frame.lineno} in {frame.name}" if frame else None


def place_of_yield(generator: object) -> str | None:
    """Return the line at which a generator has yielded."""
    frame = getattr(generator, "gi_frame", None)
    if frame is None:
        return None
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


#: Exceptions of code that cannot work for any row.
_MISTAKES = (TypeError, AttributeError, NameError, ImportError, AstraError)


def described(error: BaseException) -> str:
    """Return the name of an exception, and its text if it has any."""
    return ": ".join(filter(None, (type(error).__name__, error_text(error))))


def clean(text: str, limit: int) -> str:
    """Return a text that the database can store: without passwords and NUL, cut at the front."""
    # A password at the front of the last part may be cut in two, so more than that is searched.
    text = secrets.hide(text[-limit - 10_000 :].replace("\0", "\\0"))
    text = dialect().storable(text.encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= limit else "… " + text[-limit:]


def target_of(
    plan: Plan,
    model: type[Model],
    output: type[OutputModel],
    page: int,
    many: bool = False,
    groups: bool = False,
    made_by: int | None = None,
) -> Target:
    """Make the target of a plan's page; without `made_by`, the plan's task has not changed."""
    made_by = made_by or plan.made_by
    return Target(plan.task, model, output, plan.pk, page, many, groups, made_by)
