"""The history of one row: whether it is pending and why, its results, and its attempts."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from shlex import quote

import peewee
from peewee import JOIN, Model

from astra.database.connection import database, dialect, tuples
from astra.errors import TaskError, UsageError
from astra.models.attempts import Attempt
from astra.models.failures import Failure, NoResult
from astra.models.key_parsing import find_keys, given_keys
from astra.models.keys import RowKey, key_of, table_name
from astra.models.pipeline import OutputModel, link_of
from astra.models.plans import MadeBy, Page, Plan
from astra.models.stored_json import stored
from astra.models.table_checks import check_tables, current_tables
from astra.plan.pending import has_old_result, has_result, is_last_of_group, is_up_to_date
from astra.plan.selection import ended
from astra.records import dataclass
from astra.states import Outcome
from astra.status.logs import log_paths
from astra.tasks.provenance import digest_of_file
from astra.tasks.signature import choose_model, find_task, output_model, task_name
from astra.version import CURRENT, Version


@dataclass(frozen=True)
class Provenance:
    """What made a result: task, plan, arguments, files and versions."""

    task: str
    plan: int | None  # None: the task was called by a program
    arguments: dict[str, object]
    arguments_digest: str
    files: dict[str, dict[str, str]]  # SHA-256 by path, of each argument that names files
    revision: str | None
    commit: str | None
    version: str  # of astra

    def files_read(self) -> list[tuple[str, str, str]]:
        """The argument, path and SHA-256 of each file that made it."""
        return [(name, *file) for name, files in self.files.items() for file in files.items()]


@dataclass(frozen=True)
class StoredResult:
    """One result of the row."""

    task_pk: int
    number: int  # of several of the row
    version: str
    up_to_date: bool  # of this version, and of the row as it is now
    created: datetime
    modified: datetime
    input_read: datetime
    attempt: int | None
    made_by: Provenance | None


@dataclass(frozen=True)
class RecordedEnd:
    """A recorded failure of the row, or the record that it has no result."""

    what: str  # "failure", "refused result" or "no result"
    version: str
    at: datetime
    plan: int | None
    page: int | None
    attempt: int | None
    made_by: Provenance | None
    exception: str | None = None
    message: str | None = None
    times: int | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class AttemptAtRow:
    """One attempt to process the page that contains the row."""

    attempt: int
    number: int
    state: str
    slurm_state: str | None
    job: str | None
    host: str
    began: datetime
    ended: datetime | None
    message: str | None
    log: str | None


@dataclass(frozen=True)
class PlanOfRow:
    """One plan that contains the row."""

    plan: int
    version: str
    created: datetime
    redo: str | None
    where: str | None
    cancelled: datetime | None
    paused: datetime | None
    page: int
    outcome: str  # how the row ended in it
    attempts: tuple[AttemptAtRow, ...]


@dataclass(frozen=True)
class RowHistory:
    """The history of one row of a task."""

    task: str
    input_model: str
    table: str
    key: int | str
    exists: bool  # the table still has the row
    pending: bool
    why: str
    next: str | None  # the command to type
    results: tuple[StoredResult, ...]
    plans: tuple[PlanOfRow, ...]
    ends: tuple[RecordedEnd, ...]


def history_of(
    task: Callable[..., object] | str, key: object, input_model: type[Model] | str | None = None
) -> RowHistory:
    """Return the history of the row with this key, from the first input model that has it.

    Parameters
    ----------
    task : callable or str
        A task, or its name.
    key : object
        Key of the row, or its text; a key of several columns is a sequence of their values, or a
        JSON array of them.
    input_model : class or str, optional
        One of the task's input models, or its name; default all.

    Returns
    -------
    RowHistory
        Whether the row is pending and why, its results, plans, attempts and failures.

    Raises
    ------
    UsageError
        If the task, the model or the key cannot be used, or nothing is known of such a row.

    Examples
    --------
    >>> from astra.api import why
    >>> why("slam.slam", "1", "BossVisitSpectrum").exists
    True
    """
    function = find_task(task)
    output, models = output_model(function), choose_model(function, input_model)
    with current_tables():
        check_tables(*models, output)
        candidates, errors = [], []
        for model in models:
            try:
                candidates.append(_Row(function, model, output, key))
            except TaskError as error:  # it may be a key of another model
                errors.append(error)
        if not candidates:
            raise errors[0]
        for row in candidates:
            if row.exists:
                return row.history()
        for row in candidates:  # a deleted row may have left results and records
            history = row.history()
            if history.results or history.plans or history.ends:
                return history
    tables = " or ".join(table_name(model) for model in models)
    raise UsageError(
        f"{tables} has no row with the key {str(key)[:100]}, and no record of an earlier one"
    )


class _Row:
    """Reads the history of one row of one input model, inside a connection."""

    def __init__(
        self,
        function: Callable[..., object],
        model: type[Model],
        output: type[OutputModel],
        key: object,
    ) -> None:
        self.function, self.model, self.output = function, model, output
        self.task, self.typed = task_name(function), key
        existing, missing = find_keys(model, [key])
        self.exists = bool(existing)
        self.key: RowKey = (existing or missing)[0]

    def history(self) -> RowHistory:
        results, plans = tuple(self._results()), tuple(self._plans())
        ends = tuple(self._ends())
        pending, why, command = self._why(results, plans)
        return RowHistory(
            self.task, self.model.__name__, table_name(self.model), self.key, self.exists,
            pending, why, command, results, plans, ends,
        )  # fmt: skip

    # -- is it pending? ---------------------------------------------------------------------

    def _why(
        self, results: tuple[StoredResult, ...], plans: tuple[PlanOfRow, ...]
    ) -> tuple[bool, str, str | None]:
        """Return whether the row is pending, why or why not, and which command to type."""
        if not self.exists:
            return False, f"{table_name(self.model)} no longer has this row", None
        is_done, has_old, has_failed, has_no_result, is_last = self._flags()
        plan = f"astra plan {self.task} --keys {self._as_option()}"
        if live := next((p for p in reversed(plans) if self._is_live(p)), None):
            page = f"page {live.page} of plan {live.plan}"
            return True, f"{page} contains it and has not ended it", f"astra status {live.plan}"
        if not is_last:
            return (
                False,
                "another row of its group was modified later, and represents the group",
                None,
            )
        if has_failed and not is_done:
            return False, "it failed, and was not modified since", f"{plan} --redo failed"
        if has_no_result and not is_done:
            last = "the task yielded no result for it, and it was not modified since"
            return False, last, f"{plan} --again"
        if is_done:
            since = "; processed again since, it failed" if has_failed else ""
            since += "; processed again since, the task yielded none" if has_no_result else ""
            changed = self._changed(results)
            since += f"; since then {changed}" if changed else ""
            command = f"{plan} --redo {'changed' if changed else 'all'}"
            tasks = {result.made_by.task for result in results if result.made_by} - {self.task}
            whose = f" of {', '.join(tasks)}, which shares the table," if tasks else ""
            return False, f"it has a result{whose} that is up to date{since}", command
        if has_old:
            return True, "it was modified since its result", plan
        return True, f"it has no result at version {CURRENT.text}", plan

    def _changed(self, results: tuple[StoredResult, ...]) -> str:
        """Describe how the files and the revision that made the results have changed, if at all."""
        revision = getattr(getattr(self.function, "__astra__", None), "revision", None)
        changed = {}
        for by in (result.made_by for result in results if result.up_to_date and result.made_by):
            if revision is not None and by.revision != str(revision):
                changed[f"the task has become revision {revision}"] = True
            folder = Plan.select(Plan.cwd).where(Plan.pk == by.plan).scalar() or ""
            for name, path, digest in by.files_read():
                try:
                    if digest_of_file(name, Path(folder, path)) != digest:
                        changed[f"the file {path} has changed"] = True
                except TaskError as error:
                    changed[str(error)] = True
        return ", and ".join(changed)

    def _flags(self) -> list[bool]:
        model, output = self.model, self.output
        groups = getattr(getattr(self.function, "__astra__", None), "group_by", ())
        query = key_of(model).narrowed(model.select().bind(database), [self.key])
        flags = (
            has_result(model, output),
            has_old_result(model, output),
            ended(Failure, model, self.task),
            ended(NoResult, model, self.task),
            is_last_of_group(model, groups),
        )
        return [bool(flag) for flag in database.execute(query.select(*flags)).fetchone()]

    def _is_live(self, planning: PlanOfRow) -> bool:
        runs = any(a.state == "running" for a in planning.attempts)
        is_same_version = Version.parse(planning.version).major_minor == CURRENT.major_minor
        return (
            is_same_version and planning.outcome == "pending" and (not planning.cancelled or runs)
        )

    def _as_option(self) -> str:
        """Return the key as ``--keys`` takes it."""
        if len(key_of(self.model).fields) > 1:
            return quote(str(self.key))
        text = io.StringIO()
        is_blank = not str(self.key).strip()
        csv.writer(text, quoting=csv.QUOTE_ALL if is_blank else csv.QUOTE_MINIMAL).writerow(
            [self.key]
        )
        return quote(text.getvalue().removesuffix("\r\n"))

    # -- what is stored ---------------------------------------------------------------------

    def _results(self) -> Iterator[StoredResult]:
        output, model = self.output, self.model
        link = link_of(output, model)
        key = link.key(output)
        is_now = (output.v_astra_major_minor == CURRENT.major_minor) & is_up_to_date(output, model)
        columns = (
            output.task_pk, output.result_number, output.v_astra, output.created, output.modified,
            output.input_read, output.attempt_pk, output.made_by,
            peewee.Case(None, ((is_now, 1),), 0).alias("is_now"),
        )  # fmt: skip
        query = key.narrowed(output.select(), given_keys(key, [self.typed]))
        query = query.select(*columns).join_from(
            output, model, JOIN.LEFT_OUTER, on=link.is_result_of(output, model), attr="input_row"
        )
        order = output.v_astra_major_minor, output.result_number, output.task_pk
        for pk, number, version, created, modified, read, attempt, made_by, newest in tuples(
            query.order_by(*order)
        ):
            yield StoredResult(
                pk, number, Version(version).text, bool(newest),
                created, modified, read, attempt, _provenance(made_by),
            )  # fmt: skip

    def _ends(self) -> Iterator[RecordedEnd]:
        for kind in (Failure, NoResult):
            rows = kind.select().where(
                (kind.task == self.task)
                & (kind.input_table == table_name(self.model))
                & (kind.key == str(self.key))
            )
            for row in rows.order_by(kind.modified):
                what = "no result"
                if isinstance(row, Failure):
                    what = "refused result" if row.refused else "failure"
                of_failure = ("exception", "message", "times", "traceback")
                yield RecordedEnd(
                    what, Version.of_major_minor(row.v_astra_major_minor).major_minor_text,
                    row.modified, row.plan_pk, row.page, row.attempt_pk,
                    _provenance(row.made_by), *(getattr(row, name, None) for name in of_failure),
                )  # fmt: skip

    def _plans(self) -> Iterator[PlanOfRow]:
        column = getattr(Page, key_of(self.model).page_column)
        pages = (
            Page.select(Page, Plan)
            .join(Plan)
            .where(
                (Plan.task == self.task)
                & (Plan.input_table == table_name(self.model))
                & dialect().is_key_of_page(column, self.key)
            )
            .order_by(Plan.pk)
        )
        is_at_page = dialect().among(Attempt.page, [page.pk for page in pages])
        attempts = list(Attempt.select().where(is_at_page).order_by(Attempt.number))
        paths = log_paths([attempt.pk for attempt in attempts])
        by_page: defaultdict[int, list[Attempt]] = defaultdict(list)
        for attempt in attempts:
            by_page[attempt.page_pk].append(attempt)
        for page in pages:
            plan, place = page.plan, page.row_keys.index(self.key)
            outcome = Outcome(page.outcomes[place]).name.lower().replace("_", " ")
            yield PlanOfRow(
                plan.pk, plan.version.text, plan.created, plan.redo, plan.where,
                plan.cancelled, plan.paused, page.number, outcome,
                tuple(_attempt_at_row(one, paths.get(one.pk)) for one in by_page[page.pk]),
            )  # fmt: skip


def _provenance(pk: int | None) -> Provenance | None:
    by = None if pk is None else MadeBy.get_or_none(MadeBy.pk == pk)
    if by is None:
        return None
    arguments = stored(by.arguments, dict, f"`arguments` of made_by {pk}")
    files = stored(by.files, dict, f"`files` of made_by {pk}")
    return Provenance(
        by.task, by.plan_pk, arguments, by.arguments_digest,
        {name: digests for name, digests in files.items() if isinstance(digests, dict)},
        by.revision, by.commit, Version(by.v_astra).text,
    )  # fmt: skip


def _attempt_at_row(attempt: Attempt, log: str | None) -> AttemptAtRow:
    job = None if attempt.job_id is None else f"{attempt.job_id}_{attempt.array_index}"
    return AttemptAtRow(
        attempt.pk, attempt.number, attempt.state, attempt.slurm_state, job, attempt.host,
        attempt.began, attempt.ended, attempt.message, log,
    )  # fmt: skip
