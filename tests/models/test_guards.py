"""Indexes and triggers that results rest on are looked for by what they do, not by their names."""

import re

import pytest
from click.testing import CliRunner
from peewee import CompositeKey, FloatField, IntegerField, TextField

from astra.api import run_here
from astra.cli.group import main
from astra.config import settings
from astra.database.connection import bind, connection, database, dialect
from astra.database.constraints import lost_constraints
from astra.doctor.database import database as check_database
from astra.errors import DatabaseError
from astra.models import (
    BaseModel,
    BossVisitSpectrum,
    OutputModel,
    PipelineOutputModel,
    result_of,
)
from astra.models.schema import init_database, tables
from astra.models.table_checks import check_guards, lacking_guard
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.states import PageState
from astra.status.page_states import current_pages
from astra.status.status import status
from astra.status.verify import verify
from tests.sample_tasks import Measured, fill, measure

LONG = "a_table_of_results_whose_name_takes_all_the_bytes_there_are_"


class First(PipelineOutputModel):
    value = FloatField()

    class Meta:
        table_name = LONG + "1"


class Second(PipelineOutputModel):
    value = FloatField()

    class Meta:
        table_name = LONG + "2"


class Zenith(BaseModel):
    """Its key has two columns, so that results refer to it without a foreign key."""

    night = IntegerField()
    name = TextField()

    class Meta:
        primary_key = CompositeKey("night", "name")


class AtZenith(OutputModel):
    zenith = result_of(Zenith)


def test_tables_of_results_are_created_after_those_of_their_rows():
    """Only then is it known how the keys of the rows are compared."""
    order = tables()
    assert order.index(Zenith) < order.index(AtZenith)


def drop_unique_indexes() -> None:
    for index in database.get_indexes("measured"):
        if index.unique and index.columns != ["task_pk"]:
            database.execute_sql(f'DROP INDEX "{index.name}"')


def test_two_tables_with_long_names_have_their_own_indexes(url):
    with connection():
        for model in (First, Second):
            model.create_table()
            assert not list(model.lacking_indexes())
            model.create_table()  # again changes nothing


def test_a_table_that_is_gone_is_called_so(url):
    with connection():
        database.execute_sql("DROP TABLE measured")
        assert (
            lacking_guard(Measured) == "does not exist; create it: astra initdb tests.sample_tasks"
        )


def test_a_schema_of_their_own_has_all_tables_and_indexes(pg_url):
    with connection():
        database.execute_sql("DROP SCHEMA public CASCADE")
    settings.use(settings.Config(database=settings.Database(url=pg_url, schema="own")))
    bind()
    init_database(("tests.sample_tasks",))
    with connection():
        indexes = database.execute_sql("SELECT indexname FROM pg_indexes WHERE schemaname = 'own'")
        assert ("page_free",) in indexes.fetchall()
    fill(4)
    (planned,) = create_plan(measure, BossVisitSpectrum)
    assert planned.rows == 4


@pytest.mark.parametrize("table", ["plan", "page", "made_by"])
def test_a_sequence_that_was_restored_without_its_value_is_named(pg_url, table):
    fill(4)
    for _ in range(2):
        create_plan(measure, BossVisitSpectrum, max_rows=1)
    with connection():
        database.execute_sql(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'pk'), min(pk), false) FROM {table}"
        )
    done = CliRunner().invoke(main, ["verify"])
    assert f"the table {table} has a sequence that would" in done.output
    done = CliRunner().invoke(main, ["plan", "tests.sample_tasks.measure"])
    assert "restored in part" in done.output and done.exit_code == 5


def test_a_sequence_that_was_lost_is_named(pg_url):
    fill(4)
    create_plan(measure, BossVisitSpectrum)
    for statement, said in (
        ("ALTER TABLE plan ALTER pk DROP DEFAULT", "no default for the column pk: set it to nextv"),
        ("DROP SEQUENCE plan_pk_seq CASCADE", "the table plan has no sequence for the column pk"),
    ):
        with connection():
            database.execute_sql(statement)
        assert said in CliRunner().invoke(main, ["verify"]).output
    with connection():
        Zenith.create_table()  # a key without a sequence
        assert not list(lost_constraints(Zenith))


def test_a_version_that_is_no_longer_computed_is_noticed(pg_url):
    """Without it, the unique index keeps no row from having two results."""
    fill(4)
    (planned,) = create_plan(measure, BossVisitSpectrum, max_rows=2)
    with connection():
        database.execute_sql("ALTER TABLE measured ALTER v_astra_major_minor DROP EXPRESSION")
    with pytest.raises(DatabaseError, match=r"DROP COLUMN v_astra_major_minor.*astra initdb"):
        create_plan(measure, BossVisitSpectrum)
    assert run_here(planned.plan) != 0
    with connection():
        assert Measured.select().count() == 0
        database.execute_sql("ALTER TABLE measured DROP COLUMN v_astra_major_minor")
    init_database(("tests.sample_tasks",))
    assert create_plan(measure, BossVisitSpectrum)


def test_a_lost_index_is_noticed_and_made_again(url):
    fill(4)
    with connection():
        drop_unique_indexes()
    with pytest.raises(
        DatabaseError, match=r"no unique index on .*astra initdb tests.sample_tasks"
    ):
        create_plan(measure, BossVisitSpectrum)
    init_database(("tests.sample_tasks",))
    assert create_plan(measure, BossVisitSpectrum)[0].rows == 4


def test_an_element_looks_for_them_as_it_begins(url):
    """An index that was lost since the plan was made: no row is computed."""
    fill(4)
    (planned,) = create_plan(measure, BossVisitSpectrum)
    with connection():
        drop_unique_indexes()
    run_here(planned.plan)
    (page,) = current_pages(get_plan(planned.plan))
    assert page.state is PageState.BROKEN and page.pending == 4
    assert "no unique index on" in page.message and "astra initdb" in page.message


def test_an_index_of_another_name_will_do(url):
    with connection():
        drop_unique_indexes()
        for link in Measured.declared_links.values():
            (column,) = link.result
            database.execute_sql(
                f"CREATE UNIQUE INDEX somebody_s_{column} ON measured "
                f"({column}, v_astra_major_minor, result_number) "
                + (link.condition and f"WHERE {link.condition}")
            )
        check_guards(Measured)
        database.execute_sql("DROP INDEX somebody_s_spectrum_pk")
        database.execute_sql("CREATE INDEX somebody_s_spectrum_pk ON measured (spectrum_pk)")
        with pytest.raises(DatabaseError, match="no unique index"):
            check_guards(Measured)


def test_an_input_table_that_was_replaced_is_noticed(url):
    fill(4)
    (planned,) = create_plan(measure, BossVisitSpectrum)
    run_here(planned.plan)
    assert not status(planned.plan).notes
    with connection():
        if dialect().name == "postgresql":
            database.execute_sql("ALTER TABLE boss_visit_spectrum DISABLE TRIGGER USER")
        else:
            for (name,) in database.execute_sql(
                "SELECT name FROM sqlite_master WHERE type = 'trigger' "
                "AND tbl_name = 'boss_visit_spectrum'"
            ).fetchall():
                database.execute_sql(f'DROP TRIGGER "{name}"')
    lost = r"no trigger that keeps `modified`.*astra initdb"
    with pytest.raises(DatabaseError, match=lost):
        create_plan(measure, BossVisitSpectrum)
    (note,) = status(planned.plan).notes
    assert re.search(lost, note)
    assert [b.check for b in verify(planned.plan).breaches if re.search(lost, b.problem)] == [
        "guards"
    ]
    found = [f for f in check_database() if f.state == "failed"]
    assert any(re.search(lost, f"{f.message} {f.remedy}") for f in found), found
    init_database()
    assert not status(planned.plan).notes and verify(planned.plan).sound
