"""Verify a plan: check that its pages agree with the results and records in the database.

Only the database is read, in one snapshot, so a plan can be verified while it runs. Every check is
of an invariant that holds at every moment, whatever crashed: pages, attempts and rows add up, and
each row has ended in at most one way. A breach is reported by page and key.
"""

from astra.database.connection import connection, dialect
from astra.errors import AstraError
from astra.models.importing import load
from astra.models.plans import Plan
from astra.plan.lookup import find_modules, get_plan, task_of
from astra.status.verdict import Verdict
from astra.status.verify_rows import Verifier
from astra.tasks.declared import declared_by


def verify(plan: int, max_listed: int = 20) -> Verdict:
    """Check a plan against all that is stored for its rows.

    Parameters
    ----------
    plan : int
        Number of the plan.
    max_listed : int
        How many breaches of each check are listed; all are counted.

    Returns
    -------
    Verdict
        It is ``sound`` if no check found a breach.

    Raises
    ------
    UsageError
        If there is no such plan, or its models cannot be imported.

    Examples
    --------
    >>> from astra.api import verify
    >>> verify(1).sound
    True
    """
    frozen = get_plan(plan)
    find_modules(frozen)
    output, is_grouped = load(frozen.output_model), _is_grouped(frozen)
    with connection(), dialect().snapshot([output] if dialect().columns(output) else []):
        return Verifier(Plan.get_by_id(frozen.pk), max_listed, is_grouped).verdict()


def _is_grouped(plan: Plan) -> bool:
    """Return whether the plan's task takes rows in groups; True if the task is gone."""
    try:
        return bool(declared_by(task_of(plan)).group_by)
    except AstraError:
        return True
