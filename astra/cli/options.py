"""Options that several commands take, and the values that they stand for."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import click

from astra import api
from astra.cli import json_output
from astra.cli.completion import MODEL, PLAN, PLAN_STATE, PROFILE, TASK
from astra.cli.output import show
from astra.config.units import is_number
from astra.errors import UsageError

if TYPE_CHECKING:
    from click.parser import _OptionParser, _ParsingState

    from astra.api import Execution

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")


class Number(click.ParamType):
    """A number within bounds, with messages for people; a whole one if its least value is."""

    def __init__(self, least: float, greatest: float, unit: str = "") -> None:
        self.least, self.greatest, self.unit = least, greatest, unit
        self.name = "integer" if isinstance(least, int) else "number"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = type(self.least)(str(value))
        except ValueError:
            kind = "a whole number" if self.name == "integer" else "a number"
            self.fail(f"{value!r} is not {kind}{self.unit and f' of {self.unit}'}", param, ctx)
        if number > self.greatest:
            self.fail(f"{value} is more than {self.greatest:,}", param, ctx)
        if not number >= self.least:  # or not a number
            self.fail(f"{value} is not at least {self.least:g}", param, ctx)
        return number


#: How many rows, and how many pages or elements, as the database stores them.
COUNT, SMALL_COUNT = Number(1, 2**63 - 1), Number(1, 2**31 - 1)

#: An age in days, of which a date can be computed.
DAYS = Number(0.0, 36_500, "days")

#: How often something is done, in seconds.
INTERVAL_S = Number(1.0, 1e9, "seconds")


class Decorator(Protocol):
    """Adds options to the function of a command."""

    def __call__(self, function: F, /) -> F: ...


def _gathered(name: str, gather: Callable[..., object], *options: Decorator) -> Decorator:
    """Return one decorator of several options, whose values a command gets as one, `name`.

    Help shows the options in this order.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def command(*args: object, **values: object) -> object:
            values[name] = gather(**{key: values.pop(key) for key in keys})
            return function(*args, **values)

        before = len(getattr(command, "__click_params__", ()))
        for option in reversed(options):
            option(command)
        keys = [option.name for option in getattr(command, "__click_params__", ())[before:]]
        return cast("F", command)

    return decorate


def the_last() -> int:
    """Return the number of the last plan, and print it."""
    plan = api.last_plan()
    click.echo(f"plan {plan}: the last one", err=True)
    return plan


def _last_plan(ctx: click.Context, parameter: click.Parameter, plan: int | None) -> int | None:
    return plan if plan is not None or ctx.resilient_parsing else the_last()


def _named_plan(ctx: click.Context, parameter: click.Parameter, plan: int | None) -> int | None:
    if plan is not None or ctx.resilient_parsing:
        return plan

    last = api.last_plan()
    raise UsageError(
        f"astra {ctx.info_name} needs the number of a plan; the last is {last} (astra plans)"
    )


def _trust(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        api.trust()
        ctx.call_on_close(api.revoke_trust)


def read_keys(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> list[str] | None:
    return None if value is None else api.keys_of(_given(value))


def _given(text: str) -> str:
    """Refuse an empty value, such as that of a variable that is not set."""
    if not text.strip():
        raise click.BadParameter("it is empty; name at least one row, or leave it out")
    return text


def since(text: str) -> datetime:
    """Read a date or a moment, or how long ago it was."""
    from astra.config.units import duration_s

    try:
        if (seconds := duration_s(text)) is not None:
            return datetime.now(UTC) - timedelta(seconds=seconds)
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        problem = f"{text!r} is not a time; write 2026-11-24, or how long ago it was: 12h, 3d"
        raise click.BadParameter(problem) from error


def seconds(text: str) -> float:
    """Read 2h, 90min, or a time as sbatch reads it, in seconds."""
    from astra.config.units import duration_s, time_limit_s

    time_s = duration_s(text) or time_limit_s(text)
    if not time_s:
        raise click.BadParameter(f"{text!r} is not a time; write 2h, 90min, or 02:00:00")
    return float(time_s)


class RedoOption(click.Option):
    """--redo older-than DATE: the date may be a word of its own."""

    def add_to_parser(self, parser: "_OptionParser", ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        option = parser._long_opt["--redo"]
        process = option.process

        def take(value: str, state: "_ParsingState") -> None:
            if value == "older-than" and state.rargs:
                value = f"{value} {state.rargs.pop(0)}"
            process(value, state)

        vars(option)["process"] = take


def pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    values = {}
    for pair in texts:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {pair!r}: write NAME=VALUE")
        values[name] = value
    return values


def slurm_pairs(values: tuple[str, ...]) -> dict[str, object]:
    """Parse options of sbatch to the types of a configuration file; a bare name is a flag."""
    booleans: dict[str, object] = {"true": True, "false": False}
    named = pairs(tuple(word if "=" in word else f"{word}=true" for word in values), "--option")
    return {
        name.lstrip("-").replace("-", "_"): int(value)
        if is_number(value)
        else booleans.get(value.lower(), value)
        for name, value in named.items()
    }


def _execution(
    profile_name: str | None,
    extra: tuple[str, ...],
    dry_run: bool,
    local: bool,
    jobs: int,
    **named: object,
) -> "Execution":
    options = {key: value for key, value in named.items() if value is not None}
    options |= slurm_pairs(extra)
    is_silent = click.get_current_context().params["as_json"]
    # It imports rich, which takes long: only when something runs here.
    progress = None if is_silent else lambda title: show.progress(title)
    return api.Execution(profile_name, options, dry_run, local, jobs, progress)


def _ids(ctx: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    """Read identifiers from a list, or from a file with one or more on each line."""
    if text is None:
        return None
    is_list = all(c.isdigit() or c in ", -\n" for c in _given(text))
    ids = []
    for line in [text] if is_list else api.keys_of(text, "--sdss-ids"):
        for word in line.split("#")[0].replace(",", " ").split():
            try:
                ids.append(int(word))
            except ValueError as error:
                raise UsageError(
                    f"--sdss-ids: {word!r} is neither a number nor a readable file"
                ) from error
    return ids


def one(items: Sequence[T]) -> T | Sequence[T]:
    """Return the only item of a list, or the list: most tasks read one table."""
    return items[0] if len(items) == 1 else items


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=json_output.reserve_stdout, help="Print JSON."
)
csv_option = click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")

#: PLAN of a command that only reads: the last one if it is left out.
plan_read = click.argument("plan", type=PLAN, required=False, callback=_last_plan)

#: PLAN of a command that changes something, which guesses none.
plan_named = click.argument(
    "plan", type=PLAN, required=False, metavar="PLAN", callback=_named_plan
)  # fmt: skip

#: Of a command that imports the code of a plan, or has elements import it.
trust_option = click.option(
    "--trust", is_flag=True, expose_value=False, callback=_trust,
    help="Run the plan's code although another database role made the plan.",
)  # fmt: skip

input_model_option = click.option(
    "--input-model", type=MODEL, metavar="M", help="Use only this input model of the task."
)
arguments_option = click.option(
    "--set", "arguments", multiple=True, metavar="NAME=VALUE",
    callback=lambda ctx, parameter, values: pairs(values, "--set"),
    help="Set an argument of the task.",
)  # fmt: skip


def profile_option(text: str) -> Decorator:
    return click.option("--profile", "profile_name", type=PROFILE, metavar="P", help=text)


#: Task, state, whether only one's own, and since when they were made.
PlanFilters = tuple[str | None, str | None, bool, datetime | None]

#: Which plans are listed.
plan_filters = _gathered(
    "filters", lambda task, state, mine, since: (task, state, mine, since),
    click.option("--task", type=TASK, metavar="TASK", help="Only plans of this task."),
    click.option("--state", type=PLAN_STATE, metavar="STATE",
                 help="Only plans that are whole, failed rows, running, attention or cancelled."),
    click.option("--mine", is_flag=True, help="Only plans that you made."),
    click.option("--since", type=since, metavar="TIME",
                 help="Only plans made since a date or within a time: 2026-11-24, 12h, 3d."),
)  # fmt: skip


def _planning(page_size: tuple[str, ...], max_rows: tuple[str, ...]) -> Decorator:
    """Return the rows to plan and the size of a page; the names are those of ``create_plan``."""
    return _gathered(
        "planning", dict,
        input_model_option,
        click.option("--sdss-ids", callback=_ids, metavar="FILE|LIST",
                     help="Take only these sources: 1,2,3 or a file."),
        click.option("--keys", callback=read_keys, metavar="FILE|LIST",
                     help="Take only rows with these keys: a file with one per line, or key,key."),
        click.option("--where", metavar="EXPR",
                     help='Take only rows that meet this condition: "snr > 10".'),
        click.option("--redo", cls=RedoOption, metavar="WHICH",
                     help="Also take ended rows: all, changed, failed, or older-than DATE."),
        click.option(*page_size, type=COUNT, metavar="N",
                     help="Rows per page (--max-rows: rows in all)."),
        click.option(*max_rows, type=COUNT, metavar="N", help="Take at most N rows."),
        arguments_option,
        click.option("--again", is_flag=True,
                     help="Also take rows that failed, or for which the task yielded nothing."),
    )  # fmt: skip


plan_options = _planning(("--page-size", "--limit", "limit"), ("--max-rows",))

#: The same of a command that runs them here, whose limit is that of the rows.
run_options = _planning(("--page-size", "limit"), ("--limit", "--max-rows", "max_rows"))

#: How elements are submitted, or run here.
slurm_options = _gathered(
    "execution", _execution,
    profile_option("Profile of Slurm options."),
    click.option("--throttle", type=SMALL_COUNT, metavar="N",
                 help="Run at most N elements at once."),
    click.option("--pages-per-element", type=SMALL_COUNT, metavar="N",
                 help="Assign N pages to each element."),
    click.option("--row-timeout", type=Number(0.0, 1e9, "seconds"), metavar="SECONDS",
                 help="Record a row that takes longer as a failure."),
    click.option("--time", metavar="TIME", help="Time limit of an element."),
    click.option("--mem", metavar="SIZE", help="Memory of an element."),
    click.option("--partition", metavar="NAME", help="Slurm partition."),
    click.option("--account", metavar="NAME", help="Account to charge."),
    click.option("--qos", metavar="NAME", help="Quality of service."),
    click.option("-o", "--option", "extra", multiple=True, metavar="NAME=VALUE",
                 help="Any other sbatch option; a flag by its NAME alone."),
    click.option("--dry-run", is_flag=True, help="Show the scripts; store and submit nothing."),
    click.option("--local", is_flag=True, help="Run the elements as processes on this machine."),
    click.option("-j", "--jobs", type=SMALL_COUNT, default=1, metavar="N",
                 help="With --local: number of processes."),
)  # fmt: skip
