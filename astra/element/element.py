"""One element: claims its pages, one after the other, and runs the task over their rows.

No connection to the database is held while the task computes. Claiming a page, reading a chunk of
rows and writing a checkpoint each use a short one; everything between two pages shares one.
"""

import logging
from contextlib import suppress
from functools import partial

from peewee import SQL, Query, Value

from astra.config import settings as config
from astra.config.run_folder import run_folder
from astra.database.connection import (
    abandon_transaction,
    connected,
    dialect,
    drop_connection,
    keep_connected,
    writing,
)
from astra.database.statements import statement
from astra.element.claiming import FIRST_IN_PROGRESS, claim_page, this_process
from astra.element.loaded_task import LoadedTask, load_task
from astra.element.meter import Meter
from astra.element.page_outcome import PageOutcome
from astra.element.page_pool import claimed_page, close_pool, end_of_element
from astra.element.pause_checks import pause_if_all_break
from astra.element.progress_board import ProgressBoard
from astra.element.reader import Reader
from astra.element.signals import stop_on_signals
from astra.errors import (
    AstraError,
    BrokenElement,
    BusyError,
    DatabaseError,
    Interrupted,
    NoFurtherPage,
    NotAllowed,
    OutOfMemory,
    Superseded,
    Terminated,
    UsageError,
    count,
)
from astra.models.archive import check_archive
from astra.models.attempts import Attempt, is_same_attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan import spool
from astra.plan.lookup import check_plan_version, get_plan, trust
from astra.plan.pages import give_back, is_cancelled, page_of
from astra.processes import collect_garbage_normally, now_s
from astra.results.background import Heartbeat
from astra.results.checkpoint import take_back_failures
from astra.results.claim import Claim, check_nothing_lost
from astra.results.rows import clean, described, target_of
from astra.results.schedule import Schedule
from astra.results.stopping import Stop, Tally
from astra.results.writer import Writer
from astra.states import COUNTED, AttemptState, Outcome
from astra.tasks.blame import Blame
from astra.tasks.provenance import current_provenance
from astra.tasks.run import Run

log = logging.getLogger(__name__)


def run_element(
    plan_pk: int,
    element: int,
    token: str,
    stop: Stop | None = None,
    board: ProgressBoard | None = None,
    planned_by: str | None = None,
) -> list[PageOutcome]:
    """Run the pages of one element of a submission, each until its rows have ended.

    Whoever submitted the plan trusted it as one of the role `planned_by`. A plan of another role
    that has taken its place since is not trusted.

    Raises
    ------
    UsageError
        If the plan is of another version, or the submission is not of this plan.
    """
    stop = stop or Stop()
    with stop_on_signals(stop), keep_connected() as is_connected:
        plan = stop.retrying(lambda: get_plan(plan_pk))
        stop.retrying(check_archive)
        check_plan_version(plan)
        submission = stop.retrying(lambda: Submission.get_or_none(Submission.token == token))
        if submission is None or submission.plan_pk != plan.pk:
            raise UsageError(f"plan {plan_pk} has no submission {token!r}")
        if planned_by == plan.role:
            trust(plan)
        per_element = submission.pages_per_element
        first = (element - 1) * per_element + 1
        runs = []
        with Element(plan, submission, stop, board) as worker:
            worker.is_connected = is_connected
            if submission.pulls:
                return worker.pull(element)
            for number in range(first, min(first + per_element, plan.n_pages + 1)):
                if (run := worker.run_page(number, element)) is None:
                    break
                runs.append(run)
                if stop.is_wanted:
                    break
        return runs


class Element:
    """Run pages in this process, one after the other.

    One connection is used from the last checkpoint of a page to the first row of the next. None is
    held while the task is imported, or computes.
    """

    def __init__(
        self, plan: Plan, submission: Submission, stop: Stop, board: ProgressBoard | None = None
    ) -> None:
        self.plan, self.submission, self.stop, self.board = plan, submission, stop, board
        element = config.current().element
        self.tally = Tally(element.max_failures, element.max_failures_after)
        self.n_in_progress = FIRST_IN_PROGRESS  # rows that the next attempt is assumed to have
        self.is_connected = self.has_loaded = False
        self.unacknowledged = False  # a claim was made that the database did not acknowledge
        self.schedule: Schedule | None = None  # of checkpoints, once a page has had some
        self.made_by = plan.made_by  # the row of `made_by` that results refer to

    def __enter__(self) -> "Element":
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect()

    def _connect(self) -> bool:
        """Open the connection, if the database accepts one now; return whether it is new."""
        is_new = connected()
        self.is_connected = is_new or self.is_connected
        return is_new

    @property
    def gives_back(self) -> bool:
        """Whether an interrupted page is for any element to continue.

        After a row timeout it is not: the parent first records which row is suspect, and this
        element continues the page.
        """
        return self.stop.is_wanted and not (self.board is not None and self.board.timed_out)

    def _disconnect(self) -> None:
        if self.is_connected:
            drop_connection()
            self.is_connected = False

    def pull(self, element: int) -> list[PageOutcome]:
        """Run pages of the submission while any is free and the time suffices for one more.

        The first is the page that an earlier process of this element had claimed, if any. After a
        page that was not completed no other is taken: what broke one may break all of them.
        """
        end_s, longest_s = end_of_element(self.submission), 0.0
        self._connect()
        number = self.stop.retrying(lambda: claimed_page(self.submission, element))
        runs: list[PageOutcome] = []
        while end_s is None or not runs or now_s() + longest_s < end_s:
            began_s = now_s()
            if (run := self.run_page(number, element)) is None:
                if not self._await_page(element, end_s and end_s - longest_s):
                    break
                continue
            number, longest_s = None, max(longest_s, now_s() - began_s)
            runs.append(run)
            if run.state != AttemptState.DONE or self.stop.is_wanted:
                return runs
        self.stop.retrying(lambda: close_pool(self.submission))
        return runs

    def _await_page(self, element: int, end_s: float | None) -> bool:
        """Wait for pages that other elements hold; return whether one has become free."""
        from astra.element.takeover import Watcher  # here, as few elements watch

        self._disconnect()
        return Watcher(self.plan, self.submission, element, self.stop).wait(end_s)

    def run_page(self, number: int | None, element: int) -> PageOutcome | None:
        """Claim a page and run the task over the rows that it still needs.

        Without a number, claim the next free page of the submission. Return None if no page is
        free, or the plan is paused or throttled.
        """
        board, plan = self.board, self.plan
        began_s = now_s()
        if board is not None and board.child_start_s:  # the first page: all of it is start-up
            began_s, board.child_start_s = board.child_start_s, 0.0
        try:
            # What an earlier attempt computed and could not store is not computed again.
            spool.recover(plan, number, self.stop)
            self._connect()
            claim = self.stop.retrying(lambda: self._claim(number, element))
        except NoFurtherPage as error:
            log.warning("%s", error)
            return None
        except (Superseded, BusyError) as error:
            log.warning("%s", error)
            return PageOutcome(
                number or element, "refused", 0, 0, 0, 0, str(error), error.exit_status
            )
        if claim is None:
            if number is None:
                return None
            return _outcome_of(self.stop.retrying(lambda: page_of(plan, number)), AttemptState.DONE)
        if board is not None:
            attempt = claim.attempt
            board.begin_page(claim.page.pk, attempt.pk, attempt.token, len(claim.outcomes))
        meter = Meter(began_s, board)
        claim.read_meter = meter.read
        try:
            note = self._run_claimed(claim, meter)
        except OutOfMemory as error:
            if board is not None:  # the parent records the death, and starts a new process
                board.run_out(error)
            else:
                self._record_end(claim, AttemptState.BROKEN, str(error))
            state, message, status = AttemptState.BROKEN, str(error), error.exit_status
        except AstraError as error:
            state, message, status = _state_after(error), str(error), error.exit_status
        except BaseException as error:
            message = described(error)
            self._record_end(claim, AttemptState.BROKEN, message)
            raise
        else:
            return _outcome_of(_with_counts(claim), AttemptState.DONE, note)
        return _outcome_of(_with_counts(claim), state, message, status)

    def _abandon(self) -> None:
        if abandon_transaction():
            log.warning("%s left a transaction open: it was rolled back", self.plan.task)

    def _claim(self, number: int | None, element: int) -> Claim | None:
        """Claim a page in one transaction, which is repeated if it fails.

        If the answer to its commit was lost, the element may hold a page without knowing it. Nobody
        else would run that page while this process lives, so it is claimed again.
        """
        process = this_process(self.submission.kind, run_folder(self.plan.folder))
        unacknowledged, self.unacknowledged = self.unacknowledged, True
        if unacknowledged and number is None:
            number = claimed_page(self.submission, element)
        claim = claim_page(
            self.plan, number, self.submission, element, process, self.n_in_progress, unacknowledged
        )
        self.unacknowledged = False
        return claim

    def _load(self) -> LoadedTask:
        """Import the task and its tables, and bind the arguments of the plan.

        The first time, check, as planning did, the indexes and triggers that results rely on, and
        the types of keys, and whether what makes the results has changed since.
        """
        if not self.has_loaded:  # imports may take long, and thousands of elements begin at once
            self._disconnect()
        with self.stop.loading():
            task = load_task(self.plan)
        if not self.has_loaded:
            self._connect()
            # Here, as it needs the models of the task.
            from astra.models.table_checks import check_key_columns, lacking_guard, other_tables

            models = task.model, task.output
            if others := self.stop.retrying(lambda: other_tables(self.plan, models)):
                raise BrokenElement(others)
            for model in models:
                lacks = self.stop.retrying(lambda m=model: lacking_guard(m))  # type: ignore[misc]
                if lacks:
                    raise BrokenElement(f"the table {model._meta.table_name!r} {lacks}")
            self.stop.retrying(lambda: check_key_columns(task.output, task.model))
            current = partial(
                current_provenance, self.plan, task.function, task.arguments, task.output
            )
            self.made_by = self.stop.retrying(current)
            self.has_loaded = True
            collect_garbage_normally()
        return task

    def _run_claimed(self, claim: Claim, meter: Meter) -> str | None:
        """Run the task until every row of the page has ended; return a note for the attempt."""
        stop, writer = self.stop, None
        try:
            task = self._load()
            reader = Reader(
                task.model, task.output, claim, stop, meter.note_first_row, bool(self.plan.redo)
            )
            writer = self._writer(claim, task)
            run = Run(
                reader, task.call, writer, writer.n_rows, board=self.board,
                outer_exceptions=task.outer_exceptions,
                may_write_last_here=lambda: self._may_write_last(claim, run.blame),
            )  # fmt: skip
            meter.run, meter.reader = run, reader
            self._run(run, reader, writer)
        except Terminated:
            raise self._end_interrupted(claim, stop.reason, self.gives_back) from None
        except OutOfMemory:
            raise
        except DatabaseError as error:
            if writer is not None:
                raise self._keep_unwritten(claim, writer, error) from error
            if isinstance(error, NotAllowed):  # a right was revoked since the planning
                raise self._end_broken(claim, str(error)) from error
            raise self._end_interrupted(claim, str(error)) from error
        except AstraError as error:
            if writer is None:  # the task, or its table, has changed since the planning
                raise self._end_broken(claim, str(error)) from error
            if isinstance(error, BrokenElement) and not self.tally.n_stored:
                stop.retrying(lambda: take_back_failures(claim))
            self._record_end(claim, _state_after(error), str(error), self.gives_back)
            raise
        except Exception as error:
            message = described(error)
            raise self._end_broken(claim, message) from error
        if Outcome.PENDING.value in claim.outcomes:
            reason = stop.reason or "the task stopped early"
            raise self._end_interrupted(claim, reason, self.gives_back)
        self.n_in_progress = max(FIRST_IN_PROGRESS, reader.rows_ahead())
        if not stop.is_wanted:
            self._connect()
        try:
            if not claim.has_ended:
                self._record_end(claim, AttemptState.DONE, run.blame.note)
        except DatabaseError as error:
            raise self._keep_unwritten(claim, writer, error) from error
        return run.blame.note

    def _keep_unwritten(self, claim: Claim, writer: Writer, error: DatabaseError) -> AstraError:
        """Save what the database did not store in a file; return the error to raise."""
        interrupted = _save_to_spool(self.plan, claim, writer, error)
        if not isinstance(error, NotAllowed):
            return interrupted
        with suppress(DatabaseError):  # usually only a right is missing: the reason can be recorded
            return self._end_broken(claim, str(interrupted))
        return BrokenElement(str(interrupted))

    def _writer(self, claim: Claim, task: LoadedTask) -> Writer:
        """Make the writer of a page; its schedule of checkpoints continues from page to page."""
        element, plan, stop = config.current().element, self.plan, self.stop
        target = target_of(
            plan, task.model, task.output, claim.page.number, task.declared.many,
            bool(task.declared.group_by), self.made_by,
        )  # fmt: skip
        heartbeat = Heartbeat(lambda: _write_heartbeat(claim, stop), element.lease_s / 4)
        writer = Writer(
            task.settings, target, stop, self.tally, claim, heartbeat, element.grace_s,
            self.schedule,
        )  # fmt: skip
        self.schedule = writer.schedule
        return writer

    def _run(self, run: Run, reader: Reader, writer: Writer) -> None:
        """Compute all results of a run, and store them."""
        try:
            writer.wake()  # its thread also writes the heartbeat
            reader.begin(writer)
            self._disconnect()
            for _ in run:
                pass
            self.tally.check_end(self.plan.task)
        finally:
            # A handler of the task's that raises must not interrupt how its page ends.
            self.stop.take_back_signals()
            writer.close()
            self._abandon()

    def _may_write_last(self, claim: Claim, blame: Blame) -> bool:
        """Return whether the last checkpoint may be written on this thread's connection.

        It also records the end of the attempt, unless there are failures: these may still turn out
        to be the fault of no row.
        """
        self.stop.take_back_signals()
        self._abandon()
        if not self.tally.n_failed:
            claim.end = lambda: _end_attempt(claim, AttemptState.DONE, blame.note)
        return dialect().name == "postgresql" and self._connect()

    def _end_interrupted(self, claim: Claim, reason: str, gives_back: bool = True) -> Interrupted:
        """End an attempt as interrupted; return the error to raise."""
        n_left = claim.outcomes.count(Outcome.PENDING)
        message = (
            f"asked to stop ({reason}); all yielded results are stored, "
            f"{count(n_left, 'row', 'are')} left"
        )
        self._record_end(claim, AttemptState.INTERRUPTED, message, gives_back)
        return Interrupted(f"page {claim.page.number} of plan {claim.page.plan_pk}: {message}")

    def _end_broken(self, claim: Claim, message: str) -> BrokenElement:
        """End an attempt as broken; return the error to raise."""
        message = clean(message, 2000)
        self._record_end(claim, AttemptState.BROKEN, message)
        return BrokenElement(message)

    def _record_end(
        self, claim: Claim, state: AttemptState, message: str | None, gives_back: bool = False
    ) -> None:
        """Record how an attempt ended; checkpoints have recorded the outcomes of its page.

        With `gives_back`, an interrupted attempt releases its page to other elements of its
        submission.
        """

        def work() -> None:
            with writing():
                check_nothing_lost(claim)
                _end_attempt(claim, state, message)
                if gives_back and state is AttemptState.INTERRUPTED:
                    give_back(claim.page)
                if state is AttemptState.BROKEN:
                    pause_if_all_break(claim.page.plan_pk)

        try:
            self.stop.retrying(work, 5 if state is AttemptState.INTERRUPTED else None)
        except DatabaseError as error:
            if state is not AttemptState.INTERRUPTED:
                raise
            # The element was asked to stop and must not wait. Its rows are stored; that it recorded
            # its end is not needed.
            log.warning("the end of the attempt could not be recorded: %s", error)


def _state_after(error: AstraError) -> AttemptState:
    if isinstance(error, Superseded):
        return AttemptState.SUPERSEDED
    return AttemptState.INTERRUPTED if isinstance(error, Interrupted) else AttemptState.BROKEN


def _outcome_of(page: Page, state: str, message: str | None = None, status: int = 0) -> PageOutcome:
    return PageOutcome(
        page.number, state, page.n_rows, page.n_done, page.n_failed, page.n_no_result,
        message, status,
    )  # fmt: skip


def _save_to_spool(plan: Plan, claim: Claim, writer: Writer, error: DatabaseError) -> Interrupted:
    """Save what an unavailable database did not store in a file; return the error to raise."""
    page = f"page {claim.page.number} of plan {claim.page.plan_pk}"
    try:
        unwritten = writer.unwritten()
        unwritten.found.clear()  # they are found again
        path = spool.save(plan, claim, unwritten, writer.target)
    except UsageError as full:
        return Interrupted(f"{page}: {error}; the spool file cannot be written either, so that "
                           f"the rows will be computed again: {full}")  # fmt: skip
    message = "all of it is stored"
    if path:
        message = f"{count(len(unwritten), 'row', 'are')} kept in {path}"
    elif len(unwritten):  # each of their values has been logged
        message = "what was not stored cannot be kept, and will be computed again"
    return Interrupted(f"{page}: {error}; {message}: astra resume {claim.page.plan_pk}")


def _with_counts(claim: Claim) -> Page:
    """Return the page with the counts that its last checkpoint has stored."""
    for name, outcome in COUNTED.items():
        setattr(claim.page, name, claim.outcomes.count(outcome))
    return claim.page


def _write_heartbeat(claim: Claim, stop: Stop) -> None:
    if is_cancelled(claim.page.plan_pk):
        stop.ask("the plan was cancelled")
    Attempt.update(seen=SQL(dialect().now_sql)).where(is_same_attempt(claim.attempt)).execute()


def _end_attempt(claim: Claim, state: AttemptState, message: str | None) -> None:
    _update_at_end(
        attempt=claim.attempt.pk, state=state.value,
        message=clean(message, 2000) if message else None, **claim.read_meter(),
    )  # fmt: skip


@statement
def _update_at_end(attempt: Value, **values: Value) -> Query:
    now, running = SQL(dialect().now_sql), AttemptState.RUNNING.value
    is_running = (Attempt.pk == attempt) & (Attempt.state == running)
    return Attempt.update(ended=now, seen=now, **values).where(is_running).returning(Attempt.pk)
