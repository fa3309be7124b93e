"""Resolve a task's name and annotations: its function, the tables it reads, the one it writes."""

import ast
import collections.abc
import importlib.util
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast

from peewee import Model

from astra.errors import TaskError, nearest
from astra.models.importing import import_named

if TYPE_CHECKING:
    from astra.models.pipeline import OutputModel

ENTRY_POINTS = "astra.tasks"

_PIPELINES = "astra.pipelines"

#: The modules before the name of a class in a signature, but not within a quoted default.
_MODULES_OF_CLASSES = re.compile(r"(?<![\w.'\"])(?:[a-z_]\w*\.)+(?=[A-Z])")


def find_task(task: str | Callable[..., object]) -> Callable[..., object]:
    """Import the function that `task` names.

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
        if (function := _import(path)) is not None:
            return _checked_task(function, task)
    hint = " It is the number of a plan." if task.isdecimal() else ""
    raise TaskError(f"there is no task {task!r}.{hint} {_near_tasks(task)}")


def _candidates(name: str) -> Iterator[str]:
    """Generate the import paths ("module:function") of a name, the likeliest first."""
    if ":" in name:
        yield name
        return
    module, _, function = name.rpartition(".")
    yield f"{_PIPELINES}.{module or name}:{function or name}"
    if module:
        yield f"{module}:{function}"
    registered = _registered()
    if name in registered:
        yield registered[name]


def _registered() -> dict[str, str]:
    """Return the paths of the tasks that installed packages offer, by name."""
    # The module takes long to import, and reads the metadata of every installed package.
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def _import(path: str) -> Callable[..., object] | None:
    """Import the function at a path; return None if the module or the name does not exist."""
    module_name, _, function = path.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        return None
    module = import_named(module_name)
    value = None if module is None else getattr(module, function, None)
    return value if callable(value) else None


def _checked_task(value: Callable[..., object], name: str) -> Callable[..., object]:
    """Refuse a value that can be called, but is not a function."""
    if not inspect.isfunction(value):
        kind = type(value).__name__
        raise TaskError(f"{name} is not a task, but of type {kind!r}; {PLAIN_FUNCTION}")
    return value


#: What a task is.
PLAIN_FUNCTION = (
    "a task is a function with @task at the top level of a module, not a method; its other "
    "arguments are given at the call or by --set"
)


def known_tasks() -> list[str]:
    """Return the names of registered tasks and of astra's own pipelines."""
    names = set(_registered())
    for module in pkgutil.iter_modules(importlib.import_module(_PIPELINES).__path__):
        names.add(f"{module.name}.{module.name}")
    return sorted(names)


def tasks_of_folder() -> Iterator[tuple[str, str]]:
    """Generate the names and files of tasks in this folder's modules, which are not imported."""
    for path in sorted(Path.cwd().glob("*.py"))[:100]:
        try:
            nodes = ast.parse(path.read_text()).body
        except (OSError, ValueError, SyntaxError):
            continue
        for node in (node for node in nodes if isinstance(node, ast.FunctionDef)):
            for decorator in node.decorator_list:
                name = decorator.func if isinstance(decorator, ast.Call) else decorator
                if ast.unparse(name).rpartition(".")[2] == "task":
                    yield f"{path.stem}.{node.name}", path.name


def _near_tasks(name: str) -> str:
    if tasks := _tasks_in(name):
        return f"{name} is a module; its tasks: {', '.join(tasks)}"
    local_tasks = [task for task, _ in tasks_of_folder()]
    if tasks := [task for task in local_tasks if task.endswith(f".{name}")]:
        return f"Did you mean {' or '.join(map(repr, tasks))}?"
    names = {*local_tasks, *known_tasks(), *(task.rpartition(".")[2] for task in known_tasks())}
    module_name, _, _ = name.replace(":", ".").rpartition(".")
    names |= set(_tasks_in(module_name))
    first = module_name.split(".")[0]
    if first and first not in names and _is_missing(first):
        return (
            f"{nearest(name, names)} A module {first!r} cannot be imported "
            "from here; is it installed, or in this folder?"
        )
    return nearest(name, names)


def _tasks_in(module_name: str) -> list[str]:
    """Return the names of a module's tasks; none where there is no such module."""
    module = None
    if all(part.isidentifier() for part in module_name.split(".")):
        module = import_named(module_name) or import_named(f"{_PIPELINES}.{module_name}")
    values = vars(module) if module is not None else {}
    return sorted(f"{module_name}.{key}" for key, v in values.items() if _is_task(v))


def _is_task(value: object) -> bool:
    # Objects such as peewee's fn have every attribute.
    return inspect.isfunction(value) and hasattr(value, "__astra__")


def _is_missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):  # it cannot be the name of a module
        return True


def source_file(function: Callable[..., object]) -> Path:
    """Return the file that a task is written in."""
    return Path(inspect.getfile(inspect.unwrap(function))).resolve()


def task_name(function: Callable[..., object]) -> str:
    """Return the name of a task in plans and failures: ``slam.slam``, ``mypackage.tasks.f``."""
    module = function.__module__
    if module.startswith(_PIPELINES + "."):
        module = module[len(_PIPELINES) + 1 :]
    return f"{module}.{function.__qualname__}"


def signature_of(function: Callable[..., object]) -> str:
    """Return the first line of a function's definition, with names of classes as imported."""
    signature = str(inspect.signature(function))
    return f"def {function.__name__}{_MODULES_OF_CLASSES.sub('', signature)}"


def _declaration_error(function: Callable[..., object], message: str) -> TaskError:
    """Return the error to raise for a mistake in a task's signature, with its file and line."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return TaskError(f"{signature_of(function)}: {message}{place}")


def rows_parameter(function: Callable[..., object]) -> inspect.Parameter:
    """Return the first parameter of a task, which takes its rows.

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
        f"{signature_of(function)} has no parameter for rows: a task's first parameter is the "
        "iterable of its input rows, for instance spectra: Iterable[BossVisitSpectrum]"
    )


def input_models(function: Callable[..., object]) -> list[type[Model]]:
    """Return the input models that a task's first annotation names, in its order.

    Raises
    ------
    TaskError
        If the annotation is missing or names no tables; the message shows the signature.
    """
    from astra.models.keys import bound_to_database, key_of
    from astra.models.spectrum import SpectrumMixin, every_spectrum_model

    parameter = rows_parameter(function)
    annotation = hints_of(function).get(parameter.name, inspect.Parameter.empty)
    example = f"write for example {parameter.name}: Iterable[BossVisitSpectrum]"
    if annotation is inspect.Parameter.empty:
        raise _declaration_error(
            function,
            f"no input model is annotated; {example}, or name the table: "
            "--input-model boss.BossVisitSpectrum",
        )
    models: dict[type[Model], None] = {}
    for part in _parts(annotation):
        if part is SpectrumMixin:
            models.update(dict.fromkeys(every_spectrum_model()))
        elif _is_model(part):
            key_of(part)
            models[bound_to_database(part)] = None
        else:
            raise _declaration_error(
                function,
                f"{_name(part)} is not a table: a table is a peewee Model with a primary key; "
                f"{example}",
            )
    if not models:
        raise _declaration_error(function, f"the annotation does not name a table; {example}")
    return list(models)


def output_model(function: Callable[..., object]) -> "type[OutputModel]":
    """Return the output model that a task's return annotation names.

    Raises
    ------
    TaskError
        If it is missing, or not one subclass of ``OutputModel``.
    """
    from astra.models.pipeline import BASES, OutputModel

    annotation = hints_of(function).get("return", inspect.Parameter.empty)
    example = "write -> Iterable[MyResult], with a subclass of PipelineOutputModel or OutputModel"
    if annotation is inspect.Parameter.empty:
        raise _declaration_error(function, f"no output model is annotated; {example}")
    parts = list(dict.fromkeys(_parts(annotation)))
    if len(parts) == 1 and _is_model(model := parts[0]):
        if issubclass(model, OutputModel) and model not in BASES:
            return model
    names = ", ".join(map(_name, parts)) or "nothing"
    raise _declaration_error(
        function, f"results are rows of one output model, not of {names}; {example}"
    )


def choose_model(
    function: Callable[..., object], chosen: type[Model] | str | None
) -> list[type[Model]]:
    """Return the input models of a task, or the one of them that is `chosen` (a class or its name).

    A task without an annotation of its rows reads any table.

    Raises
    ------
    TaskError
        If it is none of them; they are listed.
    """
    from astra.models.keys import bound_to_database, key_of

    if chosen is None:
        return input_models(function)
    named = chosen if _is_model(chosen) else _model_named(str(chosen))
    if named is not None and not is_annotated(function):
        key_of(named)
        return [bound_to_database(named)]
    models = input_models(function)
    for model in models:
        if named is model or chosen in (model.__name__, model._meta.table_name):
            return [model]
    name = _name(chosen) if isinstance(chosen, type) else str(chosen)
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
    """Return whether the first parameter of a task has an annotation."""
    return rows_parameter(function).annotation is not inspect.Parameter.empty


def _model_named(name: str) -> type[Model] | None:
    """Find a model by its name, such as ``boss.BossVisitSpectrum`` or ``mytables:Star``."""
    from astra import models
    from astra.models.base import BaseModel, every_subclass

    module, _, class_name = name.replace(":", ".").rpartition(".")
    for path in (f"{models.__name__}.{module}".rstrip("."), module):
        model = getattr(import_named(path), class_name, None) if path else None
        if _is_model(model):
            return model
    models.import_all()
    tables = every_subclass(BaseModel)
    return next((m for m in tables if name in (m.__name__, m._meta.table_name)), None)


def hints_where_defined(
    function: Callable[..., object], namespace: dict[str, object]
) -> dict[str, object] | None:
    """Return annotations, resolved with the names of the scope that defines the function."""
    try:
        return typing.get_type_hints(function, localns=namespace)
    except Exception:
        # A name that is defined further down is resolved when it is needed.
        return None


def hints_of(function: Callable[..., object]) -> dict[str, object]:
    """Return the annotations of a task's signature, with names resolved."""
    settings = getattr(function, "__astra__", None)
    if settings is not None and settings.hints is not None:
        return cast("dict[str, object]", settings.hints)
    inner = inspect.unwrap(function)
    try:
        return typing.get_type_hints(inner, localns=inspect.getclosurevars(inner).nonlocals)
    except Exception as error:
        raise _declaration_error(
            function,
            f"an annotation cannot be read: {error}; import the name where the task is defined",
        ) from error


def _parts(annotation: object) -> Iterator[object]:
    """Generate the classes of an annotation, without containers and None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    # Of these only the first argument names what is iterated over.
    if origin in (typing.Annotated, collections.abc.Generator, collections.abc.AsyncGenerator):
        arguments = arguments[:1]
    elif origin not in (typing.Union, types.UnionType) and not (
        isinstance(origin, type) and issubclass(origin, collections.abc.Iterable)
    ):
        if annotation not in (type(None), None, ..., types.EllipsisType):
            yield annotation
        return
    for argument in arguments:
        yield from _parts(argument)


def _is_model(value: object) -> TypeGuard[type[Model]]:
    return isinstance(value, type) and issubclass(value, Model)


def _name(value: object) -> str:
    return getattr(value, "__name__", None) or str(value)
