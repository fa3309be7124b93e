"""What a shell completes: tasks, plans, profiles, nights, states and models.

Each function yields (value, help) pairs. If anything goes wrong while somebody types, nothing is
printed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from astra import api
from astra.config.units import is_number, written_moment
from astra.states import PlanState, SlurmState

Pairs = Iterator[tuple[str, str]]

#: How many seconds to wait for the database.
_CONNECT_TIMEOUT_S = 2


class Completed(click.ParamType):
    """A parameter whose values a shell completes; the text is used unchanged."""

    def __init__(self, *sources: Callable[[click.Context], Pairs], name: str = "text") -> None:
        self.name, self.sources = name, sources

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the values that begin with `incomplete`, or with the last word of a list."""
        before, comma, word = incomplete.rpartition(",")
        completions = []
        for source in self.sources:
            try:
                _configure(ctx)
                completions += list(source(ctx))
            except Exception:  # noqa: S112 - nobody asked for a message
                continue
        return [
            CompletionItem(f"{before}{comma}{value}", help=explanation or None)
            for value, explanation in dict.fromkeys(completions)
            if value.startswith(word)
        ]


class PlanNumber(Completed):
    """The number of a plan."""

    def __init__(self) -> None:
        super().__init__(plans, name="plan")

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if not is_number(str(value)):
            self.fail(f"{value!r} is not the number of a plan; astra plans lists them", param, ctx)
        return int(str(value))


def _configure(ctx: click.Context) -> None:
    """Read the configuration that the command line names; modules of this folder are found."""
    from astra.config import settings
    from astra.config.startup import import_from

    import_from(str(Path.cwd()))
    loaded = settings.load(ctx.find_root().params.get("config_path"))
    hasty = replace(loaded.database, connect_timeout_s=_CONNECT_TIMEOUT_S)
    settings.use(replace(loaded, database=hasty))


def tasks(ctx: click.Context) -> Pairs:
    """List the tasks of astra, of packages, of the modules in this folder, and of nights."""
    for name in api.known_tasks():
        yield name, "installed"
    yield from api.tasks_of_folder()
    for night in api.configuration().nights.values():
        for task in night.tasks:
            yield task.task, f"of the night {night.name}"


def plans(ctx: click.Context) -> Pairs:
    """Complete the numbers of the last plans."""
    url = api.configuration().database.url
    if url.startswith("sqlite:") and not api.is_database_file(url):
        return  # completion must not create a file
    for p in api.plans(30):
        remaining = f"{p.pending:,} of {p.rows:,} rows left"
        yield str(p.plan), f"{p.task} on {p.input_model}, {written_moment(p.created)}, {remaining}"


def profiles(ctx: click.Context) -> Pairs:
    from astra.config import profiles as known

    configuration = api.configuration()
    for name in known.names(configuration):
        options = known.get(name, configuration).options
        yield name, ", ".join(f"{k} {options[k]}" for k in ("partition", "time") if k in options)


def nights(ctx: click.Context) -> Pairs:
    for name, night in api.configuration().nights.items():
        yield name, ", ".join(task.task for task in night.tasks)


def plan_states(ctx: click.Context) -> Pairs:
    return ((state.value.replace(" ", "-"), "") for state in PlanState)  # shells split at blanks


def slurm_states(ctx: click.Context) -> Pairs:
    return ((state.value, "") for state in SlurmState)


def models(ctx: click.Context) -> Pairs:
    """Complete the input models of the given task, or those that come with astra."""
    from peewee import Model

    from astra.models import Source

    task = ctx.params.get("task") or ctx.params.get("task_or_plan")
    known: list[type[Model]] = [*api.every_spectrum_model(), Source]
    for model in api.input_models(api.find_task(task)) if task else known:
        yield model.__name__, model._meta.table_name


PLAN = PlanNumber()
TASK = Completed(tasks, name="task")
TASK_OR_PLAN = Completed(tasks, plans)
PROFILE = Completed(profiles)
NIGHT = Completed(nights)
NIGHT_OR_PLAN = Completed(plans, nights)
PLAN_STATE = Completed(plan_states)
SLURM_STATES = Completed(slurm_states)
MODEL = Completed(models)
