"""The state of each page of a plan, from the database and Slurm together."""

import os
import re
import signal
import socket
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple, overload

from astra.config import run_folder, settings
from astra.database.connection import connection, database, dialect, tuples
from astra.errors import count
from astra.models.attempts import Attempt
from astra.models.plans import N_PENDING, Page, Plan, Submission
from astra.plan.pages import PageStatus
from astra.processes import elements_here, is_here, is_running
from astra.slurm import client, command, parse
from astra.states import ALIVE, HELD, AttemptState, PageState, SlurmState


class StoredPage(NamedTuple):
    """The columns of a page from which its status is computed."""

    number: int
    n_rows: int
    n_done: int
    n_failed: int
    n_no_result: int
    submission_pk: int | None
    attempt_pk: int | None
    free: bool | None
    n_pending: int


#: The states of pages whose last attempt recorded its end before all rows had ended.
_RECORDED: dict[str | None, PageState] = {
    AttemptState.INTERRUPTED.value: PageState.INTERRUPTED,
    AttemptState.BROKEN.value: PageState.BROKEN,
    AttemptState.DONE.value: PageState.UNSUBMITTED,  # its failed rows were made pending again
}


#: The states of pages whose elements ended, and recorded nothing of it.
UNEXPLAINED = (PageState.LOST, PageState.INCOMPLETE)


class Pages(Sequence[PageStatus]):
    """The pages of a plan, read from the database after Slurm has answered.

    Their states are computed at once, the rest of a page on access.

    Parameters
    ----------
    include_done : whether the last attempts at whole pages are read, too.

    Attributes
    ----------
    rows : what the database says of the pages, in their order: 100,000 or more.
    states : of the pages, in their order.
    tally : how many pages are in each state, and how many of their rows have not ended.
    held : places of the pages that wait for something that only a person can change.
    """

    def __init__(self, plan: Plan, answer: parse.Answer, include_done: bool = True) -> None:
        self.answer = answer
        self._read(plan, include_done)
        self.cancelled = self.plan.cancelled is not None
        self._elements_here = cache(elements_here)
        self._arrays = {
            pk: (s.job_name, s.pages_per_element, s.offset)
            for pk, s in self.submissions.items()
            if s.kind == "slurm" and s.job_id
        }
        self.states = [PageState.DONE] * len(self.rows)
        self.held: list[int] = []
        counts: defaultdict[PageState, list[int]] = defaultdict(lambda: [0, 0])
        alike: dict[tuple[object, ...], tuple[PageState, list[int], bool]] = {}
        for place, row in enumerate(self.rows):
            if not row.n_pending:
                continue
            execution = self._execution(row)
            # Pages of an array that no attempt has claimed, and whose elements are in the same
            # state in Slurm, are alike.
            key = row.submission_pk, row.attempt_pk, row.free, id(execution)
            if (kind := alike.get(key)) is None:
                state = self._state(row, execution)
                reason = execution.reason if execution else None
                held = state is PageState.WAITING and parse.never_starts(reason)
                kind = alike[key] = state, counts[state], held
            if kind[0] in UNEXPLAINED and self._was_left(row, kind[0]):
                kind = PageState.UNSUBMITTED, counts[PageState.UNSUBMITTED], False
            self.states[place], count, held = kind
            count[0] += 1
            count[1] += row.n_pending
            if held:
                self.held.append(place)
        if n_whole := len(self.rows) - sum(n for n, _ in counts.values()):
            counts[PageState.DONE] = [n_whole, 0]
        self.tally = {state: (n, left) for state, (n, left) in counts.items() if n}

    def _read(self, plan: Plan, include_done: bool) -> None:
        attempts = (
            Attempt.select(
                Attempt.pk, Attempt.submission_pk, Attempt.number, Attempt.state, Attempt.host,
                Attempt.pid, Attempt.pid_began, Attempt.seen, Attempt.message, Attempt.element,
            )
            .join(Page, on=(Attempt.pk == Page.attempt_pk))
            .where((Page.plan == plan.pk) & (True if include_done else N_PENDING > 0))
        )  # fmt: skip
        of_plan = Submission.select().where(Submission.plan == plan.pk)
        # Read the numbers as the driver returns them; peewee would convert each one by one.
        columns = [getattr(Page, name) for name in StoredPage._fields if name != "n_pending"]
        query = Page.select(*columns, N_PENDING).where(Page.plan == plan.pk).order_by(Page.number)
        with connection():
            self.plan = Plan.get_or_none(Plan.pk == plan.pk) or plan
            self.now = dialect().now()
            self.submissions: dict[int | None, Submission] = {s.pk: s for s in of_plan}
            self.rows = list(map(StoredPage._make, database.execute(query)))
            self.attempts: dict[int | None, Attempt] = {a.pk: a for a in attempts.namedtuples()}

    def __len__(self) -> int:
        return len(self.states)

    @overload
    def __getitem__(self, place: int) -> PageStatus: ...
    @overload
    def __getitem__(self, place: slice) -> list[PageStatus]: ...
    def __getitem__(self, place: int | slice) -> PageStatus | list[PageStatus]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self._page(self.rows[place], self.states[place])

    @cached_property
    def n_never_submitted(self) -> int:
        """The number of pages without a submission; others without an element had one that left."""
        return sum(row.submission_pk is None and row.n_pending > 0 for row in self.rows)

    def left_by_idle_elements(self) -> PageStatus | None:
        """Return a page whose array ended well, but began no page, as where its set-up exits."""
        for place, (row, state) in enumerate(zip(self.rows, self.states, strict=True)):
            if state is not PageState.UNSUBMITTED or row.submission_pk not in self._arrays:
                continue
            page = self[place]
            is_idle = row.submission_pk not in {submission for submission, _ in self._workers}
            if is_idle and page.slurm_state == SlurmState.COMPLETED:
                return page
        return None

    @cached_property
    def _workers(self) -> set[tuple[int | None, int]]:
        """Submissions and elements that began a page."""
        began = Attempt.select(Attempt.submission_pk, Attempt.element).join(Page)
        with connection():
            return set(tuples(began.where(Page.plan == self.plan.pk).distinct()))

    def _was_left(self, row: StoredPage, state: PageState) -> bool:
        """Return whether no element began a page, and none failed at it.

        Its element ended regularly, or at another page: what ended it has nothing to do with this.
        """
        is_unbegun = self._attempt(row) is None
        if state is PageState.INCOMPLETE:
            return is_unbegun or bool(row.free)
        return is_unbegun and (row.submission_pk, self._element(row)) in self._workers

    def element_in_set_up(self, row: StoredPage) -> parse.Execution | None:
        """Return Slurm's state of the element that begins with a free page, if that runs and has
        begun none yet: its set-up may hang. A watcher waits for pages."""
        array = self._arrays.get(row.submission_pk)
        if not row.free or array is None or self._attempt(row) is not None:
            return None
        name, _, offset = array
        element = self._element(row)
        own = self.answer.executions.get((name, element - offset))
        if own is None or own.state is not SlurmState.RUNNING or own.is_completing:
            return None
        watches = self.submissions[row.submission_pk].watcher == element
        return None if watches or (row.submission_pk, element) in self._workers else own

    def any_local(self) -> bool:
        """Return whether a page was last assigned to local processes."""
        local = {pk for pk, s in self.submissions.items() if s.kind == "local" and s.job_id}
        return any(row.submission_pk in local for row in self.rows)

    def _execution(self, row: StoredPage) -> parse.Execution | None:
        """Return Slurm's state of the element that a page is assigned to."""
        array = self._arrays.get(row.submission_pk)
        if array is None:
            return None
        name, _, offset = array
        if row.free and (pool := self._pools.get(name)):
            return pool
        key = name, self._element(row) - offset
        return self.answer.executions.get(key) or self.answer.of(*key)

    def _element(self, row: StoredPage) -> int:
        """Return the element that claimed a page, or that it was submitted for."""
        if attempt := self._attempt(row):
            return int(attempt.element)
        return self.submissions[row.submission_pk].element_of(row.number)

    @cached_property
    def _pools(self) -> dict[int | str, parse.Execution]:
        """What the free pages of each array wait for: an element of it that waits, or one that runs
        and will take them, or else one that never starts by itself. Those that complete take none.
        """
        over: dict[int | str, parse.Execution] = {}
        stuck: dict[int | str, parse.Execution] = {}
        running: dict[int | str, parse.Execution] = {}
        waiting: dict[int | str, parse.Execution] = {}
        for (job, _), execution in self.answer.executions.items():
            if execution.is_completing:
                over[job] = replace(execution, state=SlurmState.COMPLETED)
            elif execution.state is SlurmState.RUNNING:
                if job not in running or execution.reason is None:  # else it is stopped
                    running[job] = execution
            elif execution.state is SlurmState.PENDING:
                of_kind = stuck if parse.never_starts(execution.reason) else waiting
                of_kind[job] = execution
        taken = {
            job: replace(execution, state=SlurmState.PENDING, node=None)
            for job, execution in running.items()
        }
        return over | stuck | taken | waiting

    def _state(self, row: StoredPage, execution: parse.Execution | None) -> PageState:
        submission, attempt = self.submissions.get(row.submission_pk), self._attempt(row)
        runs = attempt is not None and attempt.state == AttemptState.RUNNING
        if submission is None or (submission.pulls and row.free is None and not runs):
            state = PageState.UNSUBMITTED  # in the second case, it was withdrawn from its pool
        elif submission.kind == "local":
            waits = (row.free or attempt is None) and _submitter_lives(submission)
            state = PageState.WAITING if waits else self._local_state(submission, attempt)
        else:
            state = self._slurm_state(submission, attempt, execution)
        return PageState.CANCELLED if self.cancelled and state not in ALIVE else state

    def _attempt(self, row: StoredPage) -> Attempt | None:
        """Return the last attempt at a page, if it is of the page's present submission."""
        attempt = self.attempts.get(row.attempt_pk)
        is_present = attempt is not None and attempt.submission_pk == row.submission_pk
        return attempt if is_present else None

    def _is_silent(self, since: datetime) -> bool:
        """Return whether a heartbeat is overdue."""
        return (self.now - since).total_seconds() > settings.current().element.lease_s

    def _local_state(self, submission: Submission, attempt: Attempt | None) -> PageState:
        """Return the state of an unfinished page of local processes."""
        if attempt is None:
            return PageState.UNSUBMITTED
        if attempt.state not in HELD:
            return _RECORDED.get(attempt.state, PageState.LOST)
        if attempt.host == socket.gethostname() and is_here(attempt.pid_began):
            lives = is_running(attempt.pid, attempt.pid_began)
            lives = lives or attempt.element in self._elements_here(submission.token)
        else:
            lives = not self._is_silent(attempt.seen)
        return PageState.RUNNING if lives else PageState.LOST

    def _slurm_state(
        self, submission: Submission, attempt: Attempt | None, execution: parse.Execution | None
    ) -> PageState:
        """Return the state of an unfinished page, from Slurm and from its attempt."""
        answer, job = self.answer, submission.job_name
        is_silent = self._is_silent(attempt.seen if attempt else submission.created)
        recorded = attempt.state if attempt else None
        state = execution.state if execution else None
        if execution is parse.UNKNOWN and not answer.accounting:
            # Without accounting only squeue can say, and it does not know the element.
            state = SlurmState.ABSENT if answer.queue_covers(job) else None
        if state is None:
            is_heard = recorded == AttemptState.RUNNING and not is_silent
            return PageState.RUNNING if is_heard else PageState.UNKNOWN
        if execution and execution.is_completing and attempt is not None and is_silent:
            # As where its node has crashed: Slurm may complete it for hours.
            return _RECORDED.get(recorded, PageState.LOST)
        if state.alive:
            return PageState.RUNNING if state is SlurmState.RUNNING else PageState.WAITING
        otherwise = PageState.INCOMPLETE if state is SlurmState.COMPLETED else PageState.LOST
        is_forgotten = state is SlurmState.CANCELLED and recorded in HELD
        if (state is SlurmState.ABSENT or is_forgotten) and not is_silent:
            # Slurm does not know the element. If its heartbeat is recent, this does not prove that
            # it has ended, unless squeue shows other elements of its array, as it would this one.
            # The accounting calls each job cancelled that a controller has lost with its state.
            otherwise = PageState.LOST if job in answer.queued else PageState.UNKNOWN
        return _RECORDED.get(recorded, otherwise)

    def _page(self, row: StoredPage, state: PageState) -> PageStatus:
        """Return the status of a page with its element, from the database and Slurm."""
        attempt, present = self.attempts.get(row.attempt_pk), self._attempt(row)
        submission = self.submissions.get(row.submission_pk)
        execution = self.element_in_set_up(row) or self._execution(row)
        element = self._element(row) if submission is not None else None
        runs = present is not None and present.state == AttemptState.RUNNING
        is_silent = present is not None and self._is_silent(present.seen)
        job = _job_name(submission, element)
        slurm_state = execution.state.value if execution and execution.state else None
        if slurm_state == SlurmState.FAILED and execution and _was_killed(execution):
            if _ran_out_of_memory(submission, job):
                slurm_state = SlurmState.OUT_OF_MEMORY.value
        return PageStatus(
            row.number, state, row.n_rows, row.n_done, row.n_failed, row.n_no_result, row.n_pending,
            element, job,
            (execution.node if execution else None) or (present.host if present else None),
            slurm_state,
            execution.exit_code if execution else None,
            execution.signal if execution else None,
            _reason(execution, submission),
            attempt.number if attempt else 0,
            attempt.seen if attempt else None,
            state is PageState.RUNNING and runs and is_silent,
            attempt.message if attempt else None,
        )  # fmt: skip


def _was_killed(execution: parse.Execution) -> bool:
    """Return whether SIGKILL ended an element, or its processes so that its script reported that.

    Slurm kills them one after the other, and the script may end first, with status 128 + 9, which
    sacct shows as 9.
    """
    killed = signal.SIGKILL
    return execution.signal == killed or execution.exit_code in (killed, 128 + killed)


#: The signal with which slurmstepd ends a job whose output file it cannot open.
_NO_OUTPUT = 53


def _reason(execution: parse.Execution | None, submission: Submission | None) -> str | None:
    if execution is None:
        return None
    if execution.signal == _NO_OUTPUT and submission is not None:
        return (
            f"the node {execution.node or ''} could not write its log in {submission.log_folder}: "
            "set [run] dir to a folder that the nodes can write to"
        )
    return str(execution.reason) if execution.reason else None


def in_states(pages: Sequence[PageStatus], states: Collection[PageState]) -> Iterator[PageStatus]:
    """Yield the pages in one of these states, without computing the others."""
    if not isinstance(pages, Pages):
        return (page for page in pages if page.state in states)
    if pages.tally.keys().isdisjoint(states):
        return iter(())
    return (pages[i] for i, state in enumerate(pages.states) if state in states)


def current_pages(plan: Plan, answer: parse.Answer | None = None) -> Pages:
    """Return the pages of a plan with their present states; by default, Slurm is queried."""
    return Pages(plan, answer or query_slurm_for([plan]))


def spool_notes(plan: Plan) -> list[str]:
    """Return a note if results of a plan wait in spool files."""
    if not (files := run_folder.spool_files(plan.folder)):
        return []
    many = count(len(files), "spool file", "hold")
    return [f"{many} results that the database did not store: astra recover {plan.pk}"]


#: What slurmstepd writes into the log of a job that it kills for exceeding its memory. If it polls
#: the memory, and does not use control groups, Slurm's state of such a job is FAILED.
_MEMORY_LIMIT = re.compile(rb"slurmstepd.*(exceeded memory limit|Exceeded job memory limit|oom)")


def _ran_out_of_memory(submission: Submission | None, job: str | None) -> bool:
    if submission is None or submission.log_folder is None:
        return False
    try:
        with (Path(submission.log_folder) / f"{job}.log").open("rb") as log:
            log.seek(max(os.fstat(log.fileno()).st_size - 4096, 0))
            return bool(_MEMORY_LIMIT.search(log.read(4096)))
    except OSError:
        return False


def slurm_jobs(submissions: Iterable[Submission]) -> list[parse.JobId]:
    """Return the arrays of these submissions, each with its cluster."""
    arrays = [s for s in submissions if s.kind == "slurm" and s.job_id is not None]
    return [s.job for s in sorted(arrays, key=lambda s: s.job_id or 0)]


def query_slurm_for(
    plans: Iterable[Plan], include_done: bool = True, recent_s: float = 0.0
) -> parse.Answer:
    """Query Slurm about the arrays of some plans, all at once; on request only about those that
    have pages with rows left."""
    pks = [plan.pk for plan in plans] or [0]
    query = Submission.select().where(Submission.plan.in_(pks))
    if not include_done:
        unfinished = Page.select(Page.submission_pk).where(Page.plan.in_(pks) & (N_PENDING > 0))
        query = query.where(Submission.pk.in_(unfinished))
    with connection():
        jobs = slurm_jobs(query)
    return query_slurm(jobs, recent_s)


def query_slurm(jobs: list[parse.JobId], recent_s: float = 0.0) -> parse.Answer:
    """Query Slurm about these jobs, with one squeue and one sacct for all of them."""
    if not jobs:
        return parse.Answer(jobs=frozenset())
    if not command.available():
        note = (
            "Slurm is not installed on this machine, and the state of its elements is unknown "
            "here: use a login node of the cluster"
        )
        return parse.Answer(queue=False, accounting=False, notes=(note,), jobs=frozenset())
    return client.elements(jobs, recent_s)


def _job_name(submission: Submission | None, element: int | None) -> str | None:
    if submission is None or submission.job_id is None or element is None:
        return None
    if submission.kind == "local":
        return f"local:{submission.job_id}"
    return f"{submission.job_id}_{element - submission.offset}"


def _submitter_lives(submission: Submission) -> bool:
    return (
        submission.state == "submitted"
        and submission.host == socket.gethostname()
        and submission.job_id is not None
        and is_running(submission.job_id, submission.pid_began)
    )


def never_starts(page: PageStatus) -> bool:
    """Return whether a page waits for something that only a person can change."""
    return page.state is PageState.WAITING and parse.never_starts(page.reason)
