"""Commands that show a plan and act on it: status, resume, cancel, logs and others."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from astra import api
from astra.cli.completion import NIGHT_OR_PLAN, PLAN, SLURM_STATES
from astra.cli.group import main
from astra.cli.options import (
    DAYS,
    INTERVAL_S,
    SMALL_COUNT,
    Number,
    PlanFilters,
    csv_option,
    json_option,
    plan_filters,
    plan_named,
    plan_read,
    slurm_options,
    the_last,
    trust_option,
)
from astra.cli.output import show, show_nights, show_watch
from astra.cli.running import show_attention, show_local
from astra.config.startup import printable
from astra.errors import UsageError
from astra.states import worst

if TYPE_CHECKING:
    from astra.api import Execution
    from astra.report.report import Report


@main.command()
@click.argument("plan", type=PLAN, required=False)
@plan_filters
@click.option("--pages", is_flag=True, help="Show every page.")
@click.option(
    "--watch", "live", is_flag=True, help="Update the display until no element runs or waits."
)
@click.option(
    "--every", "every_s", type=INTERVAL_S, default=10.0, show_default=True,
    metavar="SECONDS",
    help="With --watch: how often to update.",
)  # fmt: skip
@json_option
def status(
    plan: int | None, filters: PlanFilters, pages: bool, live: bool, every_s: float, as_json: bool
) -> None:  # fmt: skip
    """Show the progress of PLAN or of the last plan, or of all plans that the options select.

    Exit status: 0 whole (or cancelled), 3 running, 4 needs attention, 8 failed rows.
    """
    if live and as_json:
        raise UsageError("--watch and --json exclude each other: leave one of them out")
    if any(filters) and (plan is not None or live):
        raise UsageError("--task, --state, --mine and --since choose plans: omit PLAN")
    if any(filters):
        numbers = [line.plan for line in api.plans(20, *filters)]
    else:
        numbers = [the_last() if plan is None else plan]
    if live:
        statuses = [show_watch.watched(api.watch(numbers[0], every_s))]
    else:
        recent_s = api.configuration().slurm.recent_s
        statuses = api.statuses(numbers, include_done=pages or as_json, recent_s=recent_s)
    if as_json:
        show.as_json(statuses if any(filters) else statuses[0])
    elif not statuses:
        show.no_plan_matches()
    for plan_status in [] if as_json else statuses:
        show.status(plan_status, pages)
    sys.exit(worst(plan_status.state for plan_status in statuses).exit_status)


@main.command()
@plan_named
@click.option("--failed", is_flag=True, help="Process recorded failures again.")
@click.option(
    "--only", type=SLURM_STATES, metavar="STATES",
    help="Only pages whose element ended in these Slurm states: OUT_OF_MEMORY,TIMEOUT.",
)  # fmt: skip
@slurm_options
@trust_option
@json_option
def resume(**options: Any) -> None:
    """Submit the pages of PLAN that are neither done nor running."""
    _resume(**options)


@main.command()
@plan_named
@slurm_options
@trust_option
@json_option
def retry(**options: Any) -> None:
    """Process the failed rows of PLAN again, as resume --failed does."""
    _resume(failed=True, only=None, **options)


def _resume(
    plan: int, failed: bool, only: str | None, execution: "Execution", as_json: bool
) -> None:
    states = [word.strip() for word in (only or "").split(",") if word.strip()]
    if only is not None and not states:
        raise UsageError("--only: list Slurm states, such as OUT_OF_MEMORY,TIMEOUT")
    submitted = execution.resume(plan, failed, states)
    if as_json:
        show.as_json(submitted)
    elif not execution.local or not submitted.pages:
        show.submitted(submitted)
    if execution.local:
        show_local([submitted], as_json)
    sys.exit(submitted.exit_status)


@main.command()
@plan_named
@trust_option
@json_option
def recover(plan: int, as_json: bool) -> None:
    """Store results that elements of PLAN left in spool files, without computing them again.

    submit and resume do this automatically. Exit status: 0 stored, 4 a file is kept because the
    table refuses its results.
    """
    recovered = api.recover(plan)
    show.as_json(recovered) if as_json else show.recovered(recovered)
    if recovered.kept:
        sys.exit(4)


@main.command()
@plan_read
@trust_option
@json_option
def verify(plan: int, as_json: bool) -> None:
    """Check that the database is consistent for PLAN: pages, results and failures agree.

    Without PLAN, the last plan is checked. This only reads the database, and can be done while the
    plan runs. Exit status: 0 consistent, 4 inconsistent; each breach is listed by page and key.
    """
    verdict = api.verify(plan)
    show.as_json(verdict) if as_json else show.verdict(verdict)
    sys.exit(verdict.exit_status)


@main.command()
@plan_named
@click.option("--page", type=SMALL_COUNT, help="Cancel only the element of this page.")
@json_option
def cancel(plan: int, page: int | None, as_json: bool) -> None:
    """Terminate the elements of PLAN, and release its rows."""
    cancelled = api.cancel(plan, page)
    show.as_json(cancelled) if as_json else show.cancelled(cancelled)


@main.command()
@click.argument("plan", type=PLAN, required=False)
@click.option("--all", "of_all", is_flag=True, help="All plans that have pending rows.")
@click.option(
    "--reason", metavar="TEXT", help="A reason, shown by status and in the logs of elements."
)
@json_option
def pause(plan: int | None, of_all: bool, reason: str | None, as_json: bool) -> None:
    """Pause PLAN: its elements complete their pages and take no further ones.

    astra continue ends the pause.
    """
    controls = api.pause(_chosen(plan, of_all), reason)
    show.as_json(controls) if as_json else show.controls(controls)


@main.command()
@plan_named
@click.argument("n", type=Number(-(2**31), 2**31 - 1), required=False)
@click.option("--off", is_flag=True, help="Remove the throttle.")
@json_option
def throttle(plan: int, n: int | None, off: bool, as_json: bool) -> None:
    """Let at most N elements of PLAN take further pages."""
    if (n is None) != off:
        raise UsageError(f"write astra throttle {plan} N, or astra throttle {plan} --off")
    controls = [api.throttle(plan, n)]
    show.as_json(controls) if as_json else show.controls(controls)


@main.command("continue")
@click.argument("plan", type=PLAN, required=False)
@click.option("--all", "of_all", is_flag=True, help="All plans that have pending rows.")
@json_option
def continue_command(plan: int | None, of_all: bool, as_json: bool) -> None:
    """End the pause of PLAN, and submit pages for which no element is left."""
    controls = api.continue_plans(_chosen(plan, of_all))
    show.as_json(controls) if as_json else show.controls(controls)
    statuses = [c.submitted.exit_status for c in controls if c.submitted]
    # The status says how elements of this machine are started.
    idle = [control.plan for control in controls if control.submitted is None]
    sys.exit(max([show_attention(idle, as_json), *statuses]))


def _chosen(plan: int | None, of_all: bool) -> list[int]:
    if (plan is None) != of_all:
        raise UsageError("name one PLAN, or --all")
    return api.live_plans() if plan is None else [plan]


@main.command()
@plan_read
@click.argument("page", type=SMALL_COUNT, required=False)
@click.option("-f", "--follow", is_flag=True, help="Keep printing as the log grows.")
@click.option("--raw", is_flag=True, help="Print control characters unchanged.")
@csv_option
@json_option
def logs(
    plan: int, page: int | None, follow: bool, raw: bool, as_csv: bool, as_json: bool
) -> None:  # fmt: skip
    """Print the log of the last attempt at PAGE, or list the logs of PLAN or the last plan.

    A log is that of an element, which may have run other pages before and after PAGE.
    """
    attempts = api.logs(plan, page)
    if as_json:
        show.as_json(attempts)
    elif page is None:
        show.logs(attempts, as_csv)
    else:
        path = api.log_path(plan, attempts[-1])
        if follow and path is not None and os.path.isfile(path):
            with suppress(KeyboardInterrupt):
                _follow(str(path), raw, lambda: api.has_ended(plan, attempts[-1]))
        else:
            text = api.log_text(plan, attempts[-1])
            click.echo(text if raw else printable(text), nl=False)


@main.command()
@plan_read
@click.option("--traceback", "with_traceback", is_flag=True, help="Show tracebacks.")
@csv_option
@json_option
def failures(plan: int, with_traceback: bool, as_csv: bool, as_json: bool) -> None:
    """List the failed rows of PLAN or of the last plan, and why they failed."""
    rows = api.failures(plan)
    show.as_json(rows) if as_json else show.failures(
        plan, api.kinds_of_failures(rows), rows, with_traceback, as_csv
    )


@main.command()
@click.option("--all", "every", is_flag=True, help="List all plans, not only the last 20.")
@plan_filters
@csv_option
@json_option
def plans(every: bool, filters: PlanFilters, as_csv: bool, as_json: bool) -> None:
    """List plans, the latest first."""
    api.check_version()
    listed = api.plans(None if every else 20, *filters)
    show.as_json(listed) if as_json else show.plans(listed, as_csv, any(filters))


@main.command()
@click.argument("which", nargs=-1, type=NIGHT_OR_PLAN, metavar="[PLAN]... | NIGHT [DATE]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="File to write; default: plan-N.html or night-N.html. - is standard output.",
)  # fmt: skip
@click.option(
    "--watch", "folder", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Keep pages of all plans and nights, and an index, up to date in FOLDER.",
)  # fmt: skip
@click.option(
    "--every", "every_s", type=INTERVAL_S, default=60.0, metavar="SECONDS",
    help="With --watch: how often to update; 60 by default.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="With --watch: update once, for cron.")
@trust_option
@json_option
def report(
    which: tuple[str, ...], output: Path | None, folder: Path | None, every_s: float, once: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write an HTML report of a plan, of several plans together, or of a night.

    Without an argument, report the last plan; with NIGHT and no DATE, the last night of that name.

    The report is one file. It shows what ran when, how fast and where, what failed, and what to do
    next. It needs no network and contains no password.
    """
    from astra.config.run_folder import write_output

    if folder is not None:
        if which or output or as_json:
            raise UsageError("--watch keeps pages of all plans and nights: no PLAN, -o or --json")
        return _keep_pages(folder, every_s, once)
    if once:
        raise UsageError("--once needs --watch FOLDER: astra report --watch FOLDER --once")
    contents, name = _contents(which)
    file = output or Path(f"{name}.html")
    if as_json:
        return show.as_json(contents)
    page = api.report_html(contents)
    if str(output) == "-":
        click.echo(page)
    else:
        write_output(file, page)
        show.reported(contents, file, len(page.encode()))


def _contents(which: tuple[str, ...]) -> tuple["Report", str]:
    """Return the report of plans or of a night, and the name of its file."""
    if len(which) > 2 and not which[0].isdigit():
        raise UsageError(f"astra report {which[0]}: give a night by its name and a date")
    if not which:
        numbers = [the_last()]
    elif which[0].isdigit():
        numbers = [PLAN.convert(word, None, None) for word in which]
    else:
        night, contents = api.report_of_night(*which)
        return contents, f"night-{night}"
    contents = api.report(numbers)
    return contents, f"plan-{'-'.join(str(plan.plan) for plan in contents.plans)}"


def _keep_pages(folder: Path, every_s: float, once: bool) -> None:
    dashboard = api.Dashboard(folder)
    if not once:
        show_watch.keep_pages(dashboard, every_s)
        return
    update = api.retrying(dashboard.update, bound_s=every_s)
    show_watch.pages(update)
    sys.exit(1 if update.problems else 0)


@main.command()
@click.option("--yes", is_flag=True, help="Remove them; without this, only show them.")
@click.option(
    "--keep-days",
    type=DAYS,
    metavar="N",
    help="Days for which plans are kept; by default, keep_days of [clean].",
)
@json_option
def clean(yes: bool, keep_days: float | None, as_json: bool) -> None:
    """Show or remove old plans that are whole or cancelled, with their logs and scripts.

    Results, and plans with pending rows, are never removed.
    """
    cleaned = api.clean(keep_days, not yes)
    show.as_json(cleaned) if as_json else show_nights.cleaned(cleaned)


def _follow(path: str, raw: bool, has_ended: Callable[[], bool]) -> None:
    """Print a file as it grows, until it is complete or Ctrl-C is pressed."""
    with open(path, errors="replace") as file:
        pause_s, is_over = 0.3, False
        while True:
            text = file.read()
            if text:
                sys.stdout.write(text if raw else printable(text))
                sys.stdout.flush()
                pause_s = 0.3
            elif is_over:
                return
            else:
                is_over = has_ended()  # what was written before the end is still read
                time.sleep(0 if is_over else pause_s)
                pause_s = min(pause_s * 1.5, 5.0)  # has_ended() queries Slurm
