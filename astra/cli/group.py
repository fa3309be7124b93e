"""The group of commands: its own options, and how it reports errors."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import click

from astra import __version__
from astra.api import database_errors_explained
from astra.cli.examples import EXAMPLES
from astra.cli.output import show
from astra.errors import AstraError, Interrupted, nearest

#: The modules of commands, as ``astra --help`` shows them, in the order of their use.
_PARTS = {
    "setup": "To begin",
    "running": "Plan and run",
    "plans": "Progress",
    "results": "Results",
    "nights": "Nights",
    "slam": "Pipelines",
}

#: Commands of the published package that do not exist here, with their replacements.
_OF_PUBLISHED_PACKAGE = {
    "srun": "To run a task by Slurm: astra submit TASK --profile NAME",
    "version": "For the version: astra --version",
    "migrate": (
        "Tables are made and completed by astra initdb; spectra and sources are inserted by a "
        "program, as in BossVisitSpectrum.insert_many(rows).execute()"
    ),
}

#: Commands that take a task, and nothing after it.
_TAKE_A_TASK = frozenset({"plan", "submit", "run"})


class _WithExamples:
    """Help that ends with examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        name = ctx.command_path.removeprefix(ctx.find_root().command_path).strip()
        if shown := EXAMPLES.get(name):
            with formatter.section("Examples"):
                formatter.write("".join(f"  $ {line}\n" for line in shown))


class _Command(_WithExamples, click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_extra_args = self.name in _TAKE_A_TASK
        try:
            rest = super().parse_args(ctx, self._with_negative_keys(ctx, args))
        except click.NoSuchOption as error:
            own = {name for option in self.params for name in option.opts}
            if "--set" in own and error.option_name.startswith("--"):
                argument = error.option_name.removeprefix("--").replace("-", "_")
                hint = f"An argument of the task is set with --set {argument}=VALUE."
                raise click.UsageError(f"{error.format_message()} {hint}", ctx) from error
            raise
        if rest and not ctx.resilient_parsing:
            task = ctx.params.get("task") or ctx.params.get("task_or_plan")
            ctx.fail(_hint(str(self.name), str(task), rest))
        return rest

    def _with_negative_keys(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert ``--`` before arguments that look like options but are negative numbers."""
        numbers: list[str] = []
        while True:
            try:
                self.make_parser(ctx).parse_args(args=[*args, "--", *numbers])
            except click.NoSuchOption as error:
                name = error.option_name
                place = next((n for n, arg in enumerate(args) if arg.startswith(name)), None)
                if place is None or not name[1:2].isdigit():
                    raise
                numbers.append(args[place])
                args = args[:place] + args[place + 1 :]
            else:
                return [*args, "--", *numbers] if numbers else args


def _hint(command: str, task: str, arguments: Sequence[str]) -> str:
    """Describe the options that replace what was typed after a task."""
    if task.isdigit() and command == "submit":
        return (
            f"{' '.join(arguments)} after the plan: astra submit takes one plan, or one task: "
            f"astra submit {task}"
        )
    ids = ",".join(argument for argument in arguments if argument.isdigit())
    models = [word for word in arguments if not word.isdigit() and "=" not in word]
    options = [f"--set {quote(word)}" for word in arguments if "=" in word]
    options += [f"--input-model {models[0]}"] if models else []
    options += [f"--sdss-ids {ids}"] if ids else []
    return (
        f"{' '.join(arguments)} after the task: astra {command} takes arguments of the task, its "
        f"input model and sources as options: astra {command} {task} {' '.join(options)}"
    )


class _Subcommands(_WithExamples, click.Group):
    command_class = _Command


class _Commands(click.Group):
    command_class = _Command
    group_class = _Subcommands

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = {name: c for name, c in self.commands.items() if not c.hidden}
        width = max(map(len, shown))
        for part, heading in _PARTS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (name.ljust(width), command.get_short_help_str(limit=100))
                        for name, command in shown.items()
                        if getattr(command.callback, "__module__", "").endswith(f".{part}")
                    ]
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            shown = [n for n, c in self.commands.items() if not c.hidden]
            hint = _OF_PUBLISHED_PACKAGE.get(args[0]) or nearest(args[0], shown)
            raise click.UsageError(f"no command {args[0]!r}. {hint}", ctx) from error

    def invoke(self, ctx: click.Context) -> object:
        from astra.config.startup import exits_raised

        try:
            with exits_raised(), _interruptible(), database_errors_explained():
                return super().invoke(ctx)
        except AstraError as error:
            if isinstance(error, Interrupted):
                # The command is ending: a second Ctrl-C would only suppress its last message.
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
            show.error(str(error))
            ctx.exit(error.exit_status)
        except KeyboardInterrupt as error:
            show.error(f"interrupted{error}; what was stored before stays")
            ctx.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)


#: Seconds that a statement may still take after Ctrl-C.
_LAST_STATEMENT_S = 1.0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a statement that waits, as for a lock; Python acts when libpq has returned."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def watch() -> None:
        while number := os.read(read_end, 1):
            raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            module = sys.modules.get("astra.database.statement_timeout")
            if number[0] == signal.SIGINT and raises and module is not None:
                module.limit_waiting(_LAST_STATEMENT_S)
        os.close(read_end)

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)  # which ends the thread


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="astra COMMAND --help shows the options of a command, with examples.",
)
@click.version_option(__version__, prog_name="astra")
@click.option("--config", "config_path", metavar="FILE", help="Configuration file to use.")
@click.option("-v", "--verbose", is_flag=True, help="Print more on standard error.")
def main(config_path: str | None, verbose: bool) -> None:
    """Run a function over every row of a table that has no up-to-date result, on a Slurm cluster.

    \b
    pending -> plan -> script -> submit -> element -> results -> status / resume
    """
    from astra.config.startup import start_command

    start_command(verbose)
    if config_path is not None:
        from astra.config import settings

        settings.use(settings.load(config_path))
        os.environ["ASTRA_CONFIG"] = str(Path(config_path).absolute())
