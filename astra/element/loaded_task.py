"""The task that an element runs, imported and ready to be called."""

import importlib
from collections.abc import Callable, Iterable, Iterator

from peewee import Model

from astra.config import settings as config
from astra.database.connection import retrying
from astra.errors import UsageError
from astra.models.importing import load
from astra.models.pipeline import OutputModel
from astra.models.plans import MadeBy, Plan
from astra.models.stored_json import parsed, stored
from astra.plan.lookup import task_of
from astra.records import dataclass
from astra.results.stopping import Settings
from astra.tasks.arguments import restored
from astra.tasks.declared import Declared, bind_call, caller, declared_by
from astra.tasks.provenance import check_files


@dataclass(frozen=True)
class LoadedTask:
    """A plan's task, ready to be called, with its tables."""

    function: Callable[..., object]
    declared: Declared
    arguments: dict[str, object]
    model: type[Model]
    output: type[OutputModel]
    call: Callable[[Iterator[object]], Iterator[object]]
    settings: Settings
    outer_exceptions: tuple[type[BaseException], ...]


def load_task(plan: Plan) -> LoadedTask:
    """Import the task of a plan, and bind the plan's arguments.

    Raises
    ------
    AstraError
        If it cannot be imported, or its arguments or files are not those that were planned.
    """
    element, function = config.current().element, task_of(plan)
    model, output = load(plan.input_model), load(plan.output_model)
    arguments = planned_arguments(plan, function)
    # A row that raises fails alone, unless the plan itself says otherwise.
    values = {"re_raise_exceptions": False, **arguments}
    defaults = {"write_frequency": element.write_frequency, "batch_size": element.batch_size}
    settings, bound = bind_call(function, (iter(()),), values, defaults)
    if not settings.write_to_database:
        raise UsageError(
            f"{plan.task} is declared with write_to_database=False since plan {plan.pk} was made: "
            f"remove that, then astra resume {plan.pk}"
        )
    declared = declared_by(function)
    if declared.files and plan.made_by is not None:
        planned = retrying(lambda: MadeBy.get_by_id(plan.made_by))
        files = stored(planned.files, dict, f"`files` of made_by {planned.pk}")
        check_files(function, arguments, files, plan.pk)
    exceptions = load_outer_exceptions(element.outer_exceptions)
    call = caller(function, bound)
    return LoadedTask(function, declared, arguments, model, output, call, settings, exceptions)


def planned_arguments(plan: Plan, function: Callable[..., object]) -> dict[str, object]:
    """Return the arguments that a plan calls its task with.

    Raises
    ------
    UsageError
        If they were damaged since the plan was made. Nothing is computed with other arguments.
    """
    values = parsed(plan.arguments, dict)
    if values is None:
        raise UsageError(
            f"the stored arguments of plan {plan.pk} are damaged: {plan.arguments:.60}; cancel it, "
            f"and plan its rows again: astra cancel {plan.pk}"
        )
    return restored(function, values)


def load_outer_exceptions(paths: Iterable[str]) -> tuple[type[BaseException], ...]:
    """Import the exception classes that ``[element] outer_exceptions`` names.

    Raises
    ------
    UsageError
        If a path does not name an exception class.
    """
    classes = []
    for path in paths:
        module, _, name = path.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module or "builtins"), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"[element] outer_exceptions: {path}: {error}") from error
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise UsageError(f"[element] outer_exceptions: {path} is not an exception class")
        classes.append(kind)
    return tuple(classes)
