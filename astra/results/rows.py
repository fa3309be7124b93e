"""Rows on their way from the task to the database: handed to the task, yielded, or refused."""

import traceback as tracebacks
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from textwrap import shorten
from typing import Any

from peewee import Model

from astra.config import secrets
from astra.database.connection import dialect
from astra.errors import AstraError
from astra.models.importing import own_frame
from astra.models.keys import Link, RowKey, table_name
from astra.models.pipeline import OutputModel, PipelineOutputModel
from astra.models.plans import Plan
from astra.models.spectrum import SpectrumMixin

#: Stored tracebacks and messages are cut to so many characters; the end says most.
TRACEBACK_LIMIT = 20_000

MESSAGE_LIMIT = 2_000


@dataclass(eq=False, slots=True)
class Handed:
    """An input row that was given to the task and has not ended yet.

    ``key`` is the row's in its page. Outside of a page, a key that is no number is not known; the
    row is known by what it bears there.
    """

    key: RowKey | None
    row: object  # the row itself, or None where it can be read again
    modified: datetime | None = None
    read: datetime | None = None
    t_spent_s: float = 0.0
    table: str | None = None  # that the row stands in; None for the target's own
    bears: object = None  # what its results bear, as it was read, where that is not its key

    @property
    def known(self) -> object:
        """What a result of the row is found by; None where it bears nothing."""
        return self.key if self.bears is None else self.bears


@dataclass(frozen=True)
class End:
    """Say that an input row is done, where a task took several rows before it yielded.

    Parameters
    ----------
    row : peewee.Model
        The input row, as the task was given it.

    Examples
    --------
    >>> from astra import End, task
    >>> @task(many=True)
    ... def lines(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Slam]:
    ...     for spectrum in list(spectra):
    ...         yield Slam.from_spectrum(spectrum, teff=3500.0)
    ...         yield Slam.from_spectrum(spectrum, teff=3600.0)
    ...         yield End(spectrum)
    """

    row: object


@dataclass(eq=False, slots=True)
class Yielded:
    """A result that the task yielded, and the row that it is for."""

    result: Any
    handed: Handed | None
    again: bool = False  # a further result of a row that has one
    bears: object = None  # what a result bears that is of no row in hand
    taken: bool = False  # by a checkpoint: what changes later is not in it
    place: str | None = None  # the line of the task that yielded what is no result


@dataclass
class Refusal:
    """Why a row has no result: what was raised, and where."""

    key: RowKey | None
    exception: str
    message: str
    modified: datetime | None = None
    place: str | None = None
    traceback: str | None = None
    refused: bool = False  # a further result of a row that has one
    table: str | None = None  # that the row stands in; None for the target's own
    bears: object = None  # what its results bear, where its key is not known
    is_mistake: bool = False  # of the task or the table: each row may meet it

    @property
    def said(self) -> str:
        """What was raised, where, and what to write instead, in one line."""
        place = f" ({self.place})" if self.place else ""
        hint = "; make results by from_spectrum() or from_row() of that model"
        message = shorten(self.message, 300, placeholder="...")
        return f"{self.exception}: {message}{place}{hint if self.exception == 'WrongModel' else ''}"


@dataclass
class Checkpoint:
    """What one transaction is to write."""

    results: list[Yielded] = field(default_factory=list)
    failures: list[Refusal] = field(default_factory=list)
    no_results: list[Handed] = field(default_factory=list)

    refused: list[Refusal] = field(default_factory=list)  # of the results, once it is written
    n_stored: int = 0  # rows with a result, or rightly none

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
    model: type[Model] | None = None  # the input model, where it is known
    output: type[OutputModel] | None = None  # the output model, where it is known
    plan_pk: int | None = None
    page: int | None = None
    many: bool = False  # a row may have several results
    groups: bool = False  # results may be of other rows of a row's group
    made_by: int | None = None  # what results and failures say that they were made by

    @cached_property
    def input_table(self) -> str:
        return table_name(self.model) if self.model is not None else ""

    @cached_property
    def gathers(self) -> bool:
        """Whether the results of a row wait for its end, and are stored together."""
        if self.many or self.groups or self.output is None or self.model is None:
            return self.many or self.groups
        return self.output.gathers(self.model)

    def index_of(self, result: OutputModel) -> Link | None:
        """The link whose unique index a result falls under."""
        link = self.link_for(result)
        return None if link is None else result.index_of(link)

    @cached_property
    def link(self) -> Link | None:
        """How results point to their rows; None where that is not known."""
        if self.model is None:
            return PipelineOutputModel.link_to(SpectrumMixin)
        return (self.output or PipelineOutputModel).link_to(self.model)

    @cached_property
    def key_name(self) -> str | None:
        """The column of a result that holds its row's key, where that is a whole number."""
        return self.link.result[0] if self.link is not None and self.link.is_whole else None

    def link_for(self, result: object) -> Link | None:
        """The same of one result, of whatever model."""
        if self.output is not None or not isinstance(result, OutputModel):
            return self.link
        return self.link if self.model is None else type(result).link_to(self.model)

    def bears(self, result: object) -> object:
        """What a result bears of its row; None where it bears nothing that could be of one."""
        if not isinstance(result, OutputModel) or (link := self.link_for(result)) is None:
            return None
        return link.of_result(result)


def refusal(error: BaseException, handed: Handed) -> Refusal:
    """What is kept of an exception that a task raised on a row."""
    text = "".join(tracebacks.format_exception(error))
    return Refusal(
        handed.key,
        type(error).__name__,
        clean(words_of(error), MESSAGE_LIMIT),
        handed.modified,
        place_of(error),
        clean(text, TRACEBACK_LIMIT),
        table=handed.table,
        bears=handed.bears,
        is_mistake=isinstance(error, _MISTAKES),
    )


def place_of(error: BaseException) -> str | None:
    """The line of the task, or of what it calls, that raised."""
    frame = own_frame(error)
    return f"{frame.filename}:{frame.lineno} in {frame.name}" if frame else None


#: What code that cannot work raises, whichever row it is given.
_MISTAKES = (TypeError, AttributeError, NameError, ImportError, AstraError)


def words_of(error: BaseException) -> str:
    """The text of an exception, whose own method for it may raise too."""
    try:
        return str(error)
    except Exception as another:
        return f"(its text cannot be had: {type(another).__name__} in __str__)"


def clean(text: str, limit: int) -> str:
    """`text` as the database may store it: no password, no NUL, cut at the front."""
    text = secrets.hide(text.replace("\0", "\\0"))
    text = dialect().storable(text.encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= limit else "… " + text[-limit:]


def target_of(
    plan: Plan,
    model: type[Model],
    output: type[OutputModel],
    page: int,
    many: bool = False,
    groups: bool = False,
) -> Target:
    """Whose results a plan's are."""
    return Target(plan.task, model, output, plan.pk, page, many, groups, plan.made_by)
