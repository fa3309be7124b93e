"""A night: what is new is planned and submitted, looked after until it is whole, and closed.

``astra nightly NAME`` begins it, and the finalizer, a job behind the arrays, goes on: each step
looks at the database and does what is missing, so that any of them may die and be done again. One
process at a time works on a night; what it says of a plan is said by the plan itself.
"""

import getpass
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import peewee
from peewee import SQL, fn

from astra import config, finalizer, log, policy
from astra.arguments import parse_arguments
from astra.database import connection, dialect, drop_connection, is_away, writing
from astra.errors import (
    AstraError,
    BusyError,
    ConfigError,
    SlurmError,
    SlurmUnknown,
    Superseded,
    UsageError,
    nearest,
)
from astra.folders import check_folder, write_whole
from astra.models.orchestration import (
    Attempt,
    Night,
    NightHolder,
    NightPlan,
    Page,
    Plan,
    Submission,
)
from astra.models.pipeline import version_number
from astra.night import NightSettings, NightTask
from astra.plan import create_plan
from astra.resolve import choose_model, find_task, output_model
from astra.resume import resume
from astra.schema import check_tables, check_version
from astra.slurm import JobId, available, max_array_size
from astra.slurm_text import SlurmRefused, time_limit_s
from astra.states import ALIVE, PageState
from astra.status import survey
from astra.submit import check_ready, choose_profile, plan_lock, recover_intents, submit

T = TypeVar("T")

#: How long `astra nightly`, which cron called, waits for a Slurm or a database that is away, and
#: a finalizer for another process that works on the night, in seconds.
PATIENCE_S = 600.0
#: How soon a finalizer looks again at elements that live although their arrays had ended.
_AGAIN_S = 30


@dataclass(frozen=True)
class Nightly:
    """What a call came to."""

    name: str
    state: str  # "nothing new", "begun", "joined", "running", "whole", "not whole"
    night: int | None = None
    plans: tuple[int, ...] = ()  # that this call made or took up
    rows: int = 0  # pending rows of those
    finalizer: int | None = None  # its job
    message: str | None = None
    problems: tuple[str, ...] = ()  # what this call could not do


@dataclass
class _Look:
    """What a look at a night found, and did."""

    jobs: set[JobId] = field(default_factory=set)  # arrays that live
    lives: bool = False  # something lives, which need not be an array
    new: list[tuple[int, int]] = field(default_factory=list)  # plans and rows that were begun
    problems: list[str] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return bool(self.jobs or self.lives)


# ------------------------------------------------------------------------------------- the verb


def nightly(name: str, patience_s: float = PATIENCE_S) -> Nightly:
    """Begin a night, or join the one that runs; needs nobody in front of it.

    Parameters
    ----------
    name : of ``[nights.NAME]``.
    patience_s : how long to wait for a Slurm or a database that does not answer.

    Raises
    ------
    ConfigError
        If there is no such night, or it names what does not exist; nothing is stored then.
    BusyError
        If another process begins this night; it says which, and since when. A finalizer's step is
        waited for.
    """
    settings = settings_of(name)
    return _in_turn(lambda: _nightly(settings), patience_s, StepAtWork)


def _nightly(settings: NightSettings) -> Nightly:
    check_version()
    _check(settings)
    with night_lock(settings.name):
        _tell_of_earlier(settings)
        night = open_night(settings.name)
        joined = night is not None
        if night is not None and settings.running == "leave":
            heal(night, settings)
            return _said(night, "running", _Look(), "it was left as it is: running = 'leave'")
        night = night or _begin(settings.name)
        look = _Look()
        if settings.leftovers == "take":
            _take_leftovers(night, settings, look)
        _start(night, settings, look, again=True)
        if not joined and not look.new:
            with connection():
                night.delete_instance(recursive=True)
            return Nightly(settings.name, "nothing new", problems=tuple(look.problems))
        if joined and finalizer.lives(night):
            return _said(night, "joined", look)
        look.jobs |= _living(night).jobs
        _queue(night, settings, look)
        return _said(night, "joined" if joined else "begun", look)


def proceed(name: str, pk: int, token: str | None = None) -> Nightly:
    """Look after a night once, as its finalizer does: resume, start what was waiting, or close.

    Parameters
    ----------
    token : of the finalizer that this is; another one's night is left alone. Without it, somebody
        calls by hand, and the next finalizer takes the place of the one that was queued.
    """
    settings = settings_of(name)
    waits_for = StepAtWork if token is None else BusyError
    return _in_turn(lambda: _proceed(settings, pk, token), _bound_s(settings), waits_for)


def _bound_s(settings: NightSettings) -> float:
    return float(time_limit_s(settings.finalizer_time) or PATIENCE_S)


def _proceed(settings: NightSettings, pk: int, token: str | None) -> Nightly:
    check_version()
    with night_lock(settings.name, step=True):
        with connection():
            night = Night.get_or_none((Night.pk == pk) & (Night.name == settings.name))
        if night is None:
            raise UsageError(f"there is no night {pk} of {settings.name}: astra nights")
        if night.ended is not None:
            return _said(night, "whole" if night.whole else "not whole", _Look(), night.message)
        if token is not None and night.finalizer != token:
            raise Superseded(f"the night {pk} has another finalizer: this one does nothing")
        before = _retries(_plan_pks(night))
        allowed = night.round < settings.rounds
        look = _Look()
        for entry in _entries(night):
            _tend(entry, settings, look, allowed)
        _start(night, settings, look)
        if _retries(_plan_pks(night)) > before:
            with connection():
                Night.update(round=Night.round + 1).where(Night.pk == pk).execute()
        _sum(night)
        if look.open:
            _queue(night, settings, look, 0 if look.new or look.jobs else _AGAIN_S)
            return _said(night, "running", look)
        return _close(night, settings, look, allowed)


def heal(night: Night, settings: NightSettings) -> bool:
    """Give an open night a finalizer if it has none that lives; whether it got one."""
    if finalizer.lives(night):
        return False
    _queue(night, settings, _living(night))
    return True


def heal_all(name: str | None = None) -> list[Nightly]:
    """The same for all open nights, or those of a name."""
    check_version()
    healed = []
    for night in _open_nights(name):
        settings = settings_of(night.name)
        # Who works on it at this moment will leave it with a finalizer, or is healed next time.
        with suppress(BusyError), night_lock(night.name):
            fresh = open_night(night.name)
            if fresh is not None and heal(fresh, settings):
                healed.append(_said(fresh, "running", _Look(), "it has a new finalizer"))
    return healed


def settings_of(name: str) -> NightSettings:
    """A night as it is configured.

    Raises
    ------
    ConfigError
        If it is not.
    """
    nights = config.current().nights
    if name not in nights:
        where = config.current().path or "the configuration (there is no file)"
        raise ConfigError(
            f"{where} has no night {name!r}. {nearest(name, nights)} Write [nights.{name}], and "
            'tasks = ["module.task"] below it'
        )
    return nights[name]


def _check(settings: NightSettings) -> None:
    """Refuse what could not be planned or submitted, before anything is stored."""
    check_ready(Plan(pk=0, v_astra=version_number(), cancelled=None))
    finalizer_profile = settings.finalizer_profile or settings.profile
    choose_profile(finalizer_profile, None)
    for task in settings.tasks:
        try:
            function = find_task(task.task)
            choose_model(function, task.input_model)
            parse_arguments(function, task.set)
            choose_profile(*_how(task, settings))
        except UsageError as error:
            error.args = (f"[nights.{settings.name}] {task.task}: {error}",)
            raise


def check_night(name: str) -> str:
    """Try all but the beginning of a night; what it found.

    Raises
    ------
    AstraError
        It says what is missing.
    """
    settings = settings_of(name)
    check_version()
    if not available():
        raise SlurmError(
            "there is no Slurm here: sbatch is not on PATH, or SLURM_CONF names no file; load its "
            "module, or call this where jobs can be submitted"
        )
    _check(settings)
    for task in settings.tasks:
        function = find_task(task.task)
        with connection():
            check_tables(*choose_model(function, task.input_model), output_model(function))
    check_folder(Path(config.current().run.dir) / "cron")
    n = max_array_size()
    return f"night {name}: ready; the database and Slurm (MaxArraySize {n}) answer"


def _how(task: NightTask, settings: NightSettings) -> tuple[str | None, dict[str, Any]]:
    """The profile of a task's elements, and what is changed of it."""
    throttle = task.throttle or settings.throttle
    return task.profile or settings.profile, {"throttle": throttle} if throttle else {}


def _said(night: Night, state: str, look: _Look, message: str | None = None) -> Nightly:
    return Nightly(
        night.name, state, night.pk, tuple(plan for plan, _ in look.new),
        sum(rows for _, rows in look.new), night.finalizer_job,
        message, tuple(look.problems),
    )  # fmt: skip


# ------------------------------------------------------------------------------------- the lock


class StepAtWork(BusyError):
    """A finalizer is at its step of the night, which ends by itself and soon."""


@contextmanager
def night_lock(name: str, step: bool = False) -> Iterator[None]:
    """One process at a time works on a night, from whatever host; freed when it dies.

    Parameters
    ----------
    step : whether this is a finalizer's step, for whose end others may wait.

    Raises
    ------
    BusyError
        If another one does; it says which, and since when.
    """
    with dialect().try_lock(f"night {name}") as ours:
        if not ours:
            raise _busy(name)
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "user": getpass.getuser()}
        mine |= {"step": step}
        with connection(), writing():
            NightHolder.delete().where(NightHolder.name == name).execute()
            NightHolder.create(name=name, **mine)
        try:
            yield
        finally:
            with suppress(AstraError, peewee.PeeweeException), connection():
                NightHolder.delete().where(NightHolder.name == name).execute()


def _busy(name: str) -> BusyError:
    for _ in range(10):  # it holds the lock a moment before its name is there
        with connection():
            holder = NightHolder.get_or_none(NightHolder.name == name)
        if holder is not None:
            since = holder.since.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            who = f"process {holder.pid} of {holder.user} on {holder.host}, since {since},"
            kind = StepAtWork if holder.step else BusyError
            return kind(f"{who} works on the night {name!r}; see astra nights {name}")
        time.sleep(0.1)
    return StepAtWork(f"another process works on the night {name!r}; see astra nights {name}")


def _in_turn(work: Callable[[], T], bound_s: float, waits_for: type[BusyError]) -> T:
    """`work()`, patiently, and once others have let go of the night, where these end soon."""
    end = time.monotonic() + min(bound_s, PATIENCE_S)
    while True:
        try:
            return _patiently(work, bound_s)
        except waits_for:
            if time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - jitter


def _patiently(work: Callable[[], T], bound_s: float) -> T:
    """`work()`, which can be repeated, again with growing pauses while others are away."""
    end, pause_s = time.monotonic() + bound_s, 1.0
    while True:
        try:
            return work()
        except (AstraError, peewee.PeeweeException) as error:
            limit = isinstance(error, SlurmRefused) and error.limit
            away = isinstance(error, SlurmUnknown) or limit or is_away(error)
            left_s = end - time.monotonic()
            if not away or left_s <= 0:
                raise
            if is_away(error):
                drop_connection()
            log.warning("again in %.0f s: %s", min(pause_s, left_s), str(error).strip())
            time.sleep(min(pause_s * random.uniform(0.5, 1.5), left_s))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, 120.0)


# ----------------------------------------------------------------------------- what it is made of


def open_night(name: str) -> Night | None:
    """The night of a name that is not closed."""
    found = _open_nights(name)
    return found[-1] if found else None


def _open_nights(name: str | None = None) -> list[Night]:
    query = Night.select().where(Night.ended.is_null())
    with connection():
        return list((query.where(Night.name == name) if name else query).order_by(Night.pk))


def _begin(name: str) -> Night:
    with connection():
        made = Night.create(
            name=name,
            date=datetime.now().strftime("%Y-%m-%d"),  # as people here count days
            cwd=str(Path.cwd()),
            host=socket.gethostname(),
            created_by=getpass.getuser(),
        )
        return Night.get_by_id(made.pk)


def _entries(night: Night) -> list[NightPlan]:
    with connection():
        return list(NightPlan.select().where(NightPlan.night == night.pk).order_by(NightPlan.pk))


def _plan_pks(night: Night) -> list[int]:
    return [entry.plan_pk for entry in _entries(night) if entry.plan_pk is not None]


def _task_of(entry: NightPlan, settings: NightSettings) -> NightTask:
    """The task of a plan as it is configured now; one that was taken out as the night has it."""
    of_name = [task for task in settings.tasks if task.task == entry.task]
    return next(
        (task for task in of_name if task.input_model == entry.input_model), NightTask(entry.task)
    )


# --------------------------------------------------------------------------------------- planning


def _start(night: Night, settings: NightSettings, look: _Look, again: bool = False) -> None:
    """Plan and submit the tasks whose turn it is, until there is none.

    A task's turn is once in a night, when all before it are whole, and once more after something
    was added to these. With `again`, those that wait for none are asked once more what is new.
    """
    asked: set[tuple[str, str | None]] = set()
    while True:
        entries = refreshed(night)
        due = [
            task
            for task in settings.tasks
            if (task.task, task.input_model) not in asked
            and (_is_due(task, entries) or (again and not task.after))
        ]
        if not due:
            return
        asked.add((due[0].task, due[0].input_model))
        _plan(night, due[0], settings, look)


def _is_due(task: NightTask, entries: list[NightPlan]) -> bool:
    mine = [
        e.pk for e in entries
        if (e.task, e.input_model) == (task.task, task.input_model) and not e.leftover
    ]  # fmt: skip
    before = [e for e in entries if e.task in task.after]
    if {e.task for e in before if not e.leftover} < set(task.after):
        return False
    ready = all(e.whole for e in before)
    return ready and (not mine or max((e.pk for e in before), default=0) > max(mine))


def _plan(night: Night, task: NightTask, settings: NightSettings, look: _Look) -> None:
    """Freeze what is pending for a task, as a part of the night, and submit it."""
    limit = task.limit or settings.limit
    max_rows = task.max_rows or settings.max_rows
    this = {"night": night.pk, "task": task.task, "input_model": task.input_model}
    try:
        # One transaction: there is no plan of a night that the night does not know.
        with connection(), writing():
            planned = [
                p for p in create_plan(
                    task.task, task.input_model, None, limit, max_rows, task.set
                ) if p.plan is not None
            ]  # fmt: skip
            for p in planned:
                NightPlan.create(plan_pk=p.plan, n_rows=p.rows, **this)
            if not planned and not _has_entry(night, task):
                NightPlan.create(whole=True, message="nothing was pending", **this)
    except UsageError as error:
        look.problems.append(f"{task.task} cannot be planned: {error}")
        with connection():
            NightPlan.create(message=str(error), **this)
        return
    for p in planned:
        look.new.append((int(p.plan or 0), p.rows))
        _submit(int(p.plan or 0), task, settings, look)


def _has_entry(night: Night, task: NightTask) -> bool:
    same = (NightPlan.night == night.pk) & (NightPlan.task == task.task)
    model = NightPlan.input_model
    same &= model.is_null() if task.input_model is None else model == task.input_model
    return bool(NightPlan.select().where(same & ~NightPlan.leftover).exists())


def _submit(plan: int, task: NightTask, settings: NightSettings, look: _Look) -> None:
    """Submit the pages that never were; a limit of Slurm's leaves the rest to a later look."""
    try:
        done = submit(plan, *_how(task, settings))
    except SlurmRefused as refused:
        if refused.limit:
            raise
        look.problems.append(f"plan {plan} of {task.task}: {refused}")
        return
    look.jobs |= _jobs(done)
    if done.unsubmitted:
        look.lives = True


def _jobs(done: Any) -> set[JobId]:
    pks = [job.job_id for job in done.jobs if job.job_id is not None]
    if not pks:
        return set()
    with connection():
        found = Submission.select().where(Submission.job_id.in_(pks), Submission.plan == done.plan)
        return {JobId(s.job_id, s.cluster) for s in found}


def _take_leftovers(night: Night, settings: NightSettings, look: _Look) -> None:
    """Go on with what earlier nights of the name planned and left, as far as the policy does."""
    here = set(_plan_pks(night))
    earlier = (
        NightPlan.select()
        .join(Night)
        .where((Night.name == night.name) & (Night.pk < night.pk) & ~NightPlan.whole)
        .order_by(NightPlan.pk.desc())
    )
    with connection():
        found = {e.plan_pk: e for e in earlier if e.plan_pk is not None and e.plan_pk not in here}
        live = {
            plan.pk for plan in Plan.select().where(
                Plan.pk.in_(list(found)) & Plan.cancelled.is_null()
            ) if plan.v_astra // 1000 == version_number() // 1000
        }  # fmt: skip
    for plan, entry in sorted(found.items()):
        n_pending = _pending(plan) if plan in live else 0
        if not n_pending:
            continue
        before = len(look.jobs), look.lives
        retries = _retries([plan])
        taken = NightPlan(
            night=night.pk, task=entry.task, input_model=entry.input_model, plan_pk=plan,
            leftover=True, retries_before=retries,
        )  # fmt: skip
        _tend(taken, settings, look, allowed=True)
        if (len(look.jobs), look.lives) != before:
            with connection():
                taken.save(force_insert=True)
            look.new.append((plan, n_pending))


# ---------------------------------------------------------------------------------------- tending


def _tend(entry: NightPlan, settings: NightSettings, look: _Look, allowed: bool) -> None:
    """Submit what of a plan is not whole and not alive, and note what lives.

    Slurm is asked only where the database has rows that have not ended.
    """
    if entry.plan_pk is None or not _pending(entry.plan_pk):
        return
    with connection():
        plan = Plan.get_or_none(Plan.pk == entry.plan_pk)
    if plan is None or plan.cancelled is not None:
        return
    task = _task_of(entry, settings)
    with plan_lock(plan):
        recover_intents(plan)  # of a process that died before sbatch answered
    pages, notes = survey(plan)
    states = {page.state for page in pages}
    if PageState.UNKNOWN in states:
        raise SlurmUnknown(f"plan {plan.pk}: {'; '.join(notes) or 'Slurm does not say'}")
    alive = {page.job for page in pages if page.state in ALIVE}
    look.lives |= bool(alive)
    look.jobs |= _alive_jobs(plan, alive)
    try:
        if PageState.UNSUBMITTED in states:
            _submit(plan.pk, task, settings, look)
        if allowed and states - ALIVE - {PageState.DONE, PageState.UNSUBMITTED}:
            done = resume(plan.pk)
            look.jobs |= _jobs(done)
            look.lives |= bool(done.pages)
            if done.message:
                look.lives = True
    except UsageError as error:
        look.problems.append(f"plan {plan.pk}: {error}")


def _alive_jobs(plan: Plan, names: set[str | None]) -> set[JobId]:
    """The arrays of elements that are named ``4711_7``."""
    ids = {int(name.partition("_")[0]) for name in names if name and not name.startswith("local")}
    with connection():
        found = Submission.select().where(Submission.plan == plan.pk, Submission.kind == "slurm")
        return {JobId(s.job_id, s.cluster) for s in found if s.job_id in ids}


def _living(night: Night) -> _Look:
    """What of a night lives; changes nothing."""
    look = _Look()
    for pk in _plan_pks(night):
        if not _pending(pk):
            continue
        with connection():
            plan = Plan.get_or_none(Plan.pk == pk)
        if plan is not None:
            pages, _ = survey(plan)
            alive = {p.job for p in pages if p.state in ALIVE and p.state is not PageState.UNKNOWN}
            look.jobs |= _alive_jobs(plan, alive)
    return look


def _queue(night: Night, settings: NightSettings, look: _Look, wait_s: int = 0) -> None:
    try:
        finalizer.queue(night, settings, look.jobs, wait_s)
    except SlurmRefused as refused:
        if "depend" not in str(refused).lower():
            raise
        finalizer.queue(night, settings, (), _AGAIN_S)  # an array has left Slurm's memory


# ------------------------------------------------------------------------------------------- sums


def _pending(plan: int) -> int:
    left = fn.SUM(Page.n_rows - Page.n_done - Page.n_failed - Page.n_no_result)
    with connection():
        return int(Page.select(left).where(Page.plan == plan).scalar() or 0)


def _retries(plans: list[int]) -> int:
    """Elements that ended before their pages had, and were answered by another."""
    with connection():
        texts = Page.select(Page.retries).where(
            Page.plan.in_(plans or [0]) & Page.retries.is_null(False)
        )
        ends = [end for (text,) in texts.tuples() for end in json.loads(text)]
    return sum(end["state"] not in policy.FREE for end in ends)


def refreshed(night: Night) -> list[NightPlan]:
    """The plans of a night with their sums as they are now, stored where they changed."""
    entries = _entries(night)
    for entry in entries:
        if entry.plan_pk is None:
            continue
        with connection():
            sums = Page.select(
                fn.SUM(Page.n_rows), fn.SUM(Page.n_done), fn.SUM(Page.n_failed),
                fn.SUM(Page.n_no_result),
            ).where(Page.plan == entry.plan_pk)  # fmt: skip
            rows, done, failed, no_result = (int(n or 0) for n in sums.tuples()[0])
            mine = Attempt.began >= entry.began if entry.leftover else SQL("1 = 1")
            task_s = (
                Attempt.select(fn.SUM(Attempt.t_task_s))
                .join(Page)
                .where((Page.plan == entry.plan_pk) & mine)
                .scalar()
            )
            cancelled = Plan.select(Plan.cancelled).where(Plan.pk == entry.plan_pk).scalar()
        if not rows:
            continue  # cleaned away: its last sums stand
        entry.n_rows, entry.n_done, entry.n_failed, entry.n_no_result = (
            rows,
            done,
            failed,
            no_result,
        )
        entry.n_retries = _retries([entry.plan_pk]) - entry.retries_before
        entry.task_s = float(task_s or 0.0)
        entry.whole = rows == done + failed + no_result
        entry.message = "was cancelled" if cancelled else None
        with connection():
            entry.save()
    return entries


def _sum(night: Night) -> list[NightPlan]:
    """Store the sums of a night's plans with it."""
    entries = refreshed(night)
    columns = ("n_rows", "n_done", "n_failed", "n_no_result", "n_retries", "task_s")
    sums = {name: sum(getattr(entry, name) for entry in entries) for name in columns}
    with connection():
        Night.update(**sums).where(Night.pk == night.pk).execute()
    return entries


def _close(night: Night, settings: NightSettings, look: _Look, allowed: bool) -> Nightly:
    entries = _sum(night)
    missing = [*look.problems, *_missing(entries, settings, allowed)]
    whole = not missing
    message = "; ".join(missing) or None
    with connection():
        Night.update(ended=SQL(dialect().now_sql), whole=whole, message=message).where(
            (Night.pk == night.pk) & Night.ended.is_null()
        ).execute()
    _report(night)
    _tell(night, settings)
    return _said(night, "whole" if whole else "not whole", look, message)


def _report(night: Night) -> None:
    """Write the night's report into the run directory; without it the night is no less whole."""
    from astra.report import report_of_night
    from astra.report_page import html

    folder = Path(config.current().run.dir).absolute() / "nights"
    try:
        check_folder(folder)
        _, found = report_of_night(night.name, str(night.pk))
        write_whole(folder / f"{night.name}-{night.pk}.html", html(found))
    except (AstraError, OSError, peewee.PeeweeException) as error:
        log.warning("the report of the night %s is not written: %s", night.pk, error)


def _tell(night: Night, settings: NightSettings) -> None:
    from astra.tell import tell  # which reads nights, as this module writes them

    tell(night, settings)


def _tell_of_earlier(settings: NightSettings) -> None:
    """Tell of nights whose finalizer died before it had told, or could not tell."""
    with connection():
        closed = Night.select().where((Night.name == settings.name) & Night.ended.is_null(False))
        found = list(closed.order_by(Night.pk.desc()).limit(3))
    for night in found:
        ways = json.loads(night.told or "null")
        if ways is None or any(way["result"] != "told" for way in ways.values()):
            _tell(night, settings)


def _missing(entries: list[NightPlan], settings: NightSettings, allowed: bool) -> list[str]:
    """What is not whole, and what to type."""
    said = []
    for entry in entries:
        if entry.plan_pk is None and not entry.whole:
            said.append(f"{entry.task} could not be planned: {entry.message}")
        elif not entry.whole:
            left = entry.n_rows - entry.n_done - entry.n_failed - entry.n_no_result
            why = " (it was cancelled)" if entry.message else ""
            bound = "" if allowed else f" after {settings.rounds} rounds"
            what = "astra status" if not why else "astra plans"
            said.append(
                f"plan {entry.plan_pk} of {entry.task}: {left:,} rows are left{bound}{why}: "
                f"{what} {entry.plan_pk if not why else ''}".rstrip()
            )
    there = {(entry.task, entry.input_model) for entry in entries}
    for task in settings.tasks:
        if (task.task, task.input_model) not in there:
            said.append(f"{task.task} was not begun: it waits for {', '.join(task.after)}")
    return said
