"""The command line: named parameters, one call each, and what it says of errors."""

import logging
import sys
from pathlib import Path
from typing import Any

import click

from astra import __version__
from astra.errors import AstraError, UsageError, nearest


class _Commands(click.Group):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args and args[0] not in self.commands:
                hint = nearest(args[0], self.commands)
                raise click.UsageError(f"no command {args[0]!r}. {hint}", ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AstraError as error:
            _show_error(error)
            ctx.exit(error.exit_status)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)


def _show_error(error: AstraError) -> None:
    from astra import show

    show.error(str(error))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="astra")
@click.option("--config", "config_path", metavar="FILE", help="Configuration to use.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
def main(config_path: str | None, verbose: bool) -> None:
    """Process every row of an archive that has no up-to-date result, and know that it is done.

    \b
    pending -> plan -> script -> submit -> element -> results -> status / resume
    """
    import warnings

    warnings.simplefilter("default" if verbose else "ignore", ResourceWarning)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    _hide_secrets()
    # As for `python -m`: a task of a module in this folder is found.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if config_path is not None:
        import os

        from astra import config

        config.use(config.load(config_path))
        os.environ["ASTRA_CONFIG"] = str(Path(config_path).absolute())


class _Hiding(logging.Formatter):
    """What is logged, tracebacks too, without passwords: logs are kept and shown around."""

    def format(self, record: logging.LogRecord) -> str:
        from astra.config import hide

        return hide(super().format(record))


def _hide_secrets() -> None:
    """Neither the log nor the traceback of a bug shows a password."""
    import threading
    import traceback

    from astra.config import hide

    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_Hiding("%(asctime)s %(levelname)s %(message)s"))

    def show_bug(kind: Any, error: Any, trace: Any) -> None:
        sys.stderr.write(hide("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = show_bug
    threading.excepthook = lambda bug: show_bug(bug.exc_type, bug.exc_value, bug.exc_traceback)


def _json(function: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def _plan_options(function: Any) -> Any:
    for option in reversed(
        (
            click.option("--input-model", metavar="M", help="One of the task's input models."),
            click.option(
                "--sdss-ids", metavar="FILE|LIST", help="Only these sources: 1,2,3 or a file."
            ),
            click.option("--limit", type=int, metavar="N", help="Rows per page."),
            click.option("--max-rows", type=int, metavar="N", help="At most so many rows."),
            click.option(
                "--set", "arguments", multiple=True, metavar="NAME=VALUE", help="Task's argument."
            ),
            click.option(
                "--again", is_flag=True, help="Also rows that ended as failed or without result."
            ),
        )
    ):
        function = option(function)
    return function


def _slurm_options(function: Any) -> Any:
    for option in reversed(
        (
            click.option("--profile", "profile_name", metavar="P", help="Slurm options to use."),
            click.option("--throttle", type=int, metavar="N", help="At most N elements at once."),
            click.option(
                "--pages-per-element", type=int, metavar="N", help="Pages that an element runs."
            ),
            click.option(
                "--row-timeout", type=click.FloatRange(0), metavar="SECONDS",
                help="End a row that takes longer, as a failure.",
            ),
            click.option("--time", "walltime", metavar="TIME", help="Time limit of an element."),
            click.option("--mem", metavar="SIZE", help="Memory of an element."),
            click.option("--partition", metavar="NAME", help="Partition of Slurm's."),
            click.option("--account", metavar="NAME", help="Account to charge."),
            click.option("--qos", metavar="NAME", help="Quality of service."),
            click.option(
                "-o", "--option", "extra", multiple=True, metavar="NAME=VALUE",
                help="Any other option of sbatch; a flag by its NAME alone.",
            ),
            click.option("--dry-run", is_flag=True, help="Show scripts; store and submit nothing."),
            click.option("--local", is_flag=True, help="Run as processes of this machine."),
            click.option("-j", "--jobs", type=click.IntRange(1), default=1, metavar="N",
                         help="With --local: processes at once."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def _pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {pair!r}: write NAME=VALUE")
        found[name] = value
    return found


def _slurm_pairs(given: tuple[str, ...]) -> dict[str, Any]:
    """Options of sbatch, with the types that a configuration file has; a bare name is a flag."""
    words: dict[str, Any] = {"true": True, "false": False}
    pairs = _pairs(tuple(word if "=" in word else f"{word}=true" for word in given), "--option")
    return {
        name.lstrip("-").replace("-", "_"): int(value)
        if value.isascii() and value.isdecimal()
        else words.get(value.lower(), value)
        for name, value in pairs.items()
    }


def _ids(text: str | None) -> list[int] | None:
    """Identifiers from a list, or from a file with one or more to a line."""
    if text is None:
        return None
    words = text
    if not all(c.isdigit() or c in ", -\n" for c in text):
        try:
            words = Path(text).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--sdss-ids {text}: neither a list nor a readable file") from error
    ids = []
    for number, row in enumerate(words.splitlines(), 1):
        for word in row.split("#")[0].replace(",", " ").split():
            try:
                ids.append(int(word))
            except ValueError as error:
                raise UsageError(f"--sdss-ids: {word!r} in line {number} is no id") from error
    return ids


def _slurm_values(
    throttle: int | None, pages_per_element: int | None, row_timeout: float | None,
    walltime: str | None, mem: str | None,
    partition: str | None, account: str | None, qos: str | None, extra: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    named = {
        "throttle": throttle, "pages_per_element": pages_per_element,
        "row_timeout": row_timeout, "time": walltime, "mem": mem, "partition": partition,
        "account": account, "qos": qos,
    }  # fmt: skip
    given = {key: value for key, value in named.items() if value is not None}
    return {**given, **_slurm_pairs(extra)}


@main.command()
@click.argument("modules", nargs=-1, metavar="[MODULE]...")
@click.option(
    "--grant",
    multiple=True,
    metavar="ROLE[:plans|writes|reads]",
    help="Let a role of PostgreSQL plan, write results, or read; without a word, all three.",
)
@_json
def initdb(modules: tuple[str, ...], grant: tuple[str, ...], as_json: bool) -> None:
    """Make all missing tables, those of your MODULEs too. Can be run again."""
    from astra import show
    from astra.config import hide_password
    from astra.database import url
    from astra.schema import init_database

    new = init_database(modules, grant)
    if as_json:
        show.as_json({"database": hide_password(url()), "new": new})
    else:
        what = f"{show.count(len(new), 'new table')}: {', '.join(new)}" if new else "up to date"
        show.line(f"{hide_password(url())}: {what}")


@main.command("config")
@_json
def config_command(as_json: bool) -> None:
    """Show every value and where it came from; secrets are hidden."""
    from astra import config, show

    settings = config.current()
    if as_json:
        show.as_json([{"key": k, "value": v, "source": s} for k, v, s in settings.rows()])
    else:
        show.configuration(settings)


class _Duration(click.ParamType):
    """2h, 90min, or as sbatch reads a time; in seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        from astra.slurm_text import duration_s, time_limit_s

        seconds = duration_s(value) or time_limit_s(value)
        if not seconds:
            self.fail(f"{value!r} is no time; write 2h, 90min, or 02:00:00", param, ctx)
        return float(seconds)


@main.command("estimate")
@click.argument("task")
@click.option(
    "--time",
    "element_time",
    type=_Duration(),
    default="1h",
    show_default=True,
    metavar="TIME",
    help="How long an element should take.",
)
@click.option("--input-model", metavar="M", help="One of the task's input models.")
@click.option("--set", "arguments", multiple=True, metavar="NAME=VALUE", help="Task's argument.")
@click.option("--profile", "profile_name", metavar="P", help="Whose partition bounds the limits.")
@click.option("--partition", metavar="NAME", help="Partition of Slurm's.")
@click.option("--probe", is_flag=True, help="Run 20 rows here first, if nothing is known.")
@_json
def estimate_command(
    task: str, element_time: float, input_model: str | None, arguments: tuple[str, ...],
    profile_name: str | None, partition: str | None, probe: bool, as_json: bool,
) -> None:  # fmt: skip
    """Choose rows per page, memory and time limits for TASK, from what its attempts took."""
    from astra import show
    from astra.estimate import estimate
    from astra.submit import choose_profile

    chosen = choose_profile(profile_name, {"partition": partition})
    found = estimate(
        task, input_model, element_time, _pairs(arguments, "--set"), chosen, probe
    )  # fmt: skip
    show.as_json(_one(found)) if as_json else show.estimated(found)


@main.command()
@click.argument("task")
@_plan_options
@click.option(
    "--time",
    "--element-time",
    "element_time",
    type=_Duration(),
    metavar="TIME",
    help="As many rows in a page as make an element take about so long.",
)
@click.option("--profile", "profile_name", metavar="P", help="With --time: bounds the limits.")
@_json
def plan(
    task: str, as_json: bool, element_time: float | None, profile_name: str | None, **options: Any
) -> None:
    """Freeze the pending rows of TASK into pages."""
    from astra import show

    if element_time is None:
        plans = _create(task, **options)
        show.as_json(_one(plans)) if as_json else show.planned(plans)
        return
    from astra.compose import plan_sized
    from astra.submit import choose_profile

    sized = plan_sized(task, _planning(**options), element_time, choose_profile(profile_name, None))
    if as_json:
        show.as_json(_one([p for p, _ in sized]))
    else:
        show.planned([p for p, _ in sized])
        show.sized(sized)


def _create(
    task: str, input_model: str | None, sdss_ids: str | None, limit: int | None,
    max_rows: int | None, arguments: tuple[str, ...], again: bool,
) -> list[Any]:  # fmt: skip
    from astra.plan import create_plan

    return create_plan(
        task, **_planning(input_model, sdss_ids, limit, max_rows, arguments, again)
    )  # fmt: skip


def _planning(
    input_model: str | None, sdss_ids: str | None, limit: int | None, max_rows: int | None,
    arguments: tuple[str, ...], again: bool,
) -> dict[str, Any]:  # fmt: skip
    return {
        "input_model": input_model, "sdss_ids": _ids(sdss_ids), "limit": limit,
        "max_rows": max_rows, "arguments": _pairs(arguments, "--set"), "again": again,
    }  # fmt: skip


def _one(found: list[Any]) -> Any:
    """One thing as itself: most tasks read one table."""
    return found[0] if len(found) == 1 else found


@main.command()
@click.argument("task_or_plan")
@_plan_options
@click.option(
    "--element-time",
    type=_Duration(),
    metavar="TIME",
    help="Choose rows per page, and --time and --mem if not given, by experience.",
)
@_slurm_options
@_json
def submit(
    task_or_plan: str, dry_run: bool, local: bool, jobs: int, profile_name: str | None,
    as_json: bool, input_model: str | None, sdss_ids: str | None, limit: int | None,
    max_rows: int | None, arguments: tuple[str, ...], again: bool, element_time: float | None,
    **slurm_options: Any,
) -> None:  # fmt: skip
    """Submit TASK, planned first, or a PLAN by its number, as Slurm job arrays.

    On a plan that was submitted before, only pages that never were are submitted. --time is
    sbatch's time limit; --element-time how long an element is to take.
    """
    from astra import show
    from astra.compose import submit_task

    done = submit_task(
        task_or_plan,
        _planning(input_model, sdss_ids, limit, max_rows, arguments, again),
        profile_name, _slurm_values(**slurm_options), dry_run, local, jobs,
        None if as_json else show.progress, element_time,
    )  # fmt: skip
    _show_submissions(done, as_json, local)


def _show_submissions(done: Any, as_json: bool, local: bool) -> None:
    from astra import show

    if as_json:
        show.as_json(_one([s if s is not None else show.nothing_submitted(p) for p, s in done]))
    else:
        show.planned([p for p, _ in done if p is not None])
    submissions = [s for _, s in done if s is not None]
    if local:
        _show_local(submissions, as_json)
    for submission in [] if as_json else submissions:
        show.submitted(submission)


def _show_local(submissions: list[Any], as_json: bool) -> None:
    """How plans stand that were run here; the exit status says it, too."""
    from astra import show
    from astra.status import status as status_of

    statuses = [status_of(submission.plan) for submission in submissions]
    for submission, found in [] if as_json else zip(submissions, statuses, strict=True):
        if submission.message:
            show.line(submission.message)
        show.status(found)
    sys.exit(max((found.state.exit_status for found in statuses), default=0))


@main.command()
@click.argument("task")
@_plan_options
@_json
def run(task: str, as_json: bool, **options: Any) -> None:
    """Plan TASK and run it here and now, in this process."""
    from astra import show
    from astra.compose import run_here
    from astra.status import status as status_of

    plans = _create(task, **options)
    if not as_json:
        show.planned(plans)
    statuses = []
    for made in plans:
        if made.plan is not None:
            run_here(made.plan, lambda runs: None if as_json else show.page_runs(runs))
            statuses.append(status_of(made.plan))
            if not as_json:
                show.status(statuses[-1])
    if as_json:
        show.as_json(_one(statuses or plans))
    sys.exit(max((s.state.exit_status for s in statuses), default=0))


@main.command("run-page", hidden=True)
@click.option("--plan", "plan_pk", type=int, required=True)
@click.option("--job", "token", required=True)
@click.option("--element", type=int, required=True)
@click.option("--row-timeout", "row_timeout_s", type=click.FloatRange(0), metavar="SECONDS")
def run_page(plan_pk: int, token: str, element: int, row_timeout_s: float | None) -> None:
    """Run one element: what the array's script calls."""
    from astra import config
    from astra.element import run_element
    from astra.supervise import Board, supervised

    def work(board: Board) -> int:
        try:
            runs = run_element(plan_pk, element, token, board=board)
        except AstraError as error:
            _show_error(error)
            return error.exit_status
        from astra import show  # afterwards: the task need not wait for rich

        show.page_runs(runs)
        return max((r.exit_status for r in runs), default=0)

    limit_s = config.current().element.row_timeout_s if row_timeout_s is None else row_timeout_s
    sys.exit(supervised(work, limit_s))


@main.command()
@click.argument("plan", type=int, required=False)
@click.option("--pages", is_flag=True, help="Show every page.")
@click.option("--watch", "live", is_flag=True, help="Show it live, until nothing of it lives.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: how often to look.",
)
@_json
def status(plan: int | None, pages: bool, live: bool, every_s: float, as_json: bool) -> None:
    """Show how PLAN, or the last one, stands.

    Exit status: 0 whole (or cancelled), 3 running, 4 needs attention.
    """
    from astra import show
    from astra.compose import last_plan
    from astra.status import status as status_of
    from astra.watch import watch

    if live and as_json:
        raise UsageError("--watch shows, --json prints once: leave one of them out")
    plan = last_plan() if plan is None else plan
    found = show.watched(watch(plan, every_s)) if live else status_of(plan)
    show.as_json(found) if as_json else show.status(found, pages)
    sys.exit(found.state.exit_status)


@main.command()
@click.argument("plan", type=int)
@click.option("--failed", is_flag=True, help="Take recorded failures again.")
@click.option(
    "--only", metavar="STATES", help="Only pages that Slurm ended so: OUT_OF_MEMORY,TIMEOUT."
)
@_slurm_options
@_json
def resume(
    plan: int, failed: bool, only: str | None, dry_run: bool, local: bool, jobs: int,
    profile_name: str | None, as_json: bool, **slurm_options: Any,
) -> None:  # fmt: skip
    """Submit the pages of PLAN that are not whole and not alive."""
    from astra import show
    from astra.compose import resume_plan

    done = resume_plan(
        plan, failed, _states(only), profile_name,
        _slurm_values(**slurm_options), dry_run, local, jobs,
        None if as_json else show.progress,
    )  # fmt: skip
    if as_json:
        show.as_json(done)
    elif not local or not done.pages:
        show.submitted(done)
    if local:
        _show_local([done], as_json)
    elif done.left and not done.pages:
        sys.exit(4)


def _states(only: str | None) -> list[str]:
    words = [word.strip() for word in (only or "").split(",") if word.strip()]
    if only is not None and not words:
        raise UsageError("--only: name states of Slurm's, as OUT_OF_MEMORY,TIMEOUT")
    return words


@main.command()
@click.argument("plan", type=int)
@_slurm_options
@_json
@click.pass_context
def retry(ctx: click.Context, **options: Any) -> None:
    """Take the recorded failures of PLAN again: the same as resume --failed."""
    ctx.invoke(resume, failed=True, only=None, **options)


@main.command()
@click.argument("plan", type=int)
@_json
def recover(plan: int, as_json: bool) -> None:
    """Store what elements of PLAN had to leave in spool files, without computing it again.

    resume and submit do this by themselves.
    """
    from astra import show
    from astra.plan import get_plan
    from astra.spool import recover as recover_spool
    from astra.submit import plan_lock

    frozen = get_plan(plan)
    with plan_lock(frozen):
        found = recover_spool(frozen)
    show.as_json(found) if as_json else show.recovered(found)


@main.command()
@click.argument("plan", type=int)
@_json
def verify(plan: int, as_json: bool) -> None:
    """Check that what PLAN says of its rows agrees with what is stored for them.

    Reads the database alone, and changes nothing; may be called while the plan runs.
    Exit status: 0 sound, 4 not: every breach is listed by page and key.
    """
    from astra import show
    from astra.verify import verify as verify_plan

    found = verify_plan(plan)
    show.as_json(found) if as_json else show.verdict(found)
    sys.exit(found.exit_status)


@main.command()
@click.argument("plan", type=int)
@click.option("--page", type=int, help="Only the element of this page.")
@_json
def cancel(plan: int, page: int | None, as_json: bool) -> None:
    """Tell the elements of PLAN to end, and give its rows free."""
    from astra import show
    from astra.cancel import cancel as cancel_plan

    done = cancel_plan(plan, page)
    show.as_json(done) if as_json else show.cancelled(done)


@main.command()
@click.argument("plan", type=int)
@click.argument("page", type=int, required=False)
@click.option("-f", "--follow", is_flag=True, help="Print on as it grows.")
@_json
def logs(plan: int, page: int | None, follow: bool, as_json: bool) -> None:
    """Print the log of the last attempt of PAGE, or list those of PLAN."""
    from astra import show
    from astra.logs import logs as logs_of

    found = logs_of(plan, page)
    if as_json:
        show.as_json(found)
    elif page is None:
        made = show.table("page>", "attempt>", "state", "element", "node", "log")
        for log in found:
            made.add_row(
                str(log.page), str(log.attempt), log.state, log.job or "", log.host, log.path or ""
            )
        show.console.print(made)
    else:
        path = found[-1].path
        if path is None or not Path(path).is_file():
            raise UsageError(f"the log of page {page} is not here: {path or 'none was written'}")
        if follow:
            try:
                show.follow(path)
            except KeyboardInterrupt:
                return
        else:
            click.echo(Path(path).read_text(errors="replace"), nl=False)


@main.command()
@click.argument("plan", type=int)
@click.option("--traceback", "with_traceback", is_flag=True, help="With their tracebacks.")
@_json
def failures(plan: int, with_traceback: bool, as_json: bool) -> None:
    """List the rows of PLAN that failed, and why."""
    from astra import show
    from astra.failures import failures as failures_of
    from astra.failures import kinds

    rows = failures_of(plan)
    show.as_json(rows) if as_json else show.failures(kinds(rows), rows, with_traceback)


@main.command()
@click.option("--all", "every", is_flag=True, help="Not only the last 20.")
@_json
def plans(every: bool, as_json: bool) -> None:
    """List plans, the latest first."""
    from astra import show
    from astra.schema import check_version
    from astra.status import all_plans

    check_version()
    found = all_plans(None if every else 20)
    show.as_json(found) if as_json else show.plans(found)


@main.command()
@click.argument("name")
@click.option("--quiet", is_flag=True, help="Say nothing unless something is wrong.")
@click.option(
    "--continue", "night", type=int, metavar="NIGHT", help="Look after NIGHT once, as its job does."
)
@click.option("--job", "token", hidden=True)
@click.option("--check", is_flag=True, help="Try all but the beginning, and say what is missing.")
@_json
def nightly(
    name: str, quiet: bool, night: int | None, token: str | None, check: bool, as_json: bool
) -> None:
    """Process what is new for the night NAME, and see to its end.

    Plans and submits its tasks, and queues a small job behind them that resumes what is not whole,
    and closes the night.
    """
    from astra import show
    from astra.nightly import check_night, proceed
    from astra.nightly import nightly as begin

    if check:
        show.line(check_night(name))
        return
    done = begin(name) if night is None else proceed(name, night, token)
    if as_json:
        show.as_json(done)
    elif not quiet:
        show.nightly(done)
    for problem in done.problems:
        show.error(problem)
    if done.problems:
        sys.exit(6)


@main.command()
@click.argument("name", required=False)
@click.argument("date", required=False)
@click.option("--heal", is_flag=True, help="Replace finalizers that died.")
@_json
def nights(name: str | None, date: str | None, heal: bool, as_json: bool) -> None:
    """List the last nights, those of NAME, or show all of the one that began on DATE.

    Exit status with DATE: 0 whole, 3 running, 4 needs attention.
    """
    from astra import show
    from astra.nightly import heal_all
    from astra.nights import night_of
    from astra.nights import nights as last_nights

    if heal:
        healed = heal_all(name)
        show.as_json(healed) if as_json else show.healed(healed)
    elif name is not None and date is not None:
        found = night_of(name, date)
        show.as_json(found) if as_json else show.night(found)
        sys.exit(found.exit_status)
    else:
        listed = last_nights(name)
        show.as_json(listed) if as_json else show.nights(listed)


@main.command()
@click.argument("name")
@click.option("--at", metavar="TIMES", help='When to begin, as cron has it: "0 20 * * *".')
@click.option("--install", is_flag=True, help="Put the entry into your crontab.")
@click.option("--remove", is_flag=True, help="Take it out; all other lines stay.")
@click.option("--check", is_flag=True, help="Try it in an environment as bare as cron's.")
@click.option("--scron", is_flag=True, help="For scrontab, where the cluster has it.")
@click.option("--mailto", metavar="ADDRESS", help="Who gets cron's mail; by default you.")
def cron(
    name: str, at: str | None, install: bool, remove: bool, check: bool, scron: bool,
    mailto: str | None,
) -> None:  # fmt: skip
    """Print, install, remove or check the crontab entry that begins the night NAME."""
    from astra import cron as of_cron
    from astra import show

    if (at is not None) == (remove or check):
        raise UsageError(
            'say when: --at "0 20 * * *" (with --install or not), or --remove, --check'
        )
    if check:
        show.line(of_cron.check(name))
    elif remove:
        gone = of_cron.remove(name, scron)
        show.line(f"night {name}: {'its entry was taken out' if gone else 'there was no entry'}")
    elif at is not None:
        made = of_cron.entry(name, at, mailto, scron)
        if install:
            of_cron.install(made, scron)
        click.echo(made.text, nl=False)


@main.command()
@click.option("--yes", is_flag=True, help="Remove it; without this it is only shown.")
@click.option("--keep-days", type=click.FloatRange(0), metavar="N", help="Instead of [clean]'s.")
@_json
def clean(yes: bool, keep_days: float | None, as_json: bool) -> None:
    """Show, or remove, old plans that are whole or cancelled, with their logs and scripts.

    Results are never touched, nor plans that are not whole.
    """
    from astra import show
    from astra.clean import clean as clean_up

    done = clean_up(keep_days, not yes)
    show.as_json(done) if as_json else show.cleaned(done)


def _plan_number(word: str) -> int:
    if not word.isdigit():
        raise UsageError(f"{word!r} is no number of a plan: astra plans lists them")
    return int(word)


@main.command()
@click.argument("which", nargs=-1, metavar="[PLAN]... | [NIGHT [DATE]]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to; by default plan-N.html, or night-N.html, here. - is standard output.",
)
@_json
def report(which: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Write a page that tells how PLAN went, or the last one, or several together: one HTML file.

    Of a NIGHT by its name, it is the last one, or that of a DATE.

    It shows what ran when, how fast and on what, what failed, and what to do next; it needs no
    network and holds no password.
    """
    from astra import show
    from astra.compose import last_plan
    from astra.folders import write_whole
    from astra.report import report_of, report_of_night
    from astra.report_page import html

    if which and not which[0].isdigit():
        if len(which) > 2:
            raise UsageError(f"astra report {which[0]}: a night is named by its name and a date")
        night, found = report_of_night(*which)
        file = output or Path(f"night-{night}.html")
    else:
        found = report_of([_plan_number(word) for word in which] or [last_plan()])
        file = output or Path(f"plan-{'-'.join(str(p.plan) for p in found.plans)}.html")
    if as_json:
        show.as_json(found)
        return
    page = html(found)
    if str(output) == "-":
        click.echo(page)
        return
    write_whole(file, page, 0o644)
    show.reported(found, file, len(page.encode()))


@main.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(10), default=200, show_default=True)
def demo(folder: Path | None, rows: int) -> None:
    """Show it all on SQLite: plan, run, a process killed, resume, results."""
    from astra.demo import run_demo

    run_demo(folder, rows)
