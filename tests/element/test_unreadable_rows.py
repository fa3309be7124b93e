"""A row that cannot be read fails alone; if most of them cannot, their page is broken."""

from collections.abc import Iterable

import peewee
import pytest

from astra import task
from astra.api import run_here
from astra.database.connection import connection, dialect
from astra.element.trial import trial_of_plan
from astra.errors import TaskError
from astra.models import OutputModel, result_of
from astra.models.attempts import Attempt
from astra.models.keys import bound_to_database
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from astra.status.failures import failures
from astra.status.status import status
from astra.status.verify import verify

N_ROWS = 60


class EvenField(peewee.IntegerField):
    def python_value(self, value):
        if value % 2:
            raise ValueError(f"{value} is odd")
        return value


class Quotient(peewee.Model):
    pk = peewee.IntegerField(primary_key=True)
    even = EvenField()
    inverse = peewee.FloatField(null=True)

    class Meta:
        table_name = "others_quotient"


class OfQuotient(OutputModel):
    quotient = result_of(Quotient)


@task
def of_quotient(rows: Iterable[Quotient]) -> Iterable[OfQuotient]:
    for row in rows:
        yield OfQuotient.from_row(row)


def make_rows(odd: Iterable[int] = (), zeros: Iterable[int] = ()) -> None:
    """Fill a view, of which PostgreSQL cannot compute a column for `zeros`, and Python cannot read
    that of SQLite."""
    inverse = "1 / x"
    if dialect().name == "sqlite":
        inverse = "coalesce(1 / x, CAST(x'c8' AS text))"
    with connection():
        dialect().run(
            "CREATE TABLE others_stored (pk integer PRIMARY KEY, even integer, x integer)"
        )
        for pk in range(1, N_ROWS + 1):
            values = (pk, int(pk in odd), int(pk not in zeros))
            dialect().run("INSERT INTO others_stored VALUES ({}, {}, {})".format(*values))
        dialect().run(
            f"CREATE VIEW others_quotient AS SELECT pk, even, {inverse} AS inverse "
            "FROM others_stored"
        )
        bound_to_database(Quotient)
        OfQuotient.create_table()


def correct() -> None:
    with connection():
        dialect().run("UPDATE others_stored SET even = 0, x = 1")


def test_one_row_of_a_page_is_its_own_failure(url):
    make_rows(odd=[9, 50], zeros=[7])
    (planned,) = create_plan(of_quotient, limit=40)
    run_here(planned.plan)
    bad = {7, 9, 50}
    assert status(planned.plan).rows == {"done": N_ROWS - len(bad), "failed": len(bad)}
    assert {failure.key for failure in failures(planned.plan)} == bad
    assert all("cannot be read" in failure.message for failure in failures(planned.plan))
    resume_local(planned.plan, failed=True)  # now they are the only ones of their pages
    assert status(planned.plan).rows == {"done": N_ROWS - len(bad), "failed": len(bad)}
    assert verify(planned.plan).sound
    with pytest.raises(TaskError, match="a row of others_quotient cannot be read: ValueError: 1"):
        trial_of_plan(planned.plan, ["9"])
    correct()
    resume_local(planned.plan, failed=True)
    assert status(planned.plan).rows == {"done": N_ROWS} and verify(planned.plan).sound


@pytest.mark.parametrize("n_odd", [N_ROWS, 35])
def test_if_most_rows_cannot_be_read_they_stay_pending(url, n_odd):
    make_rows(odd=range(1, n_odd + 1))
    (planned,) = create_plan(of_quotient)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 0, "broken": N_ROWS}
    with connection():
        assert f"{n_odd} of {N_ROWS} rows cannot be read" in Attempt.get().message
    correct()
    resume_local(planned.plan)
    assert status(planned.plan).rows == {"done": N_ROWS}
