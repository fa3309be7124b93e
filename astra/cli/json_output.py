"""Keep JSON on standard output separate from what tasks, and programs that they call, print."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TextIO

import click

#: What JSON is written to while other output goes to standard error: a file descriptor, or an
#: object of a program that calls the command.
_output: int | TextIO | None = None


def reserve_stdout(ctx: click.Context, _: click.Parameter, is_json: bool) -> bool:
    """Keep standard output for JSON from here to the end of the command, if that is wanted."""
    if is_json and sys.stdout is not None and sys.stderr is not None:
        ctx.with_resource(_reserved())
    return is_json


@contextmanager
def _reserved() -> Iterator[None]:
    global _output
    with ExitStack() as stack:
        try:
            output, errors = sys.stdout.fileno(), sys.stderr.fileno()
        except io.UnsupportedOperation:
            _output = sys.stdout
        else:
            _output = os.dup(output)
            stack.callback(os.close, _output)
            stack.callback(os.dup2, _output, output)
            os.dup2(errors, output)
        stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            _output = None


def write(text: str) -> None:
    """Write a line on standard output."""
    if isinstance(_output, int):
        data = f"{text}\n".encode()
        while data:
            data = data[os.write(_output, data) :]
    else:
        print(text, file=_output)
