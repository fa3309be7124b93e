"""Checkpoints: one transaction writes a batch of results and the page's progress together."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product

import peewee
from peewee import ColumnBase, Model, Query, Value

from astra.database.connection import dialect, tuples, writing
from astra.database.statements import statement
from astra.errors import BrokenElement
from astra.models.attempts import Attempt
from astra.models.failures import Failure, NoResult, RowWithoutResult
from astra.models.key_parsing import keys_by_value
from astra.models.keys import RowKey, as_tuple, changed_keys, key_of, may_change
from astra.models.plans import Page
from astra.results.claim import Claim, Progress, hold_page
from astra.results.row_results import write_rows
from astra.results.rows import (
    Checkpoint,
    HandedRow,
    Refusal,
    Target,
    YieldedResult,
    changed_key_message,
)
from astra.results.valid_results import ResultRefused
from astra.states import COUNTED, Outcome
from astra.version import CURRENT

log = logging.getLogger(__name__)


def write(
    checkpoint: Checkpoint,
    target: Target,
    claim: Claim | None,
    judge: Callable[[list[Refusal]], None] = lambda refused: None,
) -> list[ColumnBase]:
    """Write a checkpoint, all of it or nothing; return the results that were stored.

    A result that the database refuses fails alone: its batch is halved until it is by itself, and
    it is recorded as a failure of its row, with the database's own message. `judge` is given all
    refused results before anything is committed. If it raises BrokenElement, no failure is
    recorded, so that these rows stay pending, and the error is raised once the rest is stored.

    Raises
    ------
    Superseded
        If another attempt has claimed the page; nothing is written.
    DatabaseError
        If the database has lost what it had acknowledged; nothing is written.
    """
    with writing():
        if claim is not None:
            hold_page(claim)
        results, changed = checkpoint.results, list[Refusal]()
        if claim is None:  # the rows of a page were checked as they were read
            results, changed = _without_changed_keys(results, target)
        stored, refused = write_rows(results, target, claim)
        refused += changed
        if target.page is None:  # an element that runs a page does not use its results
            _set_times(stored)
        broken: BrokenElement | None = None
        try:
            judge(refused)
        except BrokenElement as error:
            broken = error
            checkpoint, refused = replace(checkpoint, results=stored, failures=[]), []
        ends, own = _by_own_results(checkpoint, stored, target)
        _find_keys(ends, own, refused, target)
        failures = _mark_further_failures([*checkpoint.failures, *refused], own)
        _forget_other_ends(target, own, failures, ends.no_results)
        _write_failures(failures, target, claim)
        _write_no_results(ends.no_results, target, claim)
        if claim is not None:
            progress = _write_progress(claim, own, failures, ends)
    if claim is not None:
        claim.advance(progress)
    if broken is not None:
        raise broken
    checkpoint.refused = refused
    checkpoint.n_stored = len(stored) + len(checkpoint.no_results)
    for failure in refused:
        row = failure.handed
        key = row.link_value if row.key is None else row.key
        log.error("%s %s: result refused: %s", target.task, key, failure.summary)
    return [yielded.result for yielded in stored]


def _by_own_results(
    checkpoint: Checkpoint, stored: list[YieldedResult], target: Target
) -> tuple[Checkpoint, list[YieldedResult]]:
    """Return how rows have ended, and their results: a row of which only others of its group have
    results has none itself, by which it would be known not to be pending."""
    if not target.groups:
        return checkpoint, stored
    own = {y.handed for y in stored if y.handed.link_value == target.link_value_of(y.result)}
    without = {y.handed: None for y in stored if y.handed not in own}
    ends = replace(
        checkpoint,
        results=[yielded for yielded in checkpoint.results if yielded.handed not in without],
        no_results=[*checkpoint.no_results, *without],
    )
    return ends, [yielded for yielded in stored if yielded.handed not in without]


def _without_changed_keys(
    results: list[YieldedResult], target: Target
) -> tuple[list[YieldedResult], list[Refusal]]:
    """Refuse the results of rows whose key they do not hold: they would be of other rows."""
    output, link = target.output, target.link
    if target.model is None or output is None or link is None:
        return results, []
    key, stored = key_of(target.model), link.key(output)
    rows = [y.handed for y in results if y.handed.link_value is not None]
    if not rows or not may_change(key, stored):
        return results, []
    _look_up_keys(rows, target.model)
    values = {row.key: as_tuple(row.link_value) for row in rows if row.key is not None}
    changed = {None, *changed_keys(key, stored, values)}
    good, refused = [], []
    for yielded in results:
        handed = yielded.handed
        if handed.link_value is None or handed.key not in changed:
            good.append(yielded)
        else:
            message = changed_key_message(as_tuple(handed.link_value), output)
            refused.append(ResultRefused(yielded, "KeyChanged", message).refusal)
    return good, refused


def _find_keys(
    checkpoint: Checkpoint, stored: list[YieldedResult], refused: list[Refusal], target: Target
) -> None:
    """Look up the keys of rows, if only the columns that results point to are known."""
    if target.model is None or target.link is None or target.link.is_whole:
        return
    rows = [failure.handed for failure in [*checkpoint.failures, *refused]]
    rows += checkpoint.no_results
    if any(y.handed.key is None for y in stored) and _recorded(target):
        rows += [y.handed for y in stored]
    _look_up_keys(rows, target.model)


def _look_up_keys(rows: Iterable[HandedRow], model: type[Model]) -> None:
    """Set the keys of rows by the values that Python has of them."""
    unknown = [row for row in rows if row.key is None and row.link_value is not None]
    keys = keys_by_value(model, {row.link_value for row in unknown})
    for row in unknown:
        row.key = keys.get(row.link_value)


def _mark_further_failures(failures: list[Refusal], stored: list[YieldedResult]) -> list[Refusal]:
    """Mark failures of rows whose result is stored: only a further result of theirs was refused."""
    if not failures:
        return []
    rows = {(y.handed.table, y.handed.key) for y in stored}
    return [
        replace(f, refused=True) if (f.handed.table, f.handed.key) in rows else f for f in failures
    ]


def take_back_failures(claim: Claim) -> None:
    """Make the rows pending again that the attempt recorded as failures."""
    with writing():
        hold_page(claim)
        Failure.delete().where(Failure.attempt_pk == claim.attempt.pk).execute()
        # Not by the deleted records: if the answer to the commit is lost, this is repeated.
        before = bytes(claim.page.outcomes)
        failed = {
            place: Outcome.PENDING.value
            for place, outcome in enumerate(claim.outcomes)
            if outcome == Outcome.FAILURE != before[place]
        }
        progress = _store_progress(claim, claim.outcomes, failed)
    claim.advance(progress)


def _set_times(stored: list[YieldedResult]) -> None:
    """Set `created` and `modified`, which the database filled, on results for the caller."""
    for model in {type(yielded.result) for yielded in stored}:
        results = [yielded.result for yielded in stored if type(yielded.result) is model]
        query = model.select(model.task_pk, model.created, model.modified)
        query = query.where(dialect().among(model.task_pk, [result.task_pk for result in results]))
        moments = {pk: both for pk, *both in tuples(query)}
        for result in results:
            if (times := moments.get(result.task_pk)) is not None:  # no later row has replaced it
                result.__data__["created"], result.__data__["modified"] = times


def _forget_other_ends(
    target: Target,
    stored: list[YieldedResult],
    failures: list[Refusal],
    no_results: list[HandedRow],
) -> None:
    """Delete the failures and no results of rows that end otherwise now: a row has one outcome."""
    kinds = _recorded(target)
    if not kinds:  # usually the task has neither failures nor rows without a result
        return
    _forget(kinds & {Failure, NoResult}, target, [yielded.handed for yielded in stored])
    _forget(kinds & {NoResult}, target, [f.handed for f in failures if not f.refused])
    _forget(kinds & {Failure}, target, no_results)


def _recorded(target: Target) -> set[type[RowWithoutResult]]:
    """Return which of the two kinds, failures and rows without a result, the task has any of."""
    (flags,) = _are_recorded(task=target.task)
    return {kind for kind, has_any in zip(_KINDS, flags, strict=True) if has_any}


_KINDS = (Failure, NoResult)


@statement
def _are_recorded(task: Value) -> Query:
    ends = [kind.select(peewee.SQL("1")).where(kind.task == task) for kind in _KINDS]
    return peewee.Select(columns=[peewee.fn.EXISTS(end) for end in ends])


def _forget(kinds: set[type[RowWithoutResult]], target: Target, rows: list[HandedRow]) -> None:
    by_table: dict[str, list[RowKey]] = {}
    for row in rows if kinds else ():
        if row.key is not None:
            by_table.setdefault(row.table or target.input_table, []).append(row.key)
    for model, (table, keys) in product(kinds, by_table.items()):
        model.delete().where(model.is_of(target.task, table, keys)).execute()


def _common_columns(target: Target, claim: Claim | None, row: HandedRow) -> dict[str, object]:
    return {
        "task": target.task,
        "input_table": row.table or target.input_table,
        "key": row.key,
        "v_astra_major_minor": CURRENT.major_minor,
        "input_modified": row.modified,
        "attempt_pk": claim.attempt.pk if claim else None,
        "plan_pk": target.plan_pk,
        "page": target.page,
        "made_by": target.made_by,
    }


_ONE_PER_ROW = ("task", "input_table", "key", "v_astra_major_minor")


def _write_failures(failures: list[Refusal], target: Target, claim: Claim | None) -> None:
    for failure in failures:
        if failure.handed.key is None:
            log.error("%s: %s: %s", target.task, failure.exception, failure.message)
            continue
        # The row may have a result already, so that what failed is a further one.
        refused = failure.refused or (claim is not None and claim.has_result(failure.handed.key))
        values = {
            **_common_columns(target, claim, failure.handed),
            "exception": failure.exception,
            "message": failure.message,
            "place": failure.place,
            "traceback": failure.traceback,
            "refused": refused,
        }
        times: peewee.ColumnBase = Failure.times + 1
        if claim is not None and not refused:
            # If it is written again because the commit's answer was lost, it is the same failure.
            is_same = Failure.attempt_pk == claim.attempt.pk
            times = peewee.Case(None, ((is_same, Failure.times),), times)
        # A further result that is refused does not hide why its row has failed.
        _upsert_row(Failure, values, {Failure.times: times}, Failure.refused if refused else None)


def _write_no_results(rows: list[HandedRow], target: Target, claim: Claim | None) -> None:
    for handed in rows:
        if handed.key is not None:
            _upsert_row(NoResult, _common_columns(target, claim, handed), {})


def _upsert_row(
    model: type[RowWithoutResult],
    values: dict[str, object],
    extra: dict[object, object],
    where: peewee.ColumnBase | None = None,
) -> None:
    changed = {getattr(model, n): v for n, v in values.items() if n not in _ONE_PER_ROW}
    model.insert(values).on_conflict(
        conflict_target=[getattr(model, name) for name in _ONE_PER_ROW],
        update={**changed, model.modified: peewee.SQL(dialect().now_sql), **extra},
        where=where,
    ).execute()


def _write_progress(
    claim: Claim, stored: list[YieldedResult], failures: list[Refusal], checkpoint: Checkpoint
) -> Progress:
    """Write the page's progress in the transaction of its results, and return it."""
    results = [y.handed.key for y in checkpoint.results]
    failed_keys = {f.handed.key for f in failures}
    keys_by_outcome = (
        # A row whose result a later attempt has already written counts as having a result, too.
        (Outcome.RESULT, [k for k in results if k not in failed_keys] if failed_keys else results),
        # A row that has a result may have failed at a further one.
        (Outcome.RESULT, [y.handed.key for y in stored] if failed_keys else []),
        (Outcome.FAILURE, [f.handed.key for f in failures if not f.refused]),
        (Outcome.NO_RESULT, [h.key for h in checkpoint.no_results]),
    )
    before, n_found, changed = claim.outcomes.copy(), 0, dict[int, int]()
    has_result = Outcome.RESULT.value
    for found in (claim.positions[h.key] for h in checkpoint.found):
        n_found += before[found] == Outcome.PENDING
        before[found] = Outcome.RESULT
    for outcome, keys in keys_by_outcome:
        value = outcome.value
        for place in map(claim.positions.get, keys):
            # A later failure of the same row never hides a stored result.
            if place is not None and changed.get(place, before[place]) != has_result:
                changed[place] = value
    # Failures may still turn out to be the fault of the task, and of none of its rows.
    return _store_progress(claim, before, changed, n_found, may_end=not failures)


def _store_progress(
    claim: Claim,
    before: bytearray,
    changed: dict[int, int],
    n_found: int = 0,
    may_end: bool = False,
) -> Progress:
    """Store the outcomes of a page; those `before` include `n_found` rows that had a result."""
    outcomes = before.copy()
    for place, value in changed.items():
        outcomes[place] = value
    counts = {name: outcomes.count(outcome) for name, outcome in COUNTED.items()}
    _update_page(page=claim.page.pk, outcomes=bytes(outcomes), **counts)
    # The rows that this attempt ended itself, so that the attempts of a page add up to the page.
    # They are written as numbers, not as increments: if the answer to the commit is lost, all of
    # this is written once more.
    attempt_counts = {
        name: getattr(claim.attempt, name) + counts[name] - before.count(outcome)
        for name, outcome in COUNTED.items()
    }
    attempt_counts["n_found"] = claim.attempt.n_found + n_found
    attempt_counts["n_checkpoints"] = claim.attempt.n_checkpoints + 1
    _update_attempt(attempt=claim.attempt.pk, **attempt_counts, **claim.read_meter())
    end = claim.end if may_end and Outcome.PENDING not in outcomes else None
    if end is not None:
        end()
    return Progress(outcomes, attempt_counts, end is not None)


@statement
def _update_page(page: Value, **values: Value) -> Query:
    update = Page.update(modified=peewee.SQL(dialect().now_sql), **values)
    return update.where(Page.pk == page).returning(Page.pk)


@statement
def _update_attempt(attempt: Value, **values: Value) -> Query:
    update = Attempt.update(seen=peewee.SQL(dialect().now_sql), **values)
    return update.where(Attempt.pk == attempt).returning(Attempt.pk)
