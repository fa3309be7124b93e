"""Find a plan by its number, and what its rows and task are."""

import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from astra.config import settings
from astra.database.connection import connection, dialect, tuples
from astra.errors import TaskError, Untrusted, UsageError
from astra.models.importing import load
from astra.models.plans import Plan
from astra.models.schema import check_version
from astra.version import CURRENT


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
        last = [p for (p,) in tuples(Plan.select(Plan.pk).order_by(Plan.pk.desc()).limit(5))]
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
    if plan.version.major_minor != CURRENT.major_minor:
        raise UsageError(
            f"plan {plan.pk} was made at version {plan.version.text}, this is astra "
            f"{CURRENT.text}: its results would belong to another version; "
            f"astra cancel {plan.pk}, then plan again"
        )


def task_of(plan: Plan) -> Any:
    """The plan's task, imported from where it stood when the plan was made.

    Raises
    ------
    TaskError
        If it is not there any more, or is no task.
    """
    find_modules(plan)
    found = load(plan.task_path)
    if not hasattr(found, "__astra__"):
        raise TaskError(f"{plan.task_path}, of plan {plan.pk}, is no task: it lacks @task")
    return found


#: Tokens of plans whose code runs in this process, whichever role made them; "*" for all.
_trusted: set[str] = set()


def trust(plan: Plan | None = None) -> None:
    """Let the code of a plan run in this process, or that of every plan, whoever planned it."""
    _trusted.add("*" if plan is None else plan.token)


def trust_no_longer() -> None:
    _trusted.clear()


def is_trusted(role: str | None, token: str) -> bool:
    """Whether what a role stored for a plan is acted on here: one's own, or trusted by a person."""
    if role is None or not _trusted.isdisjoint(("*", token)):
        return True
    with connection():
        return role == dialect().session_role()


def check_trust(plan: Plan, *folders: str) -> None:
    """Refuse to run code that another role has named for its plan, from wherever it comes.

    Raises
    ------
    Untrusted
        If it, or one of the `folders`, is not below a configured root, and the plan is another
        role's.
    """
    if is_trusted(plan.role, plan.token):
        return
    roots = [Path(root).resolve() for root in settings.current().plan.trusted_roots]
    places = [*folders, *_places_of_code(plan)]
    strange = [
        place
        for place in dict.fromkeys(places)
        if not any(Path(place).resolve().is_relative_to(root) for root in roots)
    ]
    if strange:
        raise Untrusted(
            f"plan {plan.pk} was made by the role {plan.role!r}, and its code would run as you "
            f"from {' and '.join(strange)}; look at the code, then add --trust, or name a folder "
            "above it in [plan] trusted_roots"
        )


def _places_of_code(plan: Plan) -> Iterator[str]:
    """The folders and files that a plan's task and models are imported from, without an import."""
    root = plan.import_root
    if root is not None:
        yield root
    for path in (plan.task_path, plan.input_model, plan.output_model):
        name = path.partition(":")[0].partition(".")[0]
        if name == _PACKAGE:
            continue  # it is imported already, and its tasks come with it
        spec = PathFinder.find_spec(name, None if root is None else [root, *sys.path])
        folders = (spec and spec.submodule_search_locations) or ()
        yield from folders or ((spec and spec.origin) or name,)


_PACKAGE = __name__.partition(".")[0]


def find_modules(plan: Plan) -> None:
    """Have the modules of the plan's task and models found, from whatever folder.

    Raises
    ------
    Untrusted
        If another role has made the plan, and nobody trusts where they are.
    """
    check_trust(plan)
    if plan.import_root and plan.import_root not in sys.path:
        sys.path.insert(0, plan.import_root)
