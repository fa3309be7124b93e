"""The man page astra(1), made of the help of the commands."""

import inspect
import re
from collections.abc import Iterator

import click

from astra import __version__
from astra.cli import main
from astra.cli.examples import EXAMPLES


def man_page() -> str:
    """Write the page in the language of man(7)."""
    top = click.Context(main, info_name="astra", **main.context_settings)
    lines = [
        f'.TH ASTRA 1 "" "astra {__version__}" "User Commands"',
        ".SH NAME", "astra \\- process every row of an archive on a Slurm cluster",
        ".SH SYNOPSIS", ".B astra", "[OPTION]... COMMAND [ARGUMENT]...",
        ".SH DESCRIPTION", *_text(main.help or ""),
        ".SH OPTIONS", *_options(top), ".TP", ".B \\-h, \\-\\-help", "Show help, of any command.",
        ".SH COMMANDS",
    ]  # fmt: skip
    for context in _contexts(top):
        lines += [f".SS {_plain(' '.join(_usage(context)))}", *_text(context.command.help or "")]
        lines += _options(context)
        for example in EXAMPLES.get(context.command_path.partition(" ")[2], ()):
            lines += [".PP", ".RS", f"$ {_plain(example)}", ".RE"]
    lines += [".SH ENVIRONMENT", "ASTRA_CONFIG, ASTRA_DATABASE_URL, ASTRA_RUN_DIR"]
    lines += [".SH SEE ALSO", ".BR sbatch (1), \\ squeue (1), \\ sacct (1)"]
    return "\n".join(lines) + "\n"


def _contexts(parent: click.Context) -> Iterator[click.Context]:
    """Yield every visible command, those of a group after the group."""
    group = parent.command
    for name, command in group.commands.items() if isinstance(group, click.Group) else ():
        if not command.hidden:
            context = click.Context(command, info_name=name, parent=parent)
            yield context
            yield from _contexts(context)


def _usage(context: click.Context) -> list[str]:
    return [context.command_path, *context.command.collect_usage_pieces(context)]


def _options(context: click.Context) -> list[str]:
    records = [p.get_help_record(context) for p in context.command.params]
    lines: list[str] = []
    for name, explanation in filter(None, records):
        if not explanation:
            continue  # an argument, which stands in the line of usage
        lines += [".TP", f".B {_plain(name)}", *_text(explanation)]
    return lines


def _text(text: str) -> list[str]:
    """Format paragraphs; as in click, the lines after a \\b are kept."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        is_verbatim = paragraph.startswith("\b\n")
        texts = [_plain(line.strip()) for line in paragraph.removeprefix("\b\n").splitlines()]
        lines += [".nf", *texts, ".fi"] if is_verbatim else [*texts, ".PP"]
    return lines[:-1] if lines[-1:] == [".PP"] else lines


def _plain(text: str) -> str:
    """Escape a text for man(7)."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
