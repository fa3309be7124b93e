"""Select the rows of a plan: pending rows, rows to process again, and rows that are left out."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from peewee import SQL, ColumnBase, Model, ModelSelect, Value, fn

from astra.config.redo import split_redo
from astra.errors import TaskError
from astra.models.base import TimeField
from astra.models.given_keys import find_keys, listed
from astra.models.keys import in_order, key_of, same_moment, table_name
from astra.models.pipeline import OutputModel
from astra.models.plans import Failure, MadeBy, NoResult
from astra.plan.pending import checked_ids, has_old_result, last_ended, pending_rows
from astra.plan.where import condition
from astra.version import CURRENT


@dataclass(frozen=True)
class Redo:
    """Which rows that have ended are processed again, besides those that are pending.

    ``all`` of them; ``changed``: those whose results were made with other arguments, other contents
    of the files that arguments name, or another revision of the task; ``older-than`` a date; or
    those that ``failed``.
    """

    text: str  # as it was typed
    kind: str
    before: datetime | None = None

    @classmethod
    def parse(cls, text: str | None) -> "Redo | None":
        """The meaning of ``--redo``.

        Raises
        ------
        TaskError
            If it has none.
        """
        if text is None:
            return None
        try:
            return cls(text, *split_redo(text))
        except ValueError as error:
            raise TaskError(f"--redo {text!r}: {error}") from None

    def stands(self, record: Any, task: str, digest: str) -> ColumnBase:
        """A clause: how a row ended is not to be replaced."""
        if self.kind == "changed":
            same = MadeBy.select(MadeBy.pk).where((MadeBy.task == task) & (MadeBy.digest == digest))
            return record.made_by.in_(same)
        if self.kind == "older-than":
            return record.modified >= Value(TimeField().db_value(self.before), converter=False)
        return SQL("1 = 1" if self.kind == "failed" else "1 = 0")


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
        **others: Any,
    ) -> "Selection":
        """Check what a caller gave.

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
            **others,
        )

    def check(self, model: type[Model]) -> tuple[list[Any] | None, tuple[Any, ...]]:
        """Check the condition and the keys for a model: the keys that it has, and has not.

        Raises
        ------
        TaskError
            If the condition or a key cannot be one of the model's, or it has none of the keys.
        """
        if self.where is not None:
            condition(model, self.where)
        if self.keys is None:
            return None, ()
        known, unknown = find_keys(model, self.keys)
        if unknown and not known:
            raise TaskError(f"{table_name(model)} has no row with the key {listed(unknown)}")
        return known, tuple(unknown)

    def pending(
        self,
        model: type[Model],
        output: type[OutputModel],
        group_by: Iterable[str],
        known: Any,
        task: str,
        digest: str,
    ) -> ModelSelect:
        """The rows that a plan takes, but for those that are left out."""
        redo, stands = self.redo, None
        if redo is not None:
            stands = partial(redo.stands, task=task, digest=digest)
        also = None
        if redo is not None and redo.kind == "failed":
            also = ended(Failure, model, task)
        query = pending_rows(model, output, group_by, self.sdss_ids, stands, also)
        if self.where is not None:
            query = query.where(condition(model, self.where))
        if known is not None:
            query = key_of(model).narrowed(query, known)
        return query

    def left_out(self, model: type[Model], task: str, digest: str) -> list[tuple[Any, Any]]:
        """For failures and rows without a result, the clause that a row ended so, and stays so."""
        redo = self.redo
        if self.again or (redo is not None and redo.kind == "all"):
            return []
        kinds = [NoResult] if redo is not None and redo.kind == "failed" else [Failure, NoResult]
        return [(kind, ended(kind, model, task, redo=redo, digest=digest)) for kind in kinds]

    def order(
        self, model: type[Model], output: type[OutputModel], task: str
    ) -> list[tuple[Any, str]]:
        """The order of the rows that a plan takes: columns and their directions.

        Where rows are processed again whatever made their results, a limited number at a time,
        those that ended the longest ago come first: over several nights each has its turn.
        """
        order: list[tuple[Any, str]] = in_order(model)
        if self.new_first:
            order.insert(0, (has_old_result(model, output), "ASC"))
        redo = None if self.max_rows is None or self.redo is None else self.redo.kind
        if redo in ("all", "failed"):
            ends = [has_ended(kind, model, task) for kind in (Failure, NoResult)]
            order.insert(0, (last_ended(model, output, ends), "ASC NULLS FIRST"))
        return order


def ended(
    kind: type[Model],
    model: type[Model],
    task: str,
    exceptions: tuple[str, ...] = (),
    redo: Redo | None = None,
    digest: str = "",
) -> ColumnBase:
    """A clause: the row ended so at this version, was not modified since, and stays so."""
    row, clause = has_ended(kind, model, task)
    clause &= same_moment(row.input_modified, model)
    if kind is Failure:
        clause &= ~row.refused
    if exceptions:
        clause &= row.exception << exceptions
    if redo is not None:
        clause &= redo.stands(row, task, digest)
    return fn.EXISTS(row.select(1).where(clause))


def has_ended(kind: Any, model: type[Model], task: str) -> tuple[Any, Any]:
    """Records of a kind of end, under a name of their own, and the clause that one is the row's."""
    record = kind.alias("ended")
    clause = (
        (record.task == task)
        & (record.input_table == table_name(model))
        & (record.key == key_of(model).text)
        & (record.v_astra_major_minor == CURRENT.major_minor)
    )
    return record, clause
