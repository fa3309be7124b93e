"""Settings of a role or a database change no value that is read, yielded or stored."""

import os
import random
import struct
from collections.abc import Iterable
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import psycopg2
import pytest
from peewee import BlobField, DateTimeField, DoubleField, TextField

from astra import task
from astra.api import run_here
from astra.database.connection import bind, connection, database
from astra.models import BossVisitSpectrum, PipelineOutputModel
from astra.plan.plan import create_plan
from astra.status.status import status
from astra.status.verify import verify
from tests.forks import astra
from tests.sample_tasks import fill
from tests.servers import PgBouncer

pytestmark = pytest.mark.postgres


class Settled(PipelineOutputModel):
    snr = DoubleField()
    wide = DoubleField()
    text = TextField()
    raw = BlobField()
    at = DateTimeField()


def drawn(key: int) -> dict[str, object]:
    """Values of a row that any of the settings would bend, if it had its way."""
    dice = random.Random(key)
    wide = struct.unpack("<d", struct.pack("<Q", dice.getrandbits(62)))[0]
    return {
        "wide": wide,
        "text": dice.choice(["\\", "\\n", "'", '"', "a\\'b", "E'\\x41'", "NULL", "{,}", "\t\\."]),
        "raw": dice.randbytes(9) + b"\\000\\x41\x00",
        "at": datetime(2001, 2, 3) + timedelta(microseconds=dice.getrandbits(50)),
    }


@task
def settle(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Settled]:
    for spectrum in spectra:
        yield Settled.from_spectrum(spectrum, snr=spectrum.snr, **drawn(spectrum.spectrum_pk))


BENT = {
    "extra_float_digits": "-15", "DateStyle": "'SQL, DMY'", "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "TimeZone": "'Asia/Kathmandu'", "array_nulls": "off",
    "standard_conforming_strings": "off", "client_encoding": "latin1", "default_transaction_isolation": "serializable",
}  # fmt: skip


@pytest.mark.parametrize("n", [7, 200])
@pytest.mark.parametrize("of", ["DATABASE {}", "ROLE postgres IN DATABASE {}"])
def test_what_is_stored_is_what_was_yielded(pg_url, postgres, n, of):
    name = urlsplit(pg_url).path.strip("/")
    fill(n)
    with connection():
        Settled.create_table()
        database.execute_sql("UPDATE boss_visit_spectrum SET snr = snr / 7 + 1234.5")
    for setting, value in BENT.items():
        postgres.sql(f"ALTER {of.format(name)} SET {setting} = {value}")
    bind(pg_url)
    (made,) = create_plan(settle, BossVisitSpectrum)
    run_here(made.plan)
    assert status(made.plan).state == "whole" and verify(made.plan).sound
    with psycopg2.connect(pg_url, options="-c extra_float_digits=3") as link, link.cursor() as c:
        c.execute("SELECT count(*) FROM settled JOIN boss_visit_spectrum s USING (spectrum_pk) "
                  "WHERE settled.snr::float4 = s.snr")  # fmt: skip
        assert c.fetchone() == (n,)
    link.close()
    with connection():
        stored = list(Settled.select(Settled.spectrum_pk, *map(Settled._meta.fields.get, drawn(1))))
        assert len(stored) == n
        for result in stored:
            expected = drawn(result.spectrum_pk)
            found = {key: getattr(result, key) for key in expected} | {"raw": bytes(result.raw)}
            assert found == expected


def test_all_digits_are_read_through_pgbouncer(pg_url, postgres):
    """A connection of its pool that another client has set up stands behind a read like any other."""
    name = urlsplit(pg_url).path.strip("/")
    fill(1)
    with connection():
        database.execute_sql("UPDATE boss_visit_spectrum SET snr = 1234.5678")
        database.execute_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO astra")
    (exact,) = (s.snr for s in BossVisitSpectrum.select())
    postgres.sql(f"ALTER DATABASE {name} SET extra_float_digits = -15")
    bind(pg_url)
    with PgBouncer(postgres) as pool:
        url = f"postgresql://astra@127.0.0.1:{pool.port}/{name}"
        bind(url)
        with connection(), psycopg2.connect(url) as other, other.cursor() as cursor:
            cursor.execute("SELECT 1")  # takes the connection that was set up before
            for _ in range(2):
                assert [s.snr for s in BossVisitSpectrum.select()] == [exact]
                spectra = BossVisitSpectrum.select()
                assert [s.snr for s in spectra | spectra] == [exact]
            with database.atomic():
                assert [s.snr for s in BossVisitSpectrum.select()] == [exact]
        other.close()
    bind(pg_url)


def test_texts_arrive_through_pgbouncer_whatever_the_server_takes_backslashes_for(pg_url, postgres):
    """Poolers take no further setting from a client that connects."""
    name = urlsplit(pg_url).path.strip("/")
    fill(60)
    with connection():
        Settled.create_table()
        database.execute_sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO astra")
        database.execute_sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO astra")
    postgres.sql(f"ALTER DATABASE {name} SET standard_conforming_strings = off")
    with PgBouncer(postgres) as pool:
        bind(f"postgresql://astra@127.0.0.1:{pool.port}/{name}")
        (made,) = create_plan(settle, BossVisitSpectrum, limit=40)
        run_here(made.plan)
        with connection():
            stored = dict(Settled.select(Settled.spectrum_pk, Settled.text).tuples())
    assert stored == {key: drawn(key)["text"] for key in range(1, 61)}
    with PgBouncer(postgres, extra="pool_mode = statement") as pool:  # no transaction is possible
        done = astra("plan", "tests.sample_tasks.measure", env={
            **os.environ, "ASTRA_DATABASE_URL": f"postgresql://astra@127.0.0.1:{pool.port}/{name}"
        })  # fmt: skip
    assert done.returncode == 5 and "its pool_mode is not statement" in done.stderr, done.stderr
    bind(pg_url)
