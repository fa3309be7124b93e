"""For the administrator of the database: the SQL, tables in use, a view of current results."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import peewee
import psycopg2
import psycopg2.errors
import pytest
from click.testing import CliRunner
from peewee import FloatField

from astra.api import run_here
from astra.cli.group import main
from astra.database import postgresql
from astra.database.connection import bind, connection, database, dialect, reset, retrying
from astra.database.inspection import indexes
from astra.database.postgresql_queries import LOCK_INITDB
from astra.errors import DatabaseError
from astra.models import BossVisitSpectrum, PipelineOutputModel, schema
from astra.models.administration import make_views, recorded
from astra.models.plans import Page
from astra.models.schema import init_database, sql_of
from astra.models.table_checks import check_version
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.submit.intent import plan_lock
from tests.conftest import ROOT
from tests.pages import blocks
from tests.sample_tasks import Measured, fill, measure
from tests.servers import wait_for

MODULE = "tests.sample_tasks"


def test_the_sql_is_that_of_what_is_missing_and_changes_nothing(url):
    init_database((MODULE,))  # of this module's model, too
    assert sql_of((MODULE,)) == "-- nothing to do"
    with connection():
        database.execute_sql("DROP INDEX page_plan_pk_number")
        database.execute_sql("DROP TABLE no_result")
    text = CliRunner().invoke(main, ["initdb", "--sql", MODULE]).output
    statements = [line for line in text.splitlines() if "no_result" in line or "page" in line]
    assert len(statements) == len(text.splitlines()) - 2 and text.startswith("BEGIN;")
    with connection():
        assert "page_plan_pk_number" not in indexes(Page)
        for statement in text.split(";\n")[1:-2]:
            database.execute_sql(statement)
        assert "page_plan_pk_number" in indexes(Page)
    assert sql_of((MODULE,)) == "-- nothing to do"


def test_astras_tables_are_found_behind_the_schema_of_a_role(pg_url):
    """By default, the schema of a role's own name comes first in its ``search_path``."""
    with connection():
        database.execute_sql("CREATE SCHEMA AUTHORIZATION CURRENT_USER")
    reset()
    check_version()


class LongName(PipelineOutputModel):
    value = FloatField()

    class Meta:
        table_name = "a_name_of_as_many_bytes_as_postgresql_keeps_for_a_table".ljust(63, "_")


def test_the_view_of_a_table_with_the_longest_name_gets_a_shorter_one(url):
    with connection():
        LongName.create_table()
        (view,) = make_views([LongName])
        LongName.insert(spectrum_pk=1, v_astra=8000, value=1.0).execute()
        assert database.execute_sql(f"SELECT value FROM {view}").fetchall() == [(1.0,)]


@pytest.mark.postgres
def test_no_second_archive_is_created_in_a_schema_that_comes_first(pg_url):
    """New tables are created beside those of the archive, which stays the one that is used."""
    with connection():
        database.execute_sql("DROP TABLE measured")
        database.execute_sql("CREATE SCHEMA AUTHORIZATION CURRENT_USER")
    reset()
    assert "measured" in init_database((MODULE,))
    with connection():
        rows = database.execute_sql("SELECT relname FROM pg_class WHERE relkind = 'r' AND "
            "relnamespace = to_regnamespace(current_schema())")  # fmt: skip
        assert rows.fetchall() == []
        assert database.execute_sql("SELECT 'public.measured'::regclass").fetchone() is not None


@pytest.mark.postgres
def test_a_search_path_without_a_schema_is_reported(pg_url):
    bind(f"{pg_url}&options=-csearch_path%3Dnowhere")
    with pytest.raises(DatabaseError, match=r"search_path.*\[database\] schema"):
        init_database()


def test_the_sql_of_a_new_file_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTRA_DATABASE_URL", f"sqlite:///{tmp_path}/new.db")
    done = CliRunner().invoke(main, ["initdb", "--sql"])
    assert 'CREATE TABLE IF NOT EXISTS "plan"' in done.output and done.exit_code == 0
    assert not list(tmp_path.glob("new.db*"))


@pytest.mark.postgres
def test_indexes_of_tables_in_use_are_made_without_a_lock(pg_url):
    with connection():
        database.execute_sql("DROP INDEX page_plan_pk_number")
        database.execute_sql("DROP INDEX boss_visit_spectrum_by_modified")
        name = next(
            i.name for i in database.get_indexes("measured") if "one_per_spectrum" in i.name
        )
        database.execute_sql(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (name,)
        )
    with recorded() as statements:
        init_database((MODULE,))
    made = [
        s for s in statements if s.startswith("CREATE") and "INDEX" in s and 'IF NOT EXISTS "' in s
    ]
    concurrent = [s for s in statements if "INDEX CONCURRENTLY IF NOT EXISTS" in s]
    assert len(concurrent) == 3, made
    with connection():
        assert {"page_plan_pk_number"} <= indexes(Page) and name in indexes(Measured)


@pytest.mark.postgres
def test_a_table_in_use_is_not_waited_for_with_a_queue_behind(pg_url, monkeypatch):
    for module in ("administration", "schema"):
        monkeypatch.setattr(f"astra.models.{module}.LOCK_TIMEOUT_S", 1)
    with connection():
        database.execute_sql("ALTER TABLE attempt DROP COLUMN t_read_s")
    other = psycopg2.connect(pg_url)
    with other.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM attempt")  # and the transaction stays open
    with pytest.raises(DatabaseError, match=r"using the same tables.*run it again"):
        init_database()
    other.close()
    init_database()
    check_version()


def test_a_view_shows_the_results_of_the_last_version_of_each_row(url):
    done = CliRunner().invoke(main, ["initdb", MODULE, "--views"])
    assert done.exit_code == 0 and "measured_current" in done.output
    with connection():
        for key, version, value in ((1, 7000, 1.0), (1, 8000, 2.0), (2, 7000, 3.0)):
            Measured.insert(spectrum_pk=key, v_astra=version, value=value).execute()
        for key, version, value in ((5, 7000, 4.0), (5, 8000, 5.0)):
            Measured.insert(source_pk=key, v_astra=version, value=value).execute()
        found = database.execute_sql("SELECT value FROM measured_current ORDER BY value").fetchall()
        assert [value for (value,) in found] == [2.0, 3.0, 5.0]
    again = CliRunner().invoke(main, ["initdb", MODULE, "--views"])
    assert again.exit_code == 0
    with connection():
        database.execute_sql("DROP VIEW measured_current")
        assert dialect().columns(Measured)


@pytest.mark.postgres
def test_a_view_is_replaced_with_its_grants_and_the_views_of_it(pg_url):
    def views():
        return CliRunner().invoke(main, ["initdb", MODULE, "--views"])

    def run(statement: str) -> None:
        with connection():
            database.execute_sql(statement)

    assert views().exit_code == 0
    run("GRANT SELECT ON measured_current TO PUBLIC")
    run("CREATE VIEW of_somebody AS SELECT value FROM measured_current")
    run("ALTER TABLE measured ADD COLUMN own integer")
    again = views()
    assert again.exit_code == 0, again.output
    with connection():
        assert database.execute_sql(
            "SELECT relacl::text LIKE '%%=r/%%' FROM pg_class WHERE relname = 'measured_current'"
        ).fetchone() == (True,)
        assert database.execute_sql("SELECT own FROM measured_current").fetchall() == []
    run("ALTER TABLE measured RENAME COLUMN own TO owned")
    renamed = views()
    assert renamed.exit_code == 5 and "DROP VIEW" in renamed.output, renamed.output
    assert "measured_current" in renamed.output and "Traceback" not in renamed.output


@pytest.mark.postgres
def test_initdb_recovers_from_a_deadlock_with_an_element(pg_url, monkeypatch):
    """A checkpoint locks tables in another order than initdb."""
    for module in ("administration", "schema"):  # however busy the machine is
        monkeypatch.setattr(f"astra.models.{module}.LOCK_TIMEOUT_S", 60)
    with connection():
        database.execute_sql("ALTER TABLE plan DROP COLUMN pause_reason")
        database.execute_sql("ALTER TABLE measured DROP COLUMN text")
    waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'measured'::regclass"
    with psycopg2.connect(pg_url) as rival, rival.cursor() as cursor, ThreadPoolExecutor() as pool:
        cursor.execute("SET deadlock_timeout = '1min'")  # initdb is the one that is ended
        cursor.execute("LOCK TABLE measured IN ROW EXCLUSIVE MODE")
        initdb = pool.submit(init_database, (MODULE,))
        with connection():
            wait_for(lambda: database.execute_sql(waits).fetchone(), "initdb to wait")
        cursor.execute("LOCK TABLE plan IN ROW EXCLUSIVE MODE")
        rival.rollback()
        assert "measured" not in initdb.result()
    rival.close()


@pytest.mark.postgres
def test_a_statement_may_take_longer_than_initdb_tries_again_for(pg_url, monkeypatch):
    """As the wait for another initdb, or a constraint on a large table."""
    monkeypatch.setattr("astra.models.schema.LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr("astra.database.connection.LAST_WAIT_S", 0.1)
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND "
    waits += "clock_timestamp() - query_start > '0.5 s'"
    with psycopg2.connect(pg_url) as rival, rival.cursor() as cursor, ThreadPoolExecutor() as pool:
        cursor.execute(LOCK_INITDB)
        initdb = pool.submit(init_database)
        with connection():
            wait_for(lambda: database.execute_sql(waits).fetchone(), "initdb to wait", 20)
        rival.rollback()
        assert "measured" not in initdb.result()
    rival.close()


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("40P01", "run it again, best while no elements run"), ("25006", "name the primary"),
        ("53100", "disk is full"), ("53300", "check that the server runs"),
    ],
)  # fmt: skip
def test_a_lasting_error_is_reported_with_its_remedy(pg_url, monkeypatch, state, said):
    error = peewee.OperationalError("as the server put it")
    error.__cause__ = psycopg2.errors.lookup(state)()
    monkeypatch.setattr(postgresql, "_sqlstate", lambda error: state)

    def init() -> None:
        raise error

    with pytest.raises(DatabaseError, match=f"as the server put it.*{said}"):
        retrying(init, bound_s=0)


@pytest.mark.postgres
def test_a_command_that_takes_a_lock_on_a_read_only_server_says_what_to_do(pg_url):
    fill(10)
    (made,) = create_plan(measure, BossVisitSpectrum)
    reset()
    name = urlsplit(pg_url).path.strip("/")
    with closing(psycopg2.connect(pg_url)) as owner, owner.cursor() as cursor:
        owner.autocommit = True
        cursor.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    done = CliRunner().invoke(main, ["resume", str(made.plan), "--local"])
    assert done.exit_code == DatabaseError.exit_status, done.exception
    assert "INSERT in a read-only transaction" in done.output and "name the primary" in done.output


@pytest.mark.postgres
def test_what_a_server_does_not_do_is_reported_with_its_remedy(pg_url):
    fill(4)
    (made,) = create_plan(measure, BossVisitSpectrum)
    with connection():
        database.execute_sql("CREATE PUBLICATION others FOR TABLE plan")
        database.execute_sql("ALTER TABLE plan REPLICA IDENTITY NOTHING")
    done = CliRunner().invoke(main, ["cancel", str(made.plan)])
    assert done.exit_code == 5 and "set REPLICA IDENTITY using ALTER TABLE" in done.stderr
    with connection():
        database.execute_sql("CREATE SCHEMA old")
        database.execute_sql(
            "CREATE FUNCTION old.current_setting(text) RETURNS text RETURN '130021'"
        )
    reset()
    with psycopg2.connect(pg_url) as owner, owner.cursor() as cursor:
        name = urlsplit(pg_url).path.strip("/")
        cursor.execute(f"ALTER DATABASE {name} SET search_path = old, pg_catalog, public")
    owner.close()
    done = CliRunner().invoke(main, ["initdb"])
    assert done.exit_code == 5 and "13.21 is too old for astra: use 14 or later" in done.stderr


@pytest.mark.postgres
def test_initdb_takes_no_lock_if_all_tables_are_complete(pg_url):
    init_database((MODULE,))  # of this module's model, too
    with psycopg2.connect(pg_url) as writer, writer.cursor() as cursor:
        for model in schema.tables():
            cursor.execute(f"LOCK TABLE {model._meta.table_name} IN ROW EXCLUSIVE MODE")
        assert init_database((MODULE,)) == []
    writer.close()


@pytest.mark.postgres
def test_the_page_for_administrators_shows_who_is_connected_and_who_holds_a_plan(pg_url):
    who, holders = blocks(ROOT / "docs" / "administration.md", "sql")[0].split("\n\n")
    fill(10)
    for _ in range(2):  # the lock of the first was held, and is free
        (made,) = create_plan(measure, BossVisitSpectrum, limit=5, max_rows=5)
        with plan_lock(get_plan(made.plan)), connection():
            with closing(psycopg2.connect(pg_url)) as administrator:
                with administrator.cursor() as cursor:
                    cursor.execute(holders)
                    assert [row[0] for row in cursor.fetchall()] == [f"plan {made.plan}"]
                    cursor.execute(who)
                    names = [row[2] for row in cursor.fetchall()]
    assert names and all(f":{os.getpid()}" in name for name in names), names


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("ALTER TABLE page RENAME COLUMN n_failed TO others", "n_failed"),
        ("ALTER TABLE attempt RENAME COLUMN n_found TO others", "n_found"),
        ("ALTER TABLE no_result RENAME TO others", "no_result"),
        ("ALTER TABLE measured ALTER spectrum_pk TYPE text", "operator does not exist"),
    ],
)
def test_tables_that_somebody_has_changed_are_reported_without_a_traceback(url, statement, said):
    """A command that reads them says what is not there, and ends as for other databases."""
    if dialect().name == "sqlite" and " TYPE " in statement:
        pytest.skip("SQLite compares values of any types")
    fill(4)
    (made,) = create_plan(measure, BossVisitSpectrum)
    run_here(made.plan)
    with connection():
        database.execute_sql(statement)
    done = CliRunner().invoke(main, ["verify", str(made.plan)])
    assert done.exit_code == 5, done.output
    assert said in done.stderr and "astra initdb" in done.stderr


@pytest.mark.postgres
def test_where_an_event_trigger_refuses_tables_planning_needs_none_and_initdb_says_so(pg_url):
    fill(40)
    with connection():
        database.execute_sql(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'no %% here', tg_tag; END$$"
        )
        for tag in ("CREATE TABLE AS", "DROP TABLE", "CREATE TABLE"):
            name = tag.replace(" ", "_").lower()
            database.execute_sql(
                f"CREATE EVENT TRIGGER no_{name} ON ddl_command_start WHEN TAG IN ('{tag}') "
                "EXECUTE FUNCTION refuse()"
            )
    (planned,) = create_plan(measure, BossVisitSpectrum, limit=15)
    assert (planned.rows, planned.pages) == (40, 3)
    done = CliRunner().invoke(main, ["initdb", "tests.published_tasks"])
    assert done.exit_code == 5 and "trigger" in done.output and "no CREATE TABLE" in done.output
