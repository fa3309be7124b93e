"""Names and annotations: which function is meant, which tables it reads, which it writes."""

import collections.abc
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import peewee

from astra.errors import TaskError, nearest

ENTRY_POINTS = "astra.tasks"
_PIPELINES = "astra.pipelines"


# ------------------------------------------------------------------------------------- tasks


def find_task(task: str | Callable[..., Any]) -> Callable[..., Any]:
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
        return task
    if not isinstance(task, str):
        raise TaskError(f"a task is a function or its name, not {task!r}")
    for path in _candidates(task):
        if (found := _import(path)) is not None:
            return found
    raise TaskError(f"there is no task {task!r}. {_near_tasks(task)}")


def _candidates(name: str) -> Iterator[str]:
    """Import paths ("module:function") that a name may stand for, likeliest first."""
    if ":" in name:
        yield name
        return
    registered = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    if name in registered:
        yield registered[name]
    module, _, function = name.rpartition(".")
    yield f"{_PIPELINES}.{module or name}:{function or name}"
    if module:
        yield f"{module}:{function}"


def _import(path: str) -> Callable[..., Any] | None:
    """The function at a path; None where there is no such module or name in it."""
    module_name, _, function = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Missing is the module that was asked for, or one of those that it stands in.
        if error.name and (module_name + ".").startswith(error.name + "."):
            return None
        raise TaskError(f"importing {module_name} failed: {error}") from error
    except (ValueError, TypeError):  # an empty or a relative name
        return None
    except Exception as error:
        kind = type(error).__name__
        raise TaskError(f"importing {module_name} failed: {kind}: {error}") from error
    found = getattr(module, function, None)
    return found if callable(found) else None


def known_tasks() -> list[str]:
    """The names of registered tasks and of astra's own pipelines."""
    names = {point.name for point in entry_points(group=ENTRY_POINTS)}
    for module in pkgutil.iter_modules(importlib.import_module(_PIPELINES).__path__):
        names.add(f"{module.name}.{module.name}")
    return sorted(names)


def _near_tasks(name: str) -> str:
    known = set(known_tasks()) | {known.rpartition(".")[2] for known in known_tasks()}
    module_name, _, _ = name.replace(":", ".").rpartition(".")
    module = sys.modules.get(module_name)
    if module is not None:
        known |= {
            f"{module_name}.{key}" for key, v in vars(module).items() if hasattr(v, "__astra__")
        }
    elif module_name and _is_missing(module_name.split(".")[0]):
        return (
            f"{nearest(name, known)} A module {module_name.split('.')[0]!r} cannot be imported "
            "from here; is it installed, or in this folder?"
        )
    return nearest(name, known)


def _is_missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):  # no name of a module at all
        return True


def task_name(function: Callable[..., Any]) -> str:
    """The name that plans and failures know a task by: ``slam.slam``, ``mypackage.tasks.f``."""
    module = function.__module__
    if module.startswith(_PIPELINES + "."):
        module = module[len(_PIPELINES) + 1 :]
    return f"{module}.{function.__qualname__}"


def import_path(thing: Any) -> str:
    """Where a function or class can be imported from again: ``module:qualified.name``."""
    return f"{thing.__module__}:{thing.__qualname__}"


def load(path: str) -> Any:
    """What stands at an import path.

    Raises
    ------
    TaskError
        If it is not there any more.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise TaskError(
            f"{path} cannot be imported: {type(error).__name__}: {error}; "
            "it was there when the plan was made"
        ) from error
    return found


# ------------------------------------------------------------------------------- annotations


def signature_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", repr(function))
    return f"def {name}{inspect.signature(function)}"


def rows_parameter(function: Callable[..., Any]) -> inspect.Parameter:
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
        f"{signature_of(function)} takes no rows: a task's first parameter is the iterable of "
        "its input rows, for instance spectra: Iterable[BossVisitSpectrum]"
    )


def input_models(function: Callable[..., Any]) -> list[Any]:
    """The input models that a task's first annotation names, in its order.

    Raises
    ------
    TaskError
        If the annotation is missing or names no tables; the message shows the signature.
    """
    from astra.models.source import Source
    from astra.models.spectrum import SpectrumMixin, every_spectrum_model

    parameter = rows_parameter(function)
    annotation = hints_of(function).get(parameter.name, inspect.Parameter.empty)
    wanted = f"write for instance {parameter.name}: Iterable[BossVisitSpectrum]"
    if annotation is inspect.Parameter.empty:
        raise TaskError(f"{signature_of(function)}: no input model is annotated; {wanted}")
    models: dict[Any, None] = {}
    for part in _parts(annotation):
        if part is SpectrumMixin:
            models.update(dict.fromkeys(every_spectrum_model()))
        elif _is_model(part) and (issubclass(part, SpectrumMixin) or issubclass(part, Source)):
            models[part] = None
        else:
            raise TaskError(
                f"{signature_of(function)}: {_name(part)} is no table of spectra or sources; "
                f"{wanted} (your own: class Mine(BaseModel, SpectrumMixin))"
            )
    if not models:
        raise TaskError(f"{signature_of(function)}: the annotation names no table; {wanted}")
    return list(models)


def output_model(function: Callable[..., Any]) -> Any:
    """The output model that a task's return annotation names.

    Raises
    ------
    TaskError
        If it is missing, or not one subclass of ``PipelineOutputModel``.
    """
    from astra.models.pipeline import PipelineOutputModel

    annotation = hints_of(function).get("return", inspect.Parameter.empty)
    wanted = "write for instance -> Iterable[Slam]"
    if annotation is inspect.Parameter.empty:
        raise TaskError(f"{signature_of(function)}: no output model is annotated; {wanted}")
    found = list(dict.fromkeys(_parts(annotation)))
    if (
        len(found) != 1
        or not _is_model(found[0])
        or not issubclass(found[0], PipelineOutputModel)
        or found[0] is PipelineOutputModel
    ):
        names = ", ".join(map(_name, found)) or "nothing"
        raise TaskError(
            f"{signature_of(function)}: results are rows of one subclass of PipelineOutputModel, "
            f"not {names}; {wanted}"
        )
    return found[0]


def choose_model(function: Callable[..., Any], wanted: Any) -> list[Any]:
    """The input models of a task, or the one of them that is `wanted` (a class or its name).

    Raises
    ------
    TaskError
        If it is none of them; they are listed.
    """
    models = input_models(function)
    if wanted is None:
        return models
    for model in models:
        if wanted is model or wanted in (model.__name__, model._meta.table_name):
            return [model]
    name = _name(wanted) if isinstance(wanted, type) else str(wanted)
    names = [model.__name__ for model in models]
    raise TaskError(
        f"{task_name(function)} does not read {name!r}; it reads {', '.join(names)}. "
        f"{nearest(name, names)}"
    )


def hints_where_defined(function: Callable[..., Any], namespace: dict[str, Any]) -> dict | None:
    """Annotations, with the names that were in sight where the function was defined."""
    try:
        return typing.get_type_hints(function, localns=namespace)
    except Exception:
        # A name that is defined further down is found later, when it is wanted.
        return None


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What a task's signature is annotated with, names resolved."""
    settings = getattr(function, "__astra__", None)
    if settings is not None and settings.hints is not None:
        return settings.hints
    inner = inspect.unwrap(function)
    try:
        return typing.get_type_hints(inner, localns=inspect.getclosurevars(inner).nonlocals)
    except Exception as error:
        raise TaskError(
            f"{signature_of(function)}: an annotation cannot be read: {error}; "
            "import the name where the task is defined"
        ) from error


def _parts(annotation: Any) -> Iterator[Any]:
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
    elif annotation is not type(None) and annotation is not None:
        yield annotation


def _is_model(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, peewee.Model)


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", None) or str(thing)
