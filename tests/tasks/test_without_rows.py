"""A task whose rows have a default may be called without them."""

from collections.abc import Iterable

import pytest

from astra import generate_queries_for_task, task
from astra.errors import TaskError
from astra.models import BossVisitSpectrum
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from tests.sample_tasks import Measured, fill


@task
def on_pending(
    spectra: Iterable[BossVisitSpectrum] | None = None, value: float = 1.0
) -> Iterable[Measured]:
    for spectrum in spectra or ():
        yield Measured.from_spectrum(spectrum, value=value)


@task
def on_a_query(
    spectra: Iterable[BossVisitSpectrum] = BossVisitSpectrum.select().where(
        BossVisitSpectrum.spectrum_pk <= 2
    ),
) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=2.0)


@task
def on_rows(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=3.0)


def test_what_is_pending_is_taken(url):
    fill(5)
    assert len(list(on_pending(list(BossVisitSpectrum.select().limit(2))))) == 2
    assert len(list(on_pending(value=7.0))) == 3
    assert list(on_pending()) == []
    ((_, query),) = generate_queries_for_task(on_pending)
    assert query.count() == 0
    assert Measured.select().where(Measured.value == 7.0).count() == 3


def test_a_query_is_taken_as_it_is(url):
    fill(5)
    assert sorted(r.spectrum_pk for r in on_a_query()) == [1, 2]
    assert len(list(on_a_query())) == 2  # again: it says which rows, done or not


def test_a_plan_gives_rows_as_to_any_task(url):
    fill(5)
    (planned,) = create_plan(on_pending, BossVisitSpectrum, arguments={"value": 4.0})
    resume_local(planned.plan)
    assert Measured.select().where(Measured.value == 4.0).count() == 5


def test_without_a_default_rows_are_missed():
    with pytest.raises(TaskError, match="missing a required argument: 'spectra'"):
        on_rows()
