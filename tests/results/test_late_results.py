"""Results of rows that have ended already are refused, and change nothing about how they ended."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from astra import End, task
from astra.api import run_here
from astra.database.connection import connection
from astra.element.claiming import claim_page, this_process
from astra.models import BossVisitSpectrum
from astra.models.failures import Failure, NoResult
from astra.plan.plan import create_plan
from astra.results.checkpoint import take_back_failures, write
from astra.results.rows import Checkpoint, HandedRow, Refusal, target_of
from astra.status.verify import verify
from tests.many_tasks import Peak
from tests.pools import plan_of, pool_of
from tests.sample_tasks import Measured, fill

LATE = 2  # the row with a result too many


@task
def yields_twice(
    spectra: Iterable[BossVisitSpectrum], first: float | str | None = 1.0
) -> Iterable[Measured]:
    for row in spectra:
        is_late = row.spectrum_pk == LATE
        yield Measured.from_spectrum(row, value=first if is_late else 1.0)
        if is_late:
            yield Measured.from_spectrum(row, value=2.0)


@task(many=True)
def yields_late(
    spectra: Iterable[BossVisitSpectrum], first: float | str | None = 1.0
) -> Iterable[Peak]:
    for row in spectra:
        is_late = row.spectrum_pk == LATE
        yield Peak.from_spectrum(row, height=first if is_late else 1.0)
        yield End(row)
        if is_late:
            yield Peak.from_spectrum(row, height=2.0)


@task(many=True)
def yields_after_none(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    for row in spectra:
        yield End(row)
        if row.spectrum_pk == LATE:
            yield Peak.from_spectrum(row, height=2.0)


@task(many=True)
def yields_of_another(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    """Yields the late result while it has other rows in progress."""
    rows = list(spectra)
    for row in rows:
        yield Peak.from_spectrum(row, height=1.0)
        if row is not rows[-1]:
            yield End(row)
        if row.spectrum_pk == LATE:
            yield Peak.from_spectrum(row, height=2.0)


@task(many=True)
def yields_after_all(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    """Yields the late result when other rows have ended since its own."""
    rows = list(spectra)
    for row in rows:
        yield Peak.from_spectrum(row, height=1.0)
        yield End(row)
    yield Peak.from_spectrum(rows[LATE - 1], height=2.0)


def run(function: object, batch_size: int, n: int = 3, **arguments: object) -> dict[str, int]:
    """Run a plan of `n` rows; return how many ended in which way."""
    fill(n)
    arguments |= {"batch_size": batch_size}
    (planned,) = create_plan(function, BossVisitSpectrum, limit=n, arguments=arguments)
    run_here(planned.plan)
    found = verify(planned.plan)
    assert found.sound, found.breaches
    return found.rows


@pytest.mark.parametrize("batch_size", [1, 1000])
@pytest.mark.parametrize(
    "function",
    [yields_twice, yields_late, yields_of_another, yields_after_all],
    ids=lambda f: f.__name__,
)
def test_a_row_keeps_its_results(url, function, batch_size):
    assert run(function, batch_size)["result"] == 3
    with connection():
        assert [(f.key, f.refused) for f in Failure.select()] == [(str(LATE), True)]


@pytest.mark.parametrize("batch_size", [1, 1000])
@pytest.mark.parametrize("first", [None, "no number"])
@pytest.mark.parametrize("function", [yields_twice, yields_late], ids=lambda f: f.__name__)
def test_a_row_keeps_its_failure(url, function, first, batch_size):
    found = run(function, batch_size, first=first)
    assert (found["result"], found["failure"]) == (2, 1)
    with connection():
        (failure,) = Failure.select()
    assert not failure.refused and failure.exception not in ("DuplicateResult", "RowEnded")


@pytest.mark.parametrize("batch_size", [1, 1000])
def test_a_row_without_a_result_keeps_that(url, batch_size):
    assert run(yields_after_none, batch_size)["no_result"] == 3
    with connection():
        assert NoResult.select().count() == 3
        assert [failure.refused for failure in Failure.select()] == [True]


@task(many=True)
def always_late(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    for row in spectra:
        yield Peak.from_spectrum(row, height=1.0)
        yield End(row)
        yield Peak.from_spectrum(row, height=2.0)
        yield Peak.from_spectrum(row, height=3.0)


def test_late_results_are_no_failures_of_rows(url):
    """However many there are, each row has its result: the task is not taken to be broken."""
    assert run(always_late, 1000, n=30)["result"] == 30


def test_failures_are_taken_back_although_that_was_not_acknowledged(url):
    plan = plan_of(4, 4)
    claim = claim_page(plan, 1, pool_of(plan), 1, this_process("local", Path()))
    assert claim is not None
    rows = [HandedRow(key, None) for key in claim.page.row_keys[:2]]
    failures = [Refusal(row, "TypeError", "no row is to blame") for row in rows]
    target = target_of(plan, BossVisitSpectrum, Measured, 1)
    with connection():
        write(Checkpoint(failures=failures), target, claim)
        assert verify(plan.pk).rows["failure"] == 2
        outcomes, counts = bytes(claim.outcomes), dict(claim.attempt.__data__)
        take_back_failures(claim)
        claim.outcomes[:], claim.attempt.__data__ = outcomes, counts  # the answer was lost
        take_back_failures(claim)
    found = verify(plan.pk)
    assert found.rows["pending"] == 4 and found.sound, found.breaches
