"""Status: what the database says is done, and what Slurm says lives, side by side.

Slurm is asked first and the database read afterwards, so that whatever an element wrote before
Slurm called it ended is seen.
"""

import os
import re
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, overload

from astra import config, policy, slurm, spool
from astra.claim import process_began
from astra.database import connection, database, dialect
from astra.errors import AstraError
from astra.models.orchestration import N_PENDING, Attempt, Failure, Page, Plan, Submission
from astra.plan import get_plan
from astra.retries import grouped, next_steps
from astra.states import ALIVE, AttemptState, PageState, PlanState, SlurmState
from astra.submit import excluded_nodes


@dataclass(frozen=True, slots=True)
class PageStatus:
    """One page, from both sides."""

    page: int
    state: PageState
    rows: int
    done: int
    failed: int
    no_result: int
    pending: int
    element: int | None = None
    job: str | None = None  # "4711_7"
    node: str | None = None
    slurm_state: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None  # why Slurm lets it wait, or ended it
    attempts: int = 0
    seen: datetime | None = None
    overdue: bool = False
    message: str | None = None


@dataclass(frozen=True)
class NextStep:
    """Pages of which the policy thinks alike."""

    pages: tuple[int, ...]
    state: str | None  # what ended their elements
    retry: bool
    said: str


@dataclass(frozen=True)
class PlanStatus:
    """A plan: its rows by state add up to `n_rows`, always."""

    plan: int
    task: str
    input_model: str
    state: PlanState
    n_pages: int
    n_rows: int
    rows: Mapping[str, int]  # by state: done, failed, no result, running, waiting, lost ...
    pages: Mapping[str, int]
    elements: Sequence[PageStatus] = field(repr=False, default=())
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    refused: int = 0  # further results of rows that have one
    steps: tuple[NextStep, ...] = ()  # what resume does about pages that are not whole

    def in_states(self, states: Collection[PageState]) -> Iterator[PageStatus]:
        """The pages that are in one of these states."""
        return in_states(self.elements, states)


def status(
    plan: int, ask_again: bool = True, of_whole: bool = True, recent_s: float = 0.0
) -> PlanStatus:
    """How a plan stands.

    Where the accounting is behind, squeue is asked a second time; without `ask_again` such elements
    are unknown, until the next time that somebody asks. Of pages whose rows have all ended, Slurm
    and the attempts add only how that came about: without `of_whole` they are not asked for it.
    What Slurm told this user within the last `recent_s` seconds is not asked again.

    Raises
    ------
    UsageError
        If there is no such plan.
    """
    return statuses([plan], ask_again, of_whole, recent_s)[0]


def statuses(
    plans: Sequence[int], ask_again: bool = True, of_whole: bool = True, recent_s: float = 0.0
) -> list[PlanStatus]:
    """How some plans stand; Slurm is asked once, for all of them. As :func:`status`.

    Raises
    ------
    UsageError
        If there is no such plan.
    """
    found = [_read(get_plan(plan), of_whole) for plan in plans]
    jobs = slurm_jobs(s for stored in found for s in stored.asked_about(of_whole))
    answer, notes = _ask(jobs, ask_again, recent_s)
    return [_status(stored, answer, notes, of_whole) for stored in found]


def _status(stored: "Stored", answer: Any, notes: list[str], of_whole: bool) -> PlanStatus:
    """From what the database said before Slurm was asked, or, where that may be old, says now.

    It is good enough of pages that were whole, and of elements that live. Of one that has ended
    meanwhile the last checkpoint is to be seen.
    """
    plan = stored.plan
    pages = Pages(stored, answer, plan.cancelled is not None)
    if pages.any_ended:
        pages = _pages(plan, answer, of_whole)
    steps, more = _next_steps(plan, pages)
    return _summary(plan, pages, [*notes, *_spooled(plan), *more], steps)


def _next_steps(plan: Plan, pages: "Pages") -> tuple[list[NextStep], list[str]]:
    """What the policy does about pages that Slurm ran, and nodes that are left out."""
    stuck = in_states(pages, set(PageState) - ALIVE - {PageState.DONE})
    ended = [p for p in stuck if p.job and not p.job.startswith("local:")]
    try:
        steps = [
            NextStep(tuple(numbers), state, retry, said)
            for (state, retry, said), numbers in grouped(next_steps(plan, ended)).items()
            if state is not None
        ]
    except AstraError as error:
        return [], [f"what becomes of the pages that are not whole is not known: {error}"]
    notes = [
        f"node {e.node} is left out until {e.until:%Y-%m-%d %H:%M:%S}: {e.reason}"
        for e in excluded_nodes().values()
        if pages.tally.keys() - {PageState.DONE}
    ]
    return steps, notes


# ------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Stored:
    """What the database says of a plan's pages; of whole ones their attempts only if asked."""

    plan: Plan
    submissions: Mapping[int, Submission]
    rows: Sequence[tuple[Any, ...]]  # see _ROW; there may be 100,000, and more
    attempts: Mapping[int, Any]
    now: datetime

    def asked_about(self, of_whole: bool) -> list[Submission]:
        """The submissions that Slurm has a say in."""
        if of_whole:
            return list(self.submissions.values())
        pending = {row[5] for row in self.rows if row[7]}
        return [s for pk, s in self.submissions.items() if pk in pending]


#: The columns of a page that its status is made of.
_ROW = (
    Page.number, Page.n_rows, Page.n_done, Page.n_failed, Page.n_no_result,
    Page.submission_pk, Page.attempt_pk, N_PENDING,
)  # fmt: skip

#: Of a submission all but its elements, of which an array may have thousands.
_SUBMISSION = [field for field in Submission._meta.sorted_fields if field.name != "elements"]


def _read(plan: Plan, of_whole: bool) -> Stored:
    attempts = (
        Attempt.select(
            Attempt.pk, Attempt.submission_pk, Attempt.number, Attempt.state, Attempt.host,
            Attempt.pid, Attempt.pid_began, Attempt.seen, Attempt.message,
        )
        .join(Page, on=(Attempt.pk == Page.attempt_pk))
        .where((Page.plan == plan.pk) & (True if of_whole else N_PENDING > 0))
    )  # fmt: skip
    with connection():
        now = dialect().now()
        of_plan = Submission.select(*_SUBMISSION).where(Submission.plan == plan.pk)
        submissions = {s.pk: s for s in of_plan}
        # The numbers as the driver gives them: peewee looks at each once more.
        query = Page.select(*_ROW).where(Page.plan == plan.pk).order_by(Page.number)
        rows = database.execute(query).fetchall()
        last = {attempt.pk: attempt for attempt in attempts.namedtuples()}
    return Stored(plan, submissions, rows, last, now)


class Pages(Sequence[PageStatus]):
    """The pages of a plan as they stand: their states at once, all else of one when it is read.

    Attributes
    ----------
    states : of the pages, in their order.
    tally : how many pages are in each state, and how many rows of theirs have not ended.
    held : places of those that wait for something that does not come by itself.
    any_ended : Slurm does not call an element alive whose page has rows left.
    """

    def __init__(self, stored: Stored, answer: Any, cancelled: bool) -> None:
        self.stored, self.answer, self.cancelled = stored, answer, cancelled
        self._arrays = {
            pk: (s.job_id, s.pages_per_element, s.offset)
            for pk, s in stored.submissions.items()
            if s.kind == "slurm" and s.job_id and answer is not None
        }
        self.states = [PageState.DONE] * len(stored.rows)
        self.held: list[int] = []
        self.any_ended = False
        counts: defaultdict[PageState, list[int]] = defaultdict(lambda: [0, 0])
        alike: dict[tuple[Any, ...], tuple[PageState, list[int], bool]] = {}
        for place, row in enumerate(stored.rows):
            if not (left := row[7]):
                continue
            execution = self._execution(row)
            # Pages of an array that no attempt has begun, and that Slurm says the same of, are
            # alike.
            key = row[5], row[6], id(execution)
            if (kind := alike.get(key)) is None:
                state = self._state(row[5], stored.attempts.get(row[6]), execution)
                held = state is PageState.WAITING and execution and _is_never(execution.reason)
                kind = alike[key] = state, counts[state], bool(held)
                if execution is not None:
                    self.any_ended |= execution.state is None or not execution.state.alive
            self.states[place], count, held = kind
            count[0] += 1
            count[1] += left
            if held:
                self.held.append(place)
        if n_whole := len(stored.rows) - sum(n for n, _ in counts.values()):
            counts[PageState.DONE] = [n_whole, 0]
        self.tally = {state: (n, left) for state, (n, left) in counts.items()}

    def __len__(self) -> int:
        return len(self.states)

    @overload
    def __getitem__(self, place: int) -> PageStatus: ...
    @overload
    def __getitem__(self, place: slice) -> list[PageStatus]: ...
    def __getitem__(self, place: int | slice) -> PageStatus | list[PageStatus]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self._page(self.stored.rows[place], self.states[place])

    def any_local(self) -> bool:
        """Whether a page was last given to processes of one machine."""
        local = {pk for pk, s in self.stored.submissions.items() if s.kind == "local" and s.job_id}
        return any(row[5] in local for row in self.stored.rows)

    def _execution(self, row: tuple[Any, ...]) -> Any:
        """What Slurm says of the element that a page was given to."""
        array = self._arrays.get(row[5])
        if array is None:
            return None
        job_id, each, offset = array
        key = job_id, (row[0] - 1) // each + 1 - offset
        return self.answer.executions.get(key) or self.answer.of(*key)

    def _state(self, submission_pk: int | None, attempt: Any, execution: Any) -> PageState:
        submission = self.stored.submissions.get(submission_pk or 0)
        mine, overdue = self._mine(submission, attempt)
        if submission is None:
            state = PageState.UNSUBMITTED
        elif submission.kind == "local":
            state = _local_state(submission, mine, overdue)
        else:
            lease_s = config.current().element.lease_s
            now = self.stored.now
            state = _slurm_page_state(submission, mine, execution, self.answer, now, lease_s)
        return PageState.CANCELLED if self.cancelled and state not in ALIVE else state

    def _mine(self, submission: Submission | None, attempt: Any) -> tuple[Any, bool]:
        """The attempt, if it is of this submission, and whether it was not heard of for long."""
        if attempt is None or submission is None or attempt.submission_pk != submission.pk:
            return None, False
        silent_s = (self.stored.now - attempt.seen).total_seconds()
        lease_s = config.current().element.lease_s
        return attempt, attempt.state == AttemptState.RUNNING and silent_s > lease_s

    def _page(self, row: tuple[Any, ...], state: PageState) -> PageStatus:
        number, n_rows, n_done, n_failed, n_no_result, submission_pk, attempt_pk, left = row
        attempt = self.stored.attempts.get(attempt_pk)
        submission = self.stored.submissions.get(submission_pk)
        execution, element = self._execution(row), None
        if submission is not None:
            element = (number - 1) // submission.pages_per_element + 1
        mine, overdue = self._mine(submission, attempt)
        job = _job_name(submission, element)
        word = execution.state.value if execution and execution.state else None
        if word == SlurmState.FAILED and execution.signal == signal.SIGKILL:
            if _ran_out_of_memory(submission, job):
                word = SlurmState.OUT_OF_MEMORY.value
        return PageStatus(
            number, state, n_rows, n_done, n_failed, n_no_result, left, element, job,
            (execution.node if execution else None) or (mine.host if mine else None),
            word,
            execution.exit_code if execution else None,
            execution.signal if execution else None,
            execution.reason if execution else None,
            attempt.number if attempt else 0,
            attempt.seen if attempt else None,
            overdue and state is PageState.RUNNING,
            attempt.message if attempt else None,
        )  # fmt: skip


def in_states(pages: Sequence[PageStatus], states: Collection[PageState]) -> Iterator[PageStatus]:
    """The pages that are in one of these states; the others are not even made."""
    if not isinstance(pages, Pages):
        return (page for page in pages if page.state in states)
    if pages.tally.keys().isdisjoint(states):
        return iter(())
    return (pages[i] for i, state in enumerate(pages.states) if state in states)


#: Slurm's answer, and what it did not answer.
Asked = tuple[Any, list[str]]


def survey(plan: Plan, asked: Asked | None = None) -> tuple[Pages, list[str]]:
    """Every page of a plan as it stands, and what could not be found out."""
    answer, notes = asked or ask([plan])
    return _pages(plan, answer, True), [*notes, *_spooled(plan)]


def _pages(plan: Plan, answer: Any, of_whole: bool) -> Pages:
    """The pages as the database has them now, after Slurm was asked."""
    with connection():
        now = Plan.get_or_none(Plan.pk == plan.pk) or plan
    return Pages(_read(now, of_whole), answer, now.cancelled is not None)


def _spooled(plan: Plan) -> list[str]:
    if not (files := spool.files(plan.pk)):
        return []
    many = "a spool file holds" if len(files) == 1 else f"{len(files)} spool files hold"
    return [f"{many} what the database did not take: astra recover {plan.pk}"]


#: What slurmstepd writes into the log of a job that it ends for its memory. Where it watches by
#: polling, and not by control groups, Slurm's state for that is FAILED.
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


def slurm_jobs(submissions: Iterable[Submission]) -> list[slurm.JobId]:
    """The arrays that these submissions became, each with its cluster."""
    found = [s for s in submissions if s.kind == "slurm" and s.job_id is not None]
    return [slurm.JobId(s.job_id, s.cluster) for s in sorted(found, key=lambda s: s.job_id)]


def ask(plans: Iterable[Plan]) -> Asked:
    """What Slurm says of the arrays of some plans, all at once."""
    pks = [plan.pk for plan in plans]
    with connection():
        found = list(Submission.select().where(Submission.plan.in_(pks or [0])))
    return _ask(slurm_jobs(found))


def _ask(jobs: list[slurm.JobId], again: bool = True, recent_s: float = 0.0) -> Asked:
    """What Slurm says of these jobs: one squeue and one sacct for all of them."""
    if not jobs:
        return None, []
    if not slurm.available():
        return None, ["there is no Slurm on this machine: what its elements do is unknown here"]
    answer = slurm.elements(jobs, again=again, recent_s=recent_s)
    return answer, list(answer.notes)


def _job_name(submission: Submission | None, element: int | None) -> str | None:
    if submission is None or submission.job_id is None or element is None:
        return None
    if submission.kind == "local":
        return f"local:{submission.job_id}"
    return f"{submission.job_id}_{element - submission.offset}"


def _local_state(submission: Submission, mine: Attempt | None, overdue: bool) -> PageState:
    if mine is None:
        return PageState.WAITING if _submitter_lives(submission) else PageState.UNSUBMITTED
    if mine.state == AttemptState.RUNNING:
        if mine.host == socket.gethostname():
            lives = process_began(mine.pid) == mine.pid_began
            return PageState.RUNNING if lives else PageState.LOST
        return PageState.LOST if overdue else PageState.RUNNING
    return _said(mine) or PageState.LOST


def _submitter_lives(submission: Submission) -> bool:
    return (
        submission.state == "submitted"
        and submission.host == socket.gethostname()
        and submission.job_id is not None
        and submission.pid_began == process_began(submission.job_id)
    )


def _slurm_page_state(
    submission: Submission,
    mine: Attempt | None,
    execution: Any,
    answer: Any,
    now: datetime,
    lease_s: float,
) -> PageState:
    """What a page that is not whole is, from Slurm's word and the attempt's own."""
    silent_s = (now - (mine.seen if mine else submission.created)).total_seconds()
    state = execution.state if execution else None
    sure = answer is not None and answer.queue and submission.job_id not in answer.unsettled
    if state is None and sure and not answer.accounting:
        # Without accounting squeue has the only word, and it does not know the element.
        state = SlurmState.ABSENT
    if state is None:
        fresh = mine is not None and mine.state == AttemptState.RUNNING and silent_s <= lease_s
        return PageState.RUNNING if fresh else PageState.UNKNOWN
    if state is SlurmState.ABSENT:
        # Slurm does not know the job: if it was heard of just now, that is no proof of its end.
        said = _said(mine)
        return said or (PageState.LOST if silent_s > lease_s else PageState.UNKNOWN)
    if state is SlurmState.PENDING:
        return PageState.WAITING
    if state is SlurmState.RUNNING:
        return PageState.RUNNING
    if state is SlurmState.COMPLETED:
        return _said(mine) or PageState.INCOMPLETE
    return _said(mine) or PageState.LOST


def _said(attempt: Attempt | None) -> PageState | None:
    """What an attempt said of its own end, if it did."""
    if attempt is None:
        return None
    return {
        AttemptState.INTERRUPTED.value: PageState.INTERRUPTED,
        AttemptState.BROKEN.value: PageState.BROKEN,
    }.get(attempt.state)


_UNSAID = (PageState.LOST, PageState.INCOMPLETE)


def _summary(plan: Plan, pages: Pages, notes: list[str], steps: list[NextStep]) -> PlanStatus:
    rows = Counter({"done": 0, "failed": 0, "no result": 0})
    for name, column in (("done", 2), ("failed", 3), ("no result", 4)):
        rows[name] = sum(row[column] for row in pages.stored.rows)
    for at, (_, left) in pages.tally.items():
        rows[at.value] += left
    by_page = {at.value: n for at, (n, _) in pages.tally.items()}
    with connection():
        refused = Failure.select().where((Failure.plan_pk == plan.pk) & Failure.refused).count()
    state = plan_state(pages.tally.keys(), bool(pages.held), pages.cancelled)
    if sum(rows.values()) != plan.n_rows:
        notes = [*notes, f"the rows add up to {sum(rows.values())}, not {plan.n_rows}"]
        state = PlanState.ATTENTION
    return PlanStatus(
        plan.pk,
        plan.task,
        plan.input_model.rpartition(":")[2],
        state,
        plan.n_pages,
        plan.n_rows,
        {key: value for key, value in rows.items() if value or key == "done"},
        by_page,
        pages,
        tuple(notes),
        tuple(_advice(plan, pages, rows, steps)),
        refused,
        tuple(steps),
    )


def plan_state(
    states: Collection[PageState], any_held: bool = False, cancelled: bool = False
) -> PlanState:
    """A plan is whole when every row has ended; needs attention when a page is stuck."""
    states = set(states)
    if states <= {PageState.DONE}:
        return PlanState.WHOLE
    stuck = states - ALIVE - {PageState.DONE, PageState.CANCELLED}
    if stuck or PageState.UNKNOWN in states or any_held:
        return PlanState.ATTENTION
    if states & ALIVE:
        return PlanState.RUNNING
    return PlanState.CANCELLED if cancelled else PlanState.ATTENTION


#: Slurm's reasons that no time mends: somebody has to change the job, or let it go.
_NEVER = frozenset(
    """AccountNotAllowed AssocMaxWallDurationPerJobLimit BadConstraints DependencyNeverSatisfied
    InvalidAccount InvalidQOS JobHeldAdmin JobHeldUser PartitionDown PartitionInactive
    PartitionNodeLimit PartitionTimeLimit QOSMaxWallDurationPerJobLimit QOSNotAllowed
    launch_failed_requeued_held""".split()
)


def never_starts(page: PageStatus) -> bool:
    """Whether a page waits for something that does not come by itself."""
    return page.state is PageState.WAITING and _is_never(page.reason)


def _is_never(reason: str | None) -> bool:
    return str(reason).replace(" ", "_") in _NEVER


def _advice(plan: Plan, pages: Pages, rows: Mapping[str, int], steps: list[NextStep]) -> list[str]:
    states = set(pages.tally)
    if given_up := {number for step in steps if not step.retry for number in step.pages}:
        numbers = zip(pages.stored.rows, pages.states, strict=True)
        states = {at for row, at in numbers if row[0] not in given_up}
    suffix = " --local" if pages.any_local() or dialect().name == "sqlite" else ""
    advice = []
    if states == {PageState.UNSUBMITTED}:
        advice.append(f"astra submit {plan.pk}{suffix}")
    elif states & {
        PageState.LOST,
        PageState.INTERRUPTED,
        PageState.INCOMPLETE,
        PageState.UNSUBMITTED,
    }:
        advice.append(f"astra resume {plan.pk}{suffix}   submits what is not whole and not alive")
    for state in sorted({str(step.state) for step in steps if not step.retry}):
        advice.append(f"astra resume {plan.pk} {policy.remedy(state)}   takes them all the same")
    for broken in islice(in_states(pages, {PageState.BROKEN}), 1):
        advice.append(
            f"astra logs {plan.pk} {broken.page}   why; mend it, then astra resume {plan.pk}"
        )
    died = next((p for p in in_states(pages, _UNSAID) if p.exit_code), None)
    if died is not None:
        advice.append(f"astra logs {plan.pk} {died.page}   what it said (exit {died.exit_code})")
    for held in map(pages.__getitem__, pages.held[:1]):
        advice.append(
            f"scontrol show job {held.job}   Slurm holds it back ({held.reason}): mend that "
            f"(scontrol release, scontrol update), or astra cancel {plan.pk}"
        )
    unknown = {p.job is not None for p in in_states(pages, {PageState.UNKNOWN})}
    if False in unknown:
        advice.append(
            f"astra resume {plan.pk}   finds out whether the array of an unanswered sbatch exists"
        )
    if True in unknown:
        advice.append(f"astra status {plan.pk}   again, when Slurm answers")
    if rows.get("failed"):
        advice.append(f"astra failures {plan.pk}   which rows, and why")
    return advice


def all_plans(limit: int | None = None) -> list[dict[str, Any]]:
    """The last plans, most recent first, with their rows by how they ended."""
    from peewee import fn

    with connection():
        query = (
            Plan.select(
                Plan,
                fn.SUM(Page.n_done).alias("done"),
                fn.SUM(Page.n_failed).alias("failed"),
                fn.SUM(Page.n_no_result).alias("no_result"),
            )
            .join(Page)
            .group_by(Plan.pk)
            .order_by(Plan.pk.desc())
        )
        if limit:
            query = query.limit(limit)
        return [
            {
                "plan": p.pk,
                "task": p.task,
                "input_model": p.input_model.rpartition(":")[2],
                "created": p.created,
                "by": p.created_by,
                "pages": p.n_pages,
                "rows": p.n_rows,
                "done": int(p.done or 0),
                "failed": int(p.failed or 0),
                "no_result": int(p.no_result or 0),
                "pending": p.n_rows - int((p.done or 0) + (p.failed or 0) + (p.no_result or 0)),
                "cancelled": p.cancelled is not None,
            }
            for p in query
        ]
