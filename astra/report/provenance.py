"""How a plan was made: by whom, where, with what, and where its files are."""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter

from astra.config.run_folder import run_folder
from astra.errors import AstraError
from astra.models.importing import load
from astra.models.plans import Plan, Submission
from astra.plan.lookup import find_modules
from astra.records import dataclass


@dataclass(frozen=True)
class Provenance:
    """Who made a plan, where and with which arguments, and where its results and logs are."""

    plan: int
    created: datetime
    by: str
    host: str  # where it was made
    task: str
    commit: str | None
    arguments: str
    rows_per_page: int
    table: str  # of its results
    folder: str  # of its scripts and logs
    clusters: tuple[str, ...]  # empty if it ran without Slurm


def provenance_of(plan: Plan, submissions: Sequence[Submission]) -> Provenance:
    """Return who made a plan, where and with what, and to which clusters it was submitted."""
    arrays = [s for s in submissions if s.plan_pk == plan.pk and s.kind == "slurm"]
    clusters = (s.cluster_name or s.cluster for s in sorted(arrays, key=attrgetter("pk")))
    return Provenance(
        plan.pk, plan.created, plan.created_by, plan.created_on, plan.task_path, plan.commit,
        plan.arguments, plan.limit, _results_table(plan), str(run_folder(plan.folder)),
        tuple(dict.fromkeys(name for name in clusters if name)),
    )  # fmt: skip


def _results_table(plan: Plan) -> str:
    """Return the name of the result table, or of its model if that cannot be imported."""
    try:
        find_modules(plan)
        meta = load(plan.output_model)._meta
    except AstraError:
        return plan.output_model
    return f"{meta.schema}.{meta.table_name}" if meta.schema else str(meta.table_name)
