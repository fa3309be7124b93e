"""Commands that show stored results, and the history of one row."""

import click

from astra import api
from astra.cli.completion import TASK
from astra.cli.group import main
from astra.cli.options import COUNT, csv_option, input_model_option, json_option, read_keys
from astra.cli.output import show, show_rows
from astra.errors import UsageError, count


@main.command()
@click.argument("task", type=TASK)
@click.option(
    "--keys",
    callback=read_keys,
    metavar="FILE|LIST",
    help="Print only the results of these rows: a file, or key,key,...",
)
@input_model_option
@click.option("--limit", type=COUNT, metavar="N", help="Print at most N results.")
@csv_option
@json_option
def results(
    task: str, keys: list[object] | None, input_model: str | None, limit: int | None,
    as_csv: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the results of TASK at the current version."""
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other: leave one of them out")
    shown = limit if as_csv or as_json or limit else show_rows.SHOWN + 1
    stored = api.StoredResults(task, keys, input_model, shown)
    if as_csv:
        show_rows.as_csv(stored)
    elif as_json:
        show_rows.as_json(stored)
    else:
        show_rows.results(stored, limit)
    if stored.unknown and limit is None:
        n = count(len(stored.unknown), "key")
        show.note(f"{n} without a result: {api.keys_as_text(stored.unknown)}")


@main.command()
@click.argument("task", type=TASK)
@click.argument("key")
@input_model_option
@json_option
def why(task: str, key: str, input_model: str | None, as_json: bool) -> None:
    """Explain why the row with this KEY is or is not pending for TASK, and show its history.

    A KEY of several columns is a JSON array, such as '["2024-01-01", 3]'.
    """
    history = api.why(task, key, input_model)
    if as_json:
        show.as_json(history)
    else:
        show_rows.row_history(history)
