"""Submit and resume plans, on Slurm or on this machine."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import field, replace
from typing import overload

from astra.api.sizing import plan_sized
from astra.config.profiles import choose_profile, keys_for_slurm
from astra.config.units import is_number
from astra.database.connection import connection, keep_connected
from astra.database.threads import in_background
from astra.errors import AstraError, SlurmUnknown, UsageError
from astra.models.plans import MadeBy, Plan
from astra.plan import sizes
from astra.plan.plan import Planned, Planning
from astra.records import dataclass
from astra.slurm import limits
from astra.submit.submit import Submitted, check_shared_database, prepare
from astra.submit.submit import submit as submit_plan

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
    if not isinstance(plan, Iterable):
        return submit_plan(number_of(plan), profile, options)
    plans = [item for item in plan if not isinstance(item, Planned) or item.plan is not None]
    return [submit_plan(number_of(item), profile, options) for item in plans]


def number_of(plan: int | Planned | Submitted) -> int:
    if not isinstance(plan, Planned | Submitted):
        return plan
    if plan.plan is None:
        raise UsageError(f"nothing is pending for {plan.task}: there is no plan")
    return plan.plan


@dataclass(frozen=True)
class Execution:
    """How the pages of plans are run: by Slurm, or by processes of this machine.

    ``progress`` is called with a title when processes begin here. It returns a context, in which
    the numbers of ended rows and of all rows are reported.
    """

    profile_name: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)  # sbatch's, before the profile's
    dry_run: bool = False  # render the scripts, store and submit nothing
    local: bool = False
    n_processes: int = 1
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]] | None = None

    def check(self) -> None:
        """Refuse options that contradict each other, and a profile that cannot be used."""
        if self.local and self.dry_run:
            raise UsageError(
                "--dry-run shows Slurm's scripts, and --local has none: leave one of them out"
            )
        choose_profile(self.profile_name, self.options)

    def submit(self, plan: int) -> Submitted:
        if self.local:
            return self._run_here(plan, failed=False)
        return submit_plan(plan, self.profile_name, self.options, self.dry_run)

    def resume(self, plan: int, failed: bool, only: list[str]) -> Submitted:
        self.check()
        if not self.local:
            from astra.resume.resume import resume  # here, as submitting needs none of it

            with _names_next_step(f"astra {'retry' if failed else 'resume'} {plan}"):
                return resume(plan, failed, only, self.profile_name, self.options, self.dry_run)
        if only:
            raise UsageError("--only selects pages by their Slurm state; --local has none")
        return self._run_here(plan, failed)

    def _run_here(self, plan: int, failed: bool) -> Submitted:
        """Use the set-up and row timeout of the profile, and warn of Slurm's options."""
        chosen = choose_profile(self.profile_name, self.options)
        names = sorted({*self.options} - {"row_timeout"})
        if ignored := keys_for_slurm(chosen) if self.profile_name else names:
            log.warning("--local ignores what is for Slurm: %s", ", ".join(ignored))
        progress = self.progress or (lambda title: nullcontext(lambda ended, rows: None))
        from astra.resume.resume import resume_local

        with progress(f"plan {plan}") as report:
            return resume_local(
                plan, self.n_processes, failed, report, chosen.row_timeout, chosen.setup
            )


@contextmanager
def _names_next_step(command: str) -> Iterator[None]:
    """End the message of an error with the command to type when Slurm answers, if it has none."""
    try:
        yield
    except SlurmUnknown as error:
        if "astra " not in str(error):
            error.args = (f"{error}; when Slurm answers: {command}",)
        raise


def submit_task(
    task_or_plan: str,
    planning: Planning,
    execution: Execution,
    element_time_s: float | None = None,
) -> list[tuple[Planned | None, Submitted | None]]:
    """Plan a task and submit it, or submit a plan by its number; return each with its submission.

    With `element_time_s`, rows per page, memory and time limits are chosen from earlier attempts,
    such that an element takes about this time; given memory and time limits stay as they are.

    A dry run stores nothing: the plan that it makes is cancelled from the beginning, and deleted.
    """
    execution.check()  # errors come before anything is stored
    if is_number(task_or_plan):
        plan = int(task_or_plan)
        chosen = {**planning, "element_time": element_time_s}
        if given := [_option(name) for name, value in chosen.items() if value]:
            raise UsageError(
                f"plan {plan} is frozen: {', '.join(given)} can be chosen when a task is planned, "
                "not afterwards; leave it out, or give the task's name"
            )
        with _names_next_step(f"astra submit {plan}"):
            return [(None, execution.submit(plan))]
    profile = None
    if not execution.local:
        profile = choose_profile(execution.profile_name, execution.options)
    if execution.dry_run:
        planning = {**planning, "dry_run": True}
    if profile is None or execution.dry_run:
        return _submit_each(plan_sized(task_or_plan, planning, element_time_s, profile), execution)
    check_shared_database(f"astra submit {task_or_plan}")
    with keep_connected(), limits.site_queried_once():
        prepared = in_background(lambda: prepare(profile))  # while rows are planned
        plans = plan_sized(task_or_plan, planning, element_time_s, profile)
        return _submit_each(plans, execution, prepared)


def _option(name: str) -> str:
    """Return the option of ``astra submit`` that sets a parameter."""
    others = {"limit": "--page-size", "arguments": "--set"}
    return others.get(name, f"--{name.replace('_', '-')}")


def _submit_each(
    plans: list[tuple[Planned, sizes.Estimate | None]],
    execution: Execution,
    prepared: Callable[[], object] = lambda: None,
) -> list[tuple[Planned | None, Submitted | None]]:
    """Submit new plans that have rows, after waiting for what is `prepared` for them.

    An error says how to submit those that are left. A dry run deletes all plans.
    """
    submitted: list[tuple[Planned | None, Submitted | None]] = []
    numbers = [planned.plan for planned, _ in plans]
    try:
        for (planned, size), plan in zip(plans, numbers, strict=True):
            options = sizes.options_of(size, execution.options) if size else execution.options
            submission = None
            if plan is not None:
                prepared()
                submission = replace(execution, options=options).submit(plan)
            submitted.append((planned, submission))
    except (AstraError, KeyboardInterrupt) as error:
        if not execution.dry_run:
            left = numbers[len(submitted) :]
            error.args = (f"{error}{_how_to_submit(left, error, execution)}",)
        raise
    finally:
        if execution.dry_run:
            made = [plan for plan in numbers if plan is not None]
            with connection():
                MadeBy.delete().where(MadeBy.plan_pk.in_(made)).execute()
                Plan.delete().where(Plan.pk.in_(made)).execute()  # and their pages
    return submitted


def _how_to_submit(plans: Iterable[int | None], error: BaseException, execution: Execution) -> str:
    """Return the end of an error's message: the plans that are left, unless it names them."""
    here = " --local" if execution.local else ""
    return "".join(
        f"; plan {plan} is kept: astra submit {plan}{here}"
        for plan in plans
        if plan is not None and f"resume {plan}" not in str(error)
    )
