"""Keys that are refused, because results would not be found by them again."""

from collections.abc import Iterable

import peewee
import pytest

from astra import task
from astra.api import run_here
from astra.database.connection import connection, dialect
from astra.errors import TaskError
from astra.models import OutputModel, result_of
from astra.models.attempts import Attempt
from astra.models.keys import bound_to_database, check_keys
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from astra.status.status import status
from astra.status.verify import verify


class Named(peewee.Model):
    name = peewee.TextField(primary_key=True)

    class Meta:
        table_name = "others_named"


class OfNamed(OutputModel):
    named = result_of(Named)


@task
def of_named(rows: Iterable[Named]) -> Iterable[OfNamed]:
    for row in rows:
        yield OfNamed.from_row(row)


@pytest.mark.parametrize(
    "kind, value, expected",
    [
        ("char(8)", "'ab'", "column of the type bpchar: a key consists of whole numbers, texts"),
        ("citext", "'ab'", r"column of the type public\.citext: a key .* a view that converts"),
        ("text[]", "'{a}'", "column of the type _text: a key"),
        ("numeric", "1.5", "column of the type numeric: a key"),
        ("timestamptz", "now()", "column of the type timestamptz: a key"),
        ("uuid", "gen_random_uuid()", "named of the type text: declare the key as UUIDField"),
    ],
)
def test_a_key_that_not_all_hold_unchanged_is_refused(pg_url, kind, value, expected):
    with connection():
        dialect().run("CREATE EXTENSION citext")
        dialect().run(f"CREATE TABLE others_named (name {kind} PRIMARY KEY)")
        dialect().run(f"INSERT INTO others_named VALUES ({value})")
        bound_to_database(Named)
        OfNamed.create_table()
    with pytest.raises(TaskError, match=expected):
        create_plan(of_named)
    with connection(), pytest.raises(TaskError, match=expected):
        list(of_named(Named.select()))


def test_a_field_of_another_type_is_no_key():
    class Sized(peewee.Model):
        size = peewee.DoubleField(primary_key=True)

    with pytest.raises(TaskError, match=r"Sized\.size is a DoubleField: a key consists"):
        result_of(Sized).fields("sized")


class Loose(peewee.Model):
    k = peewee.TextField(primary_key=True)

    class Meta:
        table_name = "others_loose"


class LooseNumber(peewee.Model):
    k = peewee.IntegerField(primary_key=True)

    class Meta:
        table_name = "others_loose"


@pytest.mark.parametrize(
    "model, kind, values, expected",
    [
        (Loose, "", "('3'), (2)", "of another type or form, such as 2:"),
        (Loose, "TEXT", "('a'), (x'00ff')", "such as b"),
        (Loose, "TEXT", "('a'), ('a' || char(0))", r"such as 'a\\x00'"),
        (LooseNumber, "REAL", "(1.5), (2.4)", "such as 1.5"),
        (LooseNumber, "TEXT", "('02')", "such as '02'"),
        (LooseNumber, "INTEGER", "(2), (3)", None),
    ],
)
def test_a_key_of_another_type_than_its_column_is_refused(
    sqlite_url, model, kind, values, expected
):
    with connection():
        dialect().run(f"CREATE TABLE others_loose (k {kind} PRIMARY KEY NOT NULL)")
        dialect().run(f"INSERT INTO others_loose VALUES {values}")
        if expected is None:
            check_keys(model)
            return
        with pytest.raises(TaskError, match=expected):
            check_keys(model)


class Entry(peewee.Model):
    name = peewee.TextField(primary_key=True)

    class Meta:
        table_name = "others_entry"


class OfEntry(OutputModel):
    entry = result_of(Entry)


@task
def of_entries(rows: Iterable[Entry]) -> Iterable[OfEntry]:
    for row in rows:
        yield OfEntry.from_row(row)


def test_rows_that_have_one_key_since_they_were_planned_are_not_skipped(url):
    with connection():
        dialect().run("CREATE TABLE others_entry (name text)")
        dialect().run("INSERT INTO others_entry VALUES ('Vega'), ('Deneb')")
        bound_to_database(Entry)
        OfEntry.create_table()
    (planned,) = create_plan(of_entries)
    with connection():
        dialect().run("INSERT INTO others_entry VALUES ('Vega')")
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 0, "broken": 2} and verify(planned.plan).sound
    with connection():
        assert "2 rows with the key Vega" in Attempt.get().message
        dialect().run("DELETE FROM others_entry WHERE name = 'Vega'")
        dialect().run("INSERT INTO others_entry VALUES ('Vega')")
    resume_local(planned.plan)
    assert status(planned.plan).rows == {"done": 2} and verify(planned.plan).sound


class Computed(peewee.Model):
    number = peewee.IntegerField(primary_key=True)

    class Meta:
        table_name = "others_computed"


class OfComputed(OutputModel):
    computed = result_of(Computed)


@task
def of_computed(rows: Iterable[Computed]) -> Iterable[OfComputed]:
    for row in rows:
        yield OfComputed.from_row(row)


@pytest.mark.parametrize("options", [{}, {"where": "number > 0"}])
def test_a_view_that_cannot_be_computed_is_named(pg_url, options):
    bound_to_database(Computed)
    with connection():
        dialect().run("CREATE TABLE others_text (text TEXT)")
        dialect().run("CREATE VIEW others_computed AS SELECT text::int AS number FROM others_text")
        OfComputed.create_table()
        dialect().run("INSERT INTO others_text VALUES ('1'), ('x')")
    with pytest.raises(TaskError, match=r'others_computed cannot be read: .*integer: "x"; correct'):
        create_plan(of_computed, **options)


class Long(peewee.Model):
    text = peewee.TextField(primary_key=True)

    class Meta:
        table_name = "others_long"


class OfLong(OutputModel):
    long = result_of(Long)


@task
def of_long(rows: Iterable[Long]) -> Iterable[OfLong]:
    for row in rows:
        yield OfLong.from_row(row)


def make_long_keys(*keys):
    with connection():
        dialect().run("CREATE TABLE others_long (text text PRIMARY KEY)")
        bound_to_database(Long)
        OfLong.create_table()
        for key in keys:
            Long.create(text=key)


def test_a_key_that_is_too_long_to_be_recorded_is_refused(pg_url):
    """Its row could end as nothing: neither the failure nor the lack of a result can be stored."""
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 900)))  # 2,700 bytes, which do not compress
    make_long_keys("short", letters[:660], letters[:880])
    with pytest.raises(TaskError, match="a key of 2,640 bytes"):
        create_plan(of_long)
    (planned,) = create_plan(of_long, keys=["short", letters[:660]])
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 2}


def test_a_key_whose_type_was_changed_since_it_was_planned_costs_no_row(pg_url):
    make_long_keys("a", "b")
    (planned,) = create_plan(of_long)
    with connection():
        dialect().run("ALTER TABLE others_long ALTER text TYPE char(8)")
    run_here(planned.plan)
    with connection():
        assert "a column of the type bpchar" in Attempt.get().message
        dialect().run("ALTER TABLE others_long ALTER text TYPE text")
    assert status(planned.plan).rows == {"done": 0, "broken": 2}
    resume_local(planned.plan)
    assert status(planned.plan).rows == {"done": 2}
