"""Tasks that catch an exception which is not theirs: the run ends, and its rows stay pending."""

import signal
from collections.abc import Iterable
from contextlib import suppress

import pytest

from astra import task
from astra.api import run_here
from astra.database.connection import connection
from astra.errors import DatabaseError, Terminated
from astra.models import BossVisitSpectrum
from astra.models.failures import NoResult
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.plan.spool import recover
from astra.status.verify import verify
from tests.many_tasks import Peak
from tests.pools import read_only_once
from tests.sample_tasks import Measured, fill, measure


@task
def in_pairs(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Computes two rows at once, and catches whatever is raised meanwhile."""
    pair = []
    with suppress(Exception):
        for spectrum in spectra:
            pair.append(spectrum)
            if len(pair) == 2:
                for each in pair:
                    yield Measured.from_spectrum(each, value=1.0)
                pair.clear()


def test_a_row_has_no_result_only_if_the_rows_after_it_could_be_read(url, monkeypatch):
    fill(6)
    (planned,) = create_plan(in_pairs, BossVisitSpectrum, limit=6)
    read_only_once(monkeypatch, DatabaseError("the database is away"))
    run_here(planned.plan)
    assert recover(get_plan(planned.plan)).rows == 2
    assert verify(planned.plan).rows["pending"] == 4
    with connection():
        assert NoResult.select().count() == 0


@task(many=True)
def two_peaks(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    """Is asked to stop between two results of a row, and catches that."""
    for spectrum in spectra:
        with suppress(BaseException):
            yield Peak.from_spectrum(spectrum, height=1.0)
            if spectrum.spectrum_pk == 2:
                signal.raise_signal(signal.SIGTERM)
            yield Peak.from_spectrum(spectrum, height=2.0)


def test_a_row_with_some_of_its_results_is_not_stored(url):
    fill(3)
    with connection():
        rows = list(BossVisitSpectrum.select().order_by(BossVisitSpectrum.spectrum_pk))
    with pytest.raises(Terminated):
        list(two_peaks(rows))
    with connection():
        assert [peak.spectrum_pk for peak in Peak.select()] == [1, 1]


def test_an_exception_of_the_rows_is_not_its_own_cause(sqlite_url):
    """Whoever looks for the first cause of an exception would look for ever."""

    def rows():
        raise OSError("the file of the rows is gone")
        yield

    with pytest.raises(OSError, match="is gone") as raised:
        list(measure(rows()))
    assert raised.value.__cause__ is None
