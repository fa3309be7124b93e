"""The checks of :mod:`astra.status.verify`: compare pages, attempts and rows with each other."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
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
from astra.status.verify_columns import OF_ANOTHER_KEY, Flags, Numbers, Rows, StoredRows
from astra.status.verify_records import RecordChecks, attempts_of, orphans, was_released

#: Rows that are checked together.
ROWS_AT_ONCE = 200_000

#: The columns that are read of each stored result: whether its input was read while its attempt did
#: not run; whether it was stored before its input was read; whether the input was modified since
#: then (1) or was deleted (2); the result's number; whether one of its times is impossible; whether
#: it has another source than its input; its provenance; and a number for when its input was read.
OF_RESULTS = (
    "key", "attempt", "read_outside", "stored_before", "input", "number", "bad_time", "bad_source",
    "made_by", "read",
)  # fmt: skip

#: The columns that are read of each failure or record of no result: whether it is of this plan;
#: whether a further result was refused; whether a time, a count or its provenance is impossible.
OF_RECORDS = ("key", "of_plan", "refused", "attempt", "page", "bad")

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
        self.moments: dict[object, int] = {}  # at which inputs were read
        self.breaches: list[Breach] = []
        self.checks: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.attempts = attempts_of(plan)
        self.attempt_pages = [(a.pk, n) for n, of_page in self.attempts.items() for a in of_page]
        self.records = RecordChecks(plan, self.model, self.output)
        self.latest = self.records.latest
        self.n_ours = 0  # results of the plan's attempts for the plan's rows
        # How many of its rows have a record of this kind that belongs to the plan.
        self.n_recorded: Counter[RecordModel] = Counter()

    def verdict(self) -> Verdict:
        """Run all checks, inside a snapshot of the database, and return what they found."""
        for problem in self.records.values():
            self._add_breach("values", None, None, problem)
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

    def _add_breach(self, check: str, page: int | None, key: RowKey | None, problem: str) -> None:
        """Count a breach, and list it unless enough breaches of this check are listed."""
        self.checks[check] += 1
        if self.checks[check] <= self.max_listed:
            self.breaches.append(Breach(check, page, key, problem))

    def _add_breaches(self, check: str, rows: Rows, which: Flags, problem: str) -> None:
        """Count a breach for each of the rows that `which` marks."""
        for place in np.flatnonzero(which):
            self._add_breach(check, int(rows.page[place]), rows.keys[rows.key[place]], problem)

    # -- the plan and its pages -------------------------------------------------------------

    def _check_records(self) -> None:
        """Check the tables, the plan, and that each of its records belongs to one of its rows."""
        for problem in self.records.guards():
            self._add_breach("guards", None, None, problem)
        for problem in orphans():
            self._add_breach("orphans", None, None, problem)
        for number, problem in self.records.of_plan():
            self._add_breach("records", number, None, problem)
        n = 0 if self.is_grouped or self.checks["shape"] else self.records.n_results()
        if n > self.n_ours:
            problem = f"{n} results name attempts of the plan, but only {self.n_ours} of them"
            self._add_breach("orphans", None, None, f"{problem} are results of its rows")
        for kind in (Failure, NoResult):
            of_plan = self._of_task(kind) & (kind.plan_pk == self.plan.pk)
            if (n := kind.select().where(of_plan).count()) > self.n_recorded[kind]:
                problem = f"{n} rows of the table {kind._meta.table_name} name the plan, but only "
                problem += f"{self.n_recorded[kind]} of them name one of its rows"
                self._add_breach("orphans", None, None, problem)

    def _check_page_numbers(self, numbers: list[int], n_rows: int) -> None:
        expected = set(range(1, self.plan.n_pages + 1))
        for number in sorted(expected - set(numbers)):
            self._add_breach("pages", number, None, "the page is missing")
        for number in sorted(set(numbers) - expected):
            self._add_breach("pages", number, None, f"the plan has only {self.plan.n_pages} pages")
        if n_rows != self.plan.n_rows:
            problem = f"the pages have {n_rows} rows, but the plan has {self.plan.n_rows}"
            self._add_breach("pages", None, None, problem)

    def _check_keys(self, page: Page) -> int:
        """Check that no key of a page is in the plan already; return the number of its keys."""
        keys: Sequence[RowKey] = page.row_keys if self._has_keys(page) else []
        for key in keys:
            if first := self.page_of.get(key):
                self._add_breach("key-twice", first, key, f"it is also in page {page.number}")
            else:
                self.page_of[key] = page.number
        return len(keys)

    def _check_page(self, page: Page) -> bool:
        """Check a page and its attempts; return whether its rows can be checked one by one."""
        number, outcomes = page.number, bytes(page.outcomes)
        if not self._has_keys(page):
            self._add_breach("shape", number, None, "it has no keys, or keys of another kind")
            return False
        if not len(page.row_keys) == len(outcomes) == page.n_rows or set(outcomes) - set(Outcome):
            problem = f"it has {page.n_rows} rows, {len(page.row_keys)} keys, "
            problem += f"{len(outcomes)} outcomes"
            if unknown := sorted(set(outcomes) - set(Outcome)):
                problem += f", some of them unknown: {unknown[:5]}"
            self._add_breach("shape", number, None, problem)
            return False
        for name, outcome in COUNTED.items():
            recorded, counted = getattr(page, name), outcomes.count(outcome)
            if recorded != counted:
                problem = f"{name} is {recorded}, but its outcomes add up to {counted}"
                self._add_breach("counts", number, None, problem)
        for outcome in Outcome:
            self.counts[outcome.name] += outcomes.count(outcome)
        self._check_attempts(page)
        return True

    def _check_attempts(self, page: Page) -> None:
        attempts = self.attempts.get(page.number, [])
        for problem in self.records.of_page(page, attempts):
            self._add_breach("records", page.number, None, problem)
        last = attempts[-1].pk if attempts else None
        if page.attempt_pk != last and not was_released(self.plan, page, attempts):
            problem = f"it belongs to attempt {page.attempt_pk}, but its last attempt is {last}"
            self._add_breach("attempts", page.number, None, problem)
        for attempt in attempts[:-1]:
            if attempt.state == AttemptState.RUNNING:
                problem = f"attempt {attempt.pk} is still running beside the last one, {last}"
                self._add_breach("attempts", page.number, None, problem)
        ended = sum(a.n_done + a.n_found for a in attempts)
        if ended != page.n_done:
            problem = f"n_done is {page.n_done}, but its attempts add up to {ended}"
            self._add_breach("sums", page.number, None, problem)
        for name in ("n_failed", "n_no_result"):
            ended = sum(getattr(a, name) for a in attempts)
            # Attempts may have more of them than the page, if rows were processed again since.
            if ended < getattr(page, name):
                problem = f"{name} is {getattr(page, name)}, but its attempts add up to {ended}"
                self._add_breach("sums", page.number, None, problem)
        pending = page.n_pending
        again = max(0, self._n_made_pending(page))
        if attempts and attempts[-1].state == AttemptState.DONE and pending > again:
            self._add_breach(
                "done-too-early", page.number, None, f"{pending} rows are still pending"
            )

    def _n_made_pending(self, page: Page, *names: str) -> int:
        """Count the ended rows of a page that were made pending again."""
        attempts = self.attempts.get(page.number, [])
        return sum(
            sum(getattr(a, name) for a in attempts) - getattr(page, name)
            for name in names or ("n_failed", "n_no_result")
        )

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
                return self._add_breach("shape", pages[0].number, None, problem)
        half = len(pages) // 2
        self._check_readable(pages[:half])
        self._check_readable(pages[half:])

    def _check_rows(self, pages: list[Page]) -> None:
        rows = Rows(pages)
        result = StoredRows(self._results(rows), rows.key, OF_RESULTS)
        failure = StoredRows(self._records(Failure, rows), rows.key, OF_RECORDS)
        nothing = StoredRows(self._records(NoResult, rows), rows.key, OF_RECORDS)
        attempt_page = self._pages_of(result["attempt"])
        is_ours = result.there & (attempt_page > 0)
        self.n_ours += int(np.sum(self._pages_of(result.every["attempt"]) > 0))
        is_done, failed = rows.ended(Outcome.RESULT), rows.ended(Outcome.FAILURE)
        empty, pending = rows.ended(Outcome.NO_RESULT), rows.ended(Outcome.PENDING)
        our_failure = failure.there & (failure["of_plan"] == 1) & (failure["refused"] == 0)
        our_nothing = nothing.there & (nothing["of_plan"] == 1)
        elsewhere = (result.there & ~is_ours) | (failure.there & (failure["of_plan"] == 0))
        elsewhere |= nothing.there & (nothing["of_plan"] == 0)

        add = self._add_breaches
        add("result-missing", rows, is_done & ~result.there, "no result is stored")
        refused = failure.there & (failure["refused"] == 1)
        lost = failed & (~failure.there & ~elsewhere | refused & ~result.there)
        add("failure-missing", rows, lost, "no failure is recorded")
        lost = empty & ~nothing.there & ~elsewhere
        add("no-result-missing", rows, lost, "no record says that it has no result")
        both = "it counts as {}, but it also has a {} of this plan".format
        nothing_recorded = "record of no result"
        add("ended-twice", rows, failed & is_ours, both("failed", "result"))
        add("ended-twice", rows, empty & is_ours, both("without a result", "result"))
        add("ended-twice", rows, is_done & our_failure, both("done", "failure"))
        add("ended-twice", rows, is_done & our_nothing, both("done", nothing_recorded))
        add("ended-twice", rows, failed & our_nothing, both("failed", nothing_recorded))
        add("ended-twice", rows, empty & our_failure, both("without a result", "failure"))
        uncounted = pending & is_ours
        add("not-counted", rows, uncounted, "its result is stored, but it counts as pending")
        elsewhere_written = is_ours & (attempt_page != rows.page)
        add("wrong-page", rows, elsewhere_written, "an attempt at another page wrote its result")
        early = is_ours & result.any_own(result.every["read_outside"] == 1)
        add("read-too-early", rows, early, "its input was read before its attempt began")
        early = is_ours & result.any_own(result.every["stored_before"] == 1)
        add("read-too-early", rows, early, "it was stored before its input was read")
        self._check_origins(rows, result, attempt_page)
        for kind, record in ((Failure, failure), (NoResult, nothing)):
            self._check_records_of_rows(kind, rows, record)
        written_by = result["attempt"]
        for page in pages:
            on_page = rows.page == page.number
            self._check_pending(page, rows, on_page & pending & our_failure, "n_failed", "failure")
            self._check_pending(
                page, rows, on_page & pending & our_nothing, "n_no_result", "record"
            )
            self._check_written(page, written_by[on_page & is_ours])
        self.counts["modified"] += int(np.sum(is_done & result.there & (result["input"] == 1)))
        self.counts["gone"] += int(np.sum(is_done & result.there & (result["input"] == 2)))
        ends = (is_done & ~is_ours) | (failed & ~our_failure) | (empty & ~our_nothing)
        self.counts["others"] += int(np.sum(ends & elsewhere))

    def _check_origins(self, rows: Rows, result: StoredRows, attempt_page: Numbers) -> None:
        """Check for results that no attempt of the plan can have written."""
        add, is_ours = self._add_breaches, result.there & (attempt_page > 0)
        late = result.any_own(result.every["bad_time"] == 1)
        add("moments", rows, late, "a time of its result is in the future or in the wrong order")
        wrong = result.any_own(result.every["bad_source"] == 1)
        add("wrong-source", rows, wrong, "its result has another source_pk than the row")
        is_known = np.isin(result.every["made_by"], self.records.origins)
        wrong = is_ours & result.any_own(~is_known)
        add("attempt-unknown", rows, wrong, "the made_by of its result belongs to another plan")
        twice = result.any_of(result.is_again)
        add("result-twice", rows, twice, "it has two results of the same number")
        mixed = result.any_of(result.is_gap)
        problem = "its results are not numbered from 0 upwards, or are from two attempts"
        add("result-mixed", rows, mixed, problem)
        of_others = rows.ended(Outcome.RESULT) & result.there & ~is_ours
        forged = of_others & np.isin(result["read"], result["read"][is_ours])
        problem = "its input was read together with the plan's rows, but its result names none of "
        add("attempt-unknown", rows, forged, problem + "the plan's attempts")

    def _check_records_of_rows(self, kind: RecordModel, rows: Rows, record: StoredRows) -> None:
        """Check for records that name another plan or page than their attempt."""
        attempt_page, is_ours = self._pages_of(record["attempt"]), record["of_plan"] == 1
        self.n_recorded[kind] += int(np.sum(record.there & is_ours))
        wrong = record.there & (is_ours != (attempt_page > 0))
        wrong |= (
            record.there & is_ours & ((attempt_page != rows.page) | (record["page"] != rows.page))
        )
        wrong |= record.there & (record["bad"] == 1)
        name = kind._meta.table_name
        problem = f"its row of the table {name} does not match attempt {{}}, which it names"
        for place in np.flatnonzero(wrong):
            key, attempt = rows.keys[rows.key[place]], record["attempt"][place]
            self._add_breach("given-away", int(rows.page[place]), key, problem.format(attempt))

    def _check_pending(self, page: Page, rows: Rows, which: Flags, name: str, kind: str) -> None:
        """Check that pending rows have a record only if they are being processed again."""
        n = int(np.sum(which))
        if n > (again := self._n_made_pending(page, name)):
            problem = f"its {kind} is stored, but it counts as pending; {again} rows of the page "
            self._add_breaches("not-counted", rows, which, problem + "are being processed again")

    def _check_written(self, page: Page, attempt_pks: Numbers) -> None:
        written = Counter(attempt_pks.tolist())
        for attempt in self.attempts.get(page.number, []):
            if written[attempt.pk] > attempt.n_done:
                problem = (
                    f"attempt {attempt.pk} ({attempt.state}) counted {attempt.n_done} results, but "
                    f"{written[attempt.pk]} results name it"
                )
                self._add_breach("written-unseen", page.number, None, problem)

    def _pages_of(self, attempt_pks: Numbers) -> Numbers:
        """Return the page of this plan of each attempt; 0 where an attempt belongs to none."""
        return StoredRows(self.attempt_pages, attempt_pks, ("key", "page"))["page"]

    def _results(self, rows: Rows) -> list[tuple[int, ...]]:
        """Return the columns `OF_RESULTS` of each stored result."""
        output, model = self.output, self.model
        same_version = output.v_astra_major_minor == self.plan.version.major_minor
        joined = self.link.is_result_of(output, model)
        is_deleted = self.key.fields[0].is_null()
        input_is = peewee.Case(None, ((is_deleted, 2), (is_up_to_date(output, model), 0)), 1)
        key = self.link.key(output)
        results = self._fetched(
            rows,
            key.narrowed(output.select(), rows.keys)
            .select(
                key.given,
                peewee.fn.COALESCE(output.attempt_pk, 0),
                _flag((output.input_read < Attempt.began) | (output.input_read > Attempt.ended)),
                _flag(output.modified < output.input_read),
                input_is,
                self._number_of_result(),
                _flag(
                    (output.modified > self.latest)
                    | (output.created > output.modified)
                    | (output.t_elapsed < 0)
                    | (output.t_overhead < 0)
                ),
                self._is_of_another_source(),
                peewee.fn.COALESCE(output.made_by, 0),
                output.input_read,
            )
            .join(Attempt, peewee.JOIN.LEFT_OUTER, on=(Attempt.pk == output.attempt_pk))
            .join_from(output, model, peewee.JOIN.LEFT_OUTER, on=joined, attr="input_row")
            .where(same_version),
        )
        number_of = self.moments.setdefault
        return [(*row, number_of(read, len(self.moments) + 1)) for *row, read in results]

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
        is_given = output.source_pk.is_null(False)
        return _flag(is_given & another & is_up_to_date(output, model))

    def _of_task(self, kind: RecordModel) -> ColumnBase:
        """Return the clause that a record belongs to the plan's task, table and version."""
        return (
            (kind.task == self.plan.task)
            & (kind.input_table == self.plan.input_table)
            & (kind.v_astra_major_minor == self.plan.version.major_minor)
        )

    def _records(self, kind: RecordModel, rows: Rows) -> list[tuple[int, ...]]:
        """Return the columns `OF_RECORDS` of each failure or record of no result."""
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
        is_of_row = dialect().among(kind.key, rows.keys, "text")
        return self._fetched(rows, kind.select(*columns).where(self._of_task(kind) & is_of_row))

    def _fetched(self, rows: Rows, query: peewee.Select) -> list[tuple[int, ...]]:
        """Return the rows of a query as the driver gives them, since there are many."""
        with peewee_errors:  # SQLite reads a key only when it is fetched
            records = dialect().run(*query.sql()).fetchall()
        as_key = int if self.key.is_whole else str
        return [(rows.places[as_key(key)], *columns) for key, *columns in records]


def _flag(clause: ColumnBase) -> ColumnBase:
    return peewee.Case(None, ((clause, 1),), 0)


def _chunks(plan: Plan) -> Iterator[list[Page]]:
    """Yield the pages of a plan in order, some at a time."""
    at_once = max(1, ROWS_AT_ONCE // plan.limit)
    last = 0
    while True:
        query = Page.select().where((Page.plan == plan.pk) & (Page.number > last))
        pages = list(query.order_by(Page.number).limit(at_once))
        if not pages:
            return
        yield pages
        last = pages[-1].number
