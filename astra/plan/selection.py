"""Select the rows of a plan: pending rows, rows to process again, and rows to leave out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from datetime import datetime

from peewee import ColumnBase, Model, ModelAlias, ModelSelect, Value, fn

from astra.config.redo_option import split_redo
from astra.errors import TaskError
from astra.models.base import TimeField
from astra.models.failures import Failure, NoResult
from astra.models.key_parsing import find_keys, keys_as_text, listed
from astra.models.keys import FALSE, TRUE, RowKey, in_order, key_of, same_moment, table_name
from astra.models.pipeline import OutputModel
from astra.models.plans import MadeBy
from astra.plan.condition import condition
from astra.plan.pending import (
    Record,
    checked_ids,
    has_old_result,
    last_ended,
    pending_rows,
    whole_number,
)
from astra.records import dataclass
from astra.states import INPUT_GONE
from astra.tasks.declared import declared_by
from astra.tasks.signature import task_name
from astra.version import CURRENT

#: A row that has ended without a result.
End = Failure | NoResult


@dataclass
class Selection:
    """Which rows of its input models a plan is to take; the parameters of ``create_plan``.

    `redo` says which rows that have ended are processed again, in addition to pending rows: ``all``
    of them; ``changed``: those whose results were made with other arguments, other contents of the
    files that arguments name, or another revision of the task; ``older-than`` a date; or those that
    ``failed``.
    """

    sdss_ids: Iterable[int] | None = None
    keys: Iterable[object] | None = None
    where: str | None = None
    redo: str | None = None
    again: bool = False
    new_first: bool = False
    max_rows: int | None = None
    redo_kind: str | None = field(init=False, default=None)
    redo_before: datetime | None = field(init=False, default=None)  # of ``older-than``

    def __post_init__(self) -> None:
        if self.redo is not None:
            try:
                self.redo_kind, self.redo_before = split_redo(self.redo)
            except ValueError as error:
                raise TaskError(f"--redo {self.redo!r}: {error}") from None
        # A generator could be read for one input model only.
        self.sdss_ids = None if self.sdss_ids is None else checked_ids(self.sdss_ids)
        self.keys = None if self.keys is None else listed("keys", self.keys)
        if self.max_rows is not None:
            self.max_rows = whole_number("max_rows", self.max_rows)


@dataclass
class Choice:
    """The rows of one input model that a selection takes for a task.

    Raises
    ------
    TaskError
        If the condition or a key does not fit the model, or no row has one of the keys.
    """

    selection: Selection
    function: Callable[..., object]  # the task
    model: type[Model]
    output: type[OutputModel]
    provenance: Mapping[str, object]  # what makes the results, as in MadeBy
    keys: list[RowKey] | None = field(init=False, default=None)  # those that rows have
    unknown_keys: tuple[RowKey, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.selection.where is not None:
            condition(self.model, self.selection.where)
        if self.selection.keys is not None:
            self.keys, missing = find_keys(self.model, self.selection.keys)
            self.unknown_keys = tuple(missing)
            if missing and not self.keys:
                raise TaskError(f"{self.table} has no row with the key {keys_as_text(missing)}")

    @property
    def task(self) -> str:
        return task_name(self.function)

    @property
    def table(self) -> str:
        return table_name(self.model)

    def pending(self) -> ModelSelect:
        """Return the rows that a plan takes, before others are left out."""
        selection = self.selection
        is_kept = None if selection.redo is None else self._is_kept
        also = ended(Failure, self.model, self.task) if selection.redo_kind == "failed" else None
        groups = declared_by(self.function).group_by
        query = pending_rows(self.model, self.output, groups, selection.sdss_ids, is_kept, also)
        if selection.where is not None:
            query = query.where(condition(self.model, selection.where))
        if self.keys is not None:
            query = key_of(self.model).narrowed(query, self.keys)
        return query

    def _is_kept(self, record: Record) -> ColumnBase:
        """Return the clause that a result, or another record of an end, is not to be replaced."""
        kind = self.selection.redo_kind
        if kind in (None, "failed"):
            return TRUE
        if kind == "changed":
            is_same = (MadeBy.task == self.task) & (MadeBy.digest == self.provenance["digest"])
            return record.made_by.in_(MadeBy.select(MadeBy.pk).where(is_same))
        if kind == "older-than":
            before = TimeField().db_value(self.selection.redo_before)
            return record.modified >= Value(before, converter=False)
        return FALSE

    def left_out(self) -> list[tuple[type[End], ColumnBase]]:
        """Return, for each kind of end, the clause that a row ended so and is left out."""
        if self.selection.again or self.selection.redo_kind == "all":
            return []
        retries = self.selection.redo_kind == "failed"
        kinds: list[type[End]] = [NoResult] if retries else [Failure, NoResult]
        return [(kind, ended(kind, self.model, self.task, is_kept=self._is_kept)) for kind in kinds]

    def order(self) -> list[tuple[ColumnBase, str]]:
        """Return the order of the rows that a plan takes: columns and their directions.

        Where a limited number of rows is processed again, whatever made their results, the rows
        that ended the longest ago come first, so that several nights process all of them.
        """
        order = in_order(self.model)
        if self.selection.new_first:
            order.insert(0, (has_old_result(self.model, self.output), "ASC"))
        if self.selection.max_rows is not None and self.selection.redo_kind in ("all", "failed"):
            ends = [_records(kind, self.model, self.task) for kind in (Failure, NoResult)]
            order.insert(0, (last_ended(self.model, self.output, ends), "ASC NULLS FIRST"))
        return order


def ended(
    kind: type[End],
    model: type[Model],
    task: str,
    exceptions: tuple[str, ...] = (),
    is_kept: Callable[[Record], ColumnBase] | None = None,
) -> ColumnBase:
    """Return the clause that a row ended so at this version, and was not modified since.

    A row whose failure says that it was gone is in its table again: it has not failed.

    Parameters
    ----------
    exceptions : count only failures with these exceptions.
    is_kept : returns a further clause on the record of the end.
    """
    record, clause = _records(kind, model, task)
    clause &= same_moment(record.input_modified, model)
    if kind is Failure:
        clause &= ~record.refused & (record.exception != INPUT_GONE)
    if exceptions:
        clause &= record.exception << exceptions
    if is_kept is not None:
        clause &= is_kept(record)
    return fn.EXISTS(record.select(1).where(clause))


def _records(
    kind: type[End], model: type[Model], task: str
) -> tuple["ModelAlias[Failure] | ModelAlias[NoResult]", ColumnBase]:
    """Return an alias of a kind of end, and the clause that a record of it is the row's."""
    record = kind.alias("ended")
    clause = (
        (record.task == task)
        & (record.input_table == table_name(model))
        & (record.key == key_of(model).text)
        & (record.v_astra_major_minor == CURRENT.major_minor)
    )
    return record, clause
