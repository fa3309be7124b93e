"""Changes of rows in a table of others are noticed where astra was asked to track them."""

from collections.abc import Iterable

import peewee
import pytest
from peewee import CompositeKey, DateTimeField, FloatField, IntegerField, TextField

from astra import generate_queries_for_task, task
from astra.api import run_here
from astra.database.connection import connection, database, dialect
from astra.errors import AstraError, DatabaseError, UsageError
from astra.models import OutputModel, result_of
from astra.models.importing import import_path
from astra.models.keys import table_name
from astra.models.schema import init_database, sql_of
from astra.models.table_checks import lacking_guard
from astra.models.tracked_tables import tracked_model
from astra.plan.plan import create_plan
from astra.status.verify import verify


class Visit(peewee.Model):
    """A table whose column of changes does not exist yet."""

    field_name = TextField()
    number = IntegerField()
    mag = FloatField()
    changed = DateTimeField(null=True)

    class Meta:
        table_name = "others_visit"
        primary_key = CompositeKey("field_name", "number")
        modified = "changed"


class Unchanged(peewee.Model):
    name = TextField(primary_key=True)

    class Meta:
        table_name = "others_unchanged"


class VisitMag(OutputModel):
    visit = result_of(Visit)
    twice = FloatField()

    class Meta:
        table_name = "others_visit_mag"


@task
def twice(visits: Iterable[Visit]) -> Iterable[VisitMag]:
    for visit in visits:
        yield VisitMag.from_row(visit, twice=2 * visit.mag)


@pytest.fixture
def visits(url: str) -> None:
    make_visits()


def make_visits() -> None:
    with connection():
        key = "field_name TEXT, number INTEGER, mag REAL, PRIMARY KEY (field_name, number)"
        dialect().run(f"CREATE TABLE others_visit ({key})")
        insert("(('a', 1), ('a', 2), ('b', 1))")


def insert(keys: str) -> None:
    rows = keys.strip("()").replace("(", "").split("), ")
    for row in rows:
        dialect().run(f"INSERT INTO others_visit (field_name, number, mag) VALUES ({row}, 1.5)")


def track() -> None:
    notes: list[str] = []
    init_database((__name__,), notes=notes, tracked=("Visit",))
    assert "others_visit: the column changed stores when a row changes" in notes


def pending() -> int:
    return sum(query.count() for _, query in generate_queries_for_task(twice))


def test_a_changed_row_is_pending_again_and_results_that_were_there_are_not(visits):
    with connection():
        dialect().run("ALTER TABLE others_visit ADD COLUMN changed TIMESTAMP")
    init_database((__name__,))
    run_here(create_plan(twice, Visit)[0].plan)
    with connection():
        dialect().run("ALTER TABLE others_visit DROP COLUMN changed")
    track()
    assert pending() == 0
    with connection():
        dialect().run("UPDATE others_visit SET mag = 7 WHERE field_name = 'a' AND number = 2")
        insert("(('c', 9))")
    assert pending() == 2
    (planned,) = create_plan(twice, Visit)
    run_here(planned.plan)
    assert pending() == 0 and verify(planned.plan).sound
    with connection():
        stored = {r.visit_field_name + str(r.visit_number): r.twice for r in VisitMag.select()}
        assert stored == {"a1": 3.0, "a2": 14.0, "b1": 3.0, "c9": 3.0}
        moments = [
            v.changed is None for v in Visit.select().order_by(Visit.field_name).bind(database)
        ]
    assert sorted(moments) == [False, False, True, True]
    track()  # again changes nothing
    assert pending() == 0


def test_a_lost_trigger_is_noticed(visits):
    track()
    names = {
        "postgresql": ["astra_keep_modified ON others_visit"],
        "sqlite": [f"others_visit_modified_{n}" for n in ("update", "form_insert", "form_update")],
    }
    with connection():
        for name in names[dialect().name]:
            dialect().run(f"DROP TRIGGER {name}")
    with pytest.raises(
        DatabaseError, match=r"no trigger that keeps `changed`.*--track-changes Visit"
    ):
        create_plan(twice, Visit)
    with connection():  # as `status` does, which does not import the model
        stub = tracked_model(table_name(Visit), import_path(Visit))
        assert stub is not None and "--track-changes Visit" in str(lacking_guard(stub))
    track()
    assert create_plan(twice, Visit)[0].rows == 3


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE heir () INHERITS (others_visit)",),
        (
            "ALTER TABLE others_visit RENAME TO heir",
            "CREATE TABLE others_visit (LIKE heir INCLUDING ALL) PARTITION BY LIST (field_name)",
            "ALTER TABLE others_visit ATTACH PARTITION heir DEFAULT",
            "TRACK",
            "ALTER TABLE heir DISABLE TRIGGER astra_keep_modified",
        ),
    ],
)
def test_a_trigger_that_a_part_of_the_table_lacks_is_noticed(pg_url, statements):
    """Rows of partitions, and of tables that inherit from it, are read with a table."""
    make_visits()
    with connection():
        track()
        for statement in statements:
            track() if statement == "TRACK" else dialect().run(statement)
        dialect().run("INSERT INTO heir (field_name, number, mag) VALUES ('c', 1, 2)")
    with pytest.raises(DatabaseError, match="no trigger that keeps `changed`"):
        create_plan(twice, Visit)
    with connection():
        track()
        dialect().run("UPDATE heir SET mag = 3 WHERE field_name = 'c'")
        assert dialect().fetch_value("SELECT changed IS NOT NULL FROM heir WHERE mag = 3")
    assert create_plan(twice, Visit)[0].rows == 4


def test_what_cannot_be_tracked_is_refused_and_nothing_is_changed(visits):
    for name, said in (("Vist", "Did you mean"), ("Unchanged", "names no column")):
        with pytest.raises(UsageError, match=said):
            init_database((__name__,), tracked=(name,))
    with connection():
        assert dialect().columns(Visit).keys() == {"field_name", "number", "mag"}
        dialect().run("ALTER TABLE others_visit RENAME TO others_real")
        dialect().run("CREATE VIEW others_visit AS SELECT * FROM others_real")
    with pytest.raises(AstraError, match="there is no table others_visit"):
        init_database((__name__,), tracked=("Visit",))


def test_the_statements_can_be_read_before(visits):
    said = sql_of((__name__,), tracked=("Visit",))
    assert "ADD COLUMN" in said and "TRIGGER" in said
    with connection():
        assert dialect().columns(Visit).keys() == {"field_name", "number", "mag"}
