"""Raise the errors of :mod:`astra.errors` in place of those of the database."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType

from astra.errors import AstraError

#: Of the flags of a function's code; importing `inspect` would delay every command.
_IS_GENERATOR = 0x20


@contextmanager
def database_errors_explained() -> Iterator[None]:
    """Say what to do if a statement meets an unavailable database, or tables of others."""
    try:
        yield
    except AstraError:
        raise
    except Exception as error:
        if "astra.database.connection" not in sys.modules:  # it has no part in this
            raise
        from astra.database.connection import as_database_error

        if (explained := as_database_error(error)) is None:
            raise
        raise explained from error


def explained(value: object) -> object:
    """Return a function of the interface with its errors explained; return anything else as it is.

    A task is not one of these functions: what it raises is its own.
    """
    if not isinstance(value, FunctionType):
        return value
    function = value

    @wraps(function)
    def call(*args: object, **keywords: object) -> object:
        with database_errors_explained():
            return function(*args, **keywords)

    @wraps(function)
    def generate(*args: object, **keywords: object) -> Iterator[object]:
        with database_errors_explained():
            yield from function(*args, **keywords)

    return generate if function.__code__.co_flags & _IS_GENERATOR else call
