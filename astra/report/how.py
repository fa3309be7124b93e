"""How a plan was made and submitted: by whom, where, with what, and where its files are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from astra.config.run_folder import run_folder
from astra.errors import AstraError
from astra.models.importing import load
from astra.models.plans import Plan, Submission
from astra.plan.lookup import find_modules

N_SUBMISSIONS = 30  # the last ones


@dataclass(frozen=True)
class Sent:
    """One submission of a plan."""

    at: datetime
    what: str
    elements: int
    host: str  # that it was submitted from
    cluster: str | None
    profile: str


@dataclass(frozen=True)
class How:
    """How a plan was made and submitted."""

    plan: int
    made: datetime
    by: str
    host: str  # that it was made on
    task: str
    commit: str | None
    arguments: str
    rows_per_page: int
    submissions: tuple[Sent, ...]
    n_submissions: int
    table: str  # that its results are in
    folder: str  # of its scripts and logs
    clusters: tuple[str, ...]  # none where it ran without Slurm


def how_it_ran(plan: Plan, submissions: Sequence[Submission]) -> How:
    """Return how a plan was made and submitted."""
    mine = sorted((s for s in submissions if s.plan_pk == plan.pk), key=lambda s: s.pk)
    clusters = (s.cluster_name or s.cluster for s in mine if s.kind == "slurm")
    return How(
        plan.pk, plan.created, plan.created_by, plan.created_on, plan.task_path, plan.commit,
        plan.arguments, plan.limit, tuple(map(_sent, mine[-N_SUBMISSIONS:])), len(mine),
        _results_table(plan), str(run_folder(plan.folder)),
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


def _sent(s: Submission) -> Sent:
    where = f"array {s.job_id or '(not answered)'}" if s.kind == "slurm" else "processes here"
    return Sent(s.created, where, len(s.elements), s.host, s.cluster_name or s.cluster, s.profile)
