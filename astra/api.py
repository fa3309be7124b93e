"""The interface for programs, which the command line uses too: one function for each command.

::

    from astra.api import create_plan, submit, wait

    plans = create_plan("slam.slam", limit=2000)
    submissions = submit(plans, profile="debug", mem="4G")
    for plan_status in wait(submissions):
        print(plan_status.plan, plan_status.state, plan_status.rows)

A task that reads several tables has a plan for each of them, so these functions take and return
lists; they also take one item, or the number of a plan. Errors are those of :mod:`astra.errors`;
each message says what to do next.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import overload

from peewee import Model

from astra.config.profiles import Profile, choose_profile, keys_for_slurm
from astra.database.connection import connection
from astra.element.page_run import PageRun
from astra.errors import AstraError, Interrupted, UsageError
from astra.models.plans import MadeBy, Page, Plan
from astra.models.schema import check_version
from astra.plan import sizes
from astra.plan.lookup import check_plan_version, get_plan
from astra.plan.pages import waiting_pages
from astra.plan.plan import Planned, Planning, create_plan
from astra.plan.plan import plan_at_most as plan_at_most
from astra.plan.sizes import Estimate
from astra.resume.cancel import Cancelled, cancel
from astra.resume.resume import resume, resume_local
from astra.states import PlanState
from astra.status.failures import FailedRow, failures
from astra.status.status import PlanStatus, status, statuses
from astra.status.verdict import Verdict
from astra.status.verify import verify
from astra.submit.intent import make_intent, new_submission, plan_lock
from astra.submit.submit import Submitted, check_ready, submit_pages
from astra.submit.submit import submit as submit_plan
from astra.version import CURRENT

log = logging.getLogger(__name__)


__all__ = [
    "Cancelled",
    "Estimate",
    "FailedRow",
    "PlanState",
    "PlanStatus",
    "Planned",
    "Submitted",
    "Verdict",
    "cancel",
    "create_plan",
    "estimate",
    "failures",
    "resume",
    "resume_local",
    "status",
    "statuses",
    "submit",
    "verify",
    "wait",
]

#: The first pause of :func:`wait` between two queries, in s; each pause is 1.5 times the last.
_FIRST_PAUSE_S = 1.0


@overload
def submit(plan: int | Planned, profile: str | None = None, **options: object) -> Submitted: ...


@overload
def submit(
    plan: Iterable[int | Planned], profile: str | None = None, **options: object
) -> list[Submitted]: ...


def submit(
    plan: int | Planned | Iterable[int | Planned], profile: str | None = None, **options: object
) -> Submitted | list[Submitted]:
    """Submit the pages of plans that were not submitted yet, as Slurm arrays.

    Parameters
    ----------
    plan : Planned or int, or an iterable of these
        From :func:`create_plan`, or the number of a plan. Of several plans, those without rows
        are skipped.
    profile : str, optional
        A profile of the configuration, or one that is installed with astra.
    **options : str, int or bool
        sbatch's options in snake case, ``throttle`` and ``pages_per_element``, which override the
        profile's.

    Returns
    -------
    Submitted or list of Submitted
        A list where several plans were given.

    Raises
    ------
    UsageError
        If there is no such plan, it was cancelled, or it has no rows.
    SlurmError
        If Slurm refuses; the plan can be submitted again.

    Examples
    --------
    >>> from astra.api import submit
    >>> submitted = submit(1, profile="debug", mem="4G", time="02:00:00")  # doctest: +SKIP
    """
    if isinstance(plan, int | Planned):
        return submit_plan(_number(plan), profile, options)
    plans = [item for item in plan if not isinstance(item, Planned) or item.plan is not None]
    return [submit_plan(_number(item), profile, options) for item in plans]


@overload
def wait(
    submission: int | Planned | Submitted,
    timeout_s: float | None = None,
    every_s: float = 30.0,
    notify: Callable[[PlanStatus], None] | None = None,
) -> PlanStatus: ...


@overload
def wait(
    submission: Iterable[int | Planned | Submitted],
    timeout_s: float | None = None,
    every_s: float = 30.0,
    notify: Callable[[PlanStatus], None] | None = None,
) -> list[PlanStatus]: ...


def wait(
    submission: int | Planned | Submitted | Iterable[int | Planned | Submitted],
    timeout_s: float | None = None,
    every_s: float = 30.0,
    notify: Callable[[PlanStatus], None] | None = None,
) -> PlanStatus | list[PlanStatus]:
    """Wait until no element of a plan, or of several plans, is running or waiting.

    The state is then ``whole``, ``failed rows``, ``cancelled``, or ``attention``: rows are left,
    and an action such as :func:`resume` is needed.

    Parameters
    ----------
    submission : Planned, Submitted or int, or an iterable of these
        From :func:`create_plan` or :func:`submit`, or the number of a plan.
    timeout_s : float, optional
        Longest time to wait for each plan [s]; default no bound.
    every_s : float
        Longest pause between two queries of Slurm [s]; the first pauses are shorter.
    notify : callable, optional
        Called with the status after each query.

    Returns
    -------
    PlanStatus or list of PlanStatus
        A list where several plans were given.

    Raises
    ------
    TimeoutError
        If a plan is still running after `timeout_s`. Its elements continue.

    Examples
    --------
    >>> from astra.api import wait
    >>> wait(1, timeout_s=3600).state.value
    'whole'
    """
    if isinstance(submission, int | Planned | Submitted):
        return _wait(_number(submission), timeout_s, every_s, notify)
    return [_wait(_number(item), timeout_s, every_s, notify) for item in submission]


def _wait(
    plan: int, timeout_s: float | None, every_s: float, notify: Callable[[PlanStatus], None] | None
) -> PlanStatus:
    began, pause_s = time.monotonic(), _FIRST_PAUSE_S
    while True:
        plan_status = status(plan)
        if notify is not None:
            notify(plan_status)
        if plan_status.state is not PlanState.RUNNING:
            return plan_status
        rest_s = None if timeout_s is None else began + timeout_s - time.monotonic()
        if rest_s is not None and rest_s <= 0:
            raise TimeoutError(
                f"plan {plan} is still running after {timeout_s:g} s; its elements continue: "
                f"astra status {plan}"
            )
        time.sleep(min(pause_s, every_s, every_s if rest_s is None else rest_s))
        pause_s *= 1.5


def _number(plan: int | Planned | Submitted) -> int:
    if isinstance(plan, int):
        return plan
    if plan.plan is None:
        raise UsageError(f"nothing is pending for {plan.task}: there is no plan")
    return plan.plan


Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def submit_task(
    task_or_plan: str,
    planning: Planning,
    profile_name: str | None = None,
    options: Mapping[str, object] | None = None,
    dry_run: bool = False,
    local: bool = False,
    n_processes: int = 1,
    progress: Progress | None = None,
    element_time_s: float | None = None,
) -> list[tuple[Planned | None, Submitted | None]]:
    """Plan a task and submit it, or submit a plan by its number; return each with its submission.

    With `element_time_s`, rows per page, memory and time limits are chosen from earlier attempts,
    such that an element takes about this time; given memory and time limits stay as they are.

    A dry run stores nothing: the plan that it makes is deleted.
    """
    if local and dry_run:
        raise UsageError("--dry-run shows Slurm's scripts; with --local there is none")
    if task_or_plan.isdecimal() and task_or_plan.isascii():
        plan = int(task_or_plan)
        chosen = {**planning, "element_time": element_time_s}
        if given := [name for name, value in chosen.items() if value]:
            raise UsageError(
                f"plan {plan} is frozen: {', '.join(given)} can be chosen when a task is planned, "
                "not afterwards; leave it out, or give the task's name"
            )
        return [(None, _submit(plan, profile_name, options, dry_run, local, n_processes, progress))]
    # Errors come before anything is stored.
    choose_profile(profile_name, options)
    if not local:
        _check_database(dry_run)
    if dry_run:
        return _dry_run(task_or_plan, planning, profile_name, options, element_time_s)
    done: list[tuple[Planned | None, Submitted | None]] = []
    for planned, sized in _planned(
        task_or_plan, planning, element_time_s, profile_name, options, local
    ):
        if planned.plan is None:
            done.append((planned, None))
        else:
            arguments = (profile_name, sized, False, local, n_processes, progress)
            try:
                done.append((planned, _submit(planned.plan, *arguments)))
            except AstraError as error:
                if f"resume {planned.plan}" not in str(error):
                    again = "astra submit " + f"{planned.plan}{' --local' if local else ''}"
                    error.args = (f"{error}; plan {planned.plan} is kept: {again}",)
                raise
    return done


def _planned(
    task: str,
    planning: Planning,
    element_time_s: float | None,
    profile_name: str | None,
    options: Mapping[str, object] | None,
    local: bool = False,
) -> list[tuple[Planned, Mapping[str, object] | None]]:
    """Plan a task; return each plan with the options for its submission."""
    if element_time_s is None:
        return [(planned, options) for planned in create_plan(task, **planning)]
    chosen = None if local else choose_profile(profile_name, options)
    return [
        (planned, sizes.options_of(estimated, options or {}))
        for planned, estimated in plan_sized(task, planning, element_time_s, chosen)
    ]


def estimate(
    task: Callable[..., object] | str,
    input_model: type[Model] | str | None = None,
    target_s: float = 3600.0,
    arguments: Mapping[str, object] | None = None,
    chosen: Profile | None = None,
    probe: bool = False,
) -> list[Estimate]:
    """Choose sizes such that an element takes about `target_s`, from earlier attempts.

    Parameters
    ----------
    task : callable or str
        A task, or its name.
    input_model : class or str, optional
        One of the task's input models, or its name; default all.
    target_s : float
        How long an element should take [s].
    arguments : mapping, optional
        Arguments of the task, by name.
    chosen : Profile, optional
        The profile to use: its partition bounds the limits. Without a profile there are no bounds.
    probe : bool
        If the task has no attempts yet, run a few rows here first, and store their results.

    Returns
    -------
    list of Estimate
        One for each input model.

    Raises
    ------
    TaskError
        If the task or an argument cannot be used.

    Examples
    --------
    >>> from astra.api import estimate
    >>> (sizes,) = estimate("slam.slam", "BossVisitSpectrum", target_s=600)
    >>> sizes.source
    'history'
    """
    run_probe = resume_local if probe else None
    return sizes.estimate(task, input_model, target_s, arguments, chosen, run_probe)


def plan_sized(
    task: Callable[..., object] | str,
    planning: Planning,
    element_time_s: float,
    chosen: Profile | None = None,
) -> list[tuple[Planned, "Estimate"]]:
    """Plan a task with pages of a size such that an element takes about `element_time_s`.

    Raises
    ------
    UsageError
        If `planning` names a ``limit``, too.
    """
    if planning.get("limit") is not None:
        raise UsageError(
            "--page-size (--limit) sets the rows of a page, which the time of an element chooses"
        )
    model, arguments = planning.get("input_model"), planning.get("arguments")
    plans = []
    for estimated in estimate(task, model, element_time_s, arguments, chosen):
        for note in estimated.notes:
            log.warning("%s: %s", estimated.task, note)
        sized: Planning = {
            **planning, "input_model": estimated.input_model, "limit": estimated.limit
        }  # fmt: skip
        plans += [(planned, estimated) for planned in create_plan(task, **sized)]
    return plans


def _check_database(dry_run: bool) -> None:
    check_version()
    check_ready(Plan(pk=0, v_astra=CURRENT.number, cancelled=None), dry_run)


def _submit(
    plan: int,
    profile_name: str | None,
    options: Mapping[str, object] | None,
    dry_run: bool,
    local: bool,
    n_processes: int,
    progress: Progress | None,
) -> Submitted:
    if not local:
        return submit_plan(plan, profile_name, options, dry_run)
    return _run_local(plan, False, profile_name, options or {}, n_processes, progress)


def _run_local(
    plan: int,
    failed: bool,
    profile_name: str | None,
    options: Mapping[str, object],
    n_processes: int,
    progress: Progress | None,
) -> Submitted:
    """Run a plan here with the set-up and row timeout of a profile; warn of Slurm's options."""
    chosen = choose_profile(profile_name, options)
    ignored = keys_for_slurm(chosen) if profile_name else sorted({*options} - {"row_timeout"})
    if ignored:
        log.warning("--local ignores what is for Slurm: %s", ", ".join(ignored))
    with progress(f"plan {plan}") if progress else nullcontext(lambda e, r: None) as report:
        return resume_local(plan, n_processes, failed, report, chosen.row_timeout, chosen.setup)


def _dry_run(
    task: str,
    planning: Planning,
    profile_name: str | None,
    options: Mapping[str, object] | None,
    element_time_s: float | None,
) -> list[tuple[Planned | None, Submitted | None]]:
    done: list[tuple[Planned | None, Submitted | None]] = []
    for planned, sized in _planned(task, planning, element_time_s, profile_name, options):
        chosen = choose_profile(profile_name, sized)
        if planned.plan is None:
            done.append((planned, None))
            continue
        plan = get_plan(planned.plan)
        try:
            with connection():
                pages = waiting_pages(plan)
            done.append((planned, submit_pages(plan, pages, {None}, chosen, dry_run=True)))
        finally:
            with connection():
                Page.delete().where(Page.plan == plan.pk).execute()
                MadeBy.delete().where(MadeBy.plan_pk == plan.pk).execute()
                plan.delete_instance()
    return done


def resume_plan(
    plan: int,
    failed: bool,
    only: list[str],
    profile_name: str | None,
    options: Mapping[str, object],
    dry_run: bool,
    local: bool,
    n_processes: int,
    progress: Progress | None,
) -> Submitted:
    """Resume a plan on Slurm, or with processes of this machine."""
    if not local:
        return resume(plan, failed, only, profile_name, options, dry_run)
    if dry_run:
        raise UsageError("--dry-run shows Slurm's scripts; with --local there is none")
    if only:
        raise UsageError("--only selects pages by their Slurm state; --local has none")
    return _run_local(plan, failed, profile_name, options, n_processes, progress)


def run_here(plan_pk: int, notify: Callable[[list[PageRun]], None] = lambda runs: None) -> None:
    """Run every page of a plan in this process, one after the other."""
    from astra.element.element import Element
    from astra.element.signals import heard
    from astra.results.stopping import Stop
    from astra.submit.local import end_submission, pages_to_run

    plan = get_plan(plan_pk)
    check_plan_version(plan)
    with plan_lock(plan):
        pages = pages_to_run(plan)
        submission = new_submission(plan, [page.number for page in pages], 0, 1, "local")
        make_intent(submission, pages)
    stop = Stop()
    try:
        with heard(stop), Element(plan, submission, stop) as this:
            for page in pages:
                if (run := this.run_page(page.number, page.number)) is None:
                    break
                notify([run])
                if stop.wanted.is_set():
                    break
    finally:
        end_submission(submission)
    if stop.wanted.is_set():
        raise Interrupted(
            f"plan {plan.pk} was interrupted; its yielded results are stored: "
            f"astra resume {plan.pk} --local"
        )


def last_plan() -> int:
    """Return the number of the last plan.

    Raises
    ------
    UsageError
        If there is none.
    """
    check_version()
    with connection():
        last = Plan.select(Plan.pk).order_by(Plan.pk.desc()).limit(1).scalar()
    if last is None:
        raise UsageError("there is no plan yet: astra plan TASK")
    return int(last)
