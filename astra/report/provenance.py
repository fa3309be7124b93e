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
class SubmissionSummary:
    """One submission of a plan, as the report shows it."""

    at: datetime
    kind: str  # "array 123", or "local processes"
    elements: int
    host: str  # where it was submitted
    cluster: str | None
    profile: str


@dataclass(frozen=True)
class Provenance:
    """Who made a plan, where and with which arguments, and its last submissions."""

    plan: int
    created: datetime
    by: str
    host: str  # where it was made
    task: str
    commit: str | None
    arguments: str
    rows_per_page: int
    submissions: tuple[SubmissionSummary, ...]
    n_submissions: int
    table: str  # of its results
    folder: str  # of its scripts and logs
    clusters: tuple[str, ...]  # empty if it ran without Slurm


def provenance_of(plan: Plan, submissions: Sequence[Submission]) -> Provenance:
    """Return who made a plan, where and with what, and how it was submitted."""
    of_plan = sorted((s for s in submissions if s.plan_pk == plan.pk), key=lambda s: s.pk)
    clusters = (s.cluster_name or s.cluster for s in of_plan if s.kind == "slurm")
    return Provenance(
        plan.pk, plan.created, plan.created_by, plan.created_on, plan.task_path, plan.commit,
        plan.arguments, plan.limit, tuple(map(_summary, of_plan[-N_SUBMISSIONS:])), len(of_plan),
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


def _summary(s: Submission) -> SubmissionSummary:
    kind = f"array {s.job_id or '(no answer)'}" if s.kind == "slurm" else "local processes"
    return SubmissionSummary(
        s.created, kind, len(s.elements), s.host, s.cluster_name or s.cluster, s.profile
    )
