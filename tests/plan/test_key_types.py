"""Keys of types that are held unchanged, and of others, which are refused."""

from collections.abc import Iterable

import peewee
import pytest

from astra import task
from astra.api import run_here
from astra.database.connection import connection, dialect
from astra.errors import TaskError
from astra.models import OutputModel, result_of
from astra.models.key_parsing import find_keys
from astra.models.keys import bound_to_database
from astra.plan.plan import create_plan
from astra.status.failures import failures
from astra.status.status import status
from astra.status.verify import verify


class Day(peewee.Model):
    day = peewee.DateField(primary_key=True)

    class Meta:
        table_name = "others_day"


class OfDay(OutputModel):
    day = result_of(Day)


@task
def of_days(rows: Iterable[Day]) -> Iterable[OfDay]:
    for row in rows:
        yield OfDay.from_row(row)


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


def make_keys(output: type[OutputModel], column: str, *keys: str) -> type[peewee.Model]:
    """Make a table of others with a key of one column, with rows, and the table of results."""
    (model,) = output.declared_links
    table = model._meta.table_name
    with connection():
        dialect().run(f"CREATE TABLE {table} ({column} PRIMARY KEY)")
        for key in keys:
            dialect().run(f"INSERT INTO {table} VALUES ({key})")
        bound_to_database(model)
        output.create_table()
    return model


def test_columns_of_domains_are_read_copied_and_replaced(pg_url):
    with connection():
        dialect().run("CREATE DOMAIN an_evening AS date CHECK (value > '2000-01-01')")
        dialect().run("CREATE DOMAIN positive AS real CHECK (value >= 0)")
    make_keys(OfDay, "day an_evening", *(f"date '2024-01-01' + {n}" for n in range(110)))
    with connection():
        dialect().run("ALTER TABLE of_day ALTER t_elapsed TYPE positive")
    (planned,) = create_plan(of_days)
    run_here(planned.plan)
    (again,) = create_plan(of_days, redo="all")
    assert again.rows == 110
    run_here(again.plan)
    assert status(again.plan).rows == {"done": 110} and verify(again.plan).sound


def test_a_row_fails_alone_if_python_does_not_know_its_date(pg_url, caplog):
    model = make_keys(OfDay, "day date", "'2024-01-01'", "'infinity'", "'0044-03-15 BC'")
    (planned,) = create_plan(of_days)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 1, "failed": 2} and verify(planned.plan).sound
    assert {failure.exception for failure in failures(planned.plan)} == {"BadKey"}
    caplog.clear()
    assert len(list(of_days(model.select()))) == OfDay.select().count() == 1
    assert caplog.text.count("result refused: BadKey") == 2
    with connection(), pytest.raises(TaskError, match="'2024-13-01' is not a key"):
        find_keys(Day, ["2024-13-01"])


def test_rows_that_were_gone_as_their_plan_ran_and_are_there_again_are_pending(pg_url):
    make_keys(OfDay, "day date", "'2024-01-01'", "'2024-01-02'")
    (planned,) = create_plan(of_days)
    with connection():
        dialect().run("ALTER TABLE others_day RENAME TO set_aside")
        dialect().run("CREATE TABLE others_day (LIKE set_aside)")
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 0, "failed": 2}
    assert {failure.exception for failure in failures(planned.plan)} == {"InputGone"}
    with connection():
        dialect().run("DROP TABLE others_day")
        dialect().run("ALTER TABLE set_aside RENAME TO others_day")
    (again,) = create_plan(of_days)
    assert (again.rows, again.failed) == (2, 0)
    run_here(again.plan)
    assert status(again.plan).rows == {"done": 2} and verify(again.plan).sound


@pytest.mark.parametrize(
    "keyed, output, good, bad",
    [
        (
            of_identified,
            OfIdentified,
            "'cf9d2c9e7c3b4a6e9f0c111111111111'",
            "'cf9d2c9e-7c3b-4a6e-9f0c-111111111111'",
        ),
        (of_days, OfDay, "'2024-01-01'", "'2024-1-2'"),
    ],
)
def test_keys_in_a_form_that_their_field_does_not_store_are_refused(
    sqlite_url, keyed, output, good, bad
):
    """Their results would be stored in another form, and not be found by them."""
    model = make_keys(output, "k text".replace("k", next(iter(output.declared_links.values())).row[0]),
                      good)  # fmt: skip
    (planned,) = create_plan(keyed)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 1} and verify(planned.plan).sound
    with connection():
        dialect().run(f"INSERT INTO {model._meta.table_name} VALUES ({bad})")
    for run in (lambda: create_plan(keyed), lambda: list(keyed(model.select()))):
        with pytest.raises(TaskError, match=f"of another type or form, such as {bad}"):
            run()
