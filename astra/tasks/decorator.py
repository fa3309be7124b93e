"""``@task``: make a generator function a task.

The results that it yields are batched, written to the database at checkpoints, and passed on.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar, cast, overload

import peewee

from astra.database.connection import database, dialect, in_transaction, retrying
from astra.errors import TaskError, nearest
from astra.models.archive import check_archive
from astra.models.table_checks import check_key_types, check_tables
from astra.results.rows import Target
from astra.results.stopping import Settings, Stop, Tally
from astra.tasks.declared import (
    KEYWORDS,
    Declared,
    bind_call,
    caller,
    check_keywords,
    declared_by,
)
from astra.tasks.provenance import bound_arguments, provenance_of, store_provenance
from astra.tasks.signature import (
    PLAIN_FUNCTION,
    hints_where_defined,
    input_models,
    output_model,
    rows_parameter,
    signature_of,
    task_name,
)

Result = TypeVar("Result")


@overload
def task(function: Callable[..., Iterable[Result]]) -> Callable[..., Iterator[Result]]: ...


@overload
def task(
    function: None = None, **keywords: object
) -> Callable[[Callable[..., Iterable[Result]]], Callable[..., Iterator[Result]]]: ...


def task(function: Callable[..., object] | None = None, **keywords: object) -> object:
    """Make a generator function a task.

    Use it bare, or with keywords. They can also be given at the call: a call overrides the
    decorator, which overrides the default.

    Parameters
    ----------
    function : callable
        The generator function, where the decorator is used bare.
    **keywords : bool, int, float or str
        One or more of these:

        - ``live``: yield each result at once, before it is written (default False: results come
          out after their batch is in the database, with their ``task_pk``).
        - ``batch_size``: number of results written per batch (1000).
        - ``write_frequency``: longest time that a result waits for its checkpoint (300) [s].
        - ``write_to_database``: False: results are yielded and not written (True).
        - ``re_raise_exceptions``: False: an exception is logged and recorded as a failure of its
          row, and the remaining rows are still processed (True).
        - ``group_by``: names of input columns: one row per group, the most recently modified; its
          results may be of any row of the group (none).
        - ``many``: True: a row may have several results. They are stored together when the row
          ends: when the next row is asked for, or ``End(row)`` is yielded (False).
        - ``files``: names of arguments that name files or folders; or a mapping from the names to
          functions that find the file of a value, or None. Results keep their digests (none).
        - ``revision``: a number or a text that you change when the task's code changes its
          results: ``redo="changed"`` takes results of other revisions. Commits do not count.

    Returns
    -------
    callable
        The task: called with rows, it stores results and yields them.

    Raises
    ------
    TaskError
        If the function does not yield, or a keyword or value cannot be used.

    Examples
    --------
    >>> from collections.abc import Iterable
    >>> from astra import task
    >>> from astra.models import BossVisitSpectrum, Slam
    >>> @task(batch_size=50)
    ... def my_analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Slam]:
    ...     for spectrum in spectra:
    ...         yield Slam.from_spectrum(spectrum, teff=3500.0)
    >>> len(list(my_analysis(BossVisitSpectrum.select(), write_to_database=False)))
    8
    """
    if function is None:
        namespace = sys._getframe(1).f_locals
        return lambda decorated: _declare(decorated, keywords, namespace)
    if not callable(function):
        raise TaskError(f"@task takes keywords only, as in @task(batch_size=50), not {function!r}")
    return _declare(function, keywords, sys._getframe(1).f_locals)


def _declare(
    function: Callable[..., object], keywords: dict[str, object], namespace: dict[str, object]
) -> Callable[..., Iterator[object]]:
    _check_function(function)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TaskError(
            f"{signature_of(function)} is asynchronous: a task is a plain generator function; "
            "write `def` instead of `async def`"
        )
    if not inspect.isgeneratorfunction(function):
        raise TaskError(
            f"{signature_of(function)} does not yield: a task is a generator function; write "
            "`yield MyResult.from_row(row, ...)` for each row, or from_spectrum(spectrum, ...)"
        )
    rows_parameter(function)
    _check_only(function, namespace)
    declared = _declaration(function, dict(keywords), namespace)

    @functools.wraps(function)
    def call(*arguments: object, **named: object) -> Iterator[object]:
        settings, bound = bind_call(call, arguments, named)
        parameter = rows_parameter(function)
        rows = bound.arguments.pop(parameter.name, parameter.default)
        if rows is None and parameter.default is None:
            return _pending(call, bound, settings)
        return _direct(call, rows, bound, settings)

    call.__astra__ = declared  # type: ignore[attr-defined]
    return call


def _declaration(
    function: Callable[..., object], keywords: dict[str, object], namespace: dict[str, object]
) -> Declared:
    """Check the keywords of @task, and return what it knows of a function."""
    columns = keywords.pop("group_by", None)
    group_by = _checked_names("group_by", columns, "the names of input columns")
    many = keywords.pop("many", False)
    if not isinstance(many, bool):
        raise TaskError(f"many={many!r}: give True or False")
    files = _checked_files(function, keywords.pop("files", ()))
    revision = keywords.pop("revision", None)
    if isinstance(revision, bool) or not isinstance(revision, str | int | None):
        raise TaskError(f"revision={revision!r}: give a number or a text")
    for name in keywords:
        if name not in KEYWORDS:
            accepted = [*KEYWORDS, "group_by", "many", "files", "revision"]
            raise TaskError(f"@task has no keyword {name!r}. {nearest(name, accepted)}")
    check_keywords(keywords)
    hints = hints_where_defined(function, namespace)
    return Declared(function, keywords, group_by, many, hints, files, revision)


def _check_function(function: Callable[..., object]) -> None:
    """Refuse a method, a partial function, or a function that is a task already."""
    if hasattr(function, "__astra__"):
        raise TaskError(
            f"{task_name(function)} is a task already; to change its keywords for another use, "
            "pass them at the call"
        )
    if not inspect.isfunction(function) or _is_in_class(function):
        name = getattr(function, "__qualname__", repr(function))
        raise TaskError(f"@task was applied to {name}: {PLAIN_FUNCTION}")


def _is_in_class(function: Callable[..., object]) -> bool:
    """Return whether a function is defined in the body of a class, as its method."""
    in_class = "." in getattr(function, "__qualname__", "").rpartition("<locals>.")[2]
    return in_class and list(inspect.signature(function).parameters)[:1] in (["self"], ["cls"])


def _check_only(function: Callable[..., object], namespace: dict[str, object]) -> None:
    """Refuse a second task with the same name in a module; a task may replace itself."""
    spec = namespace.get("__spec__")
    other = getattr(namespace.get(function.__name__), "__astra__", None)
    if other is None or other.function.__module__ != function.__module__:
        return
    if getattr(spec, "_initializing", False):  # not a notebook, nor importlib.reload()
        lines = [f.__code__.co_firstlineno for f in (other.function, inspect.unwrap(function))]
        raise TaskError(
            f"two tasks have the name {task_name(function)}, at the lines {lines[0]} and "
            f"{lines[1]}; rename one of them"
        )


def _checked_names(keyword: str, value: object, expected: str) -> tuple[str, ...]:
    """Return the names that a keyword of @task lists; a single name may stand by itself."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else value
    listed = tuple(names) if isinstance(names, Iterable) else (None,)
    if not all(isinstance(name, str) for name in listed):
        raise TaskError(f"{keyword}={value!r}: give {expected}")
    return listed


def _checked_files(
    function: Callable[..., object], files: object
) -> dict[str, Callable[[object], object] | None]:
    """Return the arguments that name files, and the functions that find the file of a value."""
    names = _checked_names("files", files, "names of the task's arguments")
    finders = dict(files) if isinstance(files, Mapping) else dict.fromkeys(names)
    parameters = inspect.signature(function).parameters
    arguments = [name for name in parameters if name != rows_parameter(function).name]
    for name, find in finders.items():
        if name not in arguments:
            hint = nearest(str(name), arguments)
            raise TaskError(f"files: {signature_of(function)} takes no {name!r}. {hint}")
        if find is not None and not callable(find):
            raise TaskError(
                f"files[{name!r}]={find!r}: give a function that maps a value to its file"
            )
    return finders


def _direct(
    call: Callable[..., object],
    rows: Iterable[object],
    bound: inspect.BoundArguments,
    settings: Settings,
) -> Iterator[object]:
    """Run a task for a program that calls it, outside of any plan."""
    target = target_of_call(call, rows)
    n_rows = len(rows) if isinstance(rows, list | tuple) else None
    if settings.write_to_database:
        if (output := target.output) is not None:
            retrying(lambda: check_tables(output))
            if (model := target.model) is not None and output.link_to(model) is not None:
                retrying(lambda: check_key_types(output, model))
        retrying(check_archive)
        provenance = provenance_of(call, bound_arguments(call, bound), target.output)
        target = replace(target, made_by=retrying(lambda: store_provenance(provenance)))
    from astra.results.writer import Writer  # here, as those who only plan a task do without
    from astra.tasks.run import Run

    writer = Writer(settings, target, Stop(), Tally())
    run = Run(_rows_of(rows, settings), caller(call, bound), writer, n_rows)
    if settings.write_to_database:
        run.in_progress.read = retrying(lambda: dialect().now())
    yield from run


def _pending(
    call: Callable[..., object], bound: inspect.BoundArguments, settings: Settings
) -> Iterator[object]:
    """Run a task that is called without rows, which are optional: it takes all pending rows."""
    from astra import generate_queries_for_task

    for _, query in generate_queries_for_task(call):
        yield from _direct(call, query, bound, settings)


def _rows_of(rows: object, settings: Settings) -> Iterator[object]:
    if isinstance(rows, peewee.BaseQuery):
        rows = rows.clone()  # a query that was executed before would return its old rows
        is_ours = rows._database in (database, database.bound())  # type: ignore[attr-defined]
        if is_ours and dialect().name == "sqlite" and settings.write_to_database:
            from astra.database.sqlite import rows_apart  # here, as elements need one dialect

            shares_connection = dialect().is_in_memory or in_transaction()
            return iter(list(rows)) if shares_connection else rows_apart(database.database, rows)
        return cast("Iterator[object]", rows.iterator())
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes):
        raise TaskError(f"rows={rows!r}: give a query, a list, or any other iterable of rows")
    return iter(rows)


def target_of_call(call: Callable[..., object], rows: object) -> Target:
    """Return the task and its tables, as far as the annotations or the rows define them."""
    try:
        output = output_model(call)
    except TaskError:
        output = None
    model = getattr(rows, "model", None)
    if model is None:
        try:
            models = input_models(call)
        except TaskError:
            models = []
        first = rows[0] if isinstance(rows, list | tuple) and rows else None
        model = type(first) if hasattr(first, "_meta") else next(iter(models), None)
    if not (isinstance(model, type) and issubclass(model, peewee.Model)):
        model = None
    declared = declared_by(call)
    return Target(
        task_name(call), model, output, many=declared.many, groups=bool(declared.group_by)
    )
