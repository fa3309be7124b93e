"""Find a plan by its number, import its task, and decide whether to trust its code."""

import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import PathFinder
from numbers import Integral
from pathlib import Path

from astra.config import settings
from astra.config.startup import import_from
from astra.database.connection import dialect, retrying, tuples
from astra.errors import TaskError, Untrusted, UsageError, shown
from astra.models.importing import load
from astra.models.plans import Plan
from astra.models.table_checks import current_tables
from astra.version import CURRENT


def paused_message(pk: int, reason: str | None) -> str:
    """Say that a plan is paused, why, and how it continues."""
    return f"plan {pk} is paused ({reason}): astra continue {pk}"


def plan_numbers(plans: int | Iterable[int]) -> list[int]:
    """Return numbers of plans as a list; a single one may be given by itself."""
    if isinstance(plans, Iterable) and not isinstance(plans, str):
        return list(plans)
    return [plans]


def get_plan(pk: int) -> Plan:
    """Return the plan with a number.

    Raises
    ------
    UsageError
        If there is none; the message lists the latest plans.
    """
    if not isinstance(pk, Integral):
        raise UsageError(
            f"{pk!r} is not the number of a plan; create_plan returns it as `plan`, which is None "
            "if nothing was pending"
        )
    with current_tables():
        plan = Plan.get_or_none(Plan.pk == int(pk)) if pk < 2**63 else None
        if plan is not None:
            return plan
        last = [p for (p,) in tuples(Plan.select(Plan.pk).order_by(Plan.pk.desc()).limit(5))]
    raise UsageError(
        f"there is no plan {shown(pk)}; "
        + (f"the latest: {', '.join(map(str, last))} (astra plans)" if last else "none was made")
    )


def last_plan() -> int:
    """Return the number of the last plan, or raise UsageError if there is none."""
    with current_tables():
        last = Plan.select(Plan.pk).order_by(Plan.pk.desc()).limit(1).scalar()
    if last is None:
        raise UsageError("there is no plan yet: astra plan TASK")
    return int(last)


def check_plan_version(plan: Plan) -> None:
    """Refuse a plan that was made at another major.minor version."""
    if plan.version.major_minor != CURRENT.major_minor:
        raise UsageError(
            f"plan {plan.pk} was made at version {plan.version.text}, this is astra "
            f"{CURRENT.text}: its results would belong to another version; "
            f"astra cancel {plan.pk}, then plan again"
        )


def task_of(plan: Plan) -> Callable[..., object]:
    """Import the plan's task from where it was when the plan was made.

    Raises
    ------
    TaskError
        If it is no longer there, or is not a task.
    """
    find_modules(plan)
    function: Callable[..., object] = load(plan.task_path)
    if not hasattr(function, "__astra__"):
        raise TaskError(f"{plan.task_path}, of plan {plan.pk}, is not a task: it lacks @task")
    return function


#: Tokens of plans whose code may run in this process, whichever role made them; "*" for all.
_trusted: set[str] = set()


def trust(plan: Plan | None = None) -> None:
    """Allow this process to run the code of a plan, or of every plan, whatever role made it."""
    _trusted.add("*" if plan is None else plan.token)


def revoke_trust() -> None:
    """Forget every plan that :func:`trust` was called for."""
    _trusted.clear()


def is_trusted(role: str | None, token: str, *folders: str) -> bool:
    """Return whether a plan or night is of the user's own role, or trusted by the user.

    It is also trusted if all of its `folders` are below configured roots.
    """
    if role is None or not _trusted.isdisjoint(("*", token)):
        return True
    if role == (dialect().known_role or retrying(dialect().session_role)):
        return True
    return bool(folders) and not _untrusted(folders)


def _untrusted(places: Iterable[str]) -> list[str]:
    """Return the folders and files that are not below a configured root."""
    roots = [Path(root).resolve() for root in settings.current().plan.trusted_roots]
    return [
        place
        for place in dict.fromkeys(places)
        if not any(Path(place).resolve().is_relative_to(root) for root in roots)
    ]


def check_trust(plan: Plan, *folders: str) -> None:
    """Refuse to run the code of another role's plan, or one of `folders`, if it is not trusted."""
    if is_trusted(plan.role, plan.token):
        return
    if untrusted := _untrusted([*folders, *_places_of_code(plan)]):
        raise Untrusted(
            f"plan {plan.pk} was made by the role {plan.role!r}, and its code in "
            f"{' and '.join(untrusted)} would run with your privileges; review the code, then add "
            "--trust, or name a folder above it in [plan] trusted_roots"
        )


def _places_of_code(plan: Plan) -> Iterator[str]:
    """Generate the folders and files of a plan's task and models, without importing them."""
    root = plan.import_root
    if root is not None:
        yield root
    for path in (plan.task_path, plan.input_model, plan.output_model):
        name = path.partition(":")[0].partition(".")[0]
        if name == _PACKAGE:
            continue  # it is imported already, with its tasks
        spec = PathFinder.find_spec(name, None if root is None else [root, *sys.path])
        folders = (spec and spec.submodule_search_locations) or ()
        yield from folders or ((spec and spec.origin) or name,)


_PACKAGE = __name__.partition(".")[0]


def find_modules(plan: Plan) -> None:
    """Make the modules of the plan's task and models importable from any folder, if trusted."""
    check_trust(plan)
    if plan.import_root:
        import_from(plan.import_root)
