"""From pending rows to results: estimate, plan, submit, run."""

import sys
from typing import TYPE_CHECKING

import click

from astra import api
from astra.cli.completion import TASK, TASK_OR_PLAN
from astra.cli.group import main
from astra.cli.options import (
    arguments_option,
    input_model_option,
    json_option,
    one,
    plan_options,
    profile_option,
    run_options,
    seconds,
    slurm_options,
    trust_option,
)
from astra.cli.output import show, show_rows
from astra.config.startup import one_line_for_each_error
from astra.config.units import is_number
from astra.errors import UsageError, count
from astra.states import PlanState, worst

if TYPE_CHECKING:
    from astra.api import Execution
    from astra.plan.plan import Planning
    from astra.submit.submit import Submitted


@main.command("estimate")
@click.argument("task", type=TASK)
@click.option(
    "--time", "element_time", type=seconds, default="1h", show_default=True, metavar="TIME",
    help="How long an element should run.",
)  # fmt: skip
@input_model_option
@arguments_option
@profile_option("Profile whose partition bounds the limits.")
@click.option("--partition", metavar="NAME", help="Slurm partition.")
@click.option("--probe", is_flag=True, help="First run 20 rows here if there are no attempts yet.")
@json_option
def estimate_command(
    task: str, element_time: float, input_model: str | None, arguments: dict[str, str],
    profile_name: str | None, partition: str | None, probe: bool, as_json: bool,
) -> None:  # fmt: skip
    """Choose rows per page, memory and time limit for TASK from its earlier attempts."""
    from astra.config.profiles import choose_profile

    profile = choose_profile(profile_name, {"partition": partition})
    estimates = api.estimate(task, input_model, element_time, arguments, profile, probe)
    show.as_json(one(estimates)) if as_json else show.estimated(estimates)


@main.command()
@click.argument("task", type=TASK)
@plan_options
@click.option(
    "--time", "--element-time", "element_time", type=seconds, metavar="TIME",
    help="Choose rows per page such that an element runs about this long.",
)  # fmt: skip
@profile_option("With --time: profile whose partition bounds the limits.")
@json_option
def plan(
    task: str, planning: "Planning", element_time: float | None, profile_name: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Freeze the pending rows of TASK into pages.

    A row is pending if it has no up-to-date result. The plan is stored; astra submit starts it.
    """
    from astra.config.profiles import choose_profile

    profile = None if element_time is None else choose_profile(profile_name, None)
    sized = api.plan_sized(task, planning, element_time, profile)
    plans = [planned for planned, _ in sized]
    if as_json:
        show.as_json(one(plans))
    else:
        show.planned(plans)
        show.how_to_submit(sized)


@main.command()
@click.argument("old")
@click.argument("task", type=TASK)
def rename(old: str, task: str) -> None:
    """Assign the plans and results of a task's former name OLD to TASK."""
    n_plans = api.rename_task(old, task)
    show.line(f"{count(n_plans, 'plan')} of {old} and their results now belong to {task}")


@main.command()
@click.argument("task_or_plan", type=TASK_OR_PLAN)
@plan_options
@click.option(
    "--element-time", type=seconds, metavar="TIME",
    help="Choose rows per page, and --time and --mem if not given, from earlier attempts.",
)  # fmt: skip
@slurm_options
@trust_option
@json_option
def submit(
    task_or_plan: str, planning: "Planning", element_time: float | None,
    execution: "Execution", as_json: bool,
) -> None:  # fmt: skip
    """Plan and submit TASK, or submit a PLAN by its number, as Slurm job arrays.

    If PLAN was submitted before, this submits only pages that have never been submitted. --time is
    sbatch's time limit; --element-time is how long an element should run.
    """
    submitted = api.submit_task(task_or_plan, planning, execution, element_time)
    if as_json:
        show.as_json(one([s or show.nothing_submitted(p) for p, s in submitted]))
    else:
        show.planned([p for p, _ in submitted if p is not None])
    submissions = [s for _, s in submitted if s is not None]
    if execution.local:
        show_local(submissions, as_json)
    for submission in [] if as_json else submissions:
        show.submitted(submission)
    before = [s.plan for s in submissions if s.message and not (s.pages or s.unsubmitted)]
    sys.exit(max([show_attention(before, as_json), *(s.exit_status for s in submissions)]))


def show_attention(plans: list[int], as_json: bool) -> int:
    """Show what to type for those of these plans that need attention; return the exit status."""
    statuses = api.statuses(plans) if plans else []
    left = [status for status in statuses if status.state is PlanState.ATTENTION]
    for plan_status in [] if as_json else left:
        show.next_commands(plan_status)
    return PlanState.ATTENTION.exit_status if left else 0


def show_local(submissions: list["Submitted"], as_json: bool) -> None:
    """Show the status of plans that were run here, and exit with the worst of them."""
    statuses = [api.status(submission.plan) for submission in submissions]
    for submission, plan_status in [] if as_json else zip(submissions, statuses, strict=True):
        if submission.message:
            show.line(submission.message)
        show.status(plan_status)
    sys.exit(worst(plan_status.state for plan_status in statuses).exit_status)


@main.command()
@click.argument("task", type=TASK)
@run_options
@click.option(
    "--traceback", "with_traceback", is_flag=True, help="Show the tracebacks of rows that raise."
)
@json_option
def run(task: str, planning: "Planning", with_traceback: bool, as_json: bool) -> None:
    """Plan TASK and run it in the foreground, in this process."""
    if not with_traceback:
        one_line_for_each_error()
    plans = api.plan_at_most(task, planning)
    if not as_json:
        show.planned(plans)
    statuses = []
    for planned in plans:
        if planned.plan is not None:
            api.run_here(planned.plan, lambda run: None if as_json else show.page_run(run))
            statuses.append(api.status(planned.plan))
            if not as_json:
                show.status(statuses[-1])
    if as_json:
        show.as_json(one(statuses or plans))
    sys.exit(worst(s.state for s in statuses).exit_status)


@main.command("try")
@click.argument("task_or_plan", type=TASK_OR_PLAN)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@input_model_option
@arguments_option
@click.option("--pdb", is_flag=True, help="Stop in the debugger where a row raises.")
@trust_option
@json_option
def try_command(
    task_or_plan: str, keys: tuple[str, ...], input_model: str | None,
    arguments: dict[str, str], pdb: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run the task on the rows with these KEYs, print results or tracebacks, and store nothing.

    With a PLAN, its arguments are used. A KEY of several columns is a JSON array, such as
    '["2024-01-01", 3]'. Exit status: 0, or 8 if a row fails: the task raised, or its result cannot
    be stored.
    """
    import faulthandler

    faulthandler.enable(2, all_threads=False)  # a row that ends its process shows where
    if is_number(task_or_plan):
        if input_model or arguments:
            raise UsageError(
                f"plan {task_or_plan} has its table and arguments: leave "
                "--input-model and --set out"
            )
        trial = api.trial_of_plan(int(task_or_plan), keys)
    else:
        trial = api.trial_of_task(task_or_plan, keys, input_model, arguments)
    tried = []
    for row, trace in trial:
        tried.append(row)
        if not as_json:
            show_rows.tried(row)
        if pdb and trace is not None:
            from pdb import post_mortem

            post_mortem(trace)
    if as_json:
        show.as_json(tried)
    raised = any(row.exception for row in tried)
    sys.exit(PlanState.FAILED_ROWS.exit_status if raised else 0)
