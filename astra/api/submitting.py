"""Submit and resume plans, on Slurm or on this machine."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import overload

from astra.api.sizing import plan_sized
from astra.config.profiles import choose_profile, keys_for_slurm
from astra.database.connection import connection
from astra.errors import AstraError, UsageError
from astra.models.plans import MadeBy, Page, Plan
from astra.models.schema import check_version
from astra.plan import sizes
from astra.plan.lookup import get_plan
from astra.plan.pages import waiting_pages
from astra.plan.plan import Planned, Planning, create_plan
from astra.resume.resume import resume, resume_local
from astra.submit.submit import Submitted, check_ready, submit_pages
from astra.submit.submit import submit as submit_plan
from astra.version import CURRENT

log = logging.getLogger(__name__)


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
        return submit_plan(number_of(plan), profile, options)
    plans = [item for item in plan if not isinstance(item, Planned) or item.plan is not None]
    return [submit_plan(number_of(item), profile, options) for item in plans]


def number_of(plan: int | Planned | Submitted) -> int:
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
