"""The declaration of a task in its decorator, and how the arguments of a call are bound to it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

from astra.errors import TaskError, nearest
from astra.results.stopping import Settings
from astra.tasks.signature import rows_parameter, signature_of, task_name

_KEYWORDS = tuple(item.name for item in fields(Settings))


@dataclass(frozen=True)
class Declared:
    """What the decorator knows of a task: stands at ``function.__astra__``."""

    function: Callable[..., object]
    keywords: dict[str, object]
    group_by: tuple[str, ...] = ()
    many: bool = False  # a row may have several results
    hints: dict[str, object] | None = None
    #: Arguments that name files, and what finds the file of a value.
    files: Mapping[str, Callable[[object], Any] | None] = field(default_factory=dict)
    revision: str | int | None = None  # of its code, as far as results depend on it
    own: frozenset[str] = field(default_factory=frozenset)  # keywords that it takes itself


def check_keywords(keywords: dict[str, Any]) -> None:
    """Refuse values that a task's keywords cannot have."""
    for name, value in keywords.items():
        if name in ("live", "write_to_database", "re_raise_exceptions"):
            good, wanted = isinstance(value, bool), "True or False"
        elif name == "batch_size":
            good = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
            wanted = "a whole number from 1"
        else:
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            good, wanted = is_number and 0 <= float(value) < float("inf"), "seconds, from 0"
        if not good:
            raise TaskError(f"{name}={value!r}: give {wanted}")


def bind_call(
    call: Any,
    arguments: tuple[object, ...],
    named: dict[str, Any],
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> tuple[Settings, inspect.BoundArguments]:
    """The settings of a call and the arguments that the function itself is given.

    The order, strongest first: what the call gives, by place or by name; the decorator; a default
    in the function's own signature; `defaults`, which stand for the built-in ones.

    Raises
    ------
    TaskError
        If the function does not take an argument; before any row is computed.
    """
    declared: Declared = call.__astra__
    signature = inspect.signature(declared.function)
    placed = _own_by_place(declared, signature, arguments)
    given = {name: value for name, value in named.items() if name in _KEYWORDS}
    resolved = {**defaults, **_defaults_of(declared), **declared.keywords, **given, **placed}
    check_keywords(resolved)
    settings = Settings(**resolved)
    passed = {name: value for name, value in named.items() if name not in given}
    for name in declared.own:
        if name in given or name not in placed:  # by name and by place: refused by bind()
            passed[name] = getattr(settings, name)
    try:
        return settings, signature.bind(*arguments, **passed)
    except TypeError as error:
        known = [*signature.parameters, *_KEYWORDS]
        wrong = [name for name in passed if name not in known]
        hint = nearest(wrong[0], known) if wrong else signature_of(declared.function)
        raise TaskError(f"{task_name(call)}: {error}. {hint}") from error


def _own_by_place(
    declared: Declared, signature: inspect.Signature, arguments: tuple[object, ...]
) -> dict[str, object]:
    """Keywords of @task that the function has as parameters, and that are given by place."""
    try:
        found = signature.bind_partial(*arguments).arguments
    except TypeError:  # too many: said when all are bound
        return {}
    return {name: found[name] for name in declared.own if name in found}


def _defaults_of(declared: Declared) -> dict[str, object]:
    """A default that the function itself gives to one of the keywords."""
    parameters = inspect.signature(declared.function).parameters
    return {
        name: parameters[name].default
        for name in declared.own
        if parameters[name].default is not inspect.Parameter.empty
    }


def caller(call: Any, bound: inspect.BoundArguments) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """The function as it is called for rows, with its other arguments in place."""
    function = call.__astra__.function
    name = rows_parameter(function).name

    def start(rows: Iterator[object]) -> Iterator[Any]:
        bound.arguments[name] = rows
        results: Iterator[object] = function(*bound.args, **bound.kwargs)
        return results

    return start
