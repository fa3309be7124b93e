"""Who plans, who writes results, who only reads: each can do its work, and no more."""

import os
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit

import peewee
import pytest

from astra import task
from astra.api import run_here
from astra.config import settings
from astra.database.connection import bind, connection, database
from astra.element.element import run_element
from astra.errors import NotAllowed, UsageError
from astra.models import BossVisitSpectrum, OutputModel, result_of
from astra.models.attempts import Attempt
from astra.models.nights import Night, NightPlan
from astra.models.plans import Page, Plan, Submission
from astra.models.schema import init_database
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.plan.spool import recover
from astra.processes import process_began
from astra.resume.cancel import _end_processes, _running
from astra.resume.resume import resume_local
from astra.status.failures import failures
from astra.status.plans import all_plans
from astra.status.status import status
from astra.status.verify import verify
from tests.many_tasks import Peak, peaks
from tests.roles import PASSWORD, ROLES, Url, as_role, astra, planned, submitted
from tests.sample_tasks import Measured, broken, measure
from tests.servers import Postgres

pytestmark = pytest.mark.postgres


def refused(done: subprocess.CompletedProcess[str], kind: str, lacks: str) -> None:
    """The command ended with a clear message: who lacks what, and what to type."""
    assert done.returncode == 5, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert repr(ROLES[kind]) in done.stderr and "permission denied for" in done.stderr
    assert "astra initdb --grant" in done.stderr and f":{lacks}" in done.stderr
    assert PASSWORD not in done.stderr and quote(PASSWORD) not in done.stderr


def test_each_does_its_part_of_a_night(of: Url) -> None:
    plan = planned(of, raise_every=7, nothing_every=9)
    token = submitted(of, plan)
    for element in (1, 2):
        words = ("--plan", plan, "--job", token, "--element", element)
        done = astra(of, "writes", "run-page", *words, "--planned-by", ROLES["plans"])
        assert done.returncode == 0, done.stdout + done.stderr
    as_role(of, "reads")
    found = status(plan)
    assert (found.state, found.rows["failed"], found.rows["no result"]) == ("failed rows", 5, 4)
    assert len(failures(plan)) == 5
    assert [p.plan for p in all_plans()] == [plan]
    for words in (("status", plan), ("failures", plan), ("plans",), ("logs", plan)):
        done = astra(of, "reads", *words)
        assert done.returncode == (8 if words[0] == "status" else 0), done.stdout + done.stderr
    # The planner takes the failures again, and cancels; the element writes over what it wrote.
    for words in (("plan", "tests.sample_tasks.measure", "--again"), ("cancel", plan)):
        done = astra(of, "plans", *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_reader_sees_an_open_night_as_it_is(of: Url) -> None:
    """Its counts are as old as the last step of its finalizer; those that are shown are not."""
    plan = planned(of)
    night = Night.create(name="survey", date="2026-01-02", cwd="/", host="h", created_by="u")
    NightPlan.create(night=night.pk, task="tests.sample_tasks.measure", plan_pk=plan)
    shown = astra(of, "reads", "nights", "survey", "2026-01-02")
    assert shown.returncode == 4 and "40 left = 40 rows" in shown.stdout, shown.stderr
    assert " 40 " in astra(of, "reads", "nights").stdout


def test_the_planner_makes_scripts(
    of: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho 'MaxArraySize            = 1001'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    done = astra(of, "plans", "submit", "tests.sample_tasks.measure", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "#SBATCH --array=1" in done.stdout and PASSWORD not in done.stdout
    assert Plan.select().count() == 0  # what a dry run makes it takes back
    refused(
        astra(of, "reads", "submit", "tests.sample_tasks.measure", "--dry-run"), "reads", "plans"
    )


def test_the_reader_changes_nothing(of: Url) -> None:
    plan = planned(of)
    token = submitted(of, plan)
    refused(astra(of, "reads", "plan", "tests.sample_tasks.measure"), "reads", "plans")
    refused(astra(of, "reads", "cancel", plan), "reads", "plans")
    refused(astra(of, "reads", "recover", plan, "--trust"), "reads", "plans")
    refused(astra(of, "reads", "resume", plan, "--trust"), "reads", "plans")
    run_page = ("run-page", "--plan", plan, "--job", token, "--element", 1)
    refused(astra(of, "reads", *run_page), "reads", "writes")
    as_role(of, "reads")
    for model in (Plan, Page, Attempt, Measured, BossVisitSpectrum):
        with pytest.raises(NotAllowed, match="permission denied"), connection():
            model.delete().execute()


def test_an_element_that_begins_too_late_says_so_whatever_its_role_may_do(of: Url) -> None:
    """It may not take pages back from their submission, and they are resumed like others."""
    plan = planned(of)
    words = ("--plan", plan, "--job", submitted(of, plan), "--element", 1)
    done = astra(of, "writes", "run-page", *words, "--start-until", int(time.time()) - 1)
    assert done.returncode == 74, done.stdout + done.stderr
    assert "the hours of the night are over: no page is begun" in done.stderr


def test_the_planner_writes_no_results(of: Url) -> None:
    plan = planned(of)
    token = submitted(of, plan)
    run_page = ("run-page", "--plan", plan, "--job", token, "--element", 1)
    refused(astra(of, "plans", *run_page), "plans", "writes")
    as_role(of, "plans")
    with pytest.raises(NotAllowed, match="measured"), connection():
        Measured.create(spectrum_pk=1, value=1.0)
    with pytest.raises(NotAllowed), connection():
        BossVisitSpectrum.update(snr=0.0).execute()


def test_the_element_plans_nothing(of: Url) -> None:
    plan = planned(of)
    refused(astra(of, "writes", "plan", "tests.sample_tasks.measure"), "writes", "plans")
    refused(astra(of, "writes", "cancel", plan), "writes", "plans")
    as_role(of, "writes")
    for change in (
        {"keys": [1]}, {"submission_pk": 1}, {"n_rows": 0}, {"number": 9}
    ):  # fmt: skip
        with pytest.raises(NotAllowed, match="page"), connection():
            Page.update(change).execute()
    for statement in (
        Page.delete(), Attempt.delete(), Plan.delete(), BossVisitSpectrum.update(snr=0.0)
    ):  # fmt: skip
        with pytest.raises(NotAllowed), connection():
            statement.execute()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Plan, "token task_path import_root input_model output_model arguments cwd cancelled"),
        (Page, "plan retries"),
        (Submission, "token kind job_name cluster cluster_name host profile script log_folder"),
        (Attempt, "page token submission_pk number job_id array_index host pid pid_began log"),
    ],
)
def test_the_element_changes_only_what_an_attempt_changes(
    of: Url, model: type[peewee.Model], names: str
) -> None:
    as_role(of, "writes")
    for name in names.split():
        with pytest.raises(NotAllowed, match="permission denied"), connection():
            model.update({name: None}).execute()


def test_the_element_cannot_name_a_process_or_a_job_that_cancel_ends(of: Url) -> None:
    plan = planned(of)
    submitted(of, plan)
    with subprocess.Popen(["sleep", "60"]) as strangers:
        as_role(of, "writes")
        with connection():
            page = Page.get(Page.plan == plan)
            forged = Attempt.create(
                page=page, submission_pk=page.submission_pk, number=1, element=1, state="running",
                host=socket.gethostname(), pid=strangers.pid,
                pid_began=process_began(strangers.pid),
            )  # fmt: skip
            Page.update(attempt_pk=forged.pk).where(Page.pk == page.pk).execute()
        as_role(of, "plans")
        assert _end_processes(_running(get_plan(plan))) == []
        assert strangers.poll() is None
        strangers.kill()


def test_the_element_replaces_the_results_of_a_row_that_has_fewer(of: Url) -> None:
    as_role(of, "owner")
    # Of 40 rows, by their keys, 0 to n results each; a row without any keeps those that it had.
    for n, rows in ((3, 60), (1, 40)):
        as_role(of, "plans")
        made = create_plan(peaks, BossVisitSpectrum, arguments={"n": n}, redo="all", limit=40)
        plan = made[0].plan
        assert plan is not None
        token = submitted(of, plan)
        as_role(of, "writes")
        (run,) = run_element(plan, 1, token, planned_by=ROLES["plans"])
        assert run.state == "done"
        with connection():
            assert Peak.select().count() == rows


@pytest.mark.parametrize("table", ["measured", "failure"])
def test_a_page_is_broken_while_the_element_may_not_store(of: Url, table: str) -> None:
    """Its rows are kept in a file, and stored once it may."""
    plan = planned(of, raise_every=7)
    token = submitted(of, plan)
    role = '"{}"'.format(ROLES["writes"])
    as_role(of, "owner")
    database.execute_sql(f"REVOKE INSERT ON {table} FROM {role}")
    as_role(of, "writes")
    (run,) = run_element(plan, 1, token, planned_by=ROLES["plans"])
    assert run.state == "broken" and f"permission denied for table {table}" in str(run.message)
    as_role(of, "owner")
    with connection():
        attempt = Attempt.get()
    assert attempt.state == "broken" and "rows are kept in" in attempt.message
    database.execute_sql(f"GRANT INSERT ON {table} TO {role}")
    as_role(of, "writes")
    assert recover(get_plan(plan)).rows == 20
    assert verify(plan).sound


class Elsewhere(peewee.Model):
    name = peewee.TextField(primary_key=True)

    class Meta:
        schema = "elsewhere"


class OfHidden(OutputModel):
    elsewhere = result_of(Elsewhere)


@task
def of_hidden(rows: Iterable[Elsewhere]) -> Iterable[OfHidden]:
    for row in rows:
        yield OfHidden.from_row(row)


def test_a_page_is_broken_while_the_tables_of_its_rows_may_not_be_used(
    of: Url, postgres: Postgres
) -> None:
    def as_superuser(*statements: str) -> None:
        for statement in statements:
            postgres.sql(statement, urlsplit(of("owner")).path[1:])

    as_superuser(
        "CREATE SCHEMA elsewhere",
        "CREATE TABLE elsewhere.elsewhere (name text PRIMARY KEY)",
        "INSERT INTO elsewhere.elsewhere VALUES ('a')",
        "GRANT USAGE ON SCHEMA elsewhere TO astra",
        "GRANT SELECT ON elsewhere.elsewhere TO astra",
    )
    as_role(of, "owner")
    OfHidden.create_table()
    (planned,) = create_plan(of_hidden)
    as_superuser("REVOKE USAGE ON SCHEMA elsewhere FROM astra")
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 0, "broken": 1}
    as_superuser("GRANT USAGE ON SCHEMA elsewhere TO astra")
    resume_local(planned.plan)
    assert status(planned.plan).rows == {"done": 1}


def test_the_element_pauses_a_plan_whose_pages_all_break(of: Url) -> None:
    as_role(of, "plans")
    plan = create_plan(broken, BossVisitSpectrum, limit=4)[0].plan
    assert plan is not None
    token = submitted(of, plan)
    as_role(of, "writes")
    for element in range(1, 11):
        assert [
            run.state for run in run_element(plan, element, token, planned_by=ROLES["plans"])
        ] == ["broken"]
    assert get_plan(plan).paused is not None


@pytest.mark.parametrize("kind", ROLES)
def test_nobody_else_makes_or_gives(of: Url, kind: str) -> None:
    for words in ((), ("--grant", f"{ROLES['reads']}:plans")):
        done = astra(of, kind, "initdb", *words)
        assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
        assert repr(ROLES[kind]) in done.stderr and "owner" in done.stderr


def test_only_the_owner_of_the_tables_renames_a_task(of: Url) -> None:
    planned(of)
    for kind in ROLES:
        done = astra(of, kind, "rename", "gone.measure", "tests.sample_tasks.measure")
        assert done.returncode == 5 and "have astra run this command" in done.stderr, done.stderr


def test_a_view_of_another_role_is_its_owners(of: Url, postgres: Postgres) -> None:
    as_role(of, "owner")
    init_database(("tests.sample_tasks",), views=True)
    name = database.execute_sql("SELECT current_database()").fetchone()[0]
    postgres.sql("CREATE ROLE viewer")
    postgres.sql("ALTER VIEW measured_current OWNER TO viewer", name)
    done = astra(of, "owner", "initdb", "tests.sample_tasks", "--views")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "the owner of the view measured_current has to do this, or drop it" in done.stderr


def test_tables_made_later_are_given_too(of: Url) -> None:
    as_role(of, "owner")
    database.execute_sql("CREATE TABLE made_by_hand (x int)")
    database.execute_sql("DROP TABLE measured CASCADE")
    new = init_database(("tests.sample_tasks",))  # without --grant
    assert new == ["measured", "of_hidden"]  # of this module, too
    as_role(of, "reads")
    assert Measured.select().count() == 0
    database.execute_sql("SELECT x FROM made_by_hand")
    as_role(of, "writes")
    with connection():
        Measured.create(spectrum_pk=1, value=1.0)


def test_a_role_without_rights_gets_a_clear_message(of: Url, postgres: Postgres) -> None:
    postgres.sql(f"CREATE ROLE stranger LOGIN PASSWORD '{PASSWORD}'")
    bind(of("reads").replace(quote(ROLES["reads"]), "stranger"))
    with pytest.raises(NotAllowed, match=r"'stranger'.*--grant stranger:reads"):
        all_plans()


def in_schema_night(url: str) -> None:
    settings.use(settings.Config(database=settings.Database(url=url, schema="night")))
    bind()


def test_roles_work_in_a_schema_other_than_public(of: Url) -> None:
    database.close()
    in_schema_night(of("owner"))
    init_database((), (f"{ROLES['reads']}:reads",))
    database.close()
    in_schema_night(of("reads"))
    assert Plan.select().count() == 0
    database.close()
    in_schema_night(of("writes"))
    with pytest.raises(NotAllowed, match="schema night"), connection():
        Plan.select().count()


class TestRefused:
    def test_unknown_roles_and_rights_are_refused(self, of: Url) -> None:
        as_role(of, "owner")
        with pytest.raises(UsageError, match=r"no role 'night_readr'.*'night_reader'"):
            init_database((), ("night_readr:reads",))
        with pytest.raises(UsageError, match=r"ROLE:plans, ROLE:writes, ROLE:reads.*'reads'"):
            init_database((), ("night_reader:read",))
        with pytest.raises(UsageError, match="CREATE ROLE"):
            init_database((), ('"; DROP TABLE plan; --',))
        assert Plan.table_exists()

    def test_sqlite_has_no_roles(self, sqlite_url: str) -> None:
        with pytest.raises(UsageError, match="SQLite file has no roles"):
            init_database((), ("me:reads",))


def test_a_planner_without_temporary_tables_freezes_the_same_pages(
    of: Url, postgres: Postgres
) -> None:
    """They let the server plan with several processes. Two plans may share a transaction."""
    name = urlsplit(of("plans")).path[1:]

    def frozen() -> list[tuple[int, int, list[int], bytes]]:
        as_role(of, "plans")
        with connection(), database.atomic() as transaction:
            made = [create_plan(measure, BossVisitSpectrum, limit=15)[0] for _ in range(2)]
            assert [(plan.rows, plan.held) for plan in made] == [(40, 0), (0, 40)]
            found = database.execute_sql(
                "SELECT number, n_rows, keys, outcomes FROM page ORDER BY number"
            ).fetchall()
            transaction.rollback()
        return [(number, n_rows, keys, bytes(outcomes)) for number, n_rows, keys, outcomes in found]

    with_them = frozen()
    assert [(number, len(keys)) for number, _, keys, _ in with_them] == [(1, 15), (2, 15), (3, 10)]
    postgres.sql(f'REVOKE TEMPORARY ON DATABASE "{name}" FROM PUBLIC')
    assert frozen() == with_them
    with connection(), pytest.raises(peewee.ProgrammingError, match="temporary"):
        database.execute_sql("CREATE TEMPORARY TABLE tried AS SELECT 1")


def test_a_table_of_the_same_name_in_a_schema_of_the_elements_role_is_another(
    of: Url, postgres: Postgres
) -> None:
    """By default, the schema of a role's own name comes first in its search_path."""
    plan, role = planned(of), ROLES["writes"]
    assert get_plan(plan).tables == "boss_visit_spectrum, measured"
    name = urlsplit(of("owner")).path[1:]
    postgres.sql(f'CREATE SCHEMA AUTHORIZATION "{role}"', name)
    for table in ("boss_visit_spectrum", "measured"):
        postgres.sql(f'CREATE TABLE "{role}".{table} (LIKE public.{table} INCLUDING ALL)', name)
        postgres.sql(f'ALTER TABLE "{role}".{table} OWNER TO "{role}"', name)
    words = ("--plan", plan, "--job", submitted(of, plan), "--element", 1)
    done = astra(of, "writes", "run-page", *words, "--planned-by", ROLES["plans"])
    assert f'this role finds "{role}".boss_visit_spectrum' in done.stdout, done.stderr
    as_role(of, "reads")
    assert status(plan).rows.get("done", 0) == 0
