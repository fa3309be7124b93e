"""Results that name another row than the one that they are of: no row's end is hidden by them."""

from collections.abc import Iterable
from itertools import islice

import pytest
from peewee import FloatField

from astra import task
from astra.api import run_here
from astra.database.connection import connection
from astra.models import BossVisitSpectrum, PipelineOutputModel
from astra.models.failures import Failure, NoResult
from astra.plan.plan import create_plan
from astra.status.status import status
from astra.status.verify import verify
from tests.sample_tasks import fill


class Named(PipelineOutputModel):
    """A result whose row is named by hand."""

    value = FloatField()


def _named(key: object, value: float | None = 1.0) -> Named:
    return Named(spectrum_pk=key, source_pk=1, value=value)


#: What the task yields for row 3 instead of its result; the pages are rows 8 to 5, and 4 to 1.
INSTEAD = {
    "of the other page": [_named(6)],
    "of no table's row": [_named(10**9)],
    "of the same page, later": [_named(1)],
    "of the same page, ended": [_named(4)],
    "key as text": [_named("3")],
    "key as a fraction": [_named(3.0)],
    "key as truth": [_named(True)],
    "without a key": [_named(None)],
    "first one that cannot be stored": [_named(3, None), _named(3)],
    "two for other rows": [_named(6), _named(7)],
}


@task
def misnamed(
    spectra: Iterable[BossVisitSpectrum], kind: str = "", ahead: int = 1
) -> Iterable[Named]:
    """Yield nothing for row 2, and for row 3 what :data:`INSTEAD` says; take `ahead` rows at once."""
    spectra = iter(spectra)
    while rows := list(islice(spectra, ahead)):
        for row in rows:
            if row.spectrum_pk == 3:
                yield from (Named(**result.__data__) for result in INSTEAD[kind])
            elif row.spectrum_pk != 2:
                yield Named.from_spectrum(row, value=1.0)


@task
def reused(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Named]:
    """Yield one object for all rows, and change it before each of them."""
    result = _named(None)
    for row in spectra:
        result.spectrum_pk = row.spectrum_pk
        yield result


raised: list[int] = []


@task
def resurrected(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Named]:
    """Yield a result for row 3, which has raised, once the task is called again."""
    for row in spectra:
        if row.spectrum_pk == 3 and not raised:
            raised.append(3)
            raise ValueError("row 3 is bad")
        if row.spectrum_pk == 4:
            yield _named(3)
        yield Named.from_spectrum(row, value=1.0)


@task(many=True)
def misnamed_among_many(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Named]:
    """Yield two results for each row; the second one of row 3 names row 6."""
    for row in spectra:
        yield Named.from_spectrum(row, value=1.0)
        yield _named(6) if row.spectrum_pk == 3 else Named.from_spectrum(row, value=2.0)


def run(which, **arguments) -> tuple[dict[str, str], set[int], set[str]]:
    """Run a plan of two pages; return messages of failures, rows with results, and without."""
    Named.create_table()
    fill(8, sources=1)
    (made,) = create_plan(which, BossVisitSpectrum, limit=4, arguments=arguments)
    run_here(made.plan)
    verdict = verify(made.plan)
    rows = status(made.plan).rows
    with connection():
        failures = {f.key: f.message for f in Failure.select()}
        stored = {m.spectrum_pk for m in Named.select()}
        none = {n.key for n in NoResult.select()}
    assert verdict.sound, verdict
    assert sum(rows.get(name, 0) for name in ("done", "failed", "no result")) == 8
    return failures, stored, none


@pytest.mark.parametrize("kind", INSTEAD)
def test_a_row_whose_result_names_another_has_failed(url, kind):
    failures, stored, none = run(misnamed, kind=kind)
    refused = {"4"} if kind == "of the same page, ended" else set()  # its second result
    assert set(failures) == {"3"} | refused and stored == {1, 4, 5, 6, 7, 8} and none == {"2"}


def test_it_says_which_key_was_given_and_which_page_was_worked_on(url):
    failures, *_ = run(misnamed, kind="of the other page")
    assert "6 (spectrum_pk)" in failures["3"] and "page 2 of plan 1" in failures["3"]


def test_a_task_that_takes_rows_before_it_yields(url):
    """Any of the rows in progress may be the one that lacks its result; those with a result are not."""
    failures, stored, none = run(misnamed, kind="of the other page", ahead=4)
    assert set(failures) == {"2", "3"} and stored == {1, 4, 5, 6, 7, 8} and none == set()


def test_a_result_of_a_row_that_has_raised(url):
    raised.clear()
    failures, stored, none = run(resurrected)
    assert failures["3"] == "row 3 is bad" and stored == {1, 2, 4, 5, 6, 7, 8} and none == set()


def test_one_of_many_results_that_names_another_row(url):
    failures, stored, none = run(misnamed_among_many)
    assert set(failures) == {"3"} and stored == {1, 2, 4, 5, 6, 7, 8} and none == set()
    with connection():
        assert [m.value for m in Named.select().where(Named.spectrum_pk == 6)] == [1.0, 2.0]


def test_one_result_that_is_changed_for_each_row(url):
    failures, stored, none = run(reused)
    assert stored == set(range(1, 9)) and failures == {} and none == set()
