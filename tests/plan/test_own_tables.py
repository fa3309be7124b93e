"""Tables of others: any key, read-only, in a schema of theirs, from the plan to the results."""

import json
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from unittest.mock import Mock
from urllib.parse import urlsplit
from uuid import UUID

import peewee
import pytest

from astra import generate_queries_for_task
from astra import task as as_task
from astra.api import run_here
from astra.database.connection import bind, connection, dialect, reset
from astra.element.trial import trial_of_plan
from astra.errors import DatabaseError, TaskError, UsageError
from astra.models import OutputModel, result_of
from astra.models.attempts import Attempt
from astra.models.failures import Failure, NoResult
from astra.models.key_parsing import find_keys
from astra.models.keys import bound_to_database, check_keys, key_of
from astra.models.plans import Page
from astra.models.schema import init_database
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.plan.spool import recover
from astra.status.failures import failures
from astra.status.results import StoredResults
from astra.status.status import status
from astra.status.verify import verify
from tests.conftest import ROOT, fresh_database
from tests.forks import astra
from tests.own_tables import (
    INPUTS,
    TASKS,
    Bright,
    Exposure,
    ExposurePeriod,
    LightCurve,
    Period,
    StarPeriod,
    SurveyStar,
    all_at_once,
    of_bright,
    of_exposures,
    of_stars,
    periods,
)
from tests.servers import Postgres

N = 25

#: Keys whose texts are awkward: quotes, commas, braces, percent signs, other scripts.
AWKWARD = ("a'b", 'c"d', "e,f", "{g}", "h%s", "i\\j", "ключ", " k ", "NULL", "10", "9")


def rows_of_all() -> None:
    """The tables as somebody else made them, with rows."""
    for model in INPUTS[:-1]:
        model.create_table()
    names = [*AWKWARD, *(f"obj-{i}" for i in range(N - len(AWKWARD)))]
    day = date(2024, 1, 1)
    LightCurve.insert_many([(name, float(i)) for i, name in enumerate(names)]).execute()
    SurveyStar.insert_many(
        [
            (UUID(int=i), float(i), None if i == 2 else datetime(2024, 1, 1, 0, 0, i))
            for i in range(N)
        ]
    ).execute()
    Exposure.insert_many(
        [(day + timedelta(days=i // 5), i % 5, float(i), day) for i in range(N)]
    ).execute()
    for model, keys in ((INPUTS[3], [day + timedelta(days=i) for i in range(N)]),
                        (INPUTS[4], [2**40 + i for i in range(N)])):  # fmt: skip
        model.insert_many([(key, float(i)) for i, key in enumerate(keys)]).execute()
    table = dialect().table
    dialect().run(
        f"CREATE VIEW {table(Bright)} AS SELECT obj_id AS name, mag FROM {table(LightCurve)}"
    )


def in_schema(schema: str | None, patch: pytest.MonkeyPatch) -> None:
    for model in INPUTS:
        patch.setattr(model._meta, "schema", schema)
        del model._meta.table  # peewee's, which was made with another schema


@pytest.fixture(scope="module")
def survey(postgres: Postgres) -> Iterator[str]:
    """The name of a template with tables of others in a schema that may be read, and no more."""
    postgres.create_database("survey", template="astra_template")
    with pytest.MonkeyPatch.context() as patch:
        in_schema("survey", patch)
        bind(postgres.url("survey"))
        with connection():
            dialect().run("CREATE SCHEMA survey")
            rows_of_all()
            dialect().run("GRANT USAGE ON SCHEMA survey TO astra")
            dialect().run("GRANT SELECT ON ALL TABLES IN SCHEMA survey TO astra")
        bind(postgres.url("survey", user="astra"))
        init_database(("tests.own_tables",))
        reset()
    yield "survey"
    postgres.drop_database("survey")


@pytest.fixture(params=["sqlite", "postgresql"])
def others(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with tables of others; on PostgreSQL in a schema that may be read, and no more."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if request.param == "sqlite":
        in_schema(None, monkeypatch)
        url = request.getfixturevalue("sqlite_url")
        with connection():
            rows_of_all()
        for _, output in TASKS.values():
            output.create_table()
        yield url
        return
    postgres, template = map(request.getfixturevalue, ("postgres", "survey"))
    in_schema("survey", monkeypatch)
    monkeypatch.setenv("SURVEY_SCHEMA", "survey")
    with fresh_database(postgres, template, monkeypatch) as pg_url:
        url = postgres.url(urlsplit(pg_url).path[1:], user="astra")
        monkeypatch.setenv("ASTRA_DATABASE_URL", url)
        bind(url)
        yield url


def through_the_spool(plan: int) -> None:
    """Run a plan whose database takes no checkpoint; what was spooled is stored later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("astra.results.writer.write", Mock(side_effect=DatabaseError("away")))
        run_here(plan)
    assert recover(get_plan(plan)).rows == N


def run_and_check(task, run=run_here, **options):
    model, output = TASKS[task]
    (planned,) = create_plan(task, limit=10, **options)
    assert (planned.pages, planned.rows) == (3, N)
    run(planned.plan)
    found = status(planned.plan)
    assert found.rows == {"done": N - 2, "failed": 1, "no result": 1}
    assert verify(planned.plan).sound
    with connection():
        link = output.link_to(model)
        rows = model.select()
        wanted = {link.of_row(row): 2 * row.mag for row in rows if row.mag not in (3, 4)}
        stored = {link.of_result(r): r.period for r in output.select()}
    assert stored == wanted
    return planned


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_any_key_from_the_plan_to_the_results(others, task):
    planned = run_and_check(task)
    with connection():
        page = Page.get(Page.plan == planned.plan)
        whole = key_of(TASKS[task][0]).is_whole
        assert (page.key_texts is None) is whole and (page.keys is None) is not whole
    (failure,) = failures(planned.plan)
    assert failure.message == "magnitude 3.0"
    ((tried, _),) = trial_of_plan(planned.plan, [str(failure.key)])
    assert tried.message == failure.message and tried.key == failure.key
    with pytest.raises(UsageError, match=r"not a key|has no row|not of the type"):
        trial_of_plan(planned.plan, ["nonsense"])
    (again,) = create_plan(task)
    assert again.plan is None and again.failed == again.no_result == 1
    (again,) = create_plan(task, again=True)
    assert again.rows == 2
    (held,) = create_plan(task, again=True)
    assert held.plan is None and held.held == 2


def test_a_direct_call_does_the_same_as_a_plan(others):
    with connection():
        for task, (model, output) in TASKS.items():
            rows = model.select()
            results = list(task(rows, re_raise_exceptions=False))
            assert len(results) == N - 2 and output.select().count() == N - 2
            key = key_of(model).text
            (failed,) = Failure.select().where(Failure.input_table.endswith(model._meta.table_name))
            query = model.select(key).where(model.mag == 3)
            assert failed.key == query.scalar()
            others_key = NoResult.key != failed.key
            empty = NoResult.select().where(others_key).order_by(NoResult.pk.desc()).get()
            assert empty.key == model.select(key).where(model.mag == 4).scalar()
    for task in TASKS:
        (again,) = create_plan(task)
        assert again.plan is None and again.failed == again.no_result == 1
    with connection():  # a result takes the place of both
        for task, (model, _) in TASKS.items():
            for row in model.select().where(model.mag << (3, 4)):
                row.mag = 1.0
                assert len(list(task([row]))) == 1
        assert not Failure.select().exists() and not NoResult.select().exists()


def test_a_row_changes_and_is_pending_again(others, monkeypatch, postgres):
    for task in (of_stars, of_exposures):
        run_and_check(task)
    update = [
        f"UPDATE {dialect().table(SurveyStar)} SET updated_at = '2025-01-01 00:00:00' WHERE mag = 2",
        f"UPDATE {dialect().table(SurveyStar)} SET updated_at = NULL WHERE mag = 5",
        f"UPDATE {dialect().table(Exposure)} SET why = '2024-02-01' WHERE mag IN (3, 6)",
    ]
    with connection():
        if dialect().name == "postgresql":
            name = urlsplit(others).path[1:]
            for statement in update:
                postgres.sql(statement, name)
        else:
            for statement in update:
                dialect().run(statement)
    for task in (of_stars, of_exposures):
        (planned,) = create_plan(task)
        assert planned.rows == 2 and planned.tracks_changes
        run_here(planned.plan)
        with connection():
            assert TASKS[task][1].select().count() == N - 2
        (planned,) = create_plan(task)
        assert planned.plan is None


def test_rows_are_taken_in_any_order(others):
    (planned,) = create_plan(all_at_once, limit=7)
    assert not planned.tracks_changes
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": N}
    result = Period.get(Period.light_curve == AWKWARD[0])
    assert result.light_curve.mag == result.period


def test_elements_in_other_processes_find_the_keys(others):
    (planned,) = create_plan(periods, limit=5)
    done = astra("submit", planned.plan, "--local", "-j", 2, cwd=ROOT)
    assert done.returncode == 8, done.stdout + done.stderr  # every row has ended, one as a failure
    assert status(planned.plan).rows == {"done": N - 2, "failed": 1, "no result": 1}
    said = astra("failures", planned.plan, "--json", cwd=ROOT)
    assert AWKWARD[3] in {row["key"] for row in json.loads(said.stdout)}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_results_are_found_by_keys_of_any_kind(others, task):
    model, _ = TASKS[task]
    run_and_check(task, through_the_spool)
    found = StoredResults(task)
    rows = list(found)
    assert len(rows) == N - 2
    names = [field.column_name for field in found.key.fields]
    keys = [tuple(row[name] for name in names) for row in rows]
    wanted = keys if len(names) > 1 else [key for (key,) in keys]
    again = StoredResults(task, wanted[::-1])
    assert {row["task_pk"] for row in again} == {row["task_pk"] for row in rows}
    assert not again.unknown
    texts = [",".join(f'"{v}"' if "," in str(v) else str(v) for v in key) for key in keys]
    texts = texts if len(names) > 1 else [str(key) for key in wanted]
    with connection():
        assert len(find_keys(model, texts)[0]) == N - 2
    again = StoredResults(task, texts)
    assert {row["task_pk"] for row in again} == {row["task_pk"] for row in rows}


def test_the_database_keeps_one_result_for_a_row(others):
    run_and_check(of_exposures)
    with connection(), pytest.raises(peewee.IntegrityError):
        first = ExposurePeriod.select().first()
        ExposurePeriod.create(
            exposure_night=first.exposure_night, exposure_fiber=first.exposure_fiber, period=1.0
        )


def test_a_declared_key_that_is_none(others, monkeypatch):
    class Twice(peewee.Model):
        mag = peewee.FloatField(primary_key=True)

        class Meta:
            table_name = "twice"
            schema = Bright._meta.schema

    table = dialect().table
    make = f"CREATE TABLE {table(Twice)} AS SELECT 1.0 AS mag UNION ALL SELECT 1.0"
    if dialect().name == "postgresql":
        Twice._meta.schema = None
        make = f"CREATE TABLE {table(Twice)} AS SELECT 1.0 AS mag UNION ALL SELECT 1.0"
    with connection():
        dialect().run(make)
        with pytest.raises(TaskError, match="2 rows with the key 1"):
            check_keys(Twice)
        dialect().run(f"DELETE FROM {table(Twice)}")
        dialect().run(f"INSERT INTO {table(Twice)} VALUES (NULL)")
        with pytest.raises(TaskError, match="a row without a key"):
            check_keys(Twice)


def test_a_model_that_lacks_a_key_or_link_is_reported(others):
    from astra.models import OutputModel
    from astra.models.pipeline import link_of

    class NoKey(peewee.Model):
        mag = peewee.FloatField()

        class Meta:
            primary_key = False

    class Unbound(OutputModel):
        value = peewee.FloatField()

    try:
        with pytest.raises(TaskError, match="no primary key"):
            key_of(NoKey)
        with pytest.raises(TaskError, match=r"light_curve = result_of\(LightCurve\)|lightcurve ="):
            link_of(Unbound, LightCurve)
    finally:
        del Unbound
    with connection():
        from astra.models.table_checks import check_tables

        gone = type("Gone", (peewee.Model,), {"a": peewee.TextField(primary_key=True)})
        with pytest.raises(DatabaseError, match="not astra's"):
            check_tables(gone)
    assert StarPeriod.link_to(SurveyStar).row == ("uid",) and of_bright.__name__


class Epoch(peewee.Model):
    changed = peewee.TimestampField(null=True, default=None)
    begin = peewee.TimeField(null=True)

    class Meta:
        table_name = "others_epoch"


class OfEpoch(OutputModel):
    epoch = result_of(Epoch)


@as_task
def of_epochs(rows: Iterable[Epoch]) -> Iterable[OfEpoch]:
    for row in rows:
        yield OfEpoch.from_row(row)


@pytest.mark.parametrize("column", ["changed", "begin"])
def test_a_number_or_a_time_of_day_says_not_when_a_row_was_modified(url, column, monkeypatch):
    monkeypatch.setattr(Epoch._meta, "modified", column, raising=False)
    with connection():
        bound_to_database(Epoch).create_table()
        OfEpoch.create_table()
    with pytest.raises(TaskError, match=f"Epoch.{column} is of the type .*, which holds neither"):
        create_plan(of_epochs)
    monkeypatch.setattr(Epoch._meta, "modified", "change")
    with pytest.raises(TaskError, match=r"'change' is not a column of the model\. Did you mean"):
        create_plan(of_epochs)


class BySize(peewee.Model):
    size = peewee.DoubleField(primary_key=True)

    class Meta:
        table_name = "others_by_size"


def test_a_key_that_sqlite_gives_back_otherwise_is_refused(url):
    with connection():
        bound_to_database(BySize).create_table()
        BySize.create(size=1 / 3)
        if dialect().name == "postgresql":
            check_keys(BySize)
            return
        with pytest.raises(TaskError, match=r"BySize\.size is a key of type DOUBLE, which no page"):
            check_keys(BySize)


class StarVisit(peewee.Model):
    star = peewee.IntegerField()
    changed = peewee.DateTimeField(null=True)

    class Meta:
        table_name = "others_star_visit"
        modified = "changed"


class LastVisit(OutputModel):
    visit = result_of(StarVisit)


@pytest.mark.parametrize(
    ("changed", "last"),
    [((None, None), 2), ((None, 2024), 2), ((2024, None), 1), ((2024, 2023), 1), ((2024, 2024), 2)],
)
def test_one_row_of_a_group_is_its_last_even_if_it_was_never_modified(url, changed, last):
    @as_task(group_by="star")
    def last_visits(visits: Iterable[StarVisit]) -> Iterable[LastVisit]:
        yield from ()

    with connection():
        for model in (bound_to_database(StarVisit), LastVisit):
            model.create_table()
        for year in changed:
            StarVisit.create(star=7, changed=year and datetime(year, 1, 1))
        ((_, query),) = generate_queries_for_task(last_visits)
        assert [row.id for row in query] == [last]


@as_task
def of_visits(visits: Iterable[StarVisit]) -> Iterable[LastVisit]:
    for visit in visits:
        yield LastVisit.from_row(visit)


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz", "date"])
def test_rows_of_times_that_python_does_not_know_are_processed_once(pg_url, kind):
    with connection():
        for model in (bound_to_database(StarVisit), LastVisit):
            model.create_table()
        dialect().run(f"ALTER TABLE others_star_visit ALTER changed TYPE {kind}")
        for at in ("infinity", "-infinity", "0044-03-15 BC", "20000-01-01", "2024-02-29", None):
            dialect().run("INSERT INTO others_star_visit (star, changed) VALUES (7, %s)", (at,))
    (planned,) = create_plan(of_visits)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 6} and verify(planned.plan).sound
    (again,) = create_plan(of_visits)
    assert again.plan is None


def test_a_key_that_a_table_that_inherits_has_too_is_refused(pg_url):
    with connection():
        bound_to_database(StarVisit).create_table()
        dialect().run("CREATE TABLE others_heir () INHERITS (others_star_visit)")
        dialect().run("INSERT INTO others_star_visit VALUES (1, 7, NULL)")
        check_keys(StarVisit)
        dialect().run("INSERT INTO others_heir VALUES (1, 7, NULL)")
        with pytest.raises(TaskError, match="2 rows with the key 1"):
            check_keys(StarVisit)


class Elsewhere(peewee.Model):
    """A model with a database of its own, in which the table is not."""

    class Meta:
        database = peewee.SqliteDatabase(":memory:")
        table_name = "others_elsewhere"


class OfElsewhere(OutputModel):
    row = result_of(Elsewhere)


@as_task
def of_elsewhere(rows: Iterable[Elsewhere]) -> Iterable[OfElsewhere]:
    for row in rows:
        yield OfElsewhere.from_row(row)


def test_a_model_of_another_database_is_read_from_that_of_astra(url):
    with connection():
        dialect().run("CREATE TABLE others_elsewhere (id integer PRIMARY KEY)")
        OfElsewhere.create_table()
    (planned,) = create_plan(of_elsewhere)
    assert planned.plan is None and planned.is_empty
    with connection():
        dialect().run("INSERT INTO others_elsewhere VALUES (1)")
    (planned,) = create_plan(of_elsewhere)
    assert planned.rows == 1
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 1}


@pytest.mark.parametrize("task", [of_exposures, of_stars], ids=lambda task: task.__name__)
def test_a_page_whose_keys_cannot_be_read_is_named(others, task):
    """The other pages of its plan are checked nevertheless."""
    (planned,) = create_plan(task, limit=5)
    run_here(planned.plan)
    with connection():
        page = Page.get(Page.plan == planned.plan, Page.number == 2)
        Page.update(key_texts=["forged", *page.key_texts[1:]]).where(Page.pk == page.pk).execute()
        output = TASKS[task][1]
        output.delete().where(output.period == 2.0 * (N - 1)).execute()
    found = verify(planned.plan)
    named = {breach.check for breach in found.breaches}
    assert not found.sound and "result-missing" in named
    assert ("shape", 2) in {(breach.check, breach.page) for breach in found.breaches} or (
        dialect().name == "sqlite" and task is of_stars  # where any text may be a UUID
    )


@pytest.mark.parametrize("others", ["postgresql"], indirect=True)
def test_a_column_of_times_that_is_gone_breaks_the_page(others, postgres):
    """The attempt says why, and is not taken for one whose process died."""
    (planned,) = create_plan(of_stars)
    dropped = "ALTER TABLE survey.star DROP COLUMN updated_at"
    postgres.sql(dropped, database=urlsplit(others).path[1:])
    bind(others)  # as an element in another process, which has not seen the column
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 0, "broken": N}
    with connection():
        assert "SurveyStar.updated_at is not in its table" in Attempt.get().message
