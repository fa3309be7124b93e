"""The rows of a page, read for the task by chunks, and only those that have not ended."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, reduce
from inspect import getattr_static
from operator import add
from typing import Any

import peewee
from peewee import FieldAccessor, ForeignKeyAccessor, ForeignKeyField, PeeweeException, fn

from astra.config import settings
from astra.database.connection import database, dialect, retrying
from astra.database.threads import aside, begun_aside
from astra.element.suspects import CERTAIN
from astra.errors import AstraError
from astra.models.plans import Attempt
from astra.models.source import Source
from astra.models.spectrum import pixel_columns
from astra.plan.pending import has_result, key_of, rows_with_source
from astra.results.claim import Claim
from astra.results.rows import Handed, Refusal
from astra.results.stopping import Stop
from astra.states import Outcome
from astra.tasks.run import Run

log = logging.getLogger(__name__)


#: Rows that are read at a time, at most, and bytes of arrays in them; rows that the task still has
#: when the next are read, at least.
CHUNK, CHUNK_BYTES, LAST_ROWS = 1000, 4_000_000, 32

#: Seconds of work for which an attempt says beforehand which rows it will have in hand.
IN_HAND_S = 5.0

#: Rows that were read together, and the keys of those that are left.
Chunk = tuple[list[Handed], list[int]]


class Reader:
    """The rows of a page that still need the task, read by chunks, in the page's order.

    Suspects come last, each group by itself; those that have been given up are failures.
    """

    def __init__(
        self, model: Any, output: Any, claim: Claim, stop: Stop, first_row: Callable[[], None]
    ) -> None:
        self.model, self.output, self.claim, self.stop = model, output, claim, stop
        self.first_row = first_row  # is told before the task is given a row
        self.run: Run | None = None
        self.t_read_s = 0.0
        self.arrays = pixel_columns(model)
        # How large arrays are is not asked for until a row has some: mostly none has, and one
        # statement does.
        self.unmeasured = bool(self.arrays)
        self.n_bytes: dict[int, int] = {}  # of the arrays of rows, by key
        self.n_handed = claim.attempt.n_handed  # places that are said to be in hand
        self.began = time.monotonic()
        self.n_given = 0
        limit = settings.current().element.max_deaths
        self.keys: list[int] = []  # of the rows that come first, once it is known which
        self.first: Chunk | None = None
        suspects = [s for s in claim.suspects if self._is_pending(s.key)]
        self.given_up = {s.key: s for s in suspects if s.deaths >= limit}
        self.group_of = {s.key: s.group for s in suspects if s.deaths < limit}
        by_group: dict[int, list[int]] = {}
        for key, group in self.group_of.items():
            by_group.setdefault(group, []).append(key)
        self.groups = list(by_group.values())

    def _is_pending(self, key: int) -> bool:
        return self.claim.outcomes[self.claim.positions[key]] == Outcome.PENDING

    def begin(self, run: Run) -> None:
        """Read the first rows, before the task can have left anything open on the connection."""
        self.run = run
        self._give_up(run)
        apart = self.given_up.keys() | self.group_of.keys()
        self.keys = [k for k in self.claim.positions if self._is_pending(k) and k not in apart]
        self.first = self._read_patiently(self.keys)

    def _give_up(self, run: Run) -> None:
        """Record the rows that ended too many processes as failures."""
        if not self.given_up:
            return
        key = key_of(self.model)
        query = self.model.select(key, self.model.modified)
        query = query.where(dialect().among(key, list(self.given_up)))
        for k, modified in retrying(lambda: list(query.tuples())):
            suspect = self.given_up[k]
            times = f", {suspect.deaths} times" if 1 < suspect.deaths < CERTAIN else ""
            run.writer.fail(Refusal(k, suspect.exception, f"{suspect.cause}{times}", modified))

    def __iter__(self) -> Iterator[Handed]:
        self.began = time.monotonic()
        first, self.first = self.first, None
        for handed in self._by_chunks(self.keys, first):
            place = self.claim.positions[handed.key]  # type: ignore[index]
            if place >= self.n_handed:
                self._say_in_hand(place)
            self.n_given += 1
            yield handed

    def soon(self) -> int:
        """The rows that the task is handed in the next seconds, as it goes now."""
        return int(IN_HAND_S * self.n_given / max(time.monotonic() - self.began, 1e-3))

    def _say_in_hand(self, place: int) -> None:
        """Tell the database how far the task will be."""
        ahead = self.keys[self.n_given : self.n_given + 1 + self.soon()]
        self.n_handed = max(place, self.claim.positions[ahead[-1]] if ahead else 0) + 1
        self._note(n_handed=self.n_handed)

    def enter(self, keys: list[int]) -> None:
        """A group of suspects is handed over next."""
        self._note(group=self.group_of.get(keys[0]) if keys else None)

    def _note(self, **values: Any) -> None:
        query = Attempt.update(values).where(Attempt.pk == self.claim.attempt.pk)
        try:
            aside(lambda: retrying(query.execute, bound_s=0))
        except (AstraError, PeeweeException) as error:
            log.info("which rows are in hand could not be recorded: %s", error)

    def again(self, keys: list[int]) -> Iterator[Handed]:
        """Rows by their keys, some of them once more."""
        return self._by_chunks(keys)

    def _by_chunks(self, keys: list[int], first: Chunk | None = None) -> Iterator[Handed]:
        """Rows by their keys; a chunk is read while the task is at the last eighth of another."""
        ahead: Callable[[], Chunk] | None = self._ahead(keys) if first is None else lambda: first
        while ahead is not None:
            (rows, keys), ahead = ahead(), None
            if rows:
                self.first_row()
            begin_at = len(rows) - 1 - max(len(rows) // 8, LAST_ROWS)
            for i, handed in enumerate(rows or [None]):
                if i >= begin_at and ahead is None and keys:
                    ahead = self._ahead(keys)
                if handed is not None:
                    yield handed

    def _ahead(self, keys: list[int]) -> Callable[[], Chunk]:
        return begun_aside(lambda: self._read_patiently(keys))

    def _read_patiently(self, keys: list[int]) -> Chunk:
        return retrying(lambda: self._read(keys), waiting=self.stop.wanted)

    def _read(self, keys: list[int]) -> Chunk:
        """The first rows of `keys`: as many as are read at a time."""
        began = time.perf_counter()
        # The clock first: the rows are at least as recent as it says.
        now = dialect().now()
        chunk, left = self._cut(keys)
        rows = self._rows(chunk)
        if self.unmeasured and len(rows) < len(chunk):
            self.unmeasured = False
            chunk, left = self._cut(keys)
            rows = self._rows(chunk)
        left = self._note_missing([k for k in chunk if k not in rows]) + left
        self.t_read_s += time.perf_counter() - began
        return [Handed(k, rows[k], rows[k].modified, now) for k in chunk if k in rows], left

    def _rows(self, keys: list[int]) -> dict[int, Any]:
        """Rows without a result, by key; those without arrays, until these are measured."""
        key = key_of(self.model)
        wanted = dialect().among(key, keys) & ~self._has_result()
        if self.unmeasured:
            wanted &= self._size() < 1  # by "= 0" the planner would expect next to none
        query = rows_with_source(self.model).where(wanted)
        return {getattr(row, key.name): row for row in read_rows(query)}

    def _has_result(self) -> Any:
        return has_result(self.model, self.output, by_index=True)

    def _note_missing(self, keys: list[int]) -> list[int]:
        """Rows that have an up-to-date result already, or are no more, are noted; the others."""
        if not keys:
            return keys
        key = key_of(self.model)
        query = self.model.select(key, self._has_result()).where(dialect().among(key, keys))
        has = dict(database.execute(query).fetchall())
        self.claim.find(k for k in keys if has.get(k))
        for k in keys:
            if k not in has and self.run is not None:
                message = "the input row was deleted after it was planned"
                self.run.writer.fail(Refusal(k, "InputGone", message))
        return [k for k in keys if k in has and not has[k]]

    def _cut(self, keys: list[int]) -> tuple[list[int], list[int]]:
        """The keys of a chunk, and of what is left: no more than :data:`CHUNK_BYTES` of arrays."""
        chunk, n_bytes = keys[:CHUNK], 0
        measured = self.arrays and not self.unmeasured
        for n, k in enumerate(chunk if measured else ()):
            if k not in self.n_bytes:
                self.n_bytes = self._sizes(keys[n : n + CHUNK])
            n_bytes += self.n_bytes[k]
            if n and n_bytes > CHUNK_BYTES:
                return keys[:n], keys[n:]
        return chunk, keys[CHUNK:]

    def _sizes(self, keys: list[int]) -> dict[int, int]:
        """Bytes of the arrays of rows, by key, which the database knows without reading them."""
        key = key_of(self.model)
        wanted = dialect().among(key, keys) & (self._size() > 0)
        query = self.model.select(key, self._size()).where(wanted)
        return dict.fromkeys(keys, 0) | dict(database.execute(query).fetchall())

    def _size(self) -> Any:
        return reduce(add, (fn.COALESCE(fn.LENGTH(array), 0) for array in self.arrays))


#: Fields whose values the driver gives as they are.
_PLAIN = {
    peewee.AutoField, peewee.BigAutoField, peewee.IntegerField, peewee.BigIntegerField,
    peewee.SmallIntegerField, peewee.FloatField, peewee.DoubleField, peewee.TextField,
    peewee.CharField,
}  # fmt: skip


def read_rows(query: Any) -> list[Any]:
    """All rows of a query that :func:`astra.plan.pending.rows_with_source` made."""
    model = query.model
    on_source = issubclass(model, Source)
    if not (_is_plain(model) and _is_plain(Source)):
        return list(query)
    with peewee.__exception_wrapper__:
        found = database.execute(query).fetchall()
    make = _maker(model)
    if on_source:
        return [make(row) for row in found]
    width, make_source, key_place = len(model._meta.sorted_fields), _maker(Source), _key_place()
    rows = []
    for values in found:
        row, source = make(values[:width]), values[width:]
        # The source of a row that has none, and is not asked for again when it is looked up.
        row.__rel__["source"] = None if source[key_place] is None else make_source(source)
        rows.append(row)
    return rows


def _maker(model: Any) -> Callable[[Sequence[Any]], Any]:
    """Makes an object of the values of a row, in the order of SELECT, as peewee's own does."""
    new, fields = model.__new__, model._meta.sorted_fields
    names = [f.name for f in fields]
    converters = [(f.name, f.python_value) for f in fields if type(_referred(f)) not in _PLAIN]

    def make(values: Sequence[Any]) -> Any:
        made = new(model)
        made.__data__ = data = dict(zip(names, values, strict=True))
        made._dirty, made.__rel__ = set(), {}
        for name, convert in converters:
            if data[name] is not None:
                data[name] = convert(data[name])
        return made

    return make


@cache
def _key_place() -> int:
    return [field.name for field in Source._meta.sorted_fields].index("pk")


def _referred(field: Any) -> Any:
    return field.rel_field if type(field) is ForeignKeyField else field


@cache
def _is_plain(model: Any) -> bool:
    """Whether rows of a model come to be as peewee's own do."""
    if model.__init__ is not peewee.Model.__init__ or model.__setattr__ is not object.__setattr__:
        return False
    accessors = {type(getattr_static(model, name)) for name in model._meta.fields}
    return accessors <= {FieldAccessor, ForeignKeyAccessor}
