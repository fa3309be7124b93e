"""The roles of a database, and what each of them does in a test."""

import os
import subprocess
from collections.abc import Callable
from urllib.parse import quote

from astra.database.connection import bind, connection, database
from astra.models import BossVisitSpectrum
from astra.models.plans import Page, Plan
from astra.plan.plan import create_plan
from astra.submit.intent import make_intent, new_submission
from tests import forks
from tests.sample_tasks import measure
from tests.servers import Postgres

PASSWORD = "only for the tests"

ROLES = {"plans": 'night "planner" %s', "writes": "night:element", "reads": "night_reader"}

Url = Callable[[str], str]


def url_of(postgres: Postgres, name: str, kind: str) -> str:
    if kind == "owner":
        return postgres.url(name, user="astra")
    return postgres.url(name, quote(ROLES[kind], safe=""), PASSWORD)


def as_role(of: Url, kind: str) -> None:
    database.close()
    bind(of(kind))


def astra(of: Url, kind: str, *words: object) -> subprocess.CompletedProcess[str]:
    return forks.astra(*words, env={**os.environ, "ASTRA_DATABASE_URL": of(kind)})


def planned(of: Url, **arguments: object) -> int:
    as_role(of, "plans")
    found = create_plan(measure, BossVisitSpectrum, limit=20, arguments=arguments)[0]
    assert found.plan is not None
    return found.plan


def submitted(of: Url, plan: int) -> str:
    """The planner's part of a submission; the token that its elements are started with."""
    as_role(of, "plans")
    with connection():
        frozen, pages = Plan.get_by_id(plan), list(Page.select().where(Page.plan == plan))
    submission = new_submission(frozen, [p.number for p in pages], 0, 1, "slurm")
    make_intent(submission, pages)
    return str(submission.token)
