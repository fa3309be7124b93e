"""Databases in other encodings than UTF-8: what they cannot hold is escaped, or its row's failure."""

from collections.abc import Iterable

import peewee
import pytest
from psycopg2.sql import SQL

from astra import task
from astra.api import run_here
from astra.database.connection import bind, connection, database
from astra.errors import TaskError
from astra.models import BossVisitSpectrum, OutputModel, result_of
from astra.models.failures import Failure
from astra.models.keys import bound_to_database
from astra.models.schema import init_database
from astra.plan.plan import create_plan
from astra.status.verify import verify
from tests.sample_tasks import Measured, fill

pytestmark = pytest.mark.postgres


@task
def greek(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """One row fails with a letter in its message, one has it in its result."""
    for spectrum in spectra:
        if spectrum.spectrum_pk == 3:
            raise ValueError("no \u03bb at 6563")
        text = "\u03bb = 6563" if spectrum.spectrum_pk == 5 else "fine"
        yield Measured.from_spectrum(spectrum, value=1.0, text=text)


def bind_database(postgres, monkeypatch, encoding, name="in"):
    name = f"{name}_{encoding.lower()}"
    postgres.sql(
        f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 "
        "LC_COLLATE 'C' LC_CTYPE 'C' OWNER astra"
    )
    monkeypatch.setenv("ASTRA_DATABASE_URL", postgres.url(name))
    bind(postgres.url(name))
    init_database(("tests.sample_tasks",))


@pytest.mark.parametrize(
    ("encoding", "n_stored", "message"),
    [
        ("LATIN1", 58, "no \\u03bb at 6563"),
        ("SQL_ASCII", 59, "no \u03bb at 6563"),
        ("UTF8", 59, "no \u03bb at 6563"),
    ],
)
def test_a_letter_costs_its_row_at_most(postgres, monkeypatch, encoding, n_stored, message):
    bind_database(postgres, monkeypatch, encoding)
    fill(60)
    (planned,) = create_plan(greek, BossVisitSpectrum, limit=60)
    assert planned.plan is not None
    run_here(planned.plan)
    with connection():
        assert Measured.select().count() == n_stored
        failures = {str(f.key): f.message for f in Failure.select()}
        if n_stored == 59:
            assert Measured.get(Measured.spectrum_pk == 5).text == "\u03bb = 6563"
    assert failures["3"] == message
    assert len(failures) == 60 - n_stored and verify(planned.plan).sound
    if encoding == "LATIN1":
        assert "LATIN1" in failures["5"]


def test_every_letter_is_stored_whatever_encoding_the_url_asks_for(pg_url):
    fill(60)
    bind(f"{pg_url}&client_encoding=LATIN1")
    (planned,) = create_plan(greek, BossVisitSpectrum, limit=60)
    assert planned.plan is not None
    run_here(planned.plan)
    with connection():
        assert Failure.get().message == "no \u03bb at 6563"
        assert Measured.select().count() == 59 and verify(planned.plan).sound
        assert database.execute_sql(SQL("SELECT 1")).fetchone() == (1,)  # of psycopg2


class Bytes(peewee.Model):
    key = peewee.TextField(primary_key=True)

    class Meta:
        table_name = "others_bytes"


class OfBytes(OutputModel):
    of = result_of(Bytes)


@task
def of_bytes(rows: Iterable[Bytes]) -> Iterable[OfBytes]:
    for row in rows:
        yield OfBytes.from_row(row)


@pytest.mark.parametrize("kind", [pytest.param("SQL_ASCII", marks=pytest.mark.postgres), "SQLite"])
def test_a_key_that_is_no_text_is_refused(request, monkeypatch, kind):
    """A page that held it could not be read, nor the rows beside it."""
    if kind == "SQLite":
        request.getfixturevalue("sqlite_url")
    else:
        bind_database(request.getfixturevalue("postgres"), monkeypatch, kind, "keys_in")
    byte, said = {
        "SQL_ASCII": ("chr(200)", "invalid byte"),
        "SQLite": ("CAST(x'c8' AS text)", r"b'x\\xc8' is no text"),
    }[kind]
    with connection():
        database.execute_sql("CREATE TABLE others_bytes (key text PRIMARY KEY)")
        database.execute_sql(f"INSERT INTO others_bytes VALUES ('\u03bb'), ('x' || {byte})")
        bound_to_database(Bytes)
        OfBytes.create_table()
    with pytest.raises(TaskError, match=f"a row of others_bytes cannot be read: {said}"):
        create_plan(of_bytes)
    (planned,) = create_plan(of_bytes, keys=["\u03bb"])
    run_here(planned.plan)
    assert verify(planned.plan).sound and planned.rows == 1
