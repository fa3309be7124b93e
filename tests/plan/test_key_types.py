"""Keys whose columns have other types in the database than most: domains, enums, moments."""

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

import peewee
import pytest
from playhouse.postgres_ext import DateTimeTZField

from astra import task
from astra.api import run_here
from astra.database.connection import connection, dialect, reset
from astra.errors import TaskError
from astra.models import OutputModel, result_of
from astra.models.failures import Failure
from astra.models.key_parsing import find_keys
from astra.models.keys import bound_to_database
from astra.plan.plan import create_plan
from astra.status.failures import failures
from astra.status.status import status
from astra.status.verify import verify


class Moment(peewee.Model):
    """A moment for a key, declared with its zone."""

    at = DateTimeTZField(primary_key=True)

    class Meta:
        table_name = "others_moment"


class OfMoment(OutputModel):
    moment = result_of(Moment)


@task
def of_moments(rows: Iterable[Moment]) -> Iterable[OfMoment]:
    for row in rows:
        yield OfMoment.from_row(row)


class Hour(peewee.Model):
    """The same table, declared without the zone."""

    at = peewee.DateTimeField(primary_key=True)

    class Meta:
        table_name = "others_moment"


class OfHour(OutputModel):
    hour = result_of(Hour)


@task
def of_hours(rows: Iterable[Hour]) -> Iterable[OfHour]:
    for row in rows:
        yield OfHour.from_row(row)


class Mood(peewee.Model):
    mood = peewee.CharField(primary_key=True)

    class Meta:
        table_name = "others_mood"


class OfMood(OutputModel):
    mood = result_of(Mood)


@task
def of_moods(rows: Iterable[Mood]) -> Iterable[OfMood]:
    for row in rows:
        yield OfMood.from_row(row)


class MoodField(peewee.TextField):
    field_type = "mood"


class TypedMood(peewee.Model):
    mood = MoodField(primary_key=True)

    class Meta:
        table_name = "others_mood"


class OfTypedMood(OutputModel):
    mood = result_of(TypedMood)

    class Meta:
        abstract = True  # other databases lack the type, so that initdb leaves the table out


@task
def of_typed_moods(rows: Iterable[TypedMood]) -> Iterable[OfTypedMood]:
    for row in rows:
        yield OfTypedMood.from_row(row)


class Day(peewee.Model):
    day = peewee.DateField(primary_key=True)

    class Meta:
        table_name = "others_day"


class OfDay(OutputModel):
    day = result_of(Day)


def make_moments(kind: str) -> None:
    with connection():
        dialect().run(f"CREATE TABLE others_moment (at {kind} PRIMARY KEY)")
        dialect().run(
            "INSERT INTO others_moment SELECT timestamptz '2024-01-01 00:00:00+00' + n * interval "
            "'1 hour' FROM generate_series(0, 9) AS n"
        )
        bound_to_database(Moment)
        OfMoment.create_table()


@pytest.mark.parametrize("quoting", ["off", "on"])
@pytest.mark.parametrize("kind", ["timestamptz", "zoned_twice"])
def test_planners_in_two_time_zones_take_no_row_twice(pg_url, kind, quoting, monkeypatch):
    monkeypatch.setenv("PGOPTIONS", f"-c quote_all_identifiers={quoting}")
    if kind != "timestamptz":
        with connection():
            dialect().run("CREATE DOMAIN zoned AS timestamptz")
            dialect().run("CREATE DOMAIN zoned_twice AS zoned CHECK (value > '2000-01-01')")
    make_moments(kind)
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")
    (first,) = create_plan(of_moments)
    assert first.rows == 10
    monkeypatch.setenv("PGTZ", "America/New_York")
    (second,) = create_plan(of_moments)
    assert (second.plan, second.held) == (None, 10)
    run_here(first.plan)
    assert status(first.plan).rows == {"done": 10} and verify(first.plan).sound
    monkeypatch.setenv("PGTZ", "UTC")
    (third,) = create_plan(of_moments)
    assert third.plan is None


def test_results_of_a_domain_are_copied_and_replaced(pg_url):
    make_moments("timestamptz")
    with connection():
        dialect().run("CREATE DOMAIN zoned AS timestamptz")
        dialect().run("CREATE DOMAIN positive AS real CHECK (value >= 0)")
        dialect().run("ALTER TABLE of_moment ALTER t_elapsed TYPE positive")
        dialect().run(
            "INSERT INTO others_moment SELECT timestamptz '2025-01-01 00:00:00+00' + n * interval "
            "'1 hour' FROM generate_series(0, 99) AS n"
        )
    (planned,) = create_plan(of_moments)
    run_here(planned.plan)
    (again,) = create_plan(of_moments, redo="all")
    assert again.rows == 110
    run_here(again.plan)
    assert status(again.plan).rows == {"done": 110} and verify(again.plan).sound


def test_a_moment_with_a_zone_is_found_as_a_key(pg_url):
    make_moments("timestamptz")
    given = datetime(2024, 1, 1, 5, tzinfo=timezone(timedelta(hours=2)))
    with connection():
        for key in (given, str(given), "2024-01-01T03:00:00Z", "2024-01-01 03:00:00"):
            assert find_keys(Moment, [key]) == (["2024-01-01 03:00:00"], [])
        early = "0001-01-01T00:00:00+14:00"  # in UTC, Python does not know it
        assert find_keys(Moment, [early]) == ([], [early])


def test_a_date_that_python_does_not_know_is_found_as_a_key(pg_url):
    make_keys(Day, OfDay, "day date", ["infinity", "10000-01-01"])
    with connection():
        assert find_keys(Day, ["10000-01-01", "infinity"])[1] == []
        with pytest.raises(TaskError, match="is not of the type"):
            find_keys(Day, ["2024-13-01"])


def test_a_moment_declared_without_its_zone_is_refused_where_the_zone_counts(pg_url, monkeypatch):
    make_moments("timestamptz")
    with connection():
        bound_to_database(Hour)
        OfHour.create_table()
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")
    with pytest.raises(TaskError, match=r"Hour\.at is .* timestamptz,.*declare .* DateTimeTZField"):
        create_plan(of_hours)
    monkeypatch.setenv("PGTZ", "UTC")
    (planned,) = create_plan(of_hours)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 10}


def test_an_enum_is_a_key_if_it_is_declared_as_one(pg_url):
    with connection():
        dialect().run("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')")
        dialect().run("CREATE TABLE others_mood (mood mood PRIMARY KEY)")
        dialect().run("INSERT INTO others_mood VALUES ('sad'), ('happy')")
        for model in (Mood, TypedMood):
            bound_to_database(model)
        for output in (OfMood, OfTypedMood):
            output.create_table()
    expected = r'Mood\.mood is .* public\.mood,.* varchar,.*field_type = "public\.mood", drop the'
    with pytest.raises(TaskError, match=expected):
        create_plan(of_moods)
    (planned,) = create_plan(of_typed_moods)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 2} and verify(planned.plan).sound
    (again,) = create_plan(of_typed_moods)
    assert again.plan is None
    (again,) = create_plan(of_typed_moods, redo="all", where="mood in ['happy', 'ok']")
    assert again.rows == 1
    with pytest.raises(TaskError, match="bored"):
        create_plan(of_typed_moods, redo="all", where="mood == 'bored'")


def test_a_moment_of_this_kind_is_compared_by_where(pg_url):
    make_moments("timestamptz")
    (planned,) = create_plan(of_moments, where="at >= '2024-01-01T08:00:00'")
    assert planned.rows == 2


class IntervalField(peewee.Field):
    field_type = "interval"


class Period(peewee.Model):
    length = IntervalField(primary_key=True)

    class Meta:
        table_name = "others_period"


class OfPeriod(OutputModel):
    period = result_of(Period)

    class Meta:
        abstract = True


class Shift(peewee.Model):
    night = peewee.DateField()
    begin = peewee.TimeField()
    exposure = peewee.DecimalField()

    class Meta:
        table_name = "others_shift"
        primary_key = peewee.CompositeKey("night", "begin", "exposure")


class OfShift(OutputModel):
    shift = result_of(Shift)


@task
def of_periods(rows: Iterable[Period]) -> Iterable[OfPeriod]:
    for row in rows:
        yield OfPeriod.from_row(row)


@task
def of_shifts(rows: Iterable[Shift]) -> Iterable[OfShift]:
    for row in rows:
        yield OfShift.from_row(row)


SOME_KEYS_NOT_HELD = pytest.mark.parametrize(
    "keyed_task, column, good, bad",
    [
        (
            of_shifts,
            "night date, begin time, exposure numeric",
            ["2024-01-01,00:00,1.5"],
            ["infinity,00:00,1", "2024-01-02,24:00,1", "2024-01-03,01:00,0.1234567"],
        ),
    ],
)


def make_keys(model: type[peewee.Model], output: type[OutputModel], column: str, rows: list[str]):
    """Make a table with these columns as its key, and with these rows."""
    names = ", ".join(part.split()[0] for part in column.split(", "))
    with connection():
        dialect().run(f"CREATE TABLE {model._meta.table_name} ({column}, PRIMARY KEY ({names}))")
        for row in rows:
            values = ", ".join(f"'{value}'" for value in row.split(","))
            dialect().run(f"INSERT INTO {model._meta.table_name} VALUES ({values})")
        bound_to_database(model)
        output.create_table()


@SOME_KEYS_NOT_HELD
def test_a_row_whose_key_python_does_not_hold_fails_alone(pg_url, keyed_task, column, good, bad):
    model, output = (Period, OfPeriod) if keyed_task is of_periods else (Shift, OfShift)
    make_keys(model, output, column, good + bad)
    (planned,) = create_plan(keyed_task)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": len(good), "failed": len(bad)}
    assert verify(planned.plan).sound
    assert {failure.exception for failure in failures(planned.plan)} == {"KeyChanged"}
    (again,) = create_plan(keyed_task)
    assert again.plan is None and again.failed == len(bad)


@SOME_KEYS_NOT_HELD
def test_called_directly_no_result_is_stored_for_another_key(
    pg_url, keyed_task, column, good, bad, caplog
):
    model, output = (Period, OfPeriod) if keyed_task is of_periods else (Shift, OfShift)
    make_keys(model, output, column, good + bad)
    assert len(list(keyed_task(model.select()))) == output.select().count() == len(good)
    assert caplog.text.count("result refused: KeyChanged") == len(bad)
    (planned,) = create_plan(keyed_task, again=True)
    assert planned.rows == len(bad)


class Depth(peewee.Model):
    depth = peewee.FloatField(primary_key=True)

    class Meta:
        table_name = "others_depth"


class OfDepth(OutputModel):
    depth = result_of(Depth)


@task(re_raise_exceptions=False)
def of_depths(rows: Iterable[Depth], raises: bool = True) -> Iterable[OfDepth]:
    for row in rows:
        if raises:
            raise ValueError
        yield OfDepth.from_row(row)


def test_called_directly_a_row_fails_whose_key_has_the_digits_of_a_float4(pg_url):
    make_keys(Depth, OfDepth, "depth real", ["0.1", "16777217", "NaN"])
    list(of_depths(Depth.select()))
    (planned,) = create_plan(of_depths)
    assert planned.plan is None and planned.failed == 3
    list(of_depths(Depth.select(), raises=False))
    assert {*Failure.select()} == set() and OfDepth.select().count() == 3


def test_intervals_are_keys_whatever_their_style_in_the_session(pg_url, monkeypatch):
    make_keys(Period, OfPeriod, "length interval", ["1 day", "-1 day 2 hours", "00:00:00.5"])
    monkeypatch.setenv("PGOPTIONS", "-c IntervalStyle=sql_standard")
    (planned,) = create_plan(of_periods)
    reset()
    monkeypatch.setenv("PGOPTIONS", "-c IntervalStyle=postgres_verbose")
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 3}


def test_rows_that_were_gone_as_their_plan_ran_and_are_there_again_are_pending(pg_url):
    make_keys(Period, OfPeriod, "length interval", ["1 day", "2 days"])
    (planned,) = create_plan(of_periods)
    with connection():
        dialect().run("ALTER TABLE others_period RENAME TO set_aside")
        dialect().run("CREATE TABLE others_period (LIKE set_aside)")
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 0, "failed": 2}
    assert {failure.exception for failure in failures(planned.plan)} == {"InputGone"}
    with connection():
        dialect().run("DROP TABLE others_period")
        dialect().run("ALTER TABLE set_aside RENAME TO others_period")
    (again,) = create_plan(of_periods)
    assert (again.rows, again.failed) == (2, 0)
    run_here(again.plan)
    assert status(again.plan).rows == {"done": 2} and verify(again.plan).sound


class Identified(peewee.Model):
    uid = peewee.UUIDField(primary_key=True)

    class Meta:
        table_name = "others_identified"


class OfIdentified(OutputModel):
    identified = result_of(Identified)


@task
def of_identified(rows: Iterable[Identified]) -> Iterable[OfIdentified]:
    for row in rows:
        yield OfIdentified.from_row(row)


@pytest.mark.parametrize(
    "keyed_task, good, bad",
    [
        (of_identified, "cf9d2c9e7c3b4a6e9f0c111111111111", "cf9d2c9e-7c3b-4a6e-9f0c-111111111111"),
        (of_hours, "2024-01-01 05:00:00", "2024-01-01T05:00:00"),
    ],
)
def test_a_key_in_a_form_that_its_field_does_not_store_fails_alone(
    sqlite_url, keyed_task, good, bad
):
    models = {of_identified: (Identified, OfIdentified), of_hours: (Hour, OfHour)}
    model, output = models[keyed_task]
    make_keys(model, output, f"{model._meta.primary_key.column_name} text NOT NULL", [good, bad])
    (planned,) = create_plan(keyed_task)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 1, "failed": 1} and verify(planned.plan).sound
    assert {failure.exception for failure in failures(planned.plan)} == {"KeyChanged"}
    with connection():
        model.delete().where(model._meta.primary_key == good).execute()
        with pytest.raises(TaskError, match=f"not hold unchanged: {bad} .* as a TextField"):
            create_plan(keyed_task, again=True)


def test_a_key_that_its_field_does_not_read_is_refused(sqlite_url):
    make_keys(Identified, OfIdentified, "uid text NOT NULL", ["abc"])
    with pytest.raises(TaskError, match=r"its field does not read: .* as a TextField"):
        create_plan(of_identified)
