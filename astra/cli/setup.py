"""Before the first plan: the database, the configuration, the demonstration."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from astra import api
from astra.cli.group import main
from astra.cli.options import Number, json_option, profile_option, seconds
from astra.cli.output import show
from astra.errors import UsageError, count, nearest

if TYPE_CHECKING:
    from astra.doctor.finding import Finding


@main.command()
@click.argument("modules", nargs=-1, metavar="[MODULE]...")
@click.option(
    "--grant", multiple=True, metavar="ROLE[:plans|writes|reads]",
    help="Let a PostgreSQL role plan, write results, or read; by default, all three.",
)  # fmt: skip
@click.option(
    "--copied", is_flag=True,
    help="This database is a copy of one that is still in use: cancel its active plans here.",
)  # fmt: skip
@click.option(
    "--moved",
    is_flag=True,
    help="This database was moved here, and the original is gone: continue its plans.",
)
@click.option(
    "--track-changes",
    "tracked",
    multiple=True,
    metavar="MODEL",
    help="Record in the database when rows of an existing table change, in the column that "
    "Meta.modified of its model names.",
)
@click.option("--views", is_flag=True, help="Create a view TABLE_current of each table of results.")
@click.option("--sql", is_flag=True, help="Print the SQL statements and change nothing.")
@json_option
def initdb(
    modules: tuple[str, ...], grant: tuple[str, ...], copied: bool, moved: bool, views: bool,
    tracked: tuple[str, ...], sql: bool, as_json: bool,
) -> None:  # fmt: skip
    """Create all missing tables, including those of your MODULEs. Can be run again."""
    from astra.config.secrets import hide_password

    if copied and moved:
        raise click.UsageError("--copied and --moved exclude each other: leave one of them out")
    if sql:
        if copied or moved or as_json:
            raise click.UsageError(
                "--sql prints what would be done for MODULEs, --grant, --views and "
                "--track-changes: leave --copied, --moved and --json out"
            )
        click.echo(api.sql_of_tables(modules, grant, views, tracked))
        return
    notes: list[str] = []
    new = api.init_database(modules, grant, copied, moved, notes, views, tracked)
    if as_json:
        show.as_json({"database": hide_password(api.database_url()), "new": new, "notes": notes})
    else:
        tables = f"{count(len(new), 'new table')}: {', '.join(new)}" if new else "up to date"
        show.line(f"{hide_password(api.database_url())}: {tables}")
        for note in notes:
            show.line(note)
        for each in grant:
            role, _, right = each.partition(":")
            show.line(f"granted to {role}: {right or 'plans, writes, reads'}")


@main.command()
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option(
    "--database",
    "url",
    metavar="URL",
    help="The database that holds the tables; by default, the configured one.",
)
@click.option("--schema", metavar="NAME", help="The PostgreSQL schema that holds the tables.")
@click.option("--module", default="mytasks", show_default=True, help="Name of the Python module.")
def init(tables: tuple[str, ...], url: str | None, schema: str | None, module: str) -> None:
    """Write a starting point: astra.toml, and mytasks.py with models of existing TABLEs.

    With --database and without TABLE, all tables of the schema get a model. With neither,
    mytasks.py has an example of a task on spectra.
    """
    for path in api.start_here(tables, url, schema, module):
        show.line(f"written: {path}")
    if "primary_key = False" in path.read_text():
        show.line(
            "no task was written for tables without a primary key: replace primary_key = False in "
            f"{module}.py by the columns that identify a row, then write a task"
        )
    show.line(f"next: look at {module}.py, then astra initdb {module}")


@main.command()
@click.option("--job", is_flag=True, help="Also check from a node, by a job of one minute.")
@profile_option("With --job: the Slurm options of the job.")
@click.option(
    "--wait", "wait_s", type=seconds, default="5min", show_default=True, metavar="TIME",
    help="With --job: the longest time to wait for the job.",
)  # fmt: skip
@click.option("--answer", type=click.Path(path_type=Path), hidden=True)
@json_option
def doctor(
    job: bool, profile_name: str | None, wait_s: float, answer: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Check whether this machine is ready to run astra, and print what to type if it is not.

    Checks Python, the configuration, the database, Slurm, the run directory, and each night with
    its mail, webhook and cron. Exit status: 0 ready, perhaps with warnings; 4 something failed.
    """
    if answer is not None:
        api.write_answer(answer, api.on_a_node)
        return
    if profile_name is not None and not job:
        raise UsageError("--profile is for the job of --job: add --job, or leave --profile out")
    show_findings(api.examine(None, job, wait_s, profile_name), as_json, False, "ready")


def show_findings(findings: Iterable["Finding"], as_json: bool, quiet: bool, ready: str) -> None:
    """Show findings as they come, and exit with 4 if one of them failed."""
    shown = []
    for finding in findings:
        shown.append(finding)
        if not as_json and not (quiet and finding.state != "failed"):
            show.finding(finding)
    if as_json:
        show.as_json(shown)
    elif api.is_ready(shown) and not quiet:
        warnings = sum(finding.state == "warning" for finding in shown)
        show.line(f"{ready}, with {count(warnings, 'warning')}" if warnings else ready)
    elif not quiet:
        failed = sum(finding.state == "failed" for finding in shown)
        show.line(f"not ready: {count(failed, 'check')} failed")
    sys.exit(0 if api.is_ready(shown) else 4)


@main.command("config")
@json_option
def config_command(as_json: bool) -> None:
    """Show each setting and where it came from, and check the profiles. Secrets are hidden."""
    settings = api.configuration()
    if as_json:
        show.as_json([{"key": k, "value": v, "source": s} for k, v, s in settings.rows()])
    else:
        show.configuration(settings)
    wrong = api.wrong_profiles()
    for _, error in wrong:
        show.error(str(error))
    if wrong:
        sys.exit(UsageError.exit_status)


@main.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--rows",
    type=Number(10, 10**6),
    default=200,
    show_default=True,
    help="Number of input rows.",
)
def demo(folder: Path | None, rows: int) -> None:
    """Demonstrate astra on SQLite: plan, run, kill a process, resume, show results."""
    from astra.cli.demo import run_demo

    run_demo(folder, rows)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script with which a shell completes commands, tasks, plans, profiles and nights.

    For bash, eval "$(astra completion bash)" in ~/.bashrc; for zsh the same in ~/.zshrc, after
    compinit; for fish, in ~/.config/fish/completions/astra.fish.
    """
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None  # noqa: S101 - one of the choices
    click.echo(completion_class(main, {}, "astra", "_ASTRA_COMPLETE").source())


@main.command("help")
@click.argument("commands", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_command(ctx: click.Context, commands: tuple[str, ...]) -> None:
    """Show the help of COMMAND, with examples; without COMMAND, list all commands."""
    shown = ctx.find_root()
    for name in commands:
        group = shown.command
        if not isinstance(group, click.Group):
            of = shown.info_name
            raise UsageError(f"astra {of} has no subcommand {name!r}: astra help {of}")
        if name not in group.commands:
            raise UsageError(f"no command {name!r}. {nearest(name, group.commands)}")
        shown = click.Context(group.commands[name], info_name=name, parent=shown)
    click.echo(shown.get_help())
