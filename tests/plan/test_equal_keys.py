"""Keys that may be written in several ways, and are equal however they are written."""

from collections.abc import Iterable

import peewee
import pytest

from astra import task
from astra.api import run_here
from astra.database.connection import connection, dialect
from astra.errors import TaskError
from astra.models import OutputModel, result_of
from astra.models.keys import bound_to_database
from astra.plan.plan import create_plan
from astra.status.row_history import history_of
from astra.status.status import status
from astra.status.verify import verify


class Star(peewee.Model):
    night = peewee.IntegerField()
    name = peewee.TextField()

    class Meta:
        table_name = "others_star"
        primary_key = peewee.CompositeKey("night", "name")


class OfStar(OutputModel):
    star = result_of(Star)

    class Meta:
        abstract = True


@task
def of_stars(rows: Iterable[Star]) -> Iterable[OfStar]:
    for row in rows:
        yield OfStar.from_row(row)


def make_stars(collation: str) -> None:
    """Make a table in whose keys capital letters do not count."""
    column = f"night integer NOT NULL, name text COLLATE {collation} NOT NULL"
    with connection():
        if dialect().name == "postgresql":
            dialect().run(
                'CREATE COLLATION "any case" '
                "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
        dialect().run(f"CREATE TABLE others_star ({column}, PRIMARY KEY (night, name))")
        dialect().run("INSERT INTO others_star VALUES (1, 'Vega'), (1, 'Deneb')")
        bound_to_database(Star)


COLLATIONS = pytest.mark.parametrize(
    "url, collation", [("pg_url", '"any case"'), ("sqlite_url", "NOCASE")]
)


@COLLATIONS
def test_a_row_has_one_result_however_its_key_is_written(url, collation, request):
    request.getfixturevalue(url)
    make_stars(collation)
    OfStar.create_table()
    (planned,) = create_plan(of_stars)
    with connection():
        dialect().run("UPDATE others_star SET name = upper(name)")
    (meanwhile,) = create_plan(of_stars)
    assert (meanwhile.plan, meanwhile.held, meanwhile.live_plans) == (None, 2, (planned.plan,))
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 2} and verify(planned.plan).sound
    with connection():
        dialect().run("UPDATE others_star SET name = lower(name)")
    (again,) = create_plan(of_stars)
    assert again.plan is None
    (again,) = create_plan(of_stars, redo="all")
    run_here(again.plan)
    assert OfStar.select().count() == 2 and verify(again.plan).sound
    assert [result.task_pk for result in history_of(of_stars, [1, "dENEB"]).results] == [1]


@COLLATIONS
def test_results_whose_keys_are_compared_in_another_way_are_refused(url, collation, request):
    request.getfixturevalue(url)
    OfStar.create_table()
    make_stars(collation)
    with pytest.raises(TaskError, match=r"Star\.name is compared by .*drop the table of_star of"):
        create_plan(of_stars)
    with pytest.raises(TaskError, match="so that a row could have two results"):
        list(of_stars(Star.select()))
    OfStar.drop_table()
    OfStar.create_table()
    assert len(list(of_stars(Star.select()))) == 2


class Tile(peewee.Model):
    height = peewee.DecimalField(primary_key=True, max_digits=12, decimal_places=6)

    class Meta:
        table_name = "others_tile"


class OfTile(OutputModel):
    tile = result_of(Tile)


@task
def of_tiles(rows: Iterable[Tile]) -> Iterable[OfTile]:
    for row in rows:
        yield OfTile.from_row(row)


def test_a_key_that_is_written_with_more_digits_while_it_is_planned_is_not_planned_again(pg_url):
    with connection():
        dialect().run("CREATE TABLE others_tile (height numeric PRIMARY KEY)")
        dialect().run("INSERT INTO others_tile VALUES (1.0), (2)")
        bound_to_database(Tile)
        OfTile.create_table()
    (planned,) = create_plan(of_tiles)
    with connection():
        dialect().run("UPDATE others_tile SET height = height + 0.000")
        dialect().run("INSERT INTO others_tile VALUES (3)")
    (further,) = create_plan(of_tiles)
    assert (further.rows, further.held) == (1, 2)
    for plan in (planned.plan, further.plan):
        run_here(plan)
        assert verify(plan).sound
    assert OfTile.select().count() == 3
