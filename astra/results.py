"""Checkpoints: one transaction writes a batch of results and the page's progress together."""

import threading
import traceback as tracebacks
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import peewee

from astra import config, log
from astra.columns import BadColumn, as_columns, as_row
from astra.database import database, dialect, writing
from astra.dialects import Batch
from astra.errors import DatabaseError, Superseded
from astra.models.orchestration import Attempt, Failure, NoResult, Page, Plan, Suspect
from astra.models.pipeline import (
    SOURCE_KEY,
    SPECTRUM_KEY,
    PipelineOutputModel,
    version_number,
)
from astra.states import Outcome

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


@dataclass
class Claim:
    """The right to write a page: held while the page names this attempt."""

    page: Page
    attempt: Attempt
    positions: dict[int, int]  # key -> place in the page
    outcomes: bytearray
    n_found: int = 0  # rows whose result others had written
    mutex: threading.Lock = field(default_factory=threading.Lock)  # guards the two above
    cancelled: bool = False  # the plan, as the last checkpoint found: the attempt is to end
    measures: Callable[[], dict[str, Any]] = dict  # columns of the attempt, as of now
    suspects: Sequence[Suspect] = ()  # of the page, as it was claimed

    @cached_property
    def standing(self) -> tuple[str, Any]:
        """The query, and its parameters, for who holds the page, whether the plan was cancelled,
        and how many checkpoints of the attempt are there; it locks the page."""
        query = (
            Page.select(Page.attempt_pk, Plan.cancelled, Attempt.n_checkpoints)
            .join(Plan, on=Plan.pk == Page.plan_pk)
            .join(Attempt, peewee.JOIN.LEFT_OUTER, on=Attempt.pk == self.attempt.pk)
            .where(Page.pk == self.page.pk)
        )
        if dialect().name == "postgresql":
            query = query.for_update(of=Page)
        return query.sql()

    def find(self, keys: Iterable[int]) -> None:
        """Rows that turn out to have a result already: the next checkpoint says so."""
        with self.mutex:
            for key in keys:
                place = self.positions[key]
                if self.outcomes[place] == Outcome.PENDING:
                    self.outcomes[place] = Outcome.RESULT
                    self.n_found += 1

    def seen(self) -> "Seen":
        with self.mutex:
            return Seen(bytes(self.outcomes), self.n_found)

    def advance(self, seen: "Seen", progress: "Progress") -> None:
        """A checkpoint was committed. What was found while it was written stays found."""
        import numpy as np  # here, as few commands write results

        with self.mutex:
            before, after, now = (
                np.frombuffer(o, np.uint8)
                for o in (seen.outcomes, progress.outcomes, self.outcomes)
            )
            np.copyto(now, after, where=before != after)
        for name, value in progress.counts.items():
            setattr(self.attempt, name, value)


@dataclass(frozen=True)
class Seen:
    """A page as a checkpoint of it begins."""

    outcomes: bytes
    n_found: int


@dataclass(frozen=True)
class Progress:
    """A page as a checkpoint of it leaves it, and what its attempt has ended up to then."""

    outcomes: bytes
    counts: dict[str, int]


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
    own = [f for f in frames if "/astra/run.py" not in f.filename]
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
    text = config.hide(text.replace("\0", "\\0"))
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else "… " + text[-limit:]


def write(checkpoint: Checkpoint, target: Target, claim: Claim | None) -> list[Any]:
    """Write a checkpoint, all of it or nothing; the results that were stored.

    A result that the database refuses fails alone: its batch is halved until it stands by itself,
    and it is recorded as a failure of its row, with the database's own message.

    Raises
    ------
    Superseded
        If another attempt has claimed the page; nothing is written.
    DatabaseError
        If the database has lost what it had acknowledged; nothing is written.
    """
    with writing():
        if claim is not None:
            _hold(claim)
        stored, refused = _write_results(checkpoint.results, target, claim)
        failures = _beside_results([*checkpoint.failures, *refused], stored)
        _forget_other_ends(target, stored, failures, checkpoint.no_results)
        _write_failures(failures, target, claim)
        _write_no_results(checkpoint.no_results, target, claim)
        if claim is not None:
            seen = claim.seen()
            progress = _write_progress(claim, seen, stored, failures, checkpoint)
    if claim is not None:
        claim.advance(seen, progress)
    checkpoint.n_refused = len(refused)
    for failure in refused:
        log.error("%s %s: result refused: %s", target.task, failure.key, failure.message)
    return [yielded.result for yielded in stored]


def _beside_results(failures: list[Refusal], stored: list[Yielded]) -> list[Refusal]:
    """A failure of a row whose result is stored is a further result, that was refused."""
    if not failures:
        return []
    done = {(y.handed.table, y.handed.key) for y in stored if y.handed}
    return [replace(f, refused=True) if (f.table, f.key) in done else f for f in failures]


def _hold(claim: Claim) -> None:
    """Make sure that the page is still ours, and stays so until the transaction ends."""
    sql, parameters = claim.standing
    found = database.execute_sql(sql, parameters).fetchone()
    holder, cancelled, n_checkpoints = found or (None, None, None)
    claim.cancelled = cancelled is not None
    if holder is None:
        raise Superseded(
            f"page {claim.page.number} of plan {claim.page.plan_pk} was taken back: the plan was "
            "cancelled; nothing more is written"
        )
    if holder != claim.attempt.pk:
        raise Superseded(
            f"page {claim.page.number} of plan {claim.page.plan_pk} was taken over by attempt "
            f"{holder}; this one (attempt {claim.attempt.pk}) writes nothing more"
        )
    _check_memory(claim, n_checkpoints)


def check_memory(claim: Claim) -> None:
    """Make sure that every checkpoint that was acknowledged is there.

    A standby that became the primary, or a backup that was restored, may stand at an earlier
    moment: what this process knows of the page is not true there, and must not be written.

    Raises
    ------
    DatabaseError
        If a checkpoint is missing.
    """
    query = Attempt.select(Attempt.n_checkpoints).where(Attempt.pk == claim.attempt.pk)
    _check_memory(claim, query.scalar())


def _check_memory(claim: Claim, n_checkpoints: int | None) -> None:
    missing = claim.attempt.n_checkpoints - (n_checkpoints or 0)
    if missing > 0:
        raise DatabaseError(
            f"the database has lost {missing} checkpoints that it had acknowledged, as after a "
            "failover or a restored backup; their rows are pending again"
        )


# ----------------------------------------------------------------------------------- results


@dataclass
class _Group:
    """Results of one model that set the same columns, and what they set."""

    results: list[Yielded]
    columns: dict[str, Sequence[Any]]

    def part(self, begin: int, end: int) -> "_Group":
        columns = {name: values[begin:end] for name, values in self.columns.items()}
        return _Group(self.results[begin:end], columns)


def _write_results(
    results: list[Yielded], target: Target, claim: Claim | None
) -> tuple[list[Yielded], list[Refusal]]:
    refused: list[Refusal] = []
    groups = _by_columns(results, target, claim, refused)
    if groups is None:
        refused.clear()
        groups = _row_by_row(results, target, claim, refused)
    stored: list[Yielded] = []
    for group in groups:
        stored += _store(group, target, refused)
    if len(groups) > 1:
        order = {id(yielded): i for i, yielded in enumerate(results)}
        stored.sort(key=lambda yielded: order[id(yielded)])
    return stored, refused


def _by_columns(
    results: list[Yielded], target: Target, claim: Claim | None, refused: list[Refusal]
) -> list[_Group] | None:
    """Results whose values can all be stored, by what they set in which order; else None."""
    if not _all_may_be_stored(results, target, claim):
        results = _that_may_be_stored(results, target, claim, refused)
    _complete(results, claim)
    found = []
    for members in _alike(results):
        columns = as_columns([yielded.result for yielded in members])
        if columns is None:
            return None
        found.append(_Group(members, columns))
    return found


def _alike(results: list[Yielded]) -> Iterable[list[Yielded]]:
    """Results of one model that set the same columns in one order together."""
    kinds = ((type(yielded.result), list(yielded.result.__data__)) for yielded in results)
    if (first := next(kinds, None)) is not None and all(kind == first for kind in kinds):
        return [results]  # mostly; and hashing all names takes twice as long
    groups: dict[tuple[Any, ...], list[Yielded]] = {}
    for yielded in results:
        groups.setdefault((type(yielded.result), *yielded.result.__data__), []).append(yielded)
    return groups.values()


def _row_by_row(
    results: list[Yielded], target: Target, claim: Claim | None, refused: list[Refusal]
) -> list[_Group]:
    """The same, less those with a value that cannot be stored."""
    seen: set[int] = set()
    groups: dict[tuple[Any, frozenset[str]], list[tuple[Yielded, dict[str, Any]]]] = {}
    for yielded in results:
        try:
            key = _key_to_store(yielded, target, claim, seen)
            _complete([yielded], claim)
            row = _row_of(yielded)
        except _Bad as bad:
            refused.append(bad.refusal)
            continue
        seen.add(key)
        kind = type(yielded.result), frozenset(row)
        groups.setdefault(kind, []).append((yielded, row))
    return [
        _Group([y for y, _ in members], {n: [row[n] for _, row in members] for n in members[0][1]})
        for members in groups.values()
    ]


def _all_may_be_stored(results: list[Yielded], target: Target, claim: Claim | None) -> bool:
    """Whether :func:`_key_to_store` would refuse none of them; False where that is not plain."""
    if {type(yielded.result) for yielded in results} != {target.output}:
        return False
    rows = [yielded.result.__data__ for yielded in results]
    keys = [row.get(target.key_name) for row in rows]
    versions = [row.get("v_astra") for row in rows]
    return (
        set(map(type, versions)) == set(map(type, keys)) == {int}
        and set(versions) == {version_number()}
        and -(2**63) <= min(keys) <= max(keys) < 2**63
        and len(set(keys)) == len(keys)
        and not any(yielded.again for yielded in results)
        and (claim is None or _are_pending(keys, claim))
    )


def _are_pending(keys: list[int], claim: Claim) -> bool:
    places = [place for place in map(claim.positions.get, keys) if place is not None]
    ended = {claim.outcomes[place] for place in places}
    return len(places) == len(keys) and Outcome.RESULT.value not in ended


def _that_may_be_stored(
    results: list[Yielded], target: Target, claim: Claim | None, refused: list[Refusal]
) -> list[Yielded]:
    seen: set[int] = set()
    good = []
    for yielded in results:
        try:
            seen.add(_key_to_store(yielded, target, claim, seen))
        except _Bad as bad:
            refused.append(bad.refusal)
        else:
            good.append(yielded)
    return good


def _row_of(yielded: Yielded) -> dict[str, Any]:
    try:
        return as_row(yielded.result)
    except BadColumn as bad:
        error = bad.__cause__ or bad
        message = clean(f"column {bad.name}: {words_of(error)}", MESSAGE_LIMIT)
        raise _Bad(yielded, type(error).__name__, message) from error


class _Bad(Exception):
    def __init__(self, yielded: Yielded, kind: str, message: str, refused: bool = False) -> None:
        handed = yielded.handed
        if handed is None:
            # Without a row that it was yielded for, a result is known by the key that it bears.
            key = key_of_result(yielded.result, on_source=False)
            self.refusal = Refusal(key, kind, message, refused=refused)
            return
        refused = refused or yielded.again
        self.refusal = Refusal(
            handed.key, kind, message, handed.modified, refused=refused, table=handed.table
        )


def _key_to_store(yielded: Yielded, target: Target, claim: Claim | None, seen: set[int]) -> int:
    """The key of a result that may be stored.

    Raises
    ------
    _Bad
        If it may not.
    """
    result = yielded.result
    if type(result) is not target.output or result.__data__.get("v_astra") != version_number():
        _check_model(yielded, target.output)
    data = result.__data__
    key = data.get(target.key_name)
    if type(key) is not int or not -(2**63) <= key < 2**63:
        key = key_of_result(result, target.on_source)
    if key is None:
        raise _Bad(yielded, *_no_key(result, target.on_source))
    if claim is not None:
        place = claim.positions.get(key)
        if place is None:
            raise _Bad(yielded, "ForeignRow", f"the result is for {key}, which is not in the page")
        if claim.outcomes[place] == Outcome.RESULT.value:
            raise _Bad(yielded, "DuplicateResult", f"a second result for {key}", True)
    if key in seen or yielded.again:
        raise _Bad(yielded, "DuplicateResult", f"a second result for {key}", True)
    return key


def _complete(results: Iterable[Yielded], claim: Claim | None) -> None:
    """Tell results which reading of its row each is of, and which attempt stores them."""
    attempt_pk = claim.attempt.pk if claim is not None else None
    for yielded in results:
        data, handed = yielded.result.__data__, yielded.handed
        if handed is not None:
            data["input_read"] = handed.read
            if data.get("input_modified") is None:
                data["input_modified"] = handed.modified
        data["attempt_pk"] = attempt_pk


def _check_model(yielded: Yielded, wanted: Any) -> None:
    """A result is a row of the one table that the task is known to write, at this version."""
    result = yielded.result
    name = type(result).__name__
    if isinstance(result, type):
        name = f"the class {result.__name__} itself"
    if wanted is None:
        good = isinstance(result, PipelineOutputModel) and type(result) is not PipelineOutputModel
        said = "a row of a subclass of PipelineOutputModel"
    else:
        good, said = type(result) is wanted, wanted.__name__
    if not good:
        raise _Bad(yielded, "WrongModel", f"{name} was yielded, not {said}")
    version = result.__data__.get("v_astra")
    if not isinstance(version, int) or version // 1000 != version_number() // 1000:
        message = f"v_astra={version!r}: leave it out; it is that of this astra, {version_number()}"
        raise _Bad(yielded, "WrongVersion", message)


def _no_key(result: Any, on_source: bool) -> tuple[str, str]:
    name = "source_pk" if on_source else "spectrum_pk"
    given = result.__data__.get(name)
    if given is None:
        return (
            "NoKey",
            f"the result has no {name}; use from_{'source' if on_source else 'spectrum'}()",
        )
    return "BadKey", f"{name}={clean(repr(given), 200)} is no key: a whole number of 64 bits"


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


def _store(group: _Group, target: Target, refused: list[Refusal]) -> list[Yielded]:
    """Write rows that set the same columns; on an error halve them until the bad one is alone."""
    conflict, where = SOURCE_KEY if target.on_source else SPECTRUM_KEY
    model = type(group.results[0].result)
    batch = Batch(
        dialect().table(model),
        group.columns,
        conflict,
        where,
        (conflict[0], model._meta.primary_key.column_name),
    )
    try:
        with database.atomic():
            written = dialect().upsert(batch)
    except Exception as error:
        if not dialect().is_rows_fault(error):
            raise
        if len(group.results) == 1:
            kind = type(error.__cause__ or error).__name__
            message = clean(dialect().message(error), MESSAGE_LIMIT)
            refused.append(_Bad(group.results[0], kind, message).refusal)
            return []
        half = len(group.results) // 2
        return [
            *_store(group.part(0, half), target, refused),
            *_store(group.part(half, len(group.results)), target, refused),
        ]
    stored: list[Yielded] = []
    keys = group.columns[conflict[0]]
    for yielded, pk, key in zip(group.results, map(written.get, keys), keys, strict=True):
        # Absent is a row that a later attempt has already written: that one stands.
        if pk is None:
            log.warning("%s %s: a later result stands", target.task, key)
            continue
        result = yielded.result
        result.__data__["task_pk"] = pk
        result._dirty.clear()
        stored.append(yielded)
    return stored


def _table_of(of: Handed | Refusal | None, target: Target) -> str:
    """The table of a row: that of the target, where the row itself says nothing else."""
    return (of.table if of is not None else None) or target.input_table


def _forget_other_ends(
    target: Target, stored: list[Yielded], failures: list[Refusal], no_results: list[Handed]
) -> None:
    """What was recorded of rows that end otherwise now: a row has one end."""
    kinds = _recorded(target)
    if not kinds:  # mostly nothing was ever recorded of the task
        return
    done = [
        (_table_of(y.handed, target), key_of_result(y.result, target.on_source)) for y in stored
    ]
    failed = [(_table_of(f, target), f.key) for f in failures if not f.refused]
    _forget(kinds & {Failure, NoResult}, target, done)
    _forget(kinds & {NoResult}, target, failed)
    _forget(kinds & {Failure}, target, [(_table_of(h, target), h.key) for h in no_results])


def _recorded(target: Target) -> set[Any]:
    """Of failures and rows without a result, the kinds of which the task has any."""
    found = database.execute_sql(*_query_of_recorded(dialect(), target.task)).fetchone()
    return {kind for kind, any_ in zip(_KINDS, found, strict=True) if any_}


_KINDS = (Failure, NoResult)


@lru_cache(maxsize=16)
def _query_of_recorded(bound: Any, task: str) -> tuple[str, Any]:
    """Kept, since peewee takes as long to write it as a database to answer it."""
    ends = [kind.select(peewee.SQL("1")).where(kind.task == task) for kind in _KINDS]
    return peewee.Select(columns=[peewee.fn.EXISTS(end) for end in ends]).bind(bound.database).sql()


def _forget(kinds: set[Any], target: Target, rows: list[tuple[str, int | None]]) -> None:
    by_table: dict[str, list[int]] = {}
    for table, key in rows if kinds else ():
        if key is not None:
            by_table.setdefault(table, []).append(key)
    for model, (table, keys) in product(kinds, by_table.items()):
        model.delete().where(
            (model.task == target.task)
            & (model.input_table == table)
            & dialect().among(model.key, keys)
            & (model.v_astra_major_minor == version_number() // 1000)
        ).execute()


# -------------------------------------------------------------------- failures, no results


def _common(target: Target, claim: Claim | None, row: Handed | Refusal) -> dict[str, Any]:
    return {
        "task": target.task,
        "input_table": _table_of(row, target),
        "key": row.key,
        "v_astra_major_minor": version_number() // 1000,
        "input_modified": row.modified,
        "attempt_pk": claim.attempt.pk if claim else None,
        "plan_pk": target.plan_pk,
        "page": target.page,
    }


_ONE_PER_ROW = ("task", "input_table", "key", "v_astra_major_minor")


def _write_failures(failures: list[Refusal], target: Target, claim: Claim | None) -> None:
    for failure in failures:
        if failure.key is None:
            log.error("%s: %s: %s", target.task, failure.exception, failure.message)
            continue
        refused = failure.refused or _is_done(claim, failure.key)
        values = {
            **_common(target, claim, failure),
            "exception": failure.exception,
            "message": failure.message,
            "place": failure.place,
            "traceback": failure.traceback,
            "refused": refused,
        }
        times = Failure.times + 1
        if claim is not None and not refused:
            # Written again after an answer that was lost, it is the same failure.
            same = Failure.attempt_pk == claim.attempt.pk
            times = peewee.Case(None, ((same, Failure.times),), times)
        _upsert_row(Failure, values, {Failure.times: times})


def _is_done(claim: Claim | None, key: int) -> bool:
    """Whether the row has a result already: what failed is a further one."""
    place = claim.positions.get(key) if claim is not None else None
    return claim is not None and place is not None and claim.outcomes[place] == Outcome.RESULT


def _write_no_results(rows: list[Handed], target: Target, claim: Claim | None) -> None:
    for handed in rows:
        if handed.key is not None:
            _upsert_row(NoResult, _common(target, claim, handed), {})


def _upsert_row(model: Any, values: dict[str, Any], extra: dict[Any, Any]) -> None:
    changed = {getattr(model, n): v for n, v in values.items() if n not in _ONE_PER_ROW}
    model.insert(values).on_conflict(
        conflict_target=[getattr(model, name) for name in _ONE_PER_ROW],
        update={**changed, model.modified: peewee.SQL(dialect().now_sql), **extra},
    ).execute()


# ---------------------------------------------------------------------------------- progress


def _write_progress(
    claim: Claim,
    seen: Seen,
    stored: list[Yielded],
    failures: list[Refusal],
    checkpoint: Checkpoint,
) -> Progress:
    """The page's progress, in the same transaction."""
    outcomes = bytearray(seen.outcomes)
    results = [y.handed.key for y in checkpoint.results if y.handed]
    bad = {f.key for f in failures}
    # A result that a later attempt has already written counts as a result all the same.
    _mark(outcomes, claim, [k for k in results if k not in bad], Outcome.RESULT)
    if bad:  # of a row that has a result, a further one may have failed
        _mark(outcomes, claim, (y.handed.key for y in stored if y.handed), Outcome.RESULT)
    _mark(outcomes, claim, (f.key for f in failures), Outcome.FAILURE)
    _mark(outcomes, claim, (h.key for h in checkpoint.no_results), Outcome.NO_RESULT)
    counts = {name: outcomes.count(outcome) for name, outcome in _COUNTED.items()}
    dialect().set_at(Page, claim.page.pk, Page.modified, {"outcomes": bytes(outcomes), **counts})
    # What this attempt ended itself: the attempts of a page add up to the page. As numbers, not
    # as increments: where the answer to the commit was lost, all this is written once more.
    own = {
        name: getattr(claim.attempt, name) + counts[name] - seen.outcomes.count(outcome)
        for name, outcome in _COUNTED.items()
    }
    own["n_checkpoints"] = claim.attempt.n_checkpoints + 1
    known = {"n_found": seen.n_found, **own, **claim.measures()}
    dialect().set_at(Attempt, claim.attempt.pk, Attempt.seen, known)
    return Progress(bytes(outcomes), own)


_COUNTED = {
    "n_done": Outcome.RESULT,
    "n_failed": Outcome.FAILURE,
    "n_no_result": Outcome.NO_RESULT,
}


def _mark(outcomes: bytearray, claim: Claim, keys: Iterable[int | None], outcome: Outcome) -> None:
    value, result = outcome.value, Outcome.RESULT.value
    for place in map(claim.positions.get, keys):  # type: ignore[arg-type]
        # A stored result is never taken back by a later failure of the same row.
        if place is not None and outcomes[place] != result:
            outcomes[place] = value
