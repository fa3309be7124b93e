"""What is stored is what was yielded, or it fails loudly, whatever was done to the table meanwhile."""

import psycopg2
import psycopg2.errors
import pytest

from astra.database.connection import connection, database, dialect
from astra.models import BossVisitSpectrum
from astra.models.plans import Failure
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from astra.status.status import status
from astra.status.verify import verify
from tests.sample_tasks import Measured, fill, measure


def values() -> dict[int, float]:
    with connection():
        return dict(Measured.select(Measured.spectrum_pk, Measured.value).tuples())


@pytest.mark.parametrize("kind", ["double precision", "real", "numeric", "integer"])
@pytest.mark.parametrize("n", [10, 200])
def test_a_column_is_altered_between_two_batches(pg_url, kind, n):
    """Its binary form is another one then, of the same width or not."""
    fill(n)
    spectra = list(BossVisitSpectrum.select())
    list(measure(spectra))
    expected = values()
    with connection():
        Measured.delete().execute()
        database.execute_sql(f"ALTER TABLE measured ALTER COLUMN value TYPE {kind}")
        assert not values()
    list(measure(spectra, batch_size=n))
    stored = values()
    if kind == "integer":  # what has no such form fails, and nothing is rounded silently
        assert all(float(value) == expected[key] for key, value in stored.items())
    else:
        assert stored.keys() == expected.keys()
        assert all(float(stored[key]) == pytest.approx(expected[key]) for key in stored)


def keep_out(condition: str, update: bool = False) -> None:
    """A trigger that lets the database take some rows without storing them."""
    event = "UPDATE" if update else "INSERT"
    with connection():
        if dialect().name == "sqlite":
            database.execute_sql(
                f"CREATE TRIGGER keep_out BEFORE {event} ON measured WHEN {condition} "
                "BEGIN SELECT RAISE(IGNORE); END"
            )
            return
        database.execute_sql(
            "CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {condition} THEN RETURN NULL; END IF; RETURN NEW; END $$"
        )
        database.execute_sql(
            f"CREATE TRIGGER keep_out BEFORE {event} ON measured FOR EACH ROW "
            "EXECUTE FUNCTION keep_out()"
        )


@pytest.mark.parametrize("batch_size", [1, 30, 1000])
def test_a_trigger_keeps_a_quarter_of_the_rows_out(url, batch_size):
    fill(200)
    keep_out("(NEW.spectrum_pk & 3) = 0")
    (made,) = create_plan(measure, BossVisitSpectrum, arguments={"batch_size": batch_size})
    resume_local(made.plan)
    found = status(made.plan)
    assert found.state == "failed rows" and found.rows == {"done": 150, "failed": 50}
    with connection():
        assert Measured.select().count() == 150
        assert {f.exception for f in Failure.select()} == {"NotStored"}
        assert "discarded it" in Failure.get().message
    assert verify(made.plan).sound


def test_a_trigger_keeps_every_row_out(url):
    fill(60)
    keep_out("NEW.spectrum_pk > 0")
    (made,) = create_plan(measure, BossVisitSpectrum)
    resume_local(made.plan)
    assert status(made.plan).rows == {"done": 0, "broken": 60}


def test_a_trigger_keeps_a_replacement_out(url):
    fill(60)
    list(measure(BossVisitSpectrum.select()))
    keep_out("(NEW.spectrum_pk & 3) = 0", update=True)
    with connection():
        BossVisitSpectrum.update(snr=1.0).execute()
    (made,) = create_plan(measure, BossVisitSpectrum)
    resume_local(made.plan)
    assert status(made.plan).rows == {"done": 45, "failed": 15}


def test_no_table_is_altered_while_it_is_verified(pg_url):
    """One that was written anew would look empty in a snapshot that was taken before."""
    fill(4)
    (made,) = create_plan(measure, BossVisitSpectrum)
    resume_local(made.plan)
    with connection(), dialect().snapshot([Measured]):
        assert get_plan(made.plan).n_rows == 4
        with psycopg2.connect(pg_url) as other, other.cursor() as cursor:
            cursor.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg2.errors.LockNotAvailable):
                cursor.execute("ALTER TABLE measured ALTER COLUMN value TYPE numeric")
        other.close()
        assert Measured.select().count() == 4
