"""The checks of :mod:`astra.status.verify`: compare pages, attempts and rows with each other."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import TypeVar

import peewee
from peewee import ColumnBase

from astra.database.connection import database, dialect
from astra.database.dialect import peewee_errors
from astra.models.attempts import Attempt
from astra.models.failures import Failure, NoResult, RowWithoutResult
from astra.models.importing import load
from astra.models.keys import RowKey, key_of
from astra.models.pipeline import PipelineOutputModel, link_of
from astra.models.plans import Page, Plan
from astra.plan.pending import is_up_to_date
from astra.states import COUNTED, AttemptState, Outcome
from astra.status.verdict import Breach, Verdict
from astra.status.verify_records import RecordChecks, attempts_of, orphans, suspects, was_released
from astra.status.verify_stored import OF_ANOTHER_KEY, Record, Result, Row

T = TypeVar("T")

#: Rows that are checked together.
ROWS_AT_ONCE = 200_000

#: A check that found something, and the problem.
Problems = Iterator[tuple[str, str]]

#: What the results of a row share.
_origin = attrgetter("attempt", "made_by", "input")

_COUNTED_AS = ("pending", "done", "failed", "without a result")  # by outcome
_STORED_AS = ("nothing", "result", "failure", "record of no result")

RecordModel = type[RowWithoutResult]


class Verifier:
    """Check one plan, and collect the breaches.

    Parameters
    ----------
    max_listed : how many breaches of each check are listed.
    is_grouped : whether the task takes rows in groups; it may then have results for other rows of
        the same groups.
    """

    def __init__(self, plan: Plan, max_listed: int, is_grouped: bool) -> None:
        self.plan, self.max_listed, self.is_grouped = plan, max_listed, is_grouped
        self.model, self.output = load(plan.input_model), load(plan.output_model)
        self.key = key_of(self.model)
        self.link = link_of(self.output, self.model)
        #: The keys that were found, each with the first page that has it.
        self.page_of: dict[RowKey, int] = {}
        self.breaches: list[Breach] = []
        self.checks: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.attempts = attempts_of(plan)
        self.attempt_pages = {a.pk: n for n, of_page in self.attempts.items() for a in of_page}
        self.records = RecordChecks(plan, self.model, self.output)
        self.latest = self.records.latest
        self.n_ours = 0  # results of the plan's attempts for the plan's rows
        # How many of its rows have a record of this kind that belongs to the plan.
        self.n_recorded: Counter[RecordModel] = Counter()

    def verdict(self) -> Verdict:
        """Run all checks, inside a snapshot of the database, and return what they found."""
        for problem in self.records.values():
            self._add("values", problem)
        if not self.checks:  # the other checks cannot handle impossible values
            self._check()
        n_rows = {outcome.name.lower(): self.counts[outcome.name] for outcome in Outcome}
        n_ended = sum(n_rows.values()) - n_rows["pending"]
        return Verdict(
            self.plan.pk, self.plan.task, self.plan.n_pages, self.plan.n_rows,
            sound=not self.checks, whole=n_ended == self.plan.n_rows, rows=n_rows,
            n_attempts=len(self.attempt_pages), modified_since=self.counts["modified"],
            of_others=self.counts["others"], inputs_gone=self.counts["gone"],
            n_breaches=sum(self.checks.values()), breaches=tuple(self.breaches),
            checks=dict(self.checks),
        )  # fmt: skip

    def _check(self) -> None:
        numbers: list[int] = []
        n_keys = 0
        for pages in _chunks(self.plan):
            whole = [page for page in pages if self._check_page(page)]
            numbers += [page.number for page in pages]
            n_keys += sum(map(self._check_keys, pages))
            self._check_readable(whole)
        self._check_records()
        self._check_page_numbers(numbers, n_keys)

    def _has_keys(self, page: Page) -> bool:
        """Return whether a page has keys of the plan's kind, and no others."""
        stored, other = page.keys, page.key_texts
        if not self.key.is_whole:
            stored, other = other, stored
        return stored is not None and other is None and None not in stored

    def _add(
        self, check: str, problem: str, page: int | None = None,
        keys: Iterable[RowKey | None] = (None,),
    ) -> None:  # fmt: skip
        """Count breaches, one for each key, and list them unless enough of this check are."""
        for key in keys:
            self.checks[check] += 1
            if self.checks[check] <= self.max_listed:
                self.breaches.append(Breach(check, page, key, problem))

    # -- the plan and its pages -------------------------------------------------------------

    def _check_records(self) -> None:
        """Check the tables, the plan, and that each of its records belongs to one of its rows."""
        checks = {"guards": self.records.guards(), "orphans": orphans(),
                  "records": self.records.of_plan()}  # fmt: skip
        for check, problems in checks.items():
            for problem in problems:
                self._add(check, problem)
        for number, problem in suspects(self.plan):
            self._add("records", problem, number)
        n = 0 if self.is_grouped or self.checks["shape"] else self.records.n_results()
        if n > self.n_ours:
            problem = f"{n} results name attempts of the plan, but only {self.n_ours} of them"
            self._add("orphans", f"{problem} are results of its rows")
        for kind in (Failure, NoResult):
            of_plan = self._of_task(kind) & (kind.plan_pk == self.plan.pk)
            if (n := kind.select().where(of_plan).count()) > self.n_recorded[kind]:
                problem = f"{n} rows of the table {kind._meta.table_name} name the plan, but only "
                problem += f"{self.n_recorded[kind]} of them name one of its rows"
                self._add("orphans", problem)

    def _check_page_numbers(self, numbers: list[int], n_rows: int) -> None:
        expected = set(range(1, self.plan.n_pages + 1))
        for number in sorted(expected - set(numbers)):
            self._add("pages", "the page is missing", number)
        for number in sorted(set(numbers) - expected):
            self._add("pages", f"the plan has only {self.plan.n_pages} pages", number)
        if n_rows != self.plan.n_rows:
            problem = f"the pages have {n_rows} rows, but the plan has {self.plan.n_rows}"
            self._add("pages", problem)

    def _check_keys(self, page: Page) -> int:
        """Check that no key of a page is in the plan already; return the number of its keys."""
        keys: Sequence[RowKey] = page.row_keys if self._has_keys(page) else []
        for key in keys:
            if first := self.page_of.get(key):
                self._add("key-twice", f"it is also in page {page.number}", first, [key])
            else:
                self.page_of[key] = page.number
        return len(keys)

    def _check_page(self, page: Page) -> bool:
        """Check a page and its attempts; return whether its rows can be checked one by one."""
        outcomes = bytes(page.outcomes)
        if not self._has_keys(page):
            self._add("shape", "it has no keys, or keys of another kind", page.number)
            return False
        if not len(page.row_keys) == len(outcomes) == page.n_rows or set(outcomes) - set(Outcome):
            problem = f"it has {page.n_rows} rows, {len(page.row_keys)} keys, "
            problem += f"{len(outcomes)} outcomes"
            if unknown := sorted(set(outcomes) - set(Outcome)):
                problem += f", some of them unknown: {unknown[:5]}"
            self._add("shape", problem, page.number)
            return False
        for outcome in Outcome:
            self.counts[outcome.name] += outcomes.count(outcome)
        for check, problem in self._page_problems(page):
            self._add(check, problem, page.number)
        return True

    def _page_problems(self, page: Page) -> Problems:
        """Yield the problems of a page and of its attempts."""
        attempts = self.attempts.get(page.number, [])
        for name, outcome in COUNTED.items():
            recorded, counted = getattr(page, name), bytes(page.outcomes).count(outcome)
            if recorded != counted:
                yield "counts", f"{name} is {recorded}, but its outcomes add up to {counted}"
            ended = sum(getattr(a, name) for a in attempts)
            if outcome == Outcome.RESULT:
                ended += sum(a.n_found for a in attempts)
            # Attempts may have more of the others, if rows were processed again since.
            if ended < recorded or (outcome == Outcome.RESULT and ended > recorded):
                yield "sums", f"{name} is {recorded}, but its attempts add up to {ended}"
        for problem in self.records.of_page(page, attempts):
            yield "records", problem
        last = attempts[-1].pk if attempts else None
        if page.attempt_pk != last and not was_released(self.plan, page, attempts):
            problem = f"it belongs to attempt {page.attempt_pk}, but its last attempt is {last}"
            yield "attempts", problem
        for attempt in attempts[:-1]:
            if attempt.state == AttemptState.RUNNING:
                problem = f"attempt {attempt.pk} is still running beside the last one, {last}"
                yield "attempts", problem
        again = max(0, self._n_made_pending(page, "n_failed", "n_no_result"))
        if attempts and attempts[-1].state == AttemptState.DONE and page.n_pending > again:
            yield "done-too-early", f"{page.n_pending} rows are still pending"

    def _n_made_pending(self, page: Page, *names: str) -> int:
        """Count the ended rows of a page that were made pending again."""
        attempts = self.attempts.get(page.number, [])
        return sum(sum(getattr(a, name) for a in attempts) - getattr(page, name) for name in names)

    # -- rows -------------------------------------------------------------------------------

    def _check_readable(self, pages: list[Page]) -> None:
        """Check the rows of pages; name those with keys that the server cannot read."""
        if not pages:
            return
        try:
            with database.atomic():
                return self._check_rows(pages)
        except (peewee.DataError, peewee.OperationalError) as error:
            # SQLite has no class of its own for such a key.
            if not isinstance(error, peewee.DataError) and "malformed JSON" not in str(error):
                raise
            if len(pages) == 1:
                problem = f"it has keys that are not keys of its table: {dialect().message(error)}"
                return self._add("shape", problem, pages[0].number)
        half = len(pages) // 2
        self._check_readable(pages[:half])
        self._check_readable(pages[half:])

    def _check_rows(self, pages: list[Page]) -> None:
        keys = sorted({key for page in pages for key in page.row_keys})
        results: dict[RowKey, tuple[Result, ...]] = {}
        for key, result in sorted(self._results(keys), key=lambda read: read[1].number):
            results[key] = (*results.get(key, ()), result)
        failures, nothing = (dict(self._records(kind, keys)) for kind in (Failure, NoResult))
        ours = [r for of_row in results.values() for r in of_row if r.attempt in self.attempt_pages]
        self.n_ours += len(ours)
        read_here = {result.read for result in ours}
        for page in pages:
            rows: defaultdict[Row, list[RowKey]] = defaultdict(list)
            for key, outcome in zip(page.row_keys, page.outcomes, strict=True):
                of_row = results.get(key, ())
                writer = self.attempt_pages.get(of_row[0].attempt, 0) if of_row else 0
                row = Row(outcome, of_row, failures.get(key), nothing.get(key), writer)
                rows[row].append(key)
            for row, alike in rows.items():
                for check, problem in self._row_problems(page, row, read_here):
                    self._add(check, problem, page.number, alike)
                self._count(row, len(alike))
            self._check_pending(page, rows, Outcome.FAILURE, "n_failed", "failure")
            self._check_pending(page, rows, Outcome.NO_RESULT, "n_no_result", "record")
            self._check_written(page, rows)

    def _count(self, row: Row, n: int) -> None:
        """Count rows by what is stored for them."""
        if row.outcome == Outcome.RESULT and row.results:
            self.counts["modified"] += n * (row.results[0].input == 1)
            self.counts["gone"] += n * (row.results[0].input == 2)
        if row.outcome not in (Outcome.PENDING, *row.ends):
            self.counts["others"] += n * row.ended_elsewhere
        for kind, record in ((Failure, row.failure), (NoResult, row.nothing)):
            if record is not None and record.of_plan:
                self.n_recorded[kind] += n

    def _row_problems(self, page: Page, row: Row, read_here: set[object]) -> Problems:
        """Yield the problems of a row; inputs of the plan's results were read at `read_here`."""
        outcome, failure = row.outcome, row.failure
        if outcome == Outcome.RESULT and not row.results:
            yield "result-missing", "no result is stored"
        elif outcome == Outcome.FAILURE:
            is_refused = failure is not None and failure.refused
            if not row.results if is_refused else failure is None and not row.ended_elsewhere:
                yield "failure-missing", "no failure is recorded"
        elif outcome == Outcome.NO_RESULT and row.nothing is None and not row.ended_elsewhere:
            yield "no-result-missing", "no record says that it has no result"
        for end in row.ends:
            if outcome not in (end, Outcome.PENDING):
                counted, stored = _COUNTED_AS[outcome], _STORED_AS[end]
                problem = f"it counts as {counted}, but it also has a {stored} of this plan"
                yield "ended-twice", problem
        if row.results:
            yield from self._result_problems(page, row, read_here)
        for kind, record in ((Failure, failure), (NoResult, row.nothing)):
            if record is not None and not self._matches(page, record):
                which = f"its row of the table {kind._meta.table_name}"
                problem = f"{which} does not match attempt {record.attempt}, which it names"
                yield "given-away", problem

    def _result_problems(self, page: Page, row: Row, read_here: set[object]) -> Problems:
        """Yield the problems of a row's results, which should be of one attempt of the plan."""
        numbered = [r for r in row.results if r.number != OF_ANOTHER_KEY]
        own = numbered or row.results[:1]
        if row.writer:
            if row.outcome == Outcome.PENDING:
                yield "not-counted", "its result is stored, but it counts as pending"
            if row.writer != page.number:
                yield "wrong-page", "an attempt at another page wrote its result"
            if any(r.read_outside for r in own):
                yield "read-too-early", "its input was read before its attempt began"
            if any(r.stored_before for r in own):
                yield "read-too-early", "it was stored before its input was read"
            if any(r.made_by not in self.records.origins for r in own):
                yield "attempt-unknown", "the made_by of its result belongs to another plan"
        elif row.outcome == Outcome.RESULT and row.results[0].read in read_here:
            problem = "its input was read together with the plan's rows, but its result names none"
            yield "attempt-unknown", f"{problem} of the plan's attempts"
        if any(r.bad_time for r in own):
            yield "moments", "a time of its result is in the future or in the wrong order"
        if any(r.bad_source for r in own):
            yield "wrong-source", "its result has another source_pk than the row"
        pairs = [(b.number - a.number, _origin(a) == _origin(b)) for a, b in pairwise(numbered)]
        if any(step == 0 for step, _ in pairs):
            yield "result-twice", "it has two results of the same number"
        is_mixed = any(step > 1 or (step == 1 and not is_alike) for step, is_alike in pairs)
        if is_mixed or (numbered and numbered[0].number):
            yield "result-mixed", "its results are not numbered from 0, or are from two attempts"
        if numbered and numbered[-1].of_row not in (0, numbered[-1].number + 1):
            yield "result-missing", "its last results are missing"

    def _matches(self, page: Page, record: Record) -> bool:
        """Return whether a record names the plan and the page of its attempt."""
        writer = self.attempt_pages.get(record.attempt, 0)
        if record.bad or bool(record.of_plan) != bool(writer):
            return False
        return not record.of_plan or writer == record.page == page.number

    def _check_pending(
        self, page: Page, rows: Mapping[Row, list[RowKey]], end: Outcome, name: str, kind: str
    ) -> None:
        """Check that pending rows have a record only if they are being processed again."""
        pending = (row for row in rows if row.outcome == Outcome.PENDING and end in row.ends)
        keys = [key for row in pending for key in rows[row]]
        if len(keys) > (again := self._n_made_pending(page, name)):
            problem = f"its {kind} is stored, but it counts as pending; {again} rows of the page "
            problem += "are being processed again"
            self._add("not-counted", problem, page.number, keys)

    def _check_written(self, page: Page, rows: Mapping[Row, list[RowKey]]) -> None:
        written: Counter[int] = Counter()
        for row, keys in rows.items():
            if row.writer:
                written[row.results[0].attempt] += len(keys)
        for attempt in self.attempts.get(page.number, []):
            if written[attempt.pk] > attempt.n_done:
                problem = (
                    f"attempt {attempt.pk} ({attempt.state}) counted {attempt.n_done} results, but "
                    f"{written[attempt.pk]} results name it"
                )
                self._add("written-unseen", problem, page.number)

    def _results(self, keys: list[RowKey]) -> list[tuple[RowKey, Result]]:
        """Return the stored results of some rows, with their keys."""
        output, model = self.output, self.model
        joined = self.link.is_result_of(output, model)
        is_deleted = self.key.fields[0].is_null()
        input_is = peewee.Case(None, ((is_deleted, 2), (is_up_to_date(output, model), 0)), 1)
        key = self.link.key(output)
        query = (
            key.narrowed(output.select(), keys)
            .select(
                key.given,
                peewee.fn.COALESCE(output.attempt_pk, 0),
                _flag((output.input_read < Attempt.began) | (output.input_read > Attempt.ended)),
                _flag(output.modified < output.input_read),
                input_is,
                self._number_of_result(),
                peewee.fn.COALESCE(output.results_of_row, 0),
                _flag(
                    (output.modified > self.latest)
                    | (output.created > output.modified)
                    | (output.t_elapsed < 0)
                    | (output.t_overhead < 0)
                ),
                self._is_of_another_source(),
                peewee.fn.COALESCE(output.made_by, 0),
                output.input_read,
                output.task_pk,
            )
            .join(Attempt, peewee.JOIN.LEFT_OUTER, on=(Attempt.pk == output.attempt_pk))
            .join_from(output, model, peewee.JOIN.LEFT_OUTER, on=joined, attr="input_row")
            .where(output.v_astra_major_minor == self.plan.version.major_minor)
        )
        # An input table that has lost its key may have the row of a result twice.
        read = {(key, pk): result for key, (*result, pk) in self._fetched(query, tuple)}
        return [(key, Result(*result)) for (key, _), result in read.items()]

    def _number_of_result(self) -> ColumnBase:
        """Return the number of a result within its row; one with another key has none."""
        number = self.output.result_number
        for name in self.link.null:
            is_own = getattr(self.output, name).is_null()
            number = peewee.Case(None, ((is_own, number),), OF_ANOTHER_KEY)
        return number

    def _is_of_another_source(self) -> ColumnBase:
        """Return the clause that a result of a spectrum has another source than the spectrum."""
        output, model = self.output, self.model
        if "source_pk" not in model._meta.combined or not issubclass(output, PipelineOutputModel):
            return peewee.Value(0)
        another = model.source_pk.is_null() | (output.source_pk != model.source_pk)
        return _flag(output.source_pk.is_null(False) & another & is_up_to_date(output, model))

    def _of_task(self, kind: RecordModel) -> ColumnBase:
        """Return the clause that a record belongs to the plan's task, table and version."""
        return (
            (kind.task == self.plan.task)
            & (kind.input_table == self.plan.input_table)
            & (kind.v_astra_major_minor == self.plan.version.major_minor)
        )

    def _records(self, kind: RecordModel, keys: list[RowKey]) -> list[tuple[RowKey, Record]]:
        """Return the failures of some rows, or the records of no result, with their keys."""
        if not kind.select().where(self._of_task(kind)).exists():
            return []
        of_plan, is_known = kind.plan_pk == self.plan.pk, kind.made_by.in_(self.records.origins)
        refused: ColumnBase = peewee.Value(0)
        bad = (kind.modified > self.latest) | (of_plan & (kind.made_by.is_null() | ~is_known))
        if kind is Failure:
            refused, bad = _flag(kind.refused), bad | (kind.times < 1) | (kind.exception == "")
        columns = (
            kind.key, _flag(of_plan), refused,
            peewee.fn.COALESCE(kind.attempt_pk, 0), peewee.fn.COALESCE(kind.page, 0), _flag(bad),
        )  # fmt: skip
        is_of_row = dialect().among(kind.key, keys, "text")
        query = kind.select(*columns).where(self._of_task(kind) & is_of_row)
        return self._fetched(query, Record._make)

    def _fetched(
        self, query: peewee.Select, make: Callable[[list[int]], T]
    ) -> list[tuple[RowKey, T]]:
        """Return the rows of a query as the driver gives them, since there are many."""
        with peewee_errors:  # SQLite reads a key only when it is fetched
            records = dialect().run(*query.sql()).fetchall()
        as_key = int if self.key.is_whole else str
        return [(as_key(key), make(columns)) for key, *columns in records]


def _flag(clause: ColumnBase) -> ColumnBase:
    return peewee.Case(None, ((clause, 1),), 0)


def _chunks(plan: Plan) -> Iterator[list[Page]]:
    """Yield the pages of a plan in order, some at a time."""
    at_once, last = max(1, ROWS_AT_ONCE // plan.limit), 0
    while True:
        query = Page.select().where((Page.plan == plan.pk) & (Page.number > last))
        pages = list(query.order_by(Page.number).limit(at_once))
        if not pages:
            return
        yield pages
        last = pages[-1].number
