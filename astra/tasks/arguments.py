"""Arguments of a task: texts and values made what its signature says, kept with a plan as JSON.

text -- parse_value --> value -- plain --> JSON, in the plan -- fit --> value, in the element
"""

import collections.abc
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from astra.config import secrets
from astra.errors import TaskError, nearest
from astra.tasks.declared import bind_call
from astra.tasks.signature import hints_of, rows_parameter, signature_of

_KEYWORDS: dict[str, object] = {
    "live": bool, "batch_size": int, "write_frequency": float,
    "write_to_database": bool, "re_raise_exceptions": bool,
}  # fmt: skip


def parse_arguments(function: object, arguments: Mapping[str, object]) -> dict[str, object]:
    """Arguments of a task by name, texts parsed to the annotated types, all checked.

    They are what an element will read back from the plan.

    Raises
    ------
    TaskError
        If the task does not take a name, or a value is not of its type or cannot be kept.
    """
    _check_names(function, arguments)
    values = {}
    for name, value in arguments.items():
        if secrets.holds_secret(f"{name}={value}"):
            raise TaskError(
                f"{name} holds a password: arguments are stored with the plan, where everybody who "
                "reads the database sees them; read it in the task from a file or the environment"
            )
        if isinstance(value, str):
            value = parse_value(name, value, _kind_of_text(function, name))
        values[name] = fit(name, value, _kind(function, name))
    if values.get("write_to_database") is False:
        raise TaskError(
            "write_to_database=False: a plan can only be whole if its results are stored"
        )
    values = restored(function, json.loads(as_stored(values)))
    bind_call(function, ([],), dict(values))
    return values


def as_stored(values: Mapping[str, object]) -> str:
    """Arguments as JSON."""
    return json.dumps({name: plain(name, value) for name, value in values.items()})


def restored(function: object, stored: Mapping[str, object]) -> dict[str, object]:
    """Arguments as the task takes them, from what was stored with its plan."""
    return {name: fit(name, value, _kind(function, name)) for name, value in stored.items()}


def _check_names(function: Any, names: Iterable[str]) -> None:
    inner = function.__astra__.function
    parameters = inspect.signature(inner).parameters
    rows = rows_parameter(inner).name
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    known = (known | _KEYWORDS.keys()) - {rows}
    for name in names:
        if name == rows or (name not in known and not takes_any):
            raise TaskError(f"{signature_of(inner)} takes no {name!r}. {nearest(name, known)}")


def _kind(function: Any, name: str) -> object:
    """The annotation of a parameter; Any where it has none."""
    parameters = inspect.signature(function.__astra__.function).parameters
    found = parameters.get(name)
    if found is None or found.kind is found.VAR_KEYWORD:
        found = next((p for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
        if name in _KEYWORDS:
            return _KEYWORDS[name]
    kind = hints_of(function).get(found.name, Any) if found is not None else Any
    if kind is Any and name in _KEYWORDS:
        return _KEYWORDS[name]
    if kind is not Any and found is not None and found.default is None:
        return typing.Optional[kind]  # noqa: UP045 - `x: int = None` says so, in an older way
    return kind


def _kind_of_text(function: Any, name: str) -> object:
    """The type that a text is to become: the annotation, or without one that of the default."""
    kind = _kind(function, name)
    parameters = inspect.signature(function.__astra__.function).parameters
    if kind is not Any or name not in parameters or name in hints_of(function):
        return kind
    default = parameters[name].default
    if isinstance(default, bool | int | float | str | Path):
        return Path if isinstance(default, Path) else type(default)
    raise TaskError(
        f"{name} has no annotation, and no default that says what a text is to become: write for "
        f"instance {name}: int in {signature_of(function.__astra__.function)}"
    )


def parse_value(name: str, text: str, kind: Any) -> Any:
    """A text as a value of the annotated type.

    >>> parse_value("n", "3", int), parse_value("x", "", str | None)
    (3, '')
    >>> parse_value("t", "1,x", tuple[int, str]), parse_value("u", "007", int | str)
    ((1, 'x'), '007')
    """
    kind = _bare(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(name, text, inner)
    if origin is typing.Literal:
        for choice in inner:
            if text == str(choice):
                return choice
        raise TaskError(f"{name}={text!r}: choose from {', '.join(map(str, inner))}")
    if kind in _SCALARS:
        return _SCALARS[kind](name, text)
    if (origin or kind) in _MANY:
        return _parse_many(name, text, kind)
    if (origin or kind) in _MAPPINGS:
        return fit(name, _from_json(name, text), kind)
    raise TaskError(
        f"{name}: a text cannot be made {_said(kind)}; annotate it as int, float, bool, str, Path, "
        "Literal, or list, tuple, set or dict of these"
    )


def _parse_bool(name: str, text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise TaskError(f"{name}={text!r}: write true or false")
    return words[text.lower()]


def _parse_number(kind: type) -> Callable[[str, str], object]:
    def parse(name: str, text: str) -> Any:
        try:
            return kind(text)
        except ValueError as error:
            raise TaskError(f"{name}={text!r} is not {_said(kind)}") from error

    return parse


_SCALARS: dict[object, Callable[[str, str], object]] = {
    bool: _parse_bool, int: _parse_number(int), float: _parse_number(float),
    str: lambda name, text: text, Any: lambda name, text: text, object: lambda name, text: text,
    Path: lambda name, text: Path(text), PurePath: lambda name, text: Path(text),
}  # fmt: skip


def _parse_union(name: str, text: str, kinds: tuple[object, ...]) -> object:
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    errors = []
    # A text fits str always: the other types are tried first.
    for kind in sorted(kinds, key=lambda k: k is str):
        try:
            value = parse_value(name, text, kind)
        except TaskError as error:
            errors.append(str(error))
            continue
        # 007 beside str is a name, not the number 7.
        if kind not in (int, float) or str not in kinds or str(value) == text:
            return value
    raise TaskError("; ".join(errors))


def _parse_many(name: str, text: str, kind: object) -> object:
    if text.lstrip().startswith("["):
        return fit(name, _from_json(name, text), kind)
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    members = _members(name, kind, len(parts))
    if any((typing.get_origin(member) or member) in _MANY for member in members):
        raise TaskError(f"{name}={text!r}: write nested lists as JSON: [[1, 2], [3]]")
    values = [
        parse_value(name, part, str if member is Any else member)
        for part, member in zip(parts, members, strict=True)
    ]
    return _MANY[typing.get_origin(kind) or kind](values)


def _from_json(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TaskError(f"{name}={text!r} is not JSON: {error}") from error


def fit(name: str, value: object, kind: Any) -> Any:
    """A value as one of the annotated type; plain ones, as JSON has them, too.

    Raises
    ------
    TaskError
        If it is not of that type.
    """
    import numpy as np  # here, as few commands touch an array

    kind = _bare(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, np.generic):
        value = value.item()
    if kind is Any or kind is object:
        return _plain_already(name, value)
    if origin in (typing.Union, types.UnionType):
        return _fit_union(name, value, inner)
    if origin is typing.Literal:
        if any(type(value) is type(choice) and value == choice for choice in inner):
            return value
    elif kind is type(None) or kind is None:
        if value is None:
            return None
    elif kind is bool or kind is str:
        if isinstance(value, kind):
            return value
    elif kind is int or kind is float:
        wanted = int if kind is int else int | float
        if isinstance(value, wanted) and not isinstance(value, bool):
            return kind(value)
    elif kind is Path or kind is PurePath:
        if isinstance(value, str | PurePath):
            return Path(value)
    elif (origin or kind) in _MANY:
        if isinstance(value, list | tuple | set | frozenset | range | np.ndarray):
            members = _members(name, kind, len(value))
            values = [fit(name, v, member) for v, member in zip(value, members, strict=True)]
            return _MANY[origin or kind](values)
    elif (origin or kind) in _MAPPINGS:
        if isinstance(value, Mapping):
            of_key, of_value = inner or (str, Any)
            return {_fit_key(name, k, of_key): fit(name, v, of_value) for k, v in value.items()}
    else:
        raise TaskError(f"{name}: {_said(kind)} cannot be stored with a plan; {_KEPT}")
    raise TaskError(f"{name}={value!r} is not {_said(kind)}")


_KEPT = "give numbers, texts, paths, or lists and dictionaries of these"

#: What a collection becomes, by the annotation that asks for it.
_MANY: dict[object, Callable[[list[object]], object]] = {
    list: list, tuple: tuple, set: set, frozenset: frozenset,
    collections.abc.Sequence: list, collections.abc.MutableSequence: list,
    collections.abc.Iterable: list, collections.abc.Collection: list,
    collections.abc.Set: set, collections.abc.MutableSet: set,
}  # fmt: skip

_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def _bare(kind: object) -> object:
    """An annotation without Annotated and NewType around it."""
    while True:
        if typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif hasattr(kind, "__supertype__"):
            kind = kind.__supertype__
        else:
            return kind


def _members(name: str, kind: object, n: int) -> list[object]:
    """The annotations of the `n` members of a collection."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is not tuple or not inner or inner[-1] is ...:
        return [inner[0] if inner else Any] * n
    if len(inner) != n:
        raise TaskError(f"{name}: {_said(kind)} has {len(inner)} members, not {n}")
    return list(inner)


def _fit_key(name: str, key: object, kind: object) -> object:
    # JSON has texts for keys.
    return parse_value(name, key, kind) if isinstance(key, str) else fit(name, key, kind)


def _fit_union(name: str, value: object, kinds: tuple[object, ...]) -> object:
    if value is None and type(None) in kinds:
        return None
    errors = []
    exact = [k for k in kinds if (typing.get_origin(k) or k) is type(value)]
    for kind in [*exact, *(k for k in kinds if k is not type(None))]:
        try:
            return fit(name, value, kind)
        except TaskError as error:
            errors.append(str(error))
    raise TaskError("; ".join(dict.fromkeys(errors)))


def _plain_already(name: str, value: object) -> object:
    """A value that nothing is known of must come back from JSON as it is."""
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


def plain(name: str, value: object) -> Any:
    """A value as JSON has it; :func:`fit` makes it what it was."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted((plain(name, v) for v in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(name, v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(name, v) for k, v in value.items()}
    return value


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _said(kind: object) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
