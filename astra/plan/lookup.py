"""Find a plan by its number, and what its rows and task are."""

import sys
from pathlib import Path
from typing import Any

from astra.config import settings
from astra.database.connection import connection, dialect, tuples
from astra.errors import Untrusted, UsageError
from astra.models.importing import load
from astra.models.pipeline import version_number, version_text
from astra.models.plans import Plan
from astra.models.schema import check_version


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
    if plan.v_astra // 1000 != version_number() // 1000:
        raise UsageError(
            f"plan {plan.pk} was made at version {version_text(plan.v_astra)}, this is astra "
            f"{version_text(version_number())}: its results would belong to another version; "
            f"astra cancel {plan.pk}, then plan again"
        )


def task_of(plan: Plan) -> Any:
    """The plan's task, imported from where it stood when the plan was made."""
    find_modules(plan)
    return load(plan.task_path)


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


def check_trust(plan: Plan, *folders: str | None) -> None:
    """Refuse to run code from folders that another role has named for its plan.

    Raises
    ------
    Untrusted
        If one of them is not below a configured root, and the plan is another role's.
    """
    roots = [Path(root).resolve() for root in settings.current().plan.trusted_roots]
    strange = [
        folder
        for folder in dict.fromkeys(folders)
        if folder and not any(Path(folder).resolve().is_relative_to(root) for root in roots)
    ]
    if strange and not is_trusted(plan.role, plan.token):
        raise Untrusted(
            f"plan {plan.pk} was made by the role {plan.role!r}, and its code would run as you "
            f"from {' and '.join(strange)}; look what is there, then add --trust, or name a folder "
            "above it in [plan] trusted_roots"
        )


def find_modules(plan: Plan) -> None:
    """Have the modules of the plan's task and models found, from whatever folder.

    Raises
    ------
    Untrusted
        If another role has named that folder, and nobody trusts it.
    """
    check_trust(plan, plan.import_root)
    if plan.import_root and plan.import_root not in sys.path:
        sys.path.insert(0, plan.import_root)
