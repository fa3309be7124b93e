"""Make, resume and submit the plans of a night, within the limits of the night.

A step first finds, plan by plan, which pages are due and which elements are alive. Then it submits
all due pages together, since the whole night shares the throttle and the connections to the
database.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import field

from peewee import Expression

from astra.config.nights import NightSettings, NightTask
from astra.config.profiles import choose_profile
from astra.database.connection import connection, dialect, writing
from astra.element.pause_checks import all_break
from astra.errors import AstraError, BusyError, SlurmError, SlurmRefused, SlurmUnknown
from astra.models.nights import NOTHING_PENDING, Night, NightPlan
from astra.models.plans import IS_LIVE, Plan, Submission
from astra.night import finalizer
from astra.night.lock import is_temporary
from astra.night.totals import (
    n_pending_rows,
    plan_pks,
    refresh_totals,
    retries_of,
    rows_elsewhere,
)
from astra.plan.lookup import paused_message
from astra.plan.plan import create_plan
from astra.records import dataclass
from astra.resume.resume import resume
from astra.slurm import client, limits
from astra.slurm.parse import Answer, JobId
from astra.states import ALIVE, PageState
from astra.status.page_states import Pages, current_pages, in_states, query_slurm_for
from astra.submit.arrays import shares
from astra.submit.intent import plan_lock, recover_intents
from astra.submit.night_hours import Hours
from astra.submit.submit import Submitted, submit
from astra.version import CURRENT

#: The shortest and the longest time after which a finalizer checks a night without living arrays.
FIRST_CHECK_S, _MAX_CHECK_S = 30, 600

#: The most connections of an element: it may write while it reads ahead.
CONNECTIONS_PER_ELEMENT = 2


@dataclass(frozen=True)
class DuePlan:
    """A plan that has pages to submit, for the first time or again."""

    plan: int
    task: NightTask
    never_submitted: int  # pages that have never been submitted
    ended: int = 0  # pages whose elements ended before the page did
    unbegun: int = 0  # those of them that no element had begun
    leftover_entry: NightPlan | None = None  # of an earlier night's plan, not stored yet
    slurm_answer: Answer | None = None  # Slurm's answer about its jobs

    @property
    def pages(self) -> int:
        return self.never_submitted + self.ended


@dataclass
class NightStep:
    """The state of a night's plans as one step of the night finds it, and what the step did."""

    jobs: set[JobId] = field(default_factory=set)  # arrays that are alive
    n_elements: int = 0  # how many elements they may run at once
    open: bool = False  # the night stays open: elements are alive, or a later step submits some
    resubmitted_unbegun: bool = False  # pages were submitted again that no element had begun
    postponed: bool = False  # pages that could be submitted again wait for a later step
    due: list[DuePlan] = field(default_factory=list)
    new: list[tuple[int, int]] = field(default_factory=list)  # plans that were begun, their rows
    problems: list[str] = field(default_factory=list)
    of_nights: list[str] = field(default_factory=list)  # plans of nights that have pending rows


def hours_of(night: Night) -> Hours:
    return Hours(night.start_until, night.drain_by)


def begin_tasks(
    night: Night, settings: NightSettings, step: NightStep, again: bool = False
) -> None:
    """Plan the tasks whose turn it is, until there are none left.

    A task's turn comes once in a night, when all tasks before it are whole, again after rows were
    added to these, and as long as a plan of no night has rows of it. With `again`, tasks that wait
    for no other are planned once more, since further rows may be pending.
    """
    asked: set[tuple[str, str | None]] = set()
    while True:
        entries = refresh_totals(night)
        due = [
            task
            for task in settings.tasks
            if task.key not in asked and (_is_due(task, entries) or (again and not task.after))
        ]
        if not due:
            return
        asked.add(due[0].key)
        _plan(night, due[0], settings, step)


def _is_due(task: NightTask, entries: list[NightPlan]) -> bool:
    own = [e for e in entries if e.key == task.key and not e.leftover]
    before = [e for e in entries if e.task in task.after]
    if {e.task for e in before if not e.leftover} < set(task.after):
        return False
    if not all(e.has_ended for e in before):
        return False
    last = max((e.pk for e in own), default=-1)
    return any(e.is_elsewhere for e in own) or max((e.pk for e in before), default=0) > last


def _plan(night: Night, task: NightTask, settings: NightSettings, step: NightStep) -> None:
    """Freeze the pending rows of a task into a plan of the night.

    Rows that have ended are processed again once in a night, by the first plans of the task. The
    records of an earlier call that could not plan the task, or not all of its rows, are replaced.
    """
    entry = {"night": night.pk, "task": task.task, "input_model": task.input_model}
    failed = NightPlan.delete().where(
        _is_of(night, task) & NightPlan.plan_pk.is_null() & (NightPlan.message != NOTHING_PENDING)
    )
    try:
        # In one transaction, so that a night knows all of its plans.
        with connection(), writing():
            failed.execute()
            of_models = create_plan(
                task.task, task.input_model, None, task.limit or settings.limit,
                task.max_rows or settings.max_rows, task.set,
                new_first=settings.priority == "new", where=task.where or settings.where,
                redo=None if _has_entry(night, task) else task.redo or settings.redo,
            )  # fmt: skip
            planned = [p for p in of_models if p.plan is not None]
            for p in planned:
                NightPlan.create(plan_pk=p.plan, n_rows=p.rows, **entry)
            elsewhere, of_nights = rows_elsewhere(night, of_models, settings.leftovers == "take")
            for message in elsewhere:
                NightPlan.create(has_ended=True, message=message, **entry)
            if not _has_entry(night, task):
                NightPlan.create(has_ended=True, message=NOTHING_PENDING, **entry)
    except AstraError as error:  # one task must not keep others from being planned
        if is_temporary(error):
            raise
        step.problems.append(f"{task.task} cannot be planned: {error}")
        with connection(), writing():
            failed.execute()
            NightPlan.create(message=str(error), **entry)
        return
    step.problems += elsewhere
    step.of_nights += of_nights
    for p in planned:
        step.new.append((int(p.plan or 0), p.rows))
        step.due.append(DuePlan(int(p.plan or 0), task, p.pages))


def _is_of(night: Night, task: NightTask) -> Expression:
    """Select what a night has planned of a task; its leftovers are of earlier nights."""
    is_same_task = (NightPlan.night == night.pk) & (NightPlan.task == task.task)
    model = NightPlan.input_model
    is_same_task &= model.is_null() if task.input_model is None else model == task.input_model
    return is_same_task & ~NightPlan.leftover


def _has_entry(night: Night, task: NightTask) -> bool:
    return bool(NightPlan.select().where(_is_of(night, task)).exists())


def profile_of(task: NightTask, settings: NightSettings) -> tuple[str | None, dict[str, object]]:
    """Return the profile of a task's elements, and the options that override it."""
    throttle = task.throttle or settings.throttle
    return task.profile or settings.profile, {"throttle": throttle} if throttle else {}


def max_elements(settings: NightSettings) -> int:
    """Return how many elements of a night may run at once."""
    connections = settings.connections
    if connections is None:
        connections = dialect().connections_for(settings.headroom)
    n_elements = max(connections // CONNECTIONS_PER_ELEMENT, 1)
    return min(n_elements, settings.throttle or n_elements)


def submit_due(night: Night, settings: NightSettings, step: NightStep) -> None:
    """Submit the plans that are due, each with its share of what the night may run at once.

    Plans for which no share is left wait for a later step.
    """
    if not step.due:
        return
    with connection():
        free = max(max_elements(settings) - step.n_elements, 0)
    throttles = shares(free, [due.pages for due in step.due])
    with limits.site_queried_once():
        for place, due in enumerate(step.due):
            if place < len(throttles):
                share = min(throttles[place], due.pages)
                if began := _submit(due, share, night, settings, step):
                    step.n_elements += share
            else:
                began = True
                step.postponed |= bool(due.ended)
            step.open |= began
            if due.leftover_entry is not None and began:
                with connection():
                    due.leftover_entry.save(force_insert=True)
                step.new.append((due.plan, n_pending_rows(due.plan)))
    step.due.clear()


def _submit(
    due: DuePlan, share: int, night: Night, settings: NightSettings, step: NightStep
) -> bool:
    """Submit the pages of one plan; return whether any are alive, or will be submitted later.

    If a limit of Slurm is reached, or the partition is closed, a later step submits the rest.
    """
    profile, _ = profile_of(due.task, settings)
    throttle = due.task.throttle or settings.throttle or choose_profile(profile, None).throttle
    options, hours = {"throttle": min(share, throttle or share)}, hours_of(night)
    began = False
    try:
        if due.ended:  # with those that were never submitted
            submitted = resume(
                due.plan, options=options, hours=hours, slurm_answer=due.slurm_answer
            )
            step.resubmitted_unbegun |= bool(due.unbegun and submitted.pages)
            step.postponed |= bool(submitted.unsubmitted)
        else:
            submitted = submit(due.plan, profile, options, hours=hours)
        began = _note_arrays(submitted, step)
    except BusyError:
        began = True  # another process submits or cancels it
    except AstraError as error:
        if isinstance(error, SlurmRefused) and error.closed:
            began = True  # other plans may have other partitions
        elif is_temporary(error):
            raise
        step.problems.append(f"plan {due.plan} of {due.task.task}: {error}")
    return began


def _note_arrays(submitted: Submitted, step: NightStep) -> bool:
    """Record the arrays of a submission; return whether anything of it is left or was submitted."""
    pks = [job.job_id for job in submitted.jobs if job.job_id is not None]
    if pks:
        with connection():
            submissions = Submission.select().where(
                Submission.job_id.in_(pks), Submission.plan == submitted.plan
            )
            step.jobs |= {s.job for s in submissions}
    return bool(submitted.unsubmitted or submitted.message or submitted.pages)


def take_leftovers(night: Night, settings: NightSettings, step: NightStep) -> None:
    """Continue plans that earlier nights of this name left, as far as the policy allows."""
    pks = set(plan_pks(night))
    earlier = (
        NightPlan.select()
        .join(Night)
        .where((Night.name == night.name) & (Night.pk < night.pk))
        .order_by(NightPlan.pk.desc())
    )
    with connection():
        leftovers = {
            e.plan_pk: e for e in earlier if e.plan_pk is not None and e.plan_pk not in pks
        }
    current = CURRENT.major_minor
    live = {plan.pk for plan in _live_plans(leftovers) if plan.version.major_minor == current}
    taken = [
        NightPlan(
            night=night.pk, task=entry.task, input_model=entry.input_model, plan_pk=plan,
            leftover=True, retries_before=retries_of([plan]),
        )
        for plan, entry in sorted(leftovers.items())
        if plan in live
    ]  # fmt: skip
    for entry in assess_plans(taken, settings, step):  # the plans that have living elements
        with connection():
            entry.save(force_insert=True)
        plan = entry.plan_pk or 0  # they all have one
        step.new.append((plan, n_pending_rows(plan)))
    submit_due(night, settings, step)  # before new plans, since they have waited longer


def assess_plans(
    entries: Iterable[NightPlan],
    settings: NightSettings,
    step: NightStep,
    begins: bool = True,
    retries: bool = True,
) -> list[NightPlan]:
    """Record in a step which plans are alive and which are due; return those that are alive.

    Slurm is asked once, and only about plans with rows that have not ended.

    Parameters
    ----------
    begins : whether anything may be submitted.
    retries : whether pages may be submitted again.

    Raises
    ------
    SlurmUnknown
        If Slurm does not say what is alive.
    """
    of_plan = {e.plan_pk: e for e in entries if e.plan_pk is not None}
    plans = _live_plans(of_plan)
    for plan in plans:
        # If another process holds the lock, it recovers intents too; the night does not wait.
        with suppress(BusyError), plan_lock(plan):
            recover_intents(plan)  # left by a process that died before sbatch answered
    alive = []
    slurm_answer = query_slurm_for(plans)
    for plan in plans:
        pages = current_pages(plan, slurm_answer)
        states = Counter({state: n for state, (n, _) in pages.tally.items()})
        entry = of_plan[plan.pk]
        if states[PageState.UNKNOWN]:
            unknown = f"plan {plan.pk}: {'; '.join(slurm_answer.notes) or 'Slurm does not say'}"
            is_leftover = entry.pk is None
            if is_leftover and slurm_answer.queue:  # only this plan is left out
                step.problems.append(unknown)
                continue
            raise SlurmUnknown(unknown)
        if _note_alive(pages, step):
            alive.append(entry)
        if _stays_paused(plan):
            why = f"plan {plan.pk} is paused ({plan.pause_reason})"
            step.problems.append(f"{why}: astra status {plan.pk}, astra continue {plan.pk}")
            continue
        never_submitted = pages.n_never_submitted
        # The others were submitted, but the time of their elements was over.
        unbegun = states[PageState.UNSUBMITTED] - never_submitted
        ended = unbegun + sum(n for state, n in states.items() if state not in _NOT_ENDED)
        if begins and (never_submitted or (ended and retries)):
            taken = entry if entry.pk is None and entry not in alive else None
            task = _task_of(entry, settings)
            again = (ended, unbegun) if retries and ended else (0, 0)
            step.due.append(DuePlan(plan.pk, task, never_submitted, *again, taken, slurm_answer))
    return alive


_NOT_ENDED = ALIVE | {PageState.DONE, PageState.UNSUBMITTED}


def next_check_s(night: Night) -> int:
    """Return after how many seconds to check a night without living arrays again.

    The longer ago the night began, the longer it waits, for example while its plans are paused.
    """
    with connection():
        age = dialect().now() - night.began
    return int(min(max(age.total_seconds() / 10, FIRST_CHECK_S), _MAX_CHECK_S))


def _stays_paused(plan: Plan) -> bool:
    """Return whether a plan was paused because its pages broke: a night does not wait for it.

    A pause by a person is waited for.
    """
    with connection():
        return plan.paused is not None and all_break(plan.pk)


def _live_plans(pks: Iterable[int]) -> list[Plan]:
    """Return which of these plans have rows that have not ended, and are not cancelled."""
    with connection():
        return list(Plan.select().where(Plan.pk.in_(list(pks)) & IS_LIVE).order_by(Plan.pk))


def _note_alive(pages: Pages, step: NightStep) -> bool:
    """Record the living arrays of a plan, and how many elements they may run at once."""
    elements: dict[str, set[int | None]] = {}
    for page in in_states(pages, ALIVE):
        if page.job:
            elements.setdefault(page.job.partition("_")[0], set()).add(page.element)
    for s in pages.submissions.values():
        if s.kind == "slurm" and (n := len(elements.get(str(s.job_id), ()))):
            step.jobs.add(s.job)
            step.n_elements += min(s.stored_profile.get("throttle") or n, n)
    lives = not ALIVE.isdisjoint(pages.tally)
    step.open |= lives
    return lives


def _task_of(entry: NightPlan, settings: NightSettings) -> NightTask:
    """Return the configured task of a plan, or if it was removed, the one that was recorded."""
    return next((t for t in settings.tasks if t.key == entry.key), NightTask(entry.task))


def live_state(night: Night) -> NightStep:
    """Return which arrays and elements of a night are alive, without changing anything.

    Its problems are what the night waits for, and only a person can change.
    """
    step = NightStep(problems=finalizer.problems_of(night))
    plans = _live_plans(plan_pks(night))
    slurm_answer = query_slurm_for(plans)
    for plan in plans:
        pages = current_pages(plan, slurm_answer)
        _note_alive(pages, step)
        if plan.paused is not None:
            step.problems.append(paused_message(plan.pk, plan.pause_reason))
        elif pages.held:
            reason, n_held = pages[pages.held[0]].reason, len(pages.held)
            why = f"plan {plan.pk} waits: Slurm holds {n_held:,} of its pages back ({reason})"
            step.problems.append(f"{why}: astra status {plan.pk}")
    return step


def queue_first_finalizer(night: Night, settings: NightSettings, step: NightStep) -> None:
    """Queue a finalizer that no earlier one waits to queue.

    If the arrays take all jobs that a limit of Slurm allows, it may have to wait for days, and
    nobody would continue the night. So an element gives way to it, whose page others take.
    """
    try:
        queue_finalizer(night, settings, step)
    except SlurmRefused as refused:
        if refused.limit:
            _make_room(step.jobs)
        raise


def _make_room(jobs: Iterable[JobId]) -> None:
    """Cancel the last element of the last array that has several: always the same, if repeated."""
    names = [job.name for job in jobs]
    pools = Submission.select().where(Submission.job_name.in_(names) & Submission.pulls)
    with connection():
        several = [s for s in pools.order_by(Submission.pk) if len(s.elements) > 1]
    if several:
        last = several[-1]
        with suppress(SlurmError):
            client.cancel(last.job, [last.elements[-1] - last.offset])


def queue_finalizer(
    night: Night, settings: NightSettings, step: NightStep, wait_s: int = 0
) -> None:
    """Queue the next finalizer of a night behind the arrays that are alive.

    It begins no earlier than after `wait_s` seconds.
    """
    try:
        finalizer.queue(night, settings, step.jobs, wait_s)
    except SlurmRefused as refused:
        if "depend" not in str(refused).lower():
            raise
        finalizer.queue(night, settings, (), FIRST_CHECK_S)  # an array has left Slurm's memory
