"""Select the rows of a plan: pending rows, rows to process again, and rows to leave out."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from peewee import ColumnBase, Model, ModelAlias, ModelSelect, Value, fn

from astra.config.redo import split_redo
from astra.errors import TaskError
from astra.models.base import TimeField
from astra.models.failures import Failure, NoResult
from astra.models.given_keys import find_keys, listed
from astra.models.keys import FALSE, TRUE, RowKey, in_order, key_of, same_moment, table_name
from astra.models.pipeline import OutputModel
from astra.models.plans import MadeBy
from astra.plan.pending import (
    Record,
    checked_ids,
    has_old_result,
    last_ended,
    pending_rows,
    whole_number,
)
from astra.plan.where import condition
from astra.version import CURRENT

#: A row that has ended without a result.
End = Failure | NoResult


@dataclass(frozen=True)
class Redo:
    """Which rows that have ended are processed again, in addition to pending rows.

    ``all`` of them; ``changed``: those whose results were made with other arguments, other contents
    of the files that arguments name, or another revision of the task; ``older-than`` a date; or
    those that ``failed``.
    """

    text: str  # as the user typed it
    kind: str
    before: datetime | None = None

    @classmethod
    def parse(cls, text: str | None) -> "Redo | None":
        """Parse the value of ``--redo``.

        Raises
        ------
        TaskError
            If it is not valid.
        """
        if text is None:
            return None
        try:
            return cls(text, *split_redo(text))
        except ValueError as error:
            raise TaskError(f"--redo {text!r}: {error}") from None

    def stands(self, record: Record, task: str, digest: str) -> ColumnBase:
        """Return the clause that a result, or another record of an end, is not to be replaced."""
        if self.kind == "changed":
            same = MadeBy.select(MadeBy.pk).where((MadeBy.task == task) & (MadeBy.digest == digest))
            return record.made_by.in_(same)
        if self.kind == "older-than":
            return record.modified >= Value(TimeField().db_value(self.before), converter=False)
        return TRUE if self.kind == "failed" else FALSE


@dataclass(frozen=True)
class Selection:
    """Which rows of its input models a plan is to take; the parameters of ``create_plan``."""

    sdss_ids: list[int] | None = None
    keys: list[object] | None = None
    where: str | None = None
    redo: Redo | None = None
    again: bool = False
    new_first: bool = False
    max_rows: int | None = None

    @classmethod
    def of(
        cls,
        sdss_ids: Iterable[int] | None,
        keys: Iterable[object] | None,
        where: str | None,
        redo: str | None,
        again: bool,
        new_first: bool,
        max_rows: int | None,
    ) -> "Selection":
        """Check the parameters of ``create_plan``.

        Raises
        ------
        TaskError
            If a value cannot be used.
        """
        if isinstance(keys, str | bytes):
            raise TaskError(f"keys={keys!r}: give an iterable of keys, for instance [{keys!r}]")
        return cls(
            None if sdss_ids is None else checked_ids(sdss_ids),
            None if keys is None else list(keys),
            where,
            Redo.parse(redo),
            again,
            new_first,
            None if max_rows is None else whole_number("max_rows", max_rows),
        )

    def check(self, model: type[Model]) -> tuple[list[RowKey] | None, tuple[RowKey, ...]]:
        """Check the condition for a model; return the keys that rows of it have, and the others.

        Raises
        ------
        TaskError
            If the condition or a key does not fit the model, or no row has one of the keys.
        """
        if self.where is not None:
            condition(model, self.where)
        if self.keys is None:
            return None, ()
        existing, missing = find_keys(model, self.keys)
        if missing and not existing:
            raise TaskError(f"{table_name(model)} has no row with the key {listed(missing)}")
        return existing, tuple(missing)

    def pending(
        self,
        model: type[Model],
        output: type[OutputModel],
        group_by: Iterable[str],
        keys: list[RowKey] | None,
        task: str,
        digest: str,
    ) -> ModelSelect:
        """Return the rows that a plan takes, before others are left out."""
        redo, stands = self.redo, None
        if redo is not None:
            stands = partial(redo.stands, task=task, digest=digest)
        also = None
        if redo is not None and redo.kind == "failed":
            also = ended(Failure, model, task)
        query = pending_rows(model, output, group_by, self.sdss_ids, stands, also)
        if self.where is not None:
            query = query.where(condition(model, self.where))
        if keys is not None:
            query = key_of(model).narrowed(query, keys)
        return query

    def left_out(
        self, model: type[Model], task: str, digest: str
    ) -> list[tuple[type[End], ColumnBase]]:
        """Return, for each kind of end, the clause that a row ended so and is left out."""
        redo = self.redo
        if self.again or (redo is not None and redo.kind == "all"):
            return []
        retries = redo is not None and redo.kind == "failed"
        kinds: list[type[End]] = [NoResult] if retries else [Failure, NoResult]
        return [(kind, ended(kind, model, task, redo=redo, digest=digest)) for kind in kinds]

    def order(
        self, model: type[Model], output: type[OutputModel], task: str
    ) -> list[tuple[ColumnBase, str]]:
        """Return the order of the rows that a plan takes: columns and their directions.

        Where a limited number of rows is processed again, whatever made their results, the rows
        that ended the longest ago come first, so that several nights process all of them.
        """
        order = in_order(model)
        if self.new_first:
            order.insert(0, (has_old_result(model, output), "ASC"))
        redo = None if self.max_rows is None or self.redo is None else self.redo.kind
        if redo in ("all", "failed"):
            ends = [has_ended(kind, model, task) for kind in (Failure, NoResult)]
            order.insert(0, (last_ended(model, output, ends), "ASC NULLS FIRST"))
        return order


def ended(
    kind: type[End],
    model: type[Model],
    task: str,
    exceptions: tuple[str, ...] = (),
    redo: Redo | None = None,
    digest: str = "",
) -> ColumnBase:
    """Return the clause that a row ended so at this version, not modified since, and stays so."""
    record, clause = has_ended(kind, model, task)
    clause &= same_moment(record.input_modified, model)
    if kind is Failure:
        clause &= ~record.refused
    if exceptions:
        clause &= record.exception << exceptions
    if redo is not None:
        clause &= redo.stands(record, task, digest)
    return fn.EXISTS(record.select(1).where(clause))


def has_ended(
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
