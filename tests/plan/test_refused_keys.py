"""Keys that are refused, because results would not be found by them again."""

from collections.abc import Iterable

import peewee
import pytest
from playhouse.postgres_ext import ArrayField

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


class Padded(peewee.Model):
    name = peewee.CharField(primary_key=True, max_length=8)

    class Meta:
        table_name = "others_padded"


class OfPadded(OutputModel):
    padded = result_of(Padded)


@task
def of_padded(rows: Iterable[Padded]) -> Iterable[OfPadded]:
    for row in rows:
        yield OfPadded.from_row(row)


def test_results_that_tell_letters_apart_are_refused_for_a_key_that_does_not(pg_url):
    """A row whose key is written in another case would have a second result."""
    with connection():
        dialect().run("CREATE EXTENSION citext")
        dialect().run("CREATE TABLE others_padded (name citext PRIMARY KEY)")
        dialect().run("INSERT INTO others_padded VALUES ('Vega')")
        bound_to_database(Padded)
        OfPadded.create_table()
    with pytest.raises(TaskError, match=r"citext.* varchar, .* declare the key as class OwnField"):
        create_plan(of_padded)


class Fixed(peewee.Model):
    name = peewee.FixedCharField(primary_key=True, max_length=8)

    class Meta:
        table_name = "others_padded"


class OfFixed(OutputModel):
    fixed = result_of(Fixed)


@task
def of_fixed(rows: Iterable[Fixed]) -> Iterable[OfFixed]:
    for row in rows:
        yield OfFixed.from_row(row)


class Size(peewee.Model):
    size = peewee.FloatField(primary_key=True)

    class Meta:
        table_name = "others_size"


class OfSize(OutputModel):
    size = result_of(Size)


@task
def of_sizes(rows: Iterable[Size]) -> Iterable[OfSize]:
    for row in rows:
        yield OfSize.from_row(row)


def test_a_key_that_its_results_would_change_is_refused(pg_url):
    with connection():
        dialect().run("CREATE TABLE others_padded (name char(8) PRIMARY KEY)")
        dialect().run("INSERT INTO others_padded VALUES ('ab'), ('abcdefgh')")
        dialect().run("CREATE TABLE others_size (size double precision PRIMARY KEY)")
        dialect().run("INSERT INTO others_size VALUES (0.1), (0.5)")
        for model in (Padded, Fixed, Size):
            bound_to_database(model)
        for output in (OfPadded, OfFixed, OfSize):
            output.create_table()
    with pytest.raises(TaskError, match=r"bpchar.* varchar, .* declare the key as FixedCharField"):
        create_plan(of_padded)
    with pytest.raises(TaskError, match=r"float8.* float4, .* declare the key as DoubleField"):
        create_plan(of_sizes)
    (planned,) = create_plan(of_fixed)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 2} and verify(planned.plan).sound
    (again,) = create_plan(of_fixed)
    assert again.plan is None


class Tags(peewee.Model):
    tags = ArrayField(peewee.TextField, primary_key=True, index=False)

    class Meta:
        table_name = "others_tags"


class OfTags(OutputModel):
    tags = result_of(Tags)


@task
def of_tags(rows: Iterable[Tags]) -> Iterable[OfTags]:
    for row in rows:
        yield OfTags.from_row(row)


class RangeField(peewee.Field):
    field_type = "int4range"


class Slot(peewee.Model):
    slot = RangeField()
    fiber = peewee.IntegerField()

    class Meta:
        table_name = "others_slot"
        primary_key = peewee.CompositeKey("slot", "fiber")


class OfSlot(OutputModel):
    slot = result_of(Slot)

    class Meta:
        abstract = True


@task
def of_slots(rows: Iterable[Slot]) -> Iterable[OfSlot]:
    for row in rows:
        yield OfSlot.from_row(row)


class Rounded(peewee.Model):
    size = peewee.IntegerField(primary_key=True)

    class Meta:
        table_name = "others_size"


class OfRounded(OutputModel):
    rounded = result_of(Rounded)


@task
def of_rounded(rows: Iterable[Rounded]) -> Iterable[OfRounded]:
    for row in rows:
        yield OfRounded.from_row(row)


class PathField(peewee.Field):
    field_type = "elsewhere.ltree"


class Taxon(peewee.Model):
    path = PathField(primary_key=True)

    class Meta:
        table_name = "others_taxon"


class OfTaxon(OutputModel):
    taxon = result_of(Taxon)

    class Meta:
        abstract = True


@task
def of_taxa(rows: Iterable[Taxon]) -> Iterable[OfTaxon]:
    for row in rows:
        yield OfTaxon.from_row(row)


@pytest.mark.parametrize(
    "refused, output, create, expected",
    [
        (of_tags, OfTags, "others_tags (tags text[] PRIMARY KEY)", "column of arrays"),
        (
            of_slots,
            OfSlot,
            "others_slot (slot int4range, fiber int, PRIMARY KEY (slot, fiber))",
            r"Slot \(slot, fiber\) is of a type .* cannot hold unchanged: .*\[1,3\)",
        ),
        (
            of_rounded,
            OfRounded,
            "others_size (size numeric PRIMARY KEY)",
            "declare .* DecimalField",
        ),
        (of_taxa, OfTaxon, "others_taxon (path elsewhere.ltree PRIMARY KEY)", "search_path"),
    ],
)
def test_a_key_of_a_type_that_no_result_holds_is_refused(pg_url, refused, output, create, expected):
    value = {
        of_tags: "'{a}'",
        of_slots: "'[1,3)', 1), ('[5,7)', 2",
        of_rounded: "1.5",
        of_taxa: "'a.b'",
    }[refused]
    (model,) = output.declared_links
    with connection():
        dialect().run("CREATE SCHEMA elsewhere; CREATE EXTENSION ltree SCHEMA elsewhere")
        dialect().run(f"CREATE TABLE {create}")
        dialect().run(f"INSERT INTO {model._meta.table_name} VALUES ({value})")
        output.create_table()
    with pytest.raises(TaskError, match=expected):
        create_plan(refused)
    with connection(), pytest.raises(TaskError, match=expected):
        list(refused(model.select()))


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
        (Loose, "", "(2), ('2')", "of the type integer and text"),
        (Loose, "TEXT", "('a'), (x'00ff')", "of the type blob"),
        (Loose, "TEXT", "('a'), ('a' || char(0))", r"of the type text, such as 'a\\x00'"),
        (LooseNumber, "REAL", "(1.5), (2.4)", "of the type real, such as 1.5"),
        (LooseNumber, "TEXT", "('02')", "of the type text, such as '02'"),
        (Loose, "", "(2), ('3')", None),
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
    with connection():
        dialect().run("INSERT INTO others_entry VALUES ('Vega')")
    assert verify(planned.plan).sound  # no result is stored twice


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
