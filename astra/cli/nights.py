"""Commands for nights: start, continue, list, and put them into the crontab."""

import logging
import sys
from pathlib import Path

import click

from astra import api
from astra.cli.completion import NIGHT
from astra.cli.group import main
from astra.cli.options import COUNT, csv_option, json_option
from astra.cli.output import show, show_nights
from astra.errors import UsageError


@main.command()
@click.argument("name", type=NIGHT)
@click.option("--quiet", is_flag=True, help="Print nothing unless something is wrong.")
@click.option(
    "--continue",
    "night",
    type=COUNT,
    metavar="NIGHT",
    help="Do once, by hand, what the finalizer of NIGHT does.",
)
@click.option("--job", "token", hidden=True)
@click.option(
    "--check", is_flag=True, help="Check whether the night could start, and start nothing."
)
@json_option
def nightly(
    name: str, quiet: bool, night: int | None, token: str | None, check: bool, as_json: bool
) -> None:
    """Start the night NAME: plan and submit its tasks, and resume them until all rows have ended.

    Queues a small job, the finalizer, behind the arrays. It resumes what did not finish, starts
    tasks that depend on others, and closes the night.
    """
    if quiet:  # recovered problems are not reported; the others are errors
        logging.getLogger().setLevel(logging.ERROR)
    if check:
        from astra.cli.setup import show_findings

        show_findings(api.examine(name), as_json, quiet, f"night {name}: ready")
    begun = api.nightly(name) if night is None else api.proceed(name, night, token)
    if as_json:
        show.as_json(begun)
    elif not quiet:
        show_nights.nightly(begun)
    for problem in begun.problems:
        show.error(problem)
    if begun.problems:
        sys.exit(6)


@main.command()
@click.argument("name", type=NIGHT, required=False)
@click.argument("date", required=False)
@click.option("--heal", is_flag=True, help="Replace finalizers that have ended too early.")
@csv_option
@json_option
def nights(
    name: str | None, date: str | None, heal: bool, as_csv: bool, as_json: bool
) -> None:  # fmt: skip
    """List the last nights, or those of NAME, or show the last one that began on DATE.

    DATE may also be the number of a night. Exit status with DATE: 0 whole, 3 running, 4 needs
    attention, 8 failed rows; with --heal: 4 if a night could not be given a finalizer.
    """
    if heal:
        healed = api.heal(name)
        show.as_json(healed) if as_json else show_nights.healed(healed)
        sys.exit(4 if any(night.state == "without a finalizer" for night in healed) else 0)
    elif name is not None and date is not None:
        night = api.night_of(name, date)
        show.as_json(night) if as_json else show_nights.night(night)
        sys.exit(night.exit_status)
    else:
        listed = api.nights(name)
        show.as_json(listed) if as_json else show_nights.nights(listed, as_csv)


@main.command()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Replace FILE atomically instead of printing, for node_exporter's textfile collector.",
)  # fmt: skip
def metrics(output: Path | None) -> None:
    """Print Prometheus metrics of nights and plans: rows by state, ages, retries."""
    from astra.config.run_folder import write_output

    text = api.retrying(api.metrics, bound_s=30)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_output(output, text)


@main.command()
@click.argument("name", type=NIGHT)
@click.option("--at", metavar="TIMES", help='When to start, in cron\'s format: "0 20 * * *".')
@click.option("--install", is_flag=True, help="Add the entry to your crontab.")
@click.option("--remove", is_flag=True, help="Remove the entry; all other lines stay.")
@click.option("--check", is_flag=True, help="Check the night in an environment as bare as cron's.")
@click.option("--scron", is_flag=True, help="Use Slurm's scrontab instead of crontab.")
@click.option("--mailto", metavar="ADDRESS", help="Who receives cron's mail; by default, you.")
def cron(
    name: str, at: str | None, install: bool, remove: bool, check: bool, scron: bool,
    mailto: str | None,
) -> None:  # fmt: skip
    """Print, install, remove or check the crontab entry that starts the night NAME."""
    if (at is not None) == (remove or check):
        raise UsageError('give --at "0 20 * * *" (with or without --install), --remove or --check')
    if check:
        show.line(api.check_cron(name))
    elif remove:
        was_removed = api.remove_cron(name, scron)
        show.line(
            f"night {name}: {'its entry was removed' if was_removed else 'there was no entry'}"
        )
    elif at is not None:
        entry = api.cron_entry(name, at, mailto, scron)
        if install:
            api.install_cron(name, entry, scron)
        click.echo(entry, nl=False)
