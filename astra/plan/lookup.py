"""Find a plan by its number, and what its rows and task are."""

import sys
from typing import Any

from astra.database.connection import connection, tuples
from astra.errors import UsageError
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


def find_modules(plan: Plan) -> None:
    """Have the modules of the plan's task and models found, from whatever folder."""
    if plan.import_root and plan.import_root not in sys.path:
        sys.path.insert(0, plan.import_root)
