"""Run a task here on some rows without storing anything, to see its results or why it fails."""

import logging
import traceback as tracebacks
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from peewee import Model, PeeweeException

from astra.config import secrets
from astra.database.connection import connection, dialect, writing
from astra.element.loaded_task import planned_arguments
from astra.element.reader import UNREADABLE, read_rows
from astra.errors import BrokenElement, DatabaseError, TaskError, UsageError, error_text
from astra.models.importing import cut_long_tracebacks, load, own_traceback
from astra.models.key_parsing import find_keys, keys_as_text
from astra.models.keys import RowKey, all_rows, bound_to_database, key_of, table_name
from astra.models.pipeline import BASES
from astra.models.table_checks import command_for
from astra.plan.lookup import get_plan, task_of
from astra.records import dataclass
from astra.results.row_results import write_rows
from astra.results.rows import Refusal, YieldedResult, described
from astra.results.stopping import INTERRUPTIONS
from astra.tasks.arguments import parse_arguments
from astra.tasks.decorator import target_of_call
from astra.tasks.rows_in_progress import RowsInProgress
from astra.tasks.signature import choose_model, find_task

log = logging.getLogger(__name__)

#: Keywords of @task, whatever the arguments say: nothing is stored, and exceptions are seen.
_KEYWORDS = {"write_to_database": False, "re_raise_exceptions": True}


@dataclass(frozen=True)
class Tried:
    """What a task computed from one row, and why it would fail if it does."""

    key: RowKey
    results: tuple[dict[str, object], ...] = ()  # the columns of each that have a value
    exception: str | None = None
    message: str | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class Trial:
    """A task with its arguments, and the rows that it is tried on. Iterating runs it."""

    function: Any
    arguments: Mapping[str, object]
    rows: Mapping[RowKey, object]

    def __iter__(self) -> Iterator[tuple[Tried, TracebackType | None]]:
        """Compute one row after the other; yield each outcome with its traceback, if it raised."""
        for key, row in self.rows.items():
            try:
                results = list(self.function([row], **{**self.arguments, **_KEYWORDS}))
                values = tuple(_values(result) for result in results)
                kind, message = _refused(self.function, row, results) or (None, None)
                yield Tried(key, values, kind, message), None
            except INTERRUPTIONS:
                raise
            except BaseException as error:
                cut_long_tracebacks(error)
                trace = own_traceback(error)
                text = "".join(tracebacks.format_exception(type(error), error, trace))
                message = secrets.hide(error_text(error))
                yield Tried(key, (), type(error).__name__, message, secrets.hide(text)), trace


def trial_of_task(
    task: str | Callable[..., object],
    keys: Sequence[str],
    input_model: str | None,
    arguments: Mapping[str, str],
) -> Trial:
    """Try a task on rows of the first of its input models that has them all.

    Raises
    ------
    UsageError
        If none has them.
    """
    function = find_task(task)
    bound = parse_arguments(function, arguments)
    missing: list[str] = []
    for model in choose_model(function, input_model):
        try:
            return Trial(function, bound, _rows(model, keys))
        except UsageError as error:
            missing.append(str(error))
    raise UsageError("; ".join(missing))


def trial_of_plan(plan: int, keys: Sequence[str]) -> Trial:
    """Try the task of a plan, with the plan's arguments, on rows of the plan's table."""
    frozen = get_plan(plan)
    function = task_of(frozen)
    bound = planned_arguments(frozen, function)
    return Trial(function, bound, _rows(bound_to_database(load(frozen.input_model)), keys))


def _rows(model: type[Model], keys: Sequence[str]) -> dict[RowKey, object]:
    with connection():
        existing, missing = find_keys(model, keys)
        if missing:
            raise UsageError(f"{model.__name__} has no row with the key {keys_as_text(missing)}")
        key = key_of(model)
        query = key.narrowed(all_rows(model), existing)
        try:
            rows = {k: row for row, (k,) in read_rows(query, [key.given])}
        except UNREADABLE as error:
            raise TaskError(
                f"a row of {table_name(model)} cannot be read: {described(error)}; correct the "
                "row, the view that computes it, or the model"
            ) from error
    return {k: rows[k] for k in existing}


class _Undo(Exception):
    """Raised to roll back what a trial has written."""


def _refused(function: Any, row: object, results: list[object]) -> tuple[str, str] | None:
    """Return why results would not be stored: they are written, and the transaction is undone."""
    target = target_of_call(function, [row])
    in_progress = RowsInProgress(target, keeps_rows=False, is_page=False, board=None)
    refused: list[Refusal] = []
    try:
        with suppress(_Undo), connection(), writing():
            in_progress.read = dialect().now()
            handed = in_progress.wrap(row)
            yielded = [YieldedResult(result, handed) for result in results]
            refused += write_rows(yielded, target, None)[1]
            raise _Undo
    except BrokenElement as error:  # the table refuses every result
        return type(error).__name__, secrets.hide(str(error))
    except (DatabaseError, PeeweeException) as error:
        problem = secrets.hide(str(error).strip())
        if target.output is not None and dialect().is_of_other_tables(error):
            problem += f"; create the table: {command_for(target.output)}"
        log.warning("it was not checked whether the results can be stored: %s", problem)
    return (refused[0].exception, secrets.hide(refused[0].message)) if refused else None


def _values(result: object) -> dict[str, object]:
    """Return the columns of a result that have a value, except those that astra writes itself."""
    filled_by_astra = {name for base in BASES for name in base._meta.fields} - {"t_elapsed"}
    data = getattr(result, "__data__", None)
    if data is None:
        return {"result": repr(result)}
    return {k: v for k, v in data.items() if v is not None and k not in filled_by_astra}
