"""What is stored is what was yielded, or it fails loudly, whatever was done to the table meanwhile."""

import re
from collections.abc import Iterable

import psycopg2
import psycopg2.errors
import pytest

from astra import task
from astra.api import run_here
from astra.database.connection import connection, database, dialect
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from astra.status.status import status
from astra.status.verify import verify
from tests.sample_tasks import Measured, fill, measure


@task
def half(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """A value that no whole number is, and a text, for each spectrum."""
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=spectrum.spectrum_pk + 0.25, text="t")


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


@pytest.mark.parametrize("n", [10, 200])
@pytest.mark.parametrize(
    "column",
    [
        "double precision GENERATED ALWAYS AS (value * 2) STORED",
        "bigint GENERATED ALWAYS AS IDENTITY",
    ],
)
def test_a_column_that_the_database_computes_is_added(url, n, column):
    if dialect().name == "sqlite":
        if "IDENTITY" in column:
            pytest.skip("SQLite has no such columns")
        column = column.replace("STORED", "VIRTUAL")
    fill(n)
    with connection():
        database.execute_sql(f"ALTER TABLE measured ADD COLUMN extra {column}")
    for redo in (None, "all"):
        (planned,) = create_plan(measure, "BossVisitSpectrum", redo=redo)
        run_here(planned.plan)
        assert status(planned.plan).rows == {"done": n} and verify(planned.plan).sound


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
    run_here(made.plan)
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
    run_here(made.plan)
    assert status(made.plan).rows == {"done": 0, "broken": 60}


def test_a_trigger_keeps_a_replacement_out(url):
    fill(60)
    list(measure(BossVisitSpectrum.select()))
    keep_out("(NEW.spectrum_pk & 3) = 0", update=True)
    with connection():
        BossVisitSpectrum.update(snr=1.0).execute()
    (made,) = create_plan(measure, BossVisitSpectrum)
    run_here(made.plan)
    assert status(made.plan).rows == {"done": 45, "failed": 15}


def alter(statement: str) -> None:
    with connection():
        for part in statement.split(";;"):
            database.execute_sql(part.replace("%", "%%") if dialect().name != "sqlite" else part)


_TRIGGER = """CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    {} END $$;;CREATE TRIGGER change {} INSERT ON measured FOR EACH ROW EXECUTE FUNCTION change()"""
_OF_SQLITE = "CREATE TRIGGER change AFTER INSERT ON measured BEGIN {}; END"

#: What makes another value of some results, and of how many of 60.
CHANGES = {
    "a trigger before": (
        _TRIGGER.format("NEW.value := NEW.value + (NEW.spectrum_pk % 6 = 0)::int; RETURN NEW;", "BEFORE"),
        _OF_SQLITE.format(
            "UPDATE measured SET value = 1 WHERE task_pk = NEW.task_pk AND NEW.spectrum_pk % 6 = 0"
        ),
        10,
    ),
    "a trigger after": (
        _TRIGGER.format(
            "DELETE FROM measured WHERE task_pk = NEW.task_pk AND NEW.spectrum_pk % 6 = 0; "
            "RETURN NULL;", "AFTER",
        ),
        _OF_SQLITE.format("DELETE FROM measured WHERE task_pk = NEW.task_pk AND NEW.spectrum_pk % 6 = 0"),
        10,
    ),
    "a trigger that keeps all": (
        _TRIGGER.format("RETURN NEW;", "BEFORE"), _OF_SQLITE.format("SELECT 1"), 0,
    ),
    "fewer digits": (
        "ALTER TABLE measured ALTER value TYPE numeric(6, 0) USING 0",
        "ALTER TABLE measured DROP COLUMN value;;ALTER TABLE measured ADD COLUMN value INTEGER;;"
        "CREATE TRIGGER change AFTER INSERT ON measured BEGIN UPDATE measured SET "
        "value = CAST(value AS INTEGER) WHERE task_pk = NEW.task_pk AND NEW.spectrum_pk % 6 = 1; END",
        None,
    ),
    "texts of bytes": (
        "ALTER TABLE measured ALTER number TYPE text", "ALTER TABLE measured DROP COLUMN number;;"
        "ALTER TABLE measured ADD COLUMN number DOUBLE PRECISION", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 1000])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stored_as_another_value_is_its_rows_failure(url, change, batch_size):
    fill(60)
    of_postgresql, of_sqlite, n_failed = CHANGES[change]
    (made,) = create_plan(measure, BossVisitSpectrum, arguments={"batch_size": batch_size})
    alter(of_sqlite if dialect().name == "sqlite" else of_postgresql)
    run_here(made.plan)
    with connection():
        stored = dict(Measured.select(Measured.spectrum_pk, Measured.value).tuples())
        assert {f.exception for f in Failure.select()} <= {"NotStored"}
    assert all(float(value) == key * 0.5 for key, value in stored.items())
    if n_failed is not None:
        assert status(made.plan).rows.get("failed", 0) == n_failed == 60 - len(stored)
    assert verify(made.plan).sound


@task
def first_without(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """The first results set fewer columns than the last ones."""
    for spectrum in spectra:
        key = spectrum.spectrum_pk
        more = {"small": 10 if key % 6 else 12} if key <= 30 else {}  # these come last
        yield Measured.from_spectrum(spectrum, value=1.0, **more)


def test_columns_that_the_first_results_do_not_set_are_compared_too(pg_url):
    """What changes their values is looked for whenever results set other columns."""
    fill(60)
    (made,) = create_plan(first_without, BossVisitSpectrum, arguments={"batch_size": 10})
    alter("ALTER TABLE measured ALTER small TYPE numeric(6, -1)")
    run_here(made.plan)
    with connection():
        assert {f.exception for f in Failure.select()} == {"NotStored"}
        assert set(Measured.select(Measured.small).tuples()) == {(None,), (10,)}
    assert status(made.plan).rows == {"done": 55, "failed": 5}


@task
def pairs(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Two spectra each have the same text, and every third sets other columns than the others."""
    for spectrum in spectra:
        key = spectrum.spectrum_pk
        more = {} if key % 3 else {"small": 1}
        yield Measured.from_spectrum(spectrum, value=1.0, text=str(key // 2), **more)


def make_anew(of_text: str) -> None:
    """Make the table of results of a SQLite file again, with another declaration of a column."""
    with connection():
        made = database.execute_sql(
            "SELECT sql FROM sqlite_master WHERE tbl_name = 'measured' AND sql IS NOT NULL"
        ).fetchall()
        database.execute_sql("DROP TABLE measured")
        for (sql,) in made:
            database.execute_sql(re.sub('"text" TEXT[^,]*', f'"text" TEXT {of_text}', sql))


@pytest.mark.parametrize("by", ["trigger", "REPLACE", "ROLLBACK"])
def test_results_that_delete_those_of_other_rows_break_the_page(request, by):
    """Of rows that a trigger or a constraint would have replace each other, none is to blame."""
    url = "sqlite_url" if by != "trigger" else "pg_url"
    request.getfixturevalue(url)
    fill(30)
    (made,) = create_plan(pairs, BossVisitSpectrum)
    if by == "trigger":
        alter(_TRIGGER.format("DELETE FROM measured WHERE text = NEW.text; RETURN NEW;", "BEFORE"))
    else:
        make_anew(f"UNIQUE ON CONFLICT {by}")
    run_here(made.plan)
    assert status(made.plan).rows == {"done": 0, "broken": 30}
    with connection():
        said = "results of other rows were" if by != "ROLLBACK" else "rolled back the whole"
        assert said in Attempt.get().message
        assert not Measured.select().exists() and not Failure.select().exists()
    if by == "trigger":
        alter("DROP TRIGGER change ON measured")
    else:
        make_anew("")
    resume_local(made.plan)
    assert status(made.plan).state == "whole" and verify(made.plan).sound


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("ALTER value TYPE numeric(3,1) USING 0, ADD CHECK (value < 1)", "violates check constraint"),
        ("ALTER text TYPE bytea USING NULL", "text of the table measured is bytea, where Measured"),
        ("ALTER number TYPE boolean USING true", "is boolean, where Measured declares INTEGER"),
        ("RENAME text TO words", "is missing, where Measured declares TEXT.*astra initdb"),
        ("ALTER created DROP DEFAULT", "takes no result of Measured.*astra resume"),
        ("ADD UNIQUE (number)", "share of 0.5.*the last: .*unique constraint"),
        ("ALTER value TYPE numeric(5,0) USING 0", "stored 1 in the column value"),
    ],
)  # fmt: skip
def test_a_table_that_takes_no_result_breaks_the_page_and_says_why(pg_url, statement, said):
    fill(60)
    (made,) = create_plan(half, BossVisitSpectrum)
    alter(f"ALTER TABLE measured {statement}")
    run_here(made.plan)
    n_taken = 1 if "UNIQUE" in statement else 0  # the first of the same number
    assert status(made.plan).rows == {"done": n_taken, "broken": 60 - n_taken}
    with connection():
        assert re.search(said, Attempt.get().message), Attempt.get().message
        assert Measured.select(Measured.task_pk).count() == n_taken
        assert not Failure.select().exists()


def test_no_table_is_altered_while_it_is_verified(pg_url):
    """One that was written anew would look empty in a snapshot that was taken before."""
    fill(4)
    (made,) = create_plan(measure, BossVisitSpectrum)
    run_here(made.plan)
    with connection(), dialect().snapshot([Measured]):
        assert get_plan(made.plan).n_rows == 4
        with psycopg2.connect(pg_url) as other, other.cursor() as cursor:
            cursor.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg2.errors.LockNotAvailable):
                cursor.execute("ALTER TABLE measured ALTER COLUMN value TYPE numeric")
        other.close()
        assert Measured.select().count() == 4
