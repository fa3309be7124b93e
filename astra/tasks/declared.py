"""The declaration of a task by its decorator, and how the arguments of a call are bound to it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields
from types import MappingProxyType
from typing import cast

from astra.errors import TaskError, nearest
from astra.records import dataclass
from astra.results.stopping import Settings
from astra.tasks.signature import rows_parameter, signature_of, task_name

#: The keywords of @task that a call may change, and their types.
KEYWORDS: dict[str, object] = {item.name: item.type for item in fields(Settings)}


@dataclass(frozen=True)
class Declared:
    """What the decorator knows of a task; it stands at ``function.__astra__``."""

    function: Callable[..., object]
    keywords: dict[str, object]
    group_by: tuple[str, ...] = ()
    many: bool = False  # a row may have several results
    hints: dict[str, object] | None = None
    #: Arguments that name files, and the functions that find the file of a value.
    files: Mapping[str, Callable[[object], object] | None] = field(default_factory=dict)
    revision: str | int | None = None  # of its code, as far as results depend on it


def declared_by(task: object) -> Declared:
    """Return what the decorator knows of a task.

    Raises
    ------
    TaskError
        If the function has no decorator.
    """
    declared = getattr(task, "__astra__", None)
    if not isinstance(declared, Declared):
        name = task_name(task) if inspect.isfunction(task) else repr(task)
        raise TaskError(f"{name} is not a task: decorate it with @task")
    return declared


def check_keywords(keywords: Mapping[str, object]) -> None:
    """Refuse values that a task's keywords cannot have."""
    for item in fields(Settings):
        if item.name in keywords:
            value = keywords[item.name]
            try:
                item.metadata["check"](value.item() if hasattr(value, "item") else value)  # numpy's
            except ValueError as error:
                raise TaskError(f"{item.name}={value!r} {error}") from None


def bind_call(
    task: Callable[..., object],
    arguments: tuple[object, ...],
    named: Mapping[str, object],
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> tuple[Settings, inspect.BoundArguments]:
    """Return the settings of a call, and the arguments for the function itself.

    The order, strongest first: what the call gives, by position or by name; the decorator; a
    default in the function's own signature; `defaults`, which replace the built-in ones.

    Raises
    ------
    TaskError
        If the function does not take an argument; before any row is computed.
    """
    declared = declared_by(task)
    signature = inspect.signature(declared.function)
    parameters = signature.parameters
    own = KEYWORDS.keys() & parameters  # keywords that the function takes itself
    by_place = [n for n, p in parameters.items() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    resolved = {
        **defaults,
        **{n: parameters[n].default for n in own if parameters[n].default is not signature.empty},
        **declared.keywords,
        **{name: value for name, value in named.items() if name in KEYWORDS},
        **{n: v for n, v in zip(by_place, arguments, strict=False) if n in own},
    }
    check_keywords(resolved)
    settings = Settings(**resolved)
    passed = {name: value for name, value in named.items() if name not in KEYWORDS or name in own}
    for name in own.difference(by_place[: len(arguments)]):
        passed[name] = getattr(settings, name)
    try:
        return settings, signature.bind(*arguments, **passed)
    except TypeError as error:
        names = [*parameters, *KEYWORDS]
        wrong = [name for name in passed if name not in names]
        hint = nearest(wrong[0], names) if wrong else signature_of(declared.function)
        raise TaskError(f"{task_name(task)}: {error}. {hint}") from error


def caller(
    task: Callable[..., object], bound: inspect.BoundArguments
) -> Callable[[Iterator[object]], Iterator[object]]:
    """Return the function that calls a task for rows, with its other arguments in place."""
    function = declared_by(task).function
    name = rows_parameter(function).name

    def start(rows: Iterator[object]) -> Iterator[object]:
        bound.arguments[name] = rows
        return cast("Iterator[object]", function(*bound.args, **bound.kwargs))

    return start
