"""Arguments of a task: converted to the annotated types, and kept with a plan as JSON.

text -- typed --> value -- json_value --> JSON, in the plan -- fit --> value, in the element
"""

import collections.abc
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath

from astra.config import secrets
from astra.errors import TaskError, nearest
from astra.tasks.declared import KEYWORDS, bind_call, declared_by
from astra.tasks.signature import hints_of, rows_parameter, task_name


def parse_arguments(
    function: Callable[..., object], arguments: Mapping[str, object]
) -> dict[str, object]:
    """Convert arguments of a task, by name, to the annotated types, and check them.

    The values are those that an element will read back from the plan.

    Raises
    ------
    TaskError
        If the task does not take a name, or a value is not of its type or cannot be kept.
    """
    _check_names(function, arguments)
    values = {}
    for name, value in arguments.items():
        if secrets.holds_secret(_written(name, value)):
            raise TaskError(
                f"{name} holds a password: arguments are stored with the plan, where everybody who "
                "reads the database sees them; read it in the task from a file or the environment"
            )
        if isinstance(value, str):
            value = typed(name, value, _kind_of_text(function, name))
        values[name] = fit(name, value, _kind(function, name))
    values = restored(function, json.loads(as_stored(values)))
    bind_call(function, ([],), values)
    return values


def _written(name: str, value: object) -> str:
    try:
        return f"{name}={value}"
    except ValueError as error:  # a number of too many digits
        raise TaskError(f"{name} cannot be stored with a plan: {error}") from None


def as_stored(values: Mapping[str, object]) -> str:
    """Return arguments as a plan stores them, in JSON."""
    return json.dumps({name: json_value(value) for name, value in values.items()})


def restored(function: Callable[..., object], stored: Mapping[str, object]) -> dict[str, object]:
    """Return arguments as the task takes them, from what was stored with its plan."""
    return {name: fit(name, value, _kind(function, name)) for name, value in stored.items()}


def _check_names(function: object, names: Iterable[str]) -> None:
    inner = declared_by(function).function
    parameters = inspect.signature(inner).parameters
    rows = rows_parameter(inner).name
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = {
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    accepted = (accepted | KEYWORDS.keys()) - {rows}
    for name in names:
        if name == rows or (name not in accepted and not takes_any):
            raise TaskError(
                f"{task_name(inner)} takes no argument {name!r}. {nearest(name, accepted)}"
            )


def _kind(function: Callable[..., object], name: str) -> object:
    """Return the annotation of a parameter; `object` where it has none."""
    parameters = inspect.signature(declared_by(function).function).parameters
    parameter = parameters.get(name)
    if parameter is None or parameter.kind is parameter.VAR_KEYWORD:
        if name in KEYWORDS:
            return KEYWORDS[name]
        parameter = next((p for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    kind = _or_object(hints_of(function).get(parameter.name)) if parameter else object
    if kind is object:
        return KEYWORDS.get(name, object)
    if parameter is not None and parameter.default is None:
        return typing.Optional[kind]  # noqa: UP045 - `x: int = None` says so, in an older way
    return kind


def _kind_of_text(function: Callable[..., object], name: str) -> object:
    """Return the type for a text: the annotation, or without one the type of the default."""
    kind = _kind(function, name)
    parameter = inspect.signature(declared_by(function).function).parameters.get(name)
    default = None if parameter is None else parameter.default
    if kind is not object or not isinstance(default, bool | int | float | str | Path):
        return kind
    return Path if isinstance(default, Path) else type(default)


def typed(name: str, text: str, kind: object) -> object:
    """Convert a text that was typed: to its value in JSON if the type takes that; else keep it.

    Raises
    ------
    TaskError
        If the type takes neither.

    >>> typed("n", "3", int), typed("x", "", str | None), typed("u", "007", int | str)
    (3, '', '007')
    >>> typed("t", '[1, "x"]', tuple[int, str]), typed("b", "True", bool)
    ((1, 'x'), True)
    """
    try:
        return fit(name, _as_json(text), kind)
    except TaskError as error:
        with suppress(TaskError):
            return fit(name, text, kind)
        is_one = _outer(kind) not in (*_MANY, *_MAPPINGS)
        raise TaskError(str(error) if is_one else f"{error}: write it as JSON") from None


def _as_json(text: str) -> object:
    """Return the value of a text in JSON, or as Python writes it; a text stays as it is."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for read in (json.loads, float):  # the second knows inf
        with suppress(ValueError, RecursionError):
            value = read(text)
            return text if isinstance(value, str | None) else value
    return text


_WORDS = {"true": True, "false": False, "none": None, "null": None}


def fit(name: str, value: object, kind: object) -> object:
    """Convert a value, which may have been read from JSON, to the annotated type.

    Raises
    ------
    TaskError
        If it is not of that type.
    """
    import numpy as np  # here, as few commands touch an array

    kind = _or_object(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, np.generic):
        value = value.item()
    if origin in (typing.Union, types.UnionType):
        return _fit_union(name, value, inner)
    if kind is object:
        return _plain_already(name, value)
    if origin is typing.Literal:
        if any(type(value) is type(choice) and value == choice for choice in inner):
            return value
        raise TaskError(f"{name}={value!r}: choose from {', '.join(map(str, inner))}")
    if kind is bool or kind is str or kind is type(None):
        if isinstance(value, kind):
            return value
    elif kind is int or kind is float:
        if isinstance(value, int) and not isinstance(value, bool):
            if kind is int or abs(value) <= sys.float_info.max:
                return int(value) if kind is int else float(value)
        if kind is float and isinstance(value, float):
            return value
    elif kind is Path or kind is PurePath:
        if isinstance(value, str | PurePath):
            return Path(value)
    elif (origin or kind) in _MANY:
        if isinstance(value, list | tuple | set | frozenset | range | np.ndarray):
            members = zip(value, _members(name, kind, len(value)), strict=True)
            return _MANY[origin or kind]([fit(name, v, member) for v, member in members])
    elif (origin or kind) in _MAPPINGS:
        if isinstance(value, Mapping):
            of_key, of_value = inner or (str, object)
            return {  # the keys of JSON are texts
                (typed if isinstance(k, str) else fit)(name, k, of_key): fit(name, v, of_value)
                for k, v in value.items()
            }
    else:
        raise TaskError(f"{name}: {_named(kind)} cannot be stored with a plan; {_KEPT}")
    raise TaskError(f"{name}={value!r} is not {_named(kind)}")


_KEPT = "give numbers, texts, paths, or lists and dictionaries of these"

#: What a collection becomes, by the annotation that asks for it.
_MANY: dict[object, Callable[[list[object]], object]] = {
    list: list, tuple: tuple, set: set, frozenset: frozenset,
    collections.abc.Sequence: list, collections.abc.MutableSequence: list,
    collections.abc.Iterable: list, collections.abc.Collection: list,
    collections.abc.Set: set, collections.abc.MutableSet: set,
}  # fmt: skip

_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def _or_object(kind: object) -> object:
    """Return an annotation; `object` if it allows everything."""
    return object if kind in (None, typing.Any) else kind


def _outer(kind: object) -> object:
    """Return the class of an annotation, such as `list` of ``list[int]``."""
    return typing.get_origin(kind) or kind


def _members(name: str, kind: object, n: int) -> list[object]:
    """Return the annotations of the `n` members of a collection."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is not tuple or not inner or inner[-1] is ...:
        return [inner[0] if inner else object] * n
    if len(inner) != n:
        raise TaskError(f"{name}: {_named(kind)} has {len(inner)} members, not {n}")
    return list(inner)


def _fit_union(name: str, value: object, kinds: tuple[object, ...]) -> object:
    """Convert a value to its own type if the union has it, otherwise to the first that fits."""
    errors, own = [], type(value)
    for kind in sorted(kinds, key=lambda kind: _outer(kind) != own):
        try:
            return fit(name, value, kind)
        except TaskError as error:
            errors.append(str(error))
    raise TaskError("; ".join(dict.fromkeys(errors)))


def _plain_already(name: str, value: object) -> object:
    """Return a value without an annotation, which JSON must preserve unchanged."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain_already(name, v) for v in value]
    import numpy as np

    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: _plain_already(name, v) for k, v in value.items()}
    raise TaskError(
        f"{name}={value!r} would not be read back from the plan unchanged: annotate {name} in the "
        f"task's signature (Path, set[int], dict[int, str], ...), or {_KEPT}"
    )


def json_value(value: object) -> object:
    """Convert a value to types of JSON; :func:`fit` converts it back."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(map(json_value, value), key=repr)
    if isinstance(value, list | tuple):
        return [json_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): json_value(v) for k, v in value.items()}
    return value


_NAMES = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false",
    type(None): "none",
}  # fmt: skip


def _named(kind: object) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
