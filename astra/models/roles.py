"""Grant roles of PostgreSQL the rights to plan, to write results, or only to read.

The owner of the tables, who ran ``astra initdb``, grants; nothing is ever revoked here.
"""

from astra.database.connection import dialect
from astra.database.postgresql import PostgreSQL
from astra.errors import UsageError, nearest
from astra.models import Spectrum
from astra.models.archive import Archive
from astra.models.attempts import Attempt, Exclusion, Suspect
from astra.models.base import BaseModel, RoleField
from astra.models.failures import Failure, NoResult
from astra.models.locks import Lock
from astra.models.nights import Night, NightPlan
from astra.models.pipeline import OutputModel
from astra.models.plans import MadeBy, Page, Plan, Submission
from astra.records import dataclass

#: What each kind of role may do.
KINDS = {
    "plans": "to plan, submit, resume and cancel",
    "writes": "to run elements, which write results, failures and the progress of pages",
    "reads": "to read everything",
}

#: Columns that elements may not change; they change all others of their page, submission and
#: attempt. Those that identify an attempt are written once, as it begins.
_FROZEN: dict[object, set[str]] = {
    Page: {"pk", "plan_pk", "number", "n_rows", "keys", "key_texts", "submission_pk", "retries"},
    Submission: {
        "pk", "plan_pk", "token", "kind", "job_name", "elements", "offset", "pages_per_element",
        "pulls", "cluster", "cluster_name", "pid_began", "message",
        "profile", "script", "log_folder", "created", "created_by", "host", "role",
    },
    Attempt: {
        "pk", "page_pk", "token", "submission_pk", "number", "element", "job_id", "array_index",
        "restarts", "host", "pid", "pid_began", "log", "began",
    },
}  # fmt: skip


#: Columns that planners may change in plans, submissions and nights of any role. What is run, from
#: where and with which options stays as it was written by the role that the row names.
_CONTROLLED: dict[object, set[str]] = {
    Plan: {"n_pages", "n_rows", "made_by", "cancelled", "paused", "pause_reason", "throttle"},
    Submission: {"state", "job_id", "cluster", "cluster_name", "message"},
    Night: {field.column_name for field in Night._meta.sorted_fields}
    - {"pk", "token", "name", "date", "began", "cwd", "host", "created_by", "role"},
}


#: A privilege that each kind of role has, and lesser kinds lack.
_MARKS = {"plans": (Page, "INSERT"), "writes": (Failure, "INSERT"), "reads": (Plan, "SELECT")}


@dataclass(frozen=True)
class Grant:
    """A role and its kind."""

    role: str
    kind: str


def parse_grants(texts: tuple[str, ...]) -> list[Grant]:
    """Parse ``ROLE:plans``, ``ROLE:writes`` or ``ROLE:reads``; ``ROLE`` alone means all three.

    Raises
    ------
    UsageError
        If the kind after the colon is none of these.
    """
    grants = []
    for word in texts:
        role, colon, kind = word.rpartition(":") if ":" in word else (word, "", "")
        if not role or (colon and kind not in KINDS):
            raise UsageError(
                f"--grant {word!r}: write ROLE, or ROLE:plans, ROLE:writes, ROLE:reads. "
                f"{nearest(kind, KINDS)}"
            )
        grants += [Grant(role, kind)] if colon else [Grant(role, each) for each in KINDS]
    return grants


def check_grants(grants: list[Grant]) -> None:
    """Refuse what cannot be granted, before a table is created.

    Raises
    ------
    UsageError
        If the database is SQLite, or has no such role.
    """
    if not grants:
        return
    engine = dialect()
    if not isinstance(engine, PostgreSQL):
        raise UsageError(
            "--grant: a SQLite file has no roles; access to it is governed by the file's "
            "owner and mode (chmod). Roles need PostgreSQL: ASTRA_DATABASE_URL"
        )
    roles = engine.roles()
    for grant in grants:
        if grant.role not in roles:
            raise UsageError(
                f"--grant: the server has no role {grant.role!r}. {nearest(grant.role, roles)} "
                "A superuser makes one: CREATE ROLE name LOGIN"
            )


def give(grants: list[Grant], models: list[type[BaseModel]]) -> None:
    """Grant the roles what they need on these tables, and on later ones of the same owner.

    Roles that were granted something before get the same on tables that are new since.
    """
    engine = dialect()
    if not isinstance(engine, PostgreSQL):
        return
    everybody = dict.fromkeys([*_given_before(engine), *grants])
    for grant in everybody:
        engine.grant_schema(grant.role, Plan)
        for model in models:
            for privileges in privileges_of(grant.kind, model):
                engine.grant(grant.role, model, privileges)


def _given_before(engine: PostgreSQL) -> list[Grant]:
    return [
        Grant(role, kind)
        for kind, (model, privilege) in _MARKS.items()
        for role in engine.granted(model, privilege)
    ]


def privileges_of(kind: str, model: type[BaseModel]) -> list[str]:
    """Return what a kind of role may do to a table, as a GRANT writes it before ON."""
    more = {"plans": _of_planners, "writes": _of_writers}
    return ["SELECT", *(more[kind](model) if kind in more else [])]


def _of_planners(model: type[BaseModel]) -> list[str]:
    if model in _CONTROLLED:
        begins = [c.column_name for c in model._meta.sorted_fields if not isinstance(c, RoleField)]
        return [_on("INSERT", begins), _on("UPDATE", sorted(_CONTROLLED[model])), "DELETE"]
    if model in (Page, Exclusion, Suspect, NightPlan, Lock):
        return ["INSERT", "UPDATE", "DELETE"]
    if model is MadeBy:  # a dry run removes its row again
        return ["INSERT", "DELETE"]
    # The state that Slurm reported for an attempt, and rows that are to be processed again.
    changes = {Attempt: ["UPDATE"], Failure: ["DELETE"], NoResult: ["DELETE"]}
    return {**changes, Archive: [_on("UPDATE", ["made_in"])]}.get(model, [])  # after a failover


def _of_writers(model: type[BaseModel]) -> list[str]:
    if model in (Failure, NoResult):
        return ["INSERT", "UPDATE", "DELETE"]
    if model is Plan:  # an element pauses a plan whose pages all break
        return [_on("UPDATE", ["paused", "pause_reason"])]
    if model in _FROZEN:
        columns = [c.column_name for c in model._meta.sorted_fields]
        changed = _on("UPDATE", [c for c in columns if c not in _FROZEN[model]])
        return ["INSERT", changed] if model is Attempt else [changed]
    if model is Suspect:
        return ["INSERT", "UPDATE"]
    if issubclass(model, OutputModel):
        # If a row has fewer results than before, the surplus is deleted.
        return ["INSERT", "UPDATE", "DELETE"]
    # A result that is a spectrum itself is registered as one.
    return ["INSERT"] if model in (Spectrum, MadeBy) else []


def _on(privilege: str, columns: list[str]) -> str:
    return f"{privilege} ({', '.join(map(dialect().quote, columns))})"
