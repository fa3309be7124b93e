"""Input rows that are read at once are those that peewee gives."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import numpy as np
import psycopg2
import pytest

from astra.api import run_here
from astra.database.connection import bind, connection
from astra.element import reader
from astra.element.reader import Reader, read_rows
from astra.models import BossVisitSpectrum
from astra.models.keys import all_rows, key_of
from astra.models.plans import Page
from astra.models.source import Source
from astra.status.verify import verify
from tests.pools import plan_of
from tests.sample_tasks import fill, measure
from tests.servers import wait_for


def same(one, other):
    return repr(one.__data__) == repr(other.__data__) and one._dirty == other._dirty == set()


@pytest.fixture
def spectra(url):
    fill(5)
    BossVisitSpectrum.update(source=None).where(BossVisitSpectrum.pk == 2).execute()
    third = BossVisitSpectrum.get_by_id(3)
    third.flux = np.arange(4.0)
    third.save()


@pytest.mark.parametrize("model", [BossVisitSpectrum, Source])
def test_as_peewee_gives_them(spectra, model):
    query = key_of(model).narrowed(all_rows(model), [1, 2, 3, 5])
    theirs, ours = list(query.clone()), [row for row, _ in read_rows(query)]
    assert len(ours) >= 1 and all(map(same, ours, theirs))
    if model is BossVisitSpectrum:
        for row, other in zip(ours, theirs, strict=True):
            assert (row.source is None) == (other.source is None)
            assert row.source is None or same(row.source, other.source)
        by_key = {row.pk: row for row in ours}
        assert by_key[2].source is None and by_key[2].source_pk is None
        assert by_key[3].flux.tolist() == [0, 1, 2, 3]


def test_rows_of_a_customised_model_are_built_by_peewee(spectra, monkeypatch):
    class Doubled:
        def __get__(self, instance, owner=None):
            return self if instance is None else 2 * instance.__data__["snr"]

        def __set__(self, instance, value):
            instance.__data__["snr"] = value

    monkeypatch.setattr(BossVisitSpectrum, "snr", Doubled())
    reader._is_plain.cache_clear()
    try:
        ((row, _),) = read_rows(all_rows(BossVisitSpectrum).where(BossVisitSpectrum.pk == 1))
        assert row.snr == 2 * row.__data__["snr"]
    finally:
        reader._is_plain.cache_clear()


@pytest.mark.parametrize("name", ["__init__", "__setattr__"])
def test_a_model_with_a_constructor_of_its_own_builds_its_rows(spectra, monkeypatch, name):
    called, inherited = [], getattr(BossVisitSpectrum, name)

    def counted(row, *values, **named):
        called.append(name)
        inherited(row, *values, **named)

    monkeypatch.setattr(BossVisitSpectrum, name, counted)
    reader._is_plain.cache_clear()
    try:
        ((row, _),) = read_rows(all_rows(BossVisitSpectrum).where(BossVisitSpectrum.pk == 1))
        assert row.pk == 1 and called and not row.dirty_fields
    finally:
        reader._is_plain.cache_clear()


def test_rows_that_have_a_result_do_not_make_each_row_after_them_costly(url, monkeypatch):
    """How far the task will get is recorded for several rows at once."""
    plan = plan_of(100, 100, measure, row_s=0.2)
    with connection():
        keys = Page.get().row_keys
        list(measure(BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk << keys[:90])))
    recorded = []
    monkeypatch.setattr(Reader, "_update_attempt", lambda self, **values: recorded.append(values))
    run_here(plan.pk)
    assert verify(plan.pk).whole
    assert 1 <= len(recorded) <= 4


@pytest.mark.postgres
def test_a_row_of_a_table_that_is_rewritten_meanwhile_is_no_row_that_is_gone(pg_url, postgres):
    """In an older snapshot, as of another default isolation level, such a table looks empty."""
    fill(5)
    name = urlsplit(pg_url).path[1:]
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    bind(pg_url)
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_class ON pg_class.oid = relation "
        "WHERE relname = 'boss_visit_spectrum' AND NOT granted"
    )
    with closing(psycopg2.connect(pg_url)) as owner, owner.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("ALTER TABLE boss_visit_spectrum ALTER snr TYPE double precision")
        with ThreadPoolExecutor() as threads:
            read = threads.submit(lambda: read_rows(all_rows(BossVisitSpectrum), []))
            wait_for(lambda: postgres.sql(waiting, name) != [(0,)], "a reader of the table")
            owner.commit()
            assert len(read.result()) == 5
