"""Read the rows of a page that have not ended, in chunks, for the task."""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache, reduce
from inspect import getattr_static
from itertools import chain
from operator import add
from typing import cast

import peewee
from peewee import (
    ColumnBase,
    Field,
    FieldAccessor,
    ForeignKeyAccessor,
    ForeignKeyField,
    Model,
    ModelSelect,
    PeeweeException,
    fn,
)

from astra.config import settings
from astra.database.connection import database, dialect, retrying, tuples
from astra.database.dialect import peewee_errors
from astra.database.threads import in_background
from astra.element.suspects import CERTAIN, count_earlier, reset_deaths
from astra.errors import AstraError, BrokenElement, error_text
from astra.models.attempts import Attempt, is_same_attempt
from astra.models.failures import Failure
from astra.models.keys import (
    FALSE,
    RowKey,
    all_rows,
    changed_keys,
    check_keys,
    key_of,
    may_change,
    moment_of,
    moments,
)
from astra.models.pipeline import OutputModel, link_of
from astra.models.spectrum import pixel_columns
from astra.plan.pending import has_result
from astra.results.claim import Claim
from astra.results.rows import HandedRow, Refusal, changed_key_message, described
from astra.results.stopping import Stop
from astra.results.writer import Writer
from astra.states import INPUT_GONE, Outcome

log = logging.getLogger(__name__)


#: The most rows of a chunk, the most bytes of their arrays, and the fewest rows that the task still
#: has when the next chunk is read.
CHUNK_ROWS, CHUNK_BYTES, MIN_ROWS_LEFT = 1000, 4_000_000, 32

#: Seconds of work for which an attempt records in advance which rows will be in progress.
LOOK_AHEAD_S = 5.0

#: Errors that one row may bring about as it is read: of a column that a view computes, of a value
#: that the driver does not know, or of a field of the model.
UNREADABLE = (
    peewee.DataError, peewee.InternalError, ArithmeticError, AttributeError, LookupError, TypeError,
    ValueError,
)  # fmt: skip

#: Rows that were read together, and the keys of the rows after them.
Chunk = tuple[list[HandedRow], list[RowKey]]


class Reader:
    """Iterate over the rows of a page that still need the task, in the page's order, by chunks.

    Suspects come last, each group by itself. Those that were given up are recorded as failures.
    """

    writer: Writer  # set by `begin`, before anything is read

    def __init__(
        self,
        model: type[Model],
        output: type[OutputModel],
        claim: Claim,
        stop: Stop,
        before_rows: Callable[[], None],
        redo: bool = False,
    ) -> None:
        self.model, self.output, self.claim, self.stop = model, output, claim, stop
        self.key, self.moment, self.link = key_of(model), moment_of(model), link_of(output, model)
        self.redo = redo  # rows that have results are processed again
        self.before_rows = before_rows  # called before the task is given the rows of a chunk
        self.t_read_s = 0.0
        self.arrays = pixel_columns(model)
        # The sizes of arrays are not queried until a row has arrays. Usually no row has any, and
        # then one statement is enough.
        self.unmeasured = bool(self.arrays)
        self.n_bytes: dict[RowKey, int] = {}  # of the arrays of rows, by key
        self.n_handed = claim.attempt.n_handed  # places that are recorded as in progress
        self.began = time.monotonic()
        self.n_given = 0
        limit = settings.current().element.max_deaths
        self.keys: list[RowKey] = []  # of the rows that come before suspects; set by `begin`
        self.first: Chunk | None = None
        keys = claim.page.row_keys
        suspects = [(keys[s.place], s) for s in claim.suspects if self._is_pending(keys[s.place])]
        self.given_up = {key: s for key, s in suspects if s.deaths >= limit}
        self.group_of = {key: s.group for key, s in suspects if s.deaths < limit}
        by_group: dict[int, list[RowKey]] = {}
        for key, group in self.group_of.items():
            by_group.setdefault(group, []).append(key)
        self.groups = list(by_group.values())

    def _is_pending(self, key: RowKey) -> bool:
        return self.claim.outcomes[self.claim.positions[key]] == Outcome.PENDING

    def begin(self, writer: Writer) -> None:
        """Read the first chunk, before the task can have left anything open on the connection."""
        self.writer = writer
        writer.tally.failed_before = ()
        if self.redo or self.claim.attempt.number > 1:
            writer.tally.failed_before = self.stop.retrying(lambda: self._failed_before(writer))
        self._give_up(writer)
        suspects = self.given_up.keys() | self.group_of.keys()
        row_keys = self.claim.page.row_keys
        self.keys = [k for k in row_keys if self._is_pending(k) and k not in suspects]
        self.first = self._read_retrying(self.keys)

    def _failed_before(self, writer: Writer) -> set[str]:
        """Return the keys of pending rows that failed at this version before."""
        keys = [key for key in self.claim.page.row_keys if self._is_pending(key)]
        is_theirs = Failure.is_of(writer.target.task, writer.target.input_table, keys)
        query = Failure.select(Failure.key).where(is_theirs & ~Failure.refused)
        return {key for (key,) in tuples(query)}

    def _give_up(self, writer: Writer) -> None:
        """Record the rows that crashed too many processes as failures.

        One of them may have been deleted since, or have a result that another process stored.
        """
        keys = self.stop.retrying(lambda: self._note_missing(list(self.given_up)))
        if not keys:
            return
        failures = []
        for key, modified in self.stop.retrying(lambda: moments(self.model, keys)).items():
            suspect = self.given_up[key]
            times = f", {suspect.deaths} times" if 1 < suspect.deaths < CERTAIN else ""
            handed = HandedRow(key, None, modified)
            failures.append(Refusal(handed, suspect.exception, f"{suspect.cause}{times}"))
        self._check_share(writer, failures)
        writer.add(failures=failures)

    def _check_share(self, writer: Writer, failures: list[Refusal]) -> None:
        """Count the rows that are given up, and those that ended before a process crashed.

        Raises
        ------
        BrokenElement
            If most rows of this element failed: its node or the task is to blame, and not its rows.
        """
        tally = writer.tally
        if not tally.n_ended:
            self.stop.retrying(lambda: count_earlier(self.claim, tally))
        tally.n_ended += len(failures)
        tally.count(failures)
        try:
            tally.check(writer.target.task)
        except BrokenElement:
            self.stop.retrying(lambda: reset_deaths([self.claim.page]))
            raise

    def __iter__(self) -> Iterator[HandedRow]:
        self.began = time.monotonic()
        first, self.first = self.first, None
        for part in self._chunk_parts(self.keys, first):
            for handed in part:
                if handed.place >= self.n_handed:
                    self._record_in_progress(handed.place)
                self.n_given += 1
                yield handed

    def rows_ahead(self) -> int:
        """Estimate how many rows the task is given within :data:`LOOK_AHEAD_S` seconds."""
        return int(LOOK_AHEAD_S * self.n_given / max(time.monotonic() - self.began, 1e-3))

    def _record_in_progress(self, place: int) -> None:
        """Record in the database how far the task will get in the next seconds."""
        place_of = self.claim.positions.__getitem__
        next_ = bisect_left(self.keys, place, key=place_of)  # some before have not been given
        ahead = self.keys[next_ : next_ + 1 + self.rows_ahead()]
        self.n_handed = max(place, place_of(ahead[-1]) if ahead else 0) + 1
        self._update_attempt(n_handed=self.n_handed)

    def begin_group(self, keys: list[RowKey]) -> None:
        """Record which group of suspects the task is given next."""
        self._update_attempt(group=self.group_of.get(keys[0]) if keys else None)

    def _update_attempt(self, **values: int | None) -> None:
        query = Attempt.update(values).where(is_same_attempt(self.claim.attempt))
        try:
            in_background(lambda: retrying(query.execute, bound_s=0))()
        except (AstraError, PeeweeException) as error:
            log.info("the rows in progress could not be recorded: %s", error)

    def reread(self, keys: list[RowKey]) -> Iterator[HandedRow]:
        """Yield rows by their keys, even those that were yielded before."""
        return chain.from_iterable(self._chunk_parts(keys))

    def _chunk_parts(
        self, keys: list[RowKey], first: Chunk | None = None
    ) -> Iterator[list[HandedRow]]:
        """Yield each chunk in two parts; during its last eighth, the next chunk is read."""
        ahead: Callable[[], Chunk] | None
        ahead = self._read_ahead(keys) if first is None else lambda: first
        while ahead is not None:
            (rows, keys), ahead = ahead(), None
            if rows:
                self.before_rows()
            begin_at = max(len(rows) - 1 - max(len(rows) // 8, MIN_ROWS_LEFT), 0)
            yield rows[:begin_at]
            if keys:
                ahead = self._read_ahead(keys)
            yield rows[begin_at:]

    def _read_ahead(self, keys: list[RowKey]) -> Callable[[], Chunk]:
        return in_background(lambda: self._read_retrying(keys))

    def _read_retrying(self, keys: list[RowKey]) -> Chunk:
        return self.stop.retrying(lambda: self._read(keys))

    def _read(self, keys: list[RowKey]) -> Chunk:
        """Read the first chunk of `keys`."""
        began = time.perf_counter()
        # The clock is read first, so that the rows are at least as recent as this time.
        now = dialect().now()
        chunk, rest = self._cut(keys)
        unread: dict[RowKey, Exception] = {}
        rows = self._rows(chunk, unread)
        if self.unmeasured and len(rows) < len(chunk):
            self.unmeasured = False
            chunk, rest = self._cut(keys)
            rows = self._rows(chunk, unread)
        ended = self._note_changed(rows) | self._note_unread(unread, len(chunk))
        rest = self._note_missing([k for k in chunk if k not in rows and k not in ended]) + rest
        self.t_read_s += time.perf_counter() - began
        return [self._handed(k, *rows[k], now) for k in chunk if k in rows], rest

    def _handed(self, key: RowKey, row: object, stored: object, now: datetime) -> HandedRow:
        link_value = key if self.key.is_whole else self.link.of_row(row)
        modified = None if stored is None else OutputModel.input_modified.python_value(stored)
        place = self.claim.positions[key]
        return HandedRow(key, row, modified, now, link_value=link_value, place=place)

    def _query_for(self, keys: list[RowKey]) -> "ModelSelect[Model]":
        return self.key.narrowed(all_rows(self.model), keys)

    def _rows(
        self, keys: list[RowKey], unread: dict[RowKey, Exception]
    ) -> dict[RowKey, tuple[Model, object]]:
        """Return the rows without a result, and when they were modified, by key.

        As long as arrays are not measured, it omits rows that have any. Rows that cannot be read
        are found by halves, and added to `unread` with their error.
        """
        try:
            return self._rows_at_once(keys)
        except UNREADABLE as error:
            if len(keys) == 1:
                unread[keys[0]] = error
                return {}
        half = len(keys) // 2
        return self._rows(keys[:half], unread) | self._rows(keys[half:], unread)

    def _rows_at_once(self, keys: list[RowKey]) -> dict[RowKey, tuple[Model, object]]:
        wanted = ~self._has_result()
        if self.unmeasured:
            wanted &= self._size() < 1  # for "= 0" PostgreSQL's planner would expect hardly any
        extra = [self.key.given, peewee.Value(None) if self.moment is None else self.moment]
        query = self._query_for(keys).where(wanted)
        records = read_rows(query, extra)
        rows = {cast("RowKey", key): (row, modified) for row, (key, modified) in records}
        if len(rows) < len(records):
            check_keys(self.model)  # which names the rows that have one key since they were planned
        return rows

    def _has_result(self) -> ColumnBase:
        if self.redo:
            return FALSE
        return has_result(self.model, self.output, by_index=True)

    def _note_changed(self, rows: dict[RowKey, tuple[Model, object]]) -> set[RowKey]:
        """Record rows that results could not point to as failures, and remove them from `rows`."""
        stored = self.link.key(self.output)
        if not may_change(self.key, stored):
            return set()
        names = [field.name for field in self.key.fields]
        values = {k: [row.__data__[name] for name in names] for k, (row, _) in rows.items()}
        changed = set(changed_keys(self.key, stored, values))
        for k in changed:
            _, moment = rows.pop(k)
            message = changed_key_message(values[k], self.output)
            modified = OutputModel.input_modified.python_value(moment)
            self._fail(k, modified, "KeyChanged", message)
        return changed

    def _note_unread(self, unread: dict[RowKey, Exception], n_rows: int) -> set[RowKey]:
        """Record rows of a chunk that cannot be read as failures; return their keys.

        Raises
        ------
        BrokenElement
            If most rows cannot be read: the table or its model is to blame, and not its rows.
        """
        if not unread:
            return set()
        tally = self.writer.tally
        is_first = not self.n_given and Outcome.RESULT.value not in self.claim.outcomes
        n_new = sum(str(key) not in tally.failed_before for key in unread)
        if n_new > tally.share * n_rows and (n_rows >= tally.after or is_first):
            key, error = next(iter(unread.items()))
            raise BrokenElement(
                f"{len(unread)} of {n_rows} rows cannot be read, such as {key}: "
                f"{described(error)}: the rows stay pending"
            ) from error
        for key, error in unread.items():
            modified = None
            with suppress(*UNREADABLE):
                modified = moments(self.model, [key]).get(key)
            message = f"the row cannot be read: {error_text(error).strip()}"
            self._fail(key, modified, type(error).__name__, message)
        return set(unread)

    def _fail(self, key: RowKey, modified: datetime | None, exception: str, message: str) -> None:
        """Record a row that the task is not given as a failure."""
        self.writer.add(failures=[Refusal(HandedRow(key, None, modified), exception, message)])

    def _note_missing(self, keys: list[RowKey]) -> list[RowKey]:
        """Record rows that already have a result or were deleted; return the keys of the others."""
        if not keys:
            return keys
        query = self._query_for(keys).select(self.key.given, self._has_result())
        has_result = dict(database.execute(query).fetchall())
        self.writer.add(found=[HandedRow(k, None) for k in keys if has_result.get(k)])
        for k in keys:
            if k not in has_result:
                message = "the row was deleted, or hidden from this role, after it was planned"
                self._fail(k, None, INPUT_GONE, message)
        return [k for k in keys if k in has_result and not has_result[k]]

    def _cut(self, keys: list[RowKey]) -> tuple[list[RowKey], list[RowKey]]:
        """Split keys into a chunk, with at most :data:`CHUNK_BYTES` of arrays, and the rest."""
        chunk, n_bytes = keys[:CHUNK_ROWS], 0
        measured = self.arrays and not self.unmeasured
        for n, k in enumerate(chunk if measured else ()):
            if k not in self.n_bytes:
                self.n_bytes = self._sizes(keys[n : n + CHUNK_ROWS])
            n_bytes += self.n_bytes[k]
            if n and n_bytes > CHUNK_BYTES:
                return keys[:n], keys[n:]
        return chunk, keys[CHUNK_ROWS:]

    def _sizes(self, keys: list[RowKey]) -> dict[RowKey, int]:
        """Return the bytes of the rows' arrays, by key; the database knows them without reading."""
        query = self._query_for(keys).select(self.key.given, self._size())
        query = query.where(self._size() > 0)
        return dict.fromkeys(keys, 0) | dict(database.execute(query).fetchall())

    def _size(self) -> ColumnBase:
        return reduce(add, (fn.COALESCE(fn.LENGTH(array), 0) for array in self.arrays))


#: Fields whose values need no conversion after the database driver's.
_PLAIN = {
    peewee.AutoField, peewee.BigAutoField, peewee.IntegerField, peewee.BigIntegerField,
    peewee.SmallIntegerField, peewee.FloatField, peewee.DoubleField, peewee.TextField,
    peewee.CharField,
}  # fmt: skip


def read_rows(
    query: "ModelSelect[Model]", extra: Sequence[object] = ()
) -> list[tuple[Model, Sequence[object]]]:
    """Return the rows of a query of :func:`astra.models.keys.all_rows`, each with extra columns."""
    model, name = query.model, getattr(query.model, "loaded_with", None)
    query = query.select(*query._returning, *extra)  # type: ignore[attr-defined]
    with peewee_errors:
        records = database.execute(query).fetchall()
    make, width = _maker(model), len(model._meta.sorted_fields)
    if name is None:
        return [(make(values[:width]), values[width:]) for values in records]
    field = model._meta.fields[name]
    other = field.rel_model
    make_other, end = _maker(other), width + len(other._meta.sorted_fields)
    key_place = other._meta.sorted_fields.index(field.rel_field)
    rows = []
    for values in records:
        row, loaded = make(values[:width]), values[width:end]
        # A row without a related row gets None, so that looking it up runs no further query.
        row.__rel__[name] = None if loaded[key_place] is None else make_other(loaded)
        rows.append((row, values[end:]))
    return rows


def _maker(model: type[Model]) -> Callable[[Sequence[object]], Model]:
    """Return a function that makes an object of a row's values, as peewee does, in SELECT order."""
    new, fields = model.__new__, model._meta.sorted_fields
    names = [f.name for f in fields]
    converters = [(f.name, f.python_value) for f in fields if type(_referred(f)) not in _PLAIN]

    def make(values: Sequence[object]) -> Model:
        row = new(model)
        row.__data__ = data = dict(zip(names, values, strict=True))
        row._dirty, row.__rel__ = set(), {}  # type: ignore[attr-defined]
        for name, convert in converters:
            if data[name] is not None:
                data[name] = convert(data[name])
        return row

    def make_by_constructor(values: Sequence[object]) -> Model:
        row = model(__no_default__=1)
        for field, value in zip(fields, values, strict=True):
            setattr(row, field.name, field.python_value(value))
        row._dirty.clear()  # type: ignore[attr-defined]
        return row

    return make if _is_plain(model) else make_by_constructor


def _referred(field: Field) -> object:
    return field.rel_field if type(field) is ForeignKeyField else field


@cache
def _is_plain(model: type[Model]) -> bool:
    """Return whether a model leaves the construction and the fields of its rows to peewee."""
    if model.__init__ is not peewee.Model.__init__ or model.__setattr__ is not object.__setattr__:
        return False
    accessors = {type(getattr_static(model, name)) for name in model._meta.fields}
    return accessors <= {FieldAccessor, ForeignKeyAccessor}
