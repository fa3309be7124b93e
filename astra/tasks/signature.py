"""Resolve a task's name and annotations: its function, the tables it reads, the one it writes."""

import ast
import collections.abc
import functools
import importlib.util
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import peewee
from peewee import Model

from astra.errors import TaskError, nearest
from astra.models.importing import import_failed, import_named

ENTRY_POINTS = "astra.tasks"

_PIPELINES = "astra.pipelines"


def find_task(task: str | Callable[..., object]) -> Callable[..., object]:
    """The function that `task` names.

    Parameters
    ----------
    task : a callable; the name of a pipeline of astra (``"slam.slam"``, ``"slam"``) or of an
        entry point in the group ``astra.tasks``; or a dotted path (``mypackage.tasks.measure``,
        ``mypackage.tasks:measure``).

    Raises
    ------
    TaskError
        If nothing of that name can be imported; near names are listed.
    """
    if callable(task):
        return _checked_task(task, _name(task))
    if not isinstance(task, str):
        raise TaskError(f"a task is a function or its name, not {task!r}")
    for path in _candidates(task):
        if (found := _import(path)) is not None:
            return _checked_task(found, task)
    raise TaskError(f"there is no task {task!r}. {_near_tasks(task)}")


def _candidates(name: str) -> Iterator[str]:
    """Import paths ("module:function") that a name may stand for, likeliest first."""
    if ":" in name:
        yield name
        return
    registered = _registered()
    if name in registered:
        yield registered[name]
    module, _, function = name.rpartition(".")
    yield f"{_PIPELINES}.{module or name}:{function or name}"
    if module:
        yield f"{module}:{function}"


def _registered() -> dict[str, str]:
    """Tasks that installed packages offer: paths, by name."""
    # Takes as long to import as peewee; elements know the path of their task.
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def _import(path: str) -> Callable[..., object] | None:
    """The function at a path; None where there is no such module or name in it."""
    module_name, _, function = path.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        return None
    try:
        module = import_named(module_name)
    except ModuleNotFoundError as error:
        # Missing is the module that was asked for, or one of those that it stands in.
        if error.name and (module_name + ".").startswith(error.name + "."):
            return None
        raise import_failed(module_name, error) from error
    found = getattr(module, function, None)
    return found if callable(found) else None


def _checked_task(found: object, name: str) -> Callable[..., object]:
    """Refuse what can be called, and is no function that a task could be."""
    kind = None
    if isinstance(found, functools.partial):
        kind = "a functools.partial: give the task, and its arguments at the call or by --set"
    elif inspect.ismethod(found):
        kind = "a method: move it to the top level of a module, as a function"
    elif isinstance(found, type):
        kind = "a class"
    elif not inspect.isfunction(found):
        kind = f"an object of {type(found).__name__}"
    if kind is not None:
        raise TaskError(f"{name} is not a task, but {kind}; a task is a function with @task")
    return cast("Callable[..., Any]", found)


def known_tasks() -> list[str]:
    """The names of registered tasks and of astra's own pipelines."""
    names = set(_registered())
    for module in pkgutil.iter_modules(importlib.import_module(_PIPELINES).__path__):
        names.add(f"{module.name}.{module.name}")
    return sorted(names)


def tasks_of_folder() -> Iterator[tuple[str, str]]:
    """The names of tasks in the modules of this folder, which are not run, and their files."""
    for path in sorted(Path.cwd().glob("*.py"))[:100]:
        try:
            nodes = ast.parse(path.read_text()).body
        except (OSError, ValueError, SyntaxError):
            continue
        for node in (node for node in nodes if isinstance(node, ast.FunctionDef)):
            for mark in node.decorator_list:
                called = mark.func if isinstance(mark, ast.Call) else mark
                if ast.unparse(called).rpartition(".")[2] == "task":
                    yield f"{path.stem}.{node.name}", path.name


def _near_tasks(name: str) -> str:
    if own := _tasks_in(name):
        return f"{name} is a module; its tasks: {', '.join(own)}"
    here = [found for found, _ in tasks_of_folder()]
    if own := [found for found in here if found.endswith(f".{name}")]:
        return f"Did you mean {' or '.join(map(repr, own))}?"
    known = {*here, *known_tasks(), *(known.rpartition(".")[2] for known in known_tasks())}
    module_name, _, _ = name.replace(":", ".").rpartition(".")
    known |= set(_tasks_in(module_name))
    first = module_name.split(".")[0]
    if first and first not in known and _is_missing(first):
        return (
            f"{nearest(name, known)} A module {first!r} cannot be imported "
            "from here; is it installed, or in this folder?"
        )
    return nearest(name, known)


def _tasks_in(module_name: str) -> list[str]:
    """The tasks of a module, by the names that find them; none where it cannot be imported."""
    found = None
    if module_name and all(part.isidentifier() for part in module_name.split(".")):
        for path in (module_name, f"{_PIPELINES}.{module_name}"):
            try:
                found = import_named(path)
                break
            except ModuleNotFoundError:
                continue
    names = vars(found) if found is not None else {}
    return sorted(f"{module_name}.{key}" for key, v in names.items() if hasattr(v, "__astra__"))


def _is_missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):  # no name of a module at all
        return True


def source_file(function: Callable[..., object]) -> Path:
    """The file that a task is written in."""
    return Path(inspect.getfile(inspect.unwrap(function))).resolve()


def task_name(function: Callable[..., object]) -> str:
    """The name that plans and failures know a task by: ``slam.slam``, ``mypackage.tasks.f``."""
    module = function.__module__
    if module.startswith(_PIPELINES + "."):
        module = module[len(_PIPELINES) + 1 :]
    return f"{module}.{function.__qualname__}"


def signature_of(function: Callable[..., object]) -> str:
    """A function as its definition begins."""
    name = getattr(function, "__name__", repr(function))
    try:
        return f"def {name}{inspect.signature(function)}"
    except (TypeError, ValueError):  # of what is not written in Python
        return name


def rows_parameter(function: Callable[..., object]) -> inspect.Parameter:
    """The first parameter of a task: the one that its rows come in by.

    Raises
    ------
    TaskError
        If the function takes no positional argument.
    """
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return parameter
        if parameter.kind is parameter.VAR_POSITIONAL:
            break
    raise TaskError(
        f"{signature_of(function)} has no parameter for rows: a task's first "
        "parameter is the iterable of "
        "its input rows, for instance spectra: Iterable[BossVisitSpectrum]"
    )


def input_models(function: Callable[..., object]) -> list[Any]:
    """The input models that a task's first annotation names, in its order.

    Raises
    ------
    TaskError
        If the annotation is missing or names no tables; the message shows the signature.
    """
    from astra.models.keys import adopted, key_of
    from astra.models.spectrum import SpectrumMixin, every_spectrum_model

    parameter = rows_parameter(function)
    annotation = hints_of(function).get(parameter.name, inspect.Parameter.empty)
    wanted = f"write for example {parameter.name}: Iterable[BossVisitSpectrum]"
    if annotation is inspect.Parameter.empty:
        raise TaskError(
            f"{signature_of(function)}: no input model is annotated; {wanted}, or name the table: "
            "--input-model boss.BossVisitSpectrum"
        )
    models: dict[type[Model], None] = {}
    for part in _parts(annotation):
        if part is SpectrumMixin:
            models.update(dict.fromkeys(every_spectrum_model()))
        elif _is_model(part):
            key_of(part)
            models[adopted(part)] = None
        else:
            raise TaskError(
                f"{signature_of(function)}: {_name(part)} is no table, which is a peewee Model "
                f"with a primary key; {wanted}"
            )
    if not models:
        raise TaskError(f"{signature_of(function)}: the annotation does not name a table; {wanted}")
    return list(models)


def output_model(function: Callable[..., object]) -> Any:
    """The output model that a task's return annotation names.

    Raises
    ------
    TaskError
        If it is missing, or not one subclass of ``OutputModel``.
    """
    from astra.models.pipeline import BASES, OutputModel

    annotation = hints_of(function).get("return", inspect.Parameter.empty)
    wanted = "write for example -> Iterable[Slam]"
    if annotation is inspect.Parameter.empty:
        raise TaskError(f"{signature_of(function)}: no output model is annotated; {wanted}")
    found = list(dict.fromkeys(_parts(annotation)))
    if (
        len(found) != 1
        or not _is_model(found[0])
        or not issubclass(found[0], OutputModel)
        or found[0] in BASES
    ):
        names = ", ".join(map(_name, found)) or "nothing"
        raise TaskError(
            f"{signature_of(function)}: results are rows of one subclass of OutputModel, "
            f"not {names}; {wanted}"
        )
    return found[0]


def choose_model(function: Callable[..., object], wanted: Any) -> list[Any]:
    """The input models of a task, or the one of them that is `wanted` (a class or its name).

    A task without an annotation of its rows reads whatever table is wanted.

    Raises
    ------
    TaskError
        If it is none of them; they are listed.
    """
    from astra.models.keys import adopted, key_of

    if wanted is None:
        return input_models(function)
    named = wanted if _is_model(wanted) else _model_named(str(wanted))
    if named is not None and not is_annotated(function):
        key_of(named)
        return [adopted(named)]
    models = input_models(function)
    for model in models:
        if named is model or wanted in (model.__name__, model._meta.table_name):
            return [model]
    name = _name(wanted) if isinstance(wanted, type) else str(wanted)
    names = [model.__name__ for model in models]
    hint = nearest(name, names)
    if named is not None:
        parameter, every = rows_parameter(function).name, " | ".join([*names, named.__name__])
        hint = (
            f"{named.__name__} is another table, even if it has the same columns; for the task to "
            f"read it, write {parameter}: Iterable[{every}]"
        )
    raise TaskError(
        f"{task_name(function)} does not read {name!r}; it reads {', '.join(names)}. {hint}"
    )


def is_annotated(function: Callable[..., object]) -> bool:
    """Whether a task says which tables its rows are of."""
    return rows_parameter(function).annotation is not inspect.Parameter.empty


def _model_named(name: str) -> Any:
    """The model of a name: ``boss.BossVisitSpectrum``, ``mytables:Star``; None if there is none."""
    from astra import models
    from astra.models.base import BaseModel, every_subclass

    module, _, own = name.replace(":", ".").rpartition(".")
    for path in (f"{models.__name__}.{module}".rstrip("."), module):
        try:
            found = getattr(import_named(path), own, None) if path else None
        except ModuleNotFoundError:
            continue
        if _is_model(found):
            return found
    known = every_subclass(BaseModel)
    return next((m for m in known if name in (m.__name__, m._meta.table_name)), None)


def hints_where_defined(
    function: Callable[..., object], namespace: dict[str, object]
) -> dict[str, object] | None:
    """Annotations, with the names that were in sight where the function was defined."""
    try:
        return typing.get_type_hints(function, localns=namespace)
    except Exception:
        # A name that is defined further down is found later, when it is wanted.
        return None


def hints_of(function: Callable[..., object]) -> dict[str, object]:
    """What a task's signature is annotated with, names resolved."""
    settings = getattr(function, "__astra__", None)
    if settings is not None and settings.hints is not None:
        return cast("dict[str, Any]", settings.hints)
    inner = inspect.unwrap(function)
    try:
        return typing.get_type_hints(inner, localns=inspect.getclosurevars(inner).nonlocals)
    except Exception as error:
        raise TaskError(
            f"{signature_of(function)}: an annotation cannot be read: {error}; "
            "import the name where the task is defined"
        ) from error


def _parts(annotation: object) -> Iterator[Any]:
    """The classes that an annotation is made of, without containers and None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _parts(argument)
    elif origin is typing.Annotated:
        yield from _parts(arguments[0])
    elif origin in (collections.abc.Generator, collections.abc.AsyncGenerator):
        yield from _parts(arguments[0])
    elif isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        for argument in arguments:
            if argument is not ...:
                yield from _parts(argument)
    elif annotation not in (type(None), None, ..., types.EllipsisType):
        yield annotation


def _is_model(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, peewee.Model)


def _name(thing: object) -> str:
    return getattr(thing, "__name__", None) or str(thing)
