"""Status: what the database says is done, and what Slurm says lives, side by side.

Slurm is asked first and the database read afterwards, so that whatever an element wrote before
Slurm called it ended is seen.
"""

import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from astra import config, policy, slurm, spool
from astra.claim import process_began
from astra.database import connection, dialect
from astra.errors import AstraError
from astra.models.orchestration import Attempt, Failure, Page, Plan, Submission
from astra.plan import get_plan
from astra.retries import grouped, next_steps
from astra.states import ALIVE, AttemptState, PageState, PlanState, SlurmState
from astra.submit import excluded_nodes, light_pages


@dataclass(frozen=True)
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
    elements: tuple[PageStatus, ...] = field(repr=False, default=())
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    refused: int = 0  # further results of rows that have one
    steps: tuple[NextStep, ...] = ()  # what resume does about pages that are not whole


def status(plan: int, ask_again: bool = True) -> PlanStatus:
    """How a plan stands.

    Where the accounting is behind, squeue is asked a second time; without `ask_again` such elements
    are unknown, until the next time that somebody asks.

    Raises
    ------
    UsageError
        If there is no such plan.
    """
    return statuses([plan], ask_again)[0]


def statuses(
    plans: Sequence[int], ask_again: bool = True, ask_of_whole: bool = True
) -> list[PlanStatus]:
    """How some plans stand; Slurm is asked once, for all of them.

    Where every row has ended, its word adds only how elements ended; without `ask_of_whole` it is
    not asked then.

    Raises
    ------
    UsageError
        If there is no such plan.
    """
    frozen = [get_plan(plan) for plan in plans]
    with connection():
        submissions = list(Submission.select().where(Submission.plan << list(plans)))
        ended = Page.n_done + Page.n_failed + Page.n_no_result
        pending = Page.select().where((Page.plan << list(plans)) & (ended < Page.n_rows)).exists()
    asked: Asked = (None, [])
    if pending or ask_of_whole:
        asked = _ask(slurm_jobs(submissions), ask_again)
    return [_status(plan, asked) for plan in frozen]


def _status(plan: Plan, asked: "Asked") -> PlanStatus:
    pages, notes = survey(plan, asked)
    steps, more = _next_steps(plan, pages)
    return _summary(plan, pages, [*notes, *more], steps)


def _next_steps(plan: Plan, pages: list[PageStatus]) -> tuple[list[NextStep], list[str]]:
    """What the policy does about pages that Slurm ran, and nodes that are left out."""
    ended = [p for p in pages if p.job and not p.job.startswith("local:")]
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
        if any(page.state is not PageState.DONE for page in pages)
    ]
    return steps, notes


Asked = tuple[Any, list[str]]  # Slurm's answer, and what it did not answer


def survey(plan: Plan, asked: Asked | None = None) -> tuple[list[PageStatus], list[str]]:
    """Every page of a plan as it stands, and what could not be found out."""
    with connection():
        submissions = {s.pk: s for s in Submission.select().where(Submission.plan == plan.pk)}
    answer, notes = asked or _ask(slurm_jobs(submissions.values()))
    notes = list(notes)
    if spooled := spool.files(plan.pk):
        many = "a spool file holds" if len(spooled) == 1 else f"{len(spooled)} spool files hold"
        notes.append(f"{many} what the database did not take: astra recover {plan.pk}")
    with connection():
        now = dialect().now()
        pages = list(light_pages(plan).namedtuples())  # there are many: no objects of models
        attempts = {a.pk: a for a in _last_attempts(plan).namedtuples()}
        cancelled = Plan.select(Plan.cancelled).where(Plan.pk == plan.pk).scalar()
    found = []
    for page in pages:
        submission = submissions.get(page.submission_pk)
        attempt = attempts.get(page.attempt_pk)
        status = _page_status(page, submission, attempt, answer, now, cancelled is not None)
        if status.slurm_state == SlurmState.FAILED and status.signal == signal.SIGKILL:
            if _ran_out_of_memory(submission, status.job):
                status = replace(status, slurm_state=SlurmState.OUT_OF_MEMORY.value)
        found.append(status)
    return found, notes


def _last_attempts(plan: Plan) -> Any:
    """The attempt that each page is of, where it is of one."""
    return (
        Attempt.select(
            Attempt.pk, Attempt.submission_pk, Attempt.number, Attempt.state, Attempt.host,
            Attempt.pid, Attempt.pid_began, Attempt.seen, Attempt.message,
        )
        .join(Page, on=(Attempt.pk == Page.attempt_pk))
        .where(Page.plan == plan.pk)
    )  # fmt: skip


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


def _ask(jobs: list[slurm.JobId], again: bool = True) -> Asked:
    """What Slurm says of these jobs: one squeue and one sacct for all of them."""
    if not jobs:
        return None, []
    if not slurm.available():
        return None, ["there is no Slurm on this machine: what its elements do is unknown here"]
    answer = slurm.elements(jobs, again=again)
    return answer, list(answer.notes)


def _page_status(
    page: Page,
    submission: Submission | None,
    attempt: Attempt | None,
    answer: Any,
    now: datetime,
    cancelled: bool,
) -> PageStatus:
    pending = page.n_rows - page.n_done - page.n_failed - page.n_no_result
    element = None
    execution = None
    if submission is not None:
        element = (page.number - 1) // submission.pages_per_element + 1
        if submission.kind == "slurm" and submission.job_id and answer is not None:
            execution = answer.of(submission.job_id, element - submission.offset)
    mine = attempt if attempt and submission and attempt.submission_pk == submission.pk else None
    lease_s = config.current().element.lease_s
    overdue = bool(
        mine and mine.state == AttemptState.RUNNING and (now - mine.seen).total_seconds() > lease_s
    )
    if pending == 0:
        state = PageState.DONE
    elif submission is None:
        state = PageState.UNSUBMITTED
    elif submission.kind == "local":
        state = _local_state(submission, mine, overdue)
    else:
        state = _slurm_page_state(submission, mine, execution, answer, now, lease_s)
    if cancelled and state not in ALIVE and state is not PageState.DONE:
        state = PageState.CANCELLED
    return PageStatus(
        page.number,
        state,
        page.n_rows,
        page.n_done,
        page.n_failed,
        page.n_no_result,
        pending,
        element,
        _job_name(submission, element),
        (execution.node if execution else None) or (mine.host if mine else None),
        execution.state.value if execution and execution.state else None,
        execution.exit_code if execution else None,
        execution.signal if execution else None,
        execution.reason if execution else None,
        attempt.number if attempt else 0,
        attempt.seen if attempt else None,
        overdue and state is PageState.RUNNING,
        attempt.message if attempt else None,
    )


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


def _summary(
    plan: Plan, pages: list[PageStatus], notes: list[str], steps: list[NextStep]
) -> PlanStatus:
    rows: Counter[str] = Counter()
    by_page: Counter[str] = Counter()
    for page in pages:
        rows["done"] += page.done
        rows["failed"] += page.failed
        rows["no result"] += page.no_result
        if page.pending:
            rows[page.state.value] += page.pending
        by_page[page.state.value] += 1
    with connection():
        refused = Failure.select().where((Failure.plan_pk == plan.pk) & Failure.refused).count()
        cancelled = Plan.select(Plan.cancelled).where(Plan.pk == plan.pk).scalar()
    state = plan_state(pages, cancelled is not None)
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
        dict(by_page),
        tuple(pages),
        tuple(notes),
        tuple(_advice(plan, pages, rows, steps)),
        refused,
        tuple(steps),
    )


def plan_state(pages: list[PageStatus], cancelled: bool = False) -> PlanState:
    """A plan is whole when every row has ended; needs attention when a page is stuck."""
    states = {page.state for page in pages}
    if states <= {PageState.DONE}:
        return PlanState.WHOLE
    stuck = states - ALIVE - {PageState.DONE, PageState.CANCELLED}
    if stuck or PageState.UNKNOWN in states or any(map(never_starts, pages)):
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
    return page.state is PageState.WAITING and str(page.reason).replace(" ", "_") in _NEVER


def _advice(
    plan: Plan, pages: list[PageStatus], rows: Mapping[str, int], steps: list[NextStep]
) -> list[str]:
    given_up = {number for step in steps if not step.retry for number in step.pages}
    states = {page.state for page in pages if page.page not in given_up}
    local = any(p.job and p.job.startswith("local:") for p in pages)
    suffix = " --local" if local or dialect().name == "sqlite" else ""
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
    if any(p.state is PageState.BROKEN for p in pages):
        broken = next(p.page for p in pages if p.state is PageState.BROKEN)
        advice.append(f"astra logs {plan.pk} {broken}   why; mend it, then astra resume {plan.pk}")
    died = next((p for p in pages if p.state in _UNSAID and p.exit_code), None)
    if died is not None:
        advice.append(f"astra logs {plan.pk} {died.page}   what it said (exit {died.exit_code})")
    held = next((p for p in pages if never_starts(p)), None)
    if held is not None:
        advice.append(
            f"scontrol show job {held.job}   Slurm holds it back ({held.reason}): mend that "
            f"(scontrol release, scontrol update), or astra cancel {plan.pk}"
        )
    unknown = [p for p in pages if p.state is PageState.UNKNOWN]
    if any(p.job is None for p in unknown):
        advice.append(
            f"astra resume {plan.pk}   finds out whether the array of an unanswered sbatch exists"
        )
    if any(p.job is not None for p in unknown):
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
