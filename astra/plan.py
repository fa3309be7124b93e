"""Plans: the pending rows of one task and input model, frozen, cut into pages."""

import getpass
import inspect
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from peewee import SQL, fn

from astra import config
from astra.arguments import as_stored, parse_arguments
from astra.database import connection, dialect, writing
from astra.errors import TaskError, UsageError
from astra.models.orchestration import Attempt, Failure, NoResult, Page, Plan
from astra.models.pipeline import version_number
from astra.pending import (
    checked_ids,
    has_old_result,
    key_of,
    most_recent_first,
    pending_rows,
    whole_number,
)
from astra.resolve import (
    choose_model,
    find_task,
    import_path,
    load,
    output_model,
    task_name,
)
from astra.schema import check_tables, check_version
from astra.states import AttemptState
from astra.suspects import QUARANTINED


@dataclass(frozen=True)
class Planned:
    """What planning came to."""

    plan: int | None  # None: nothing was pending
    task: str
    input_model: str
    pages: int
    rows: int
    limit: int
    held: int  # pending rows left out: a live plan has them
    failed: int  # left out: ended as a failure, and were not modified since
    no_result: int  # left out: ended without a result, and were not modified since
    quarantined: int = 0  # of the failed: ended their process
    live_plans: tuple[int, ...] = ()  # who holds the held


def create_plan(
    task: Any,
    input_model: Any = None,
    sdss_ids: Iterable[int] | None = None,
    limit: int | None = None,
    max_rows: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    again: bool = False,
    new_first: bool = False,
) -> list[Planned]:
    """Freeze the pending rows of a task: one plan for each of its input models that has any.

    Parameters
    ----------
    task, input_model, sdss_ids : as for :func:`astra.generate_queries_for_task`.
    limit : rows per page; by default the configured ``[plan] limit``.
    max_rows : at most so many rows, the first in their order.
    arguments : of the task, by name; values of the annotated types, or texts that are parsed.
    again : take rows too that ended as a failure or without a result.
    new_first : rows without any result come before those that were modified since theirs; else,
        and within these two, the most recently modified come first.

    Raises
    ------
    TaskError
        If the task, an argument or a value cannot be used; nothing is stored.
    """
    function = find_task(task)
    models = choose_model(function, input_model)
    output = output_model(function)
    if not hasattr(function, "__astra__"):
        raise TaskError(f"{task_name(function)} is no task: decorate it with @task")
    if not function.__astra__.keywords.get("write_to_database", True):
        raise TaskError(
            f"{task_name(function)} is declared with write_to_database=False: a plan of it could "
            "never end; take that out, or call the task from a program"
        )
    values = parse_arguments(function, arguments or {})
    _check_importable(function)
    limit = whole_number("limit", config.current().plan.limit if limit is None else limit)
    if max_rows is not None:
        max_rows = whole_number("max_rows", max_rows)
    ids = None if sdss_ids is None else checked_ids(sdss_ids)
    check_version()
    with connection():
        check_tables(*models, output)
    return [
        _freeze(function, model, values, ids, limit, max_rows, again, new_first) for model in models
    ]


def _freeze(
    function: Any,
    model: Any,
    arguments: dict[str, Any],
    ids: list[int] | None,
    limit: int,
    max_rows: int | None,
    again: bool,
    new_first: bool,
) -> Planned:
    name, table, output = task_name(function), model._meta.table_name, output_model(function)
    group_by = function.__astra__.group_by
    with connection(), writing(), dialect().lock(f"plan {name} {table}"):
        release_silent(name, table)
        pending = pending_rows(model, output, group_by, ids)
        key = key_of(model)
        version = version_number() // 1000
        held = dialect().held(key, name, table, version, Page, Plan, Attempt)
        left_out = [] if again else [(m, _ended(m, model, name)) for m in (Failure, NoResult)]
        live = _live_plans(name, table)
        counts = {
            "held": pending.where(held).count() if live else 0,
            "failed": 0,
            "no_result": 0,
            "quarantined": 0,
        }
        if live:
            pending = pending.where(database_not(held))
        for kind, clause in left_out:
            if kind.select(kind.pk).where(kind.task == name).limit(1).scalar() is not None:
                what = "failed" if kind is Failure else "no_result"
                counts[what] = pending.where(clause).count()
                if kind is Failure and counts[what]:
                    deadly = _ended(kind, model, name, QUARANTINED)
                    counts["quarantined"] = pending.where(deadly).count()
                pending = pending.where(~clause)
        columns = [key.alias("key"), model.modified.alias("modified"),
                   model._meta.primary_key.alias("pk")]  # fmt: skip
        order: tuple[Any, ...] = most_recent_first(model)
        if new_first:
            columns.append(known := has_old_result(model, output).alias("known"))
            order = (known, *order)
        keys = pending.select(*columns).order_by(*order)
        if max_rows is not None:
            keys = keys.limit(max_rows)
        plan = _record(function, model, output, arguments, limit)
        pages, rows = dialect().freeze(keys, Page, plan.pk, limit, new_first)
        if not rows:
            plan.delete_instance()
        else:
            Plan.update(n_pages=pages, n_rows=rows).where(Plan.pk == plan.pk).execute()
        return Planned(
            plan.pk if rows else None, name, model.__name__, pages, rows, limit,
            live_plans=tuple(live) if counts["held"] else (), **counts,
        )  # fmt: skip


def database_not(clause: Any) -> Any:
    """The denial of a clause that is written in SQL."""
    from peewee import SQL, NodeList

    return NodeList((SQL("NOT"), clause))


def _ended(kind: Any, model: Any, name: str, exceptions: tuple[str, ...] = ()) -> Any:
    """A clause: the row ended so at this version, and was not modified since."""
    row = kind.alias("ended")
    return fn.EXISTS(
        row.select(1).where(
            (row.task == name)
            & (row.input_table == model._meta.table_name)
            & (row.key == key_of(model))
            & (row.v_astra_major_minor == version_number() // 1000)
            & (row.input_modified == model.modified)
            & (row.exception << exceptions if exceptions else SQL("1 = 1"))
        )
    )


def release_silent(name: str, table: str) -> None:
    """Take pages of cancelled plans from attempts that were not heard of for a lease.

    Such an attempt can write no more, should it come back: its rows are free.
    """
    silent_since = dialect().now() - timedelta(seconds=config.current().element.lease_s)
    silent = list(
        Attempt.select(Attempt.pk, Attempt.page)
        .join(Page)
        .join(Plan)
        .where(
            (Plan.task == name)
            & (Plan.input_table == table)
            & Plan.cancelled.is_null(False)
            & (Attempt.state == AttemptState.RUNNING.value)
            & (Attempt.seen < silent_since)
        )
    )
    release(silent, "its plan was cancelled, and it was not heard of since")


def release(attempts: Iterable[Attempt], why: str) -> None:
    """Take their pages from attempts that run no more: they can write nothing from now on."""
    pks = [attempt.pk for attempt in attempts]
    if not pks:
        return
    Page.update(attempt_pk=None).where(Page.attempt_pk.in_(pks)).execute()
    Attempt.update(
        state=AttemptState.SUPERSEDED.value, ended=SQL(dialect().now_sql), message=why
    ).where(Attempt.pk.in_(pks) & (Attempt.state == AttemptState.RUNNING.value)).execute()


def _live_plans(name: str, table: str) -> list[int]:
    """Plans of the task that still have rows to end."""
    ended = Page.n_done + Page.n_failed + Page.n_no_result
    running = Attempt.select(Attempt.pk).where(
        (Attempt.pk == Page.attempt_pk) & (Attempt.state == AttemptState.RUNNING.value)
    )
    query = (
        Plan.select(Plan.pk)
        .join(Page)
        .where(
            (Plan.task == name)
            & (Plan.input_table == table)
            & (Plan.v_astra / 1000 == version_number() // 1000)
            & (Plan.cancelled.is_null() | fn.EXISTS(running))
            & (ended < Page.n_rows)
        )
        .distinct()
        .order_by(Plan.pk)
    )
    return [pk for (pk,) in query.tuples()]


def _record(function: Any, model: Any, output: Any, arguments: dict[str, Any], limit: int) -> Plan:
    file = Path(inspect.getfile(inspect.unwrap(function))).resolve()
    return Plan.create(
        task=task_name(function),
        task_path=import_path(function),
        import_root=import_root(function, file),
        input_model=import_path(model),
        input_table=model._meta.table_name,
        output_model=import_path(output),
        arguments=as_stored(arguments),
        limit=limit,
        n_pages=0,
        n_rows=0,
        v_astra=version_number(),
        commit=_commit(file.parent),
        created_by=getpass.getuser() if _has_user() else "unknown",
        created_on=socket.gethostname(),
        cwd=_current_folder(),
    )


def _current_folder() -> str:
    """Where elements begin; stored as text, which not every name of a folder is."""
    folder = str(Path.cwd())
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the name of the current folder, {folder!r}, is not UTF-8; rename it, or plan in "
            "another one"
        ) from error
    return folder


def _has_user() -> bool:
    try:
        getpass.getuser()
    except (KeyError, OSError):
        return False
    return True


def import_root(function: Any, file: Path) -> str | None:
    """The folder that has to be on ``sys.path`` to import the task; None where it is installed."""
    depth = function.__module__.count(".") + (1 if file.name == "__init__.py" else 0)
    root = file.parents[depth] if depth < len(file.parents) else file.parent
    return None if "site-packages" in root.parts else str(root)


def _check_importable(function: Any) -> None:
    """Elements import the task anew: it must stand in a module, by its name."""
    path = import_path(function)
    if function.__module__ == "__main__" or "<locals>" in path:
        raise TaskError(
            f"{task_name(function)} cannot be imported by other processes: move it to the top "
            "level of a module, and name it module.function"
        )
    if load(path) is not function:
        raise TaskError(f"{path} is another object than the task that was given")


def _commit(folder: Path) -> str | None:
    """The commit that the task's code stands at, with "+" where files were changed since."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True, text=True, timeout=10, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if not head:
        return None
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")


# ------------------------------------------------------------------------------------ looking


def get_plan(pk: int) -> Plan:
    """The plan of a number.

    Raises
    ------
    UsageError
        If there is none; it says which there are.
    """
    check_version()
    with connection():
        plan = Plan.get_or_none(Plan.pk == pk)
        if plan is not None:
            return plan
        last = [p for (p,) in Plan.select(Plan.pk).order_by(Plan.pk.desc()).limit(5).tuples()]
    raise UsageError(
        f"there is no plan {pk}; "
        + (f"the latest: {', '.join(map(str, last))} (astra plans)" if last else "none was made")
    )


def check_plan_version(plan: Plan) -> None:
    """A plan runs at the major.minor version that it was made at.

    Raises
    ------
    UsageError
        If it is another.
    """
    if plan.v_astra // 1000 != version_number() // 1000:
        raise UsageError(
            f"plan {plan.pk} was made at version {_version_text(plan.v_astra)}, this is astra "
            f"{_version_text(version_number())}: its results would belong to another version; "
            f"astra cancel {plan.pk}, then plan again"
        )


def _version_text(v_astra: int) -> str:
    return f"{v_astra // 10**6}.{v_astra // 1000 % 1000}.{v_astra % 1000}"


def task_of(plan: Plan) -> Any:
    """The plan's task, imported from where it stood when the plan was made."""
    find_modules(plan)
    return load(plan.task_path)


def find_modules(plan: Plan) -> None:
    """Have the modules of the plan's task and models found, from whatever folder."""
    if plan.import_root and plan.import_root not in sys.path:
        sys.path.insert(0, plan.import_root)


def as_json(value: Any) -> Any:
    """A dataclass as plain values for ``--json``."""
    return asdict(value)
