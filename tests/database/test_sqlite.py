"""SQLite: an element writes whatever its task does with its own connection, and its task goes on
while another process holds the file."""

import resource
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import peewee
import pytest
from peewee import SQL, DecimalField, SqliteDatabase

from astra import task
from astra.api import run_here
from astra.database.connection import (
    connection,
    database,
    dialect,
    in_transaction,
    retrying,
    writing,
)
from astra.database.values import check
from astra.element.element import Element
from astra.errors import TaskError
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.keys import bound_to_database, check_keys, key_of
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.results.stopping import Stop
from astra.status.verify import verify
from benchmarks.elements import submitted
from tests.sample_tasks import Measured, fill, measure

_path: list[str] = []
_seen: list[Any] = []


def n_stored() -> int:
    """As another process sees it."""
    link = sqlite3.connect(_path[0])
    (n,) = link.execute("SELECT count(*) FROM measured").fetchone()
    link.close()
    return int(n)


@task(batch_size=5)
def while_locked(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """From the second row to the twentieth another holds the file."""
    other = sqlite3.connect(_path[0], isolation_level=None)
    for place, spectrum in enumerate(spectra):
        if place == 1:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
        elif place == 19:
            _seen.extend([n_stored(), time.monotonic() - began < 20])
            other.close()
        yield Measured.from_spectrum(spectrum, value=1.0)


@task(batch_size=5)
def left_open(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """From the third row on the task is in a transaction of its own, which it undoes."""
    for place, spectrum in enumerate(spectra):
        if place == 2:
            database.connect(reuse_if_open=True)
            database.begin()
            _seen.append(Measured.select().count())
        elif place == 17:
            _seen.extend([n_stored(), Measured.select().count(), in_transaction()])
        yield Measured.from_spectrum(spectrum, value=1.0)
    database.rollback()


@task(batch_size=5)
def altering(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Once two batches are stored, another process adds a trigger that discards later results."""
    for place, spectrum in enumerate(spectra):
        if place == 17:
            _seen.append(n_stored())
            with sqlite3.connect(_path[0]) as other:
                other.execute(
                    "CREATE TRIGGER discard AFTER INSERT ON measured WHEN NEW.spectrum_pk % 2 "
                    "BEGIN DELETE FROM measured WHERE task_pk = NEW.task_pk; END"
                )
            other.close()
        yield Measured.from_spectrum(spectrum, value=1.0)


@task(batch_size=5)
def connecting(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """A connection for each row: the thread has none that it did not open."""
    for spectrum in spectra:
        assert database.connect() and database.close()
        yield Measured.from_spectrum(spectrum, value=1.0)


def run_page_of(generator: Any, n_rows: int) -> int:
    """Run a plan of one page by an element in this process; the plan."""
    fill(n_rows)
    (planned,) = create_plan(generator, BossVisitSpectrum, limit=n_rows)
    plan, submission = get_plan(planned.plan), submitted(planned, 1)
    with Element(plan, submission, Stop()) as element:
        assert element.run_page(1, 1).state == "done"
    return int(plan.pk)


@pytest.fixture(autouse=True)
def _of_this_test(sqlite_url):
    _path[:], _seen[:] = [sqlite_url.removeprefix("sqlite:///")], []


@pytest.mark.parametrize(
    "generator, seen",
    [(while_locked, [0, True]), (left_open, [0, 15, 0, True]), (connecting, [])],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_result_is_stored_once(generator, seen):
    plan = run_page_of(generator, 40)
    assert _seen == seen
    found = verify(plan)
    assert found.sound and found.whole
    assert n_stored() == 40 and Attempt.get().n_done == 40 and Attempt.get().n_failed == 0


def test_a_trigger_is_noticed_that_another_process_adds_between_two_batches():
    plan = run_page_of(altering, 40)
    assert _seen and 10 <= _seen[0] < 20
    assert n_stored() == Attempt.get().n_done and Attempt.get().n_failed > 8
    assert verify(plan).sound


def test_a_query_of_another_database_is_read_there(sqlite_url, tmp_path):
    """Such as one of a large archive, whose results are first tried out in a file."""
    fill(1)
    other = SqliteDatabase(tmp_path / "other.sqlite")
    with other.connection_context():
        other.execute_sql("CREATE TABLE boss_visit_spectrum (spectrum_pk INTEGER, snr REAL)")
        other.execute_sql("INSERT INTO boss_visit_spectrum VALUES (7, 1.5)")
        columns = BossVisitSpectrum.spectrum_pk, BossVisitSpectrum.snr
        rows = BossVisitSpectrum.select(*columns).bind(other)
        assert [row.spectrum_pk for row in rows] == [7]
        assert [result.spectrum_pk for result in measure(rows)] == [7]


def test_a_primary_key_of_numbers_that_sqlite_lets_be_null(sqlite_url):
    class Fibre(peewee.Model):
        plate, number = peewee.IntegerField(), peewee.IntegerField()

        class Meta:
            table_name = "fibre"
            primary_key = peewee.CompositeKey("plate", "number")

    with connection():
        dialect().run(
            "CREATE TABLE fibre (plate INTEGER, number INTEGER, PRIMARY KEY (plate, number))"
        )
        dialect().run("INSERT INTO fibre VALUES (1, NULL)")
        with pytest.raises(TaskError, match="a row without a key"):
            check_keys(bound_to_database(Fibre))


def test_a_key_of_more_columns_than_sqlite_can_compare_is_refused(sqlite_url):
    names = [f"part_{number}" for number in range(2000)]
    key = type("Meta", (), {"primary_key": peewee.CompositeKey(*names)})
    parts = {name: peewee.IntegerField() for name in names}
    wide = bound_to_database(type("WideKey", (peewee.Model,), {**parts, "Meta": key}))
    with connection(), pytest.raises(TaskError, match="key has 2000 columns"):
        assert key_of(wide).text


def test_a_transaction_that_a_full_disk_has_ended_is_repeated(sqlite_url):
    """SQLite rolls it back by itself then, and refuses to do so again."""
    fill(1)
    n_tries = 0
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def work() -> None:
        nonlocal n_tries
        n_tries += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]) if n_tries == 1 else usual)
        try:
            with connection(), writing():
                BossVisitSpectrum.update(path="x" * 1_000_000).execute()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    retrying(work)
    assert n_tries == 2 and len(BossVisitSpectrum.get().path) == 1_000_000


def test_a_trigger_that_rolls_back_all_is_named_by_the_page_that_it_breaks(sqlite_url):
    fill(4)
    with connection():
        dialect().run(
            "CREATE TRIGGER others BEFORE INSERT ON measured WHEN NEW.spectrum_pk = 3 "
            "BEGIN SELECT raise(ROLLBACK, 'not today'); END"
        )
    (made,) = create_plan(measure, BossVisitSpectrum)
    run_here(made.plan)
    assert "not today; SQLite has rolled back" in Attempt.get().message
    assert verify(made.plan).sound and not Measured.select().exists()


@pytest.mark.parametrize(
    "own, condition",
    [
        ("PRAGMA user_version", "twice(snr) > 1"),
        ("CREATE TEMPORARY TABLE chosen AS SELECT 1.0 AS snr", "snr IN (SELECT snr FROM chosen)"),
        ("ATTACH ':memory:' AS other", "snr NOT IN (SELECT length(name) FROM other.sqlite_master)"),
    ],
    ids=["function", "temporary table", "attached"],
)
def test_a_query_uses_what_its_connection_alone_has(sqlite_url, own, condition):
    fill(12)
    BossVisitSpectrum.update(snr=1.0).execute()
    with database.connection_context():
        database.connection().create_function("twice", 1, lambda value: 2 * value)
        database.execute_sql(own)
        rows = BossVisitSpectrum.select().where(SQL(condition))
        assert len(rows) == 12
        assert len(list(measure(rows))) == n_stored() == 12


@pytest.mark.parametrize("value", [np.float32(0.5), float("nan")])
def test_a_number_that_sqlite_would_store_as_bytes_or_null_is_refused(value):
    check(DecimalField(), 0.5)
    with pytest.raises(ValueError, match="as a number"):
        check(DecimalField(), value)
