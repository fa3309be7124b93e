"""Tasks of every kind do the same called directly, run here, and in a plan."""

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import pytest
from peewee import FloatField

from astra import generate_queries_for_task, task
from astra.api import run_here
from astra.database.connection import connection, database, dialect
from astra.errors import DatabaseError, TaskError
from astra.models import BossVisitSpectrum, OutputModel, Source, result_of
from astra.models.failures import Failure, NoResult
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.plan.spool import recover
from astra.status.status import status
from astra.status.verify import verify
from tests.conftest import ROOT
from tests.forks import astra
from tests.many_tasks import TASKS, Peak, SpectrumOfSource, ends, peaks, raises, spectra_of
from tests.sample_tasks import fill

N, SOURCES = 30, 5


@pytest.fixture
def filled(url, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fill(N, sources=SOURCES)
    return url


def table(output):
    with connection():
        found = output.select(
            output.source_pk, output.spectrum_pk, output.result_number, output.height
        )
        return sorted(found.tuples(), key=repr)


def directly(task):
    for _, query in generate_queries_for_task(task):
        list(task(query))


def in_a_plan(task):
    (planned,) = create_plan(task, limit=7)
    run_here(planned.plan)
    assert status(planned.plan).state == "whole" and verify(planned.plan).sound


def by_the_command(task):
    astra("run", f"tests.many_tasks.{task.__name__}").check_returncode()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_task_does_the_same_in_all_ways(filled, task):
    output, found = TASKS[task], []
    for way in (directly, in_a_plan, by_the_command):
        way(task)
        found.append(table(output))
        (again,) = create_plan(task)
        assert again.plan is None, way
        with connection():
            for model in (output, Failure, NoResult):
                model.delete().execute()
    assert found[0] and found[0] == found[1] == found[2]


def test_a_result_for_each_spectrum_of_a_source(filled):
    in_a_plan(spectra_of)
    with connection():
        n = BossVisitSpectrum.select().where(BossVisitSpectrum.source.is_null(False)).count()
        assert SpectrumOfSource.select().count() == n > SOURCES
        Source.update(ra=1.0).where(Source.pk == 2).execute()
    (planned,) = create_plan(spectra_of)
    assert planned.rows == 1
    run_here(planned.plan)
    with connection():
        assert SpectrumOfSource.select().count() == n
    (planned,) = create_plan(spectra_of)
    assert planned.plan is None


def test_they_are_replaced_together(filled):
    in_a_plan(peaks)
    with connection():
        before = dict(
            Peak.select(Peak.spectrum_pk, Peak.task_pk).where(Peak.result_number == 0).tuples()
        )
        assert Peak.select().where(Peak.spectrum_pk == 3).count() == 3
        BossVisitSpectrum.update(snr=-1.0).where(BossVisitSpectrum.spectrum_pk == 3).execute()
    (planned,) = create_plan(peaks, arguments={"n": 1})
    run_here(planned.plan)
    with connection():
        (left,) = Peak.select().where(Peak.spectrum_pk == 3)
        assert left.result_number == 0 and left.task_pk == before[3]


def test_a_task_that_has_lost_many_leaves_no_earlier_results(filled, monkeypatch):
    (planned,) = create_plan(peaks, keys=[3, 5, 7])  # of which each has a result with any `n`
    run_here(planned.plan)
    declared, again = peaks.__astra__, {"keys": [3, 5, 7], "redo": "all", "arguments": {"n": 1}}
    monkeypatch.setattr(peaks, "__astra__", replace(declared, many=False))
    assert create_plan(peaks, keys=[3, 5, 7])[0].plan is None
    with pytest.raises(TaskError, match="Declare it with many=True again"):
        create_plan(peaks, **again)
    for many in (True, False):
        monkeypatch.setattr(peaks, "__astra__", replace(declared, many=many))
        (planned,) = create_plan(peaks, **again)
        run_here(planned.plan)
        assert planned.rows == 3 and verify(planned.plan).sound
    with connection():
        assert Peak.select().count() == 3


@pytest.mark.parametrize("number", [0, 1, 2])
def test_that_one_of_them_was_deleted_is_noticed(filled, number):
    in_a_plan(peaks)
    with connection():
        of_row = (Peak.spectrum_pk == 3) & (Peak.result_number == number)
        assert Peak.delete().where(of_row).execute() == 1
    (breach,) = verify(1).breaches
    assert breach.key == 3 and breach.check == ("result-missing" if number == 2 else "result-mixed")
    (remedy,) = re.findall(r"what to do: .*: astra (plan .*)", astra("verify", 1).stdout)
    assert astra(*remedy.replace("KEY", "3").split()).returncode == 0
    run_here(2)
    assert verify(1).sound and verify(2).sound


@task(many=True, group_by=("source_pk",))
def peaks_of_group(spectra: Iterable[BossVisitSpectrum], n: int = 3) -> Iterable[Peak]:
    for spectrum in spectra:
        for other in BossVisitSpectrum.select().where(
            BossVisitSpectrum.source == spectrum.source_pk
        ):
            for i in range(n):
                yield Peak.from_spectrum(other, height=float(i))


def test_those_of_all_spectra_of_a_group_are_replaced_together(filled):
    (planned,) = create_plan(peaks_of_group, where="source_pk == 2")
    run_here(planned.plan)
    with connection():
        n = BossVisitSpectrum.select().where(BossVisitSpectrum.source == 2).count()
        assert n > 1 and Peak.select().count() == 3 * n
    (planned,) = create_plan(peaks_of_group, where="source_pk == 2", redo="all", arguments={"n": 1})
    run_here(planned.plan)
    with connection():
        assert Peak.select().count() == n
    assert verify(planned.plan).sound


@task(group_by=("source_pk",))
def others_of_group(spectra: Iterable[BossVisitSpectrum], own: bool = False) -> Iterable[Peak]:
    """Of each group only the other spectra have results, unless the row itself is wanted, too."""
    for spectrum in spectra:
        for other in BossVisitSpectrum.select().where(
            BossVisitSpectrum.source == spectrum.source_pk
        ):
            if own or other.spectrum_pk != spectrum.spectrum_pk:
                yield Peak.from_spectrum(other, height=1.0)


@pytest.mark.parametrize("way", [directly, "in a plan"])
def test_a_row_of_which_only_others_of_its_group_have_results_is_not_pending(filled, way):
    with connection():
        BossVisitSpectrum.delete().where(BossVisitSpectrum.source.is_null()).execute()
    if way is directly:
        directly(others_of_group)
    else:
        (planned,) = create_plan(others_of_group, limit=7)
        run_here(planned.plan)
        assert status(planned.plan).rows == {"done": 0, "no result": planned.rows}
        assert status(planned.plan).state == "whole" and verify(planned.plan).sound
    (again,) = create_plan(others_of_group)
    assert again.plan is None and again.no_result > 1
    (again,) = create_plan(others_of_group, again=True, arguments={"own": True})
    run_here(again.plan)
    assert status(again.plan).rows == {"done": again.rows} and verify(again.plan).sound
    with connection():
        assert NoResult.select().count() == 0
        assert Peak.select().count() == BossVisitSpectrum.select().count()


@task(many=True)
def peaks_of_one(sources: Iterable[Source], spectrum_pk: int = 1) -> Iterable[Peak]:
    """All sources yield results of the same spectrum, each one less than the one before."""
    for n, source in enumerate(sources):
        spectrum = BossVisitSpectrum.get(BossVisitSpectrum.spectrum_pk == spectrum_pk)
        for _ in range(SOURCES - n):
            yield Peak.from_spectrum(spectrum, height=float(source.pk))


def test_a_spectrum_of_another_source_has_no_result_of_this_one(filled):
    with connection():
        spectrum = BossVisitSpectrum.get(BossVisitSpectrum.source == 1)
    (planned,) = create_plan(peaks_of_one, arguments={"spectrum_pk": spectrum.spectrum_pk})
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 1, "failed": SOURCES - 1}
    assert verify(planned.plan).sound
    with connection():
        assert {result.source_pk for result in Peak.select()} == {1}
        assert {failure.exception for failure in Failure.select()} == {"ForeignRow"}


def test_of_two_sources_with_results_of_one_spectrum_the_later_counts(filled):
    with connection():
        BossVisitSpectrum.update(source=None).where(BossVisitSpectrum.spectrum_pk == 1).execute()
    for way in (directly, in_plans):
        way(peaks_of_one)
        with connection():
            (stored,) = Peak.select()
            assert stored.result_number == 0 and stored.height == stored.source_pk
            Peak.delete().execute()


def test_results_of_several_tables_are_each_stored_in_their_own(filled):
    """A task that does not say which results it has may yield any, if a program calls it."""

    class Sharpness(OutputModel):
        spectrum = result_of(BossVisitSpectrum)
        height = FloatField()

    @task(many=True)
    def of_both(spectra: Iterable[BossVisitSpectrum]):
        for spectrum in spectra:
            yield Peak.from_spectrum(spectrum, height=1.0)
            yield Sharpness.from_row(spectrum, height=2.0)

    with connection():
        Sharpness.create_table()
        Sharpness.insert(spectrum=N + 1, height=0.0, created=datetime(2020, 1, 1)).execute()
        spectra = list(BossVisitSpectrum.select())
    for _ in range(2):
        found = list(of_both(spectra))
        assert len(found) == 2 * N and min(result.created.year for result in found) > 2020
    with connection():
        assert (Peak.select().count(), Sharpness.select().count()) == (N, N + 1)


def in_plans(task):
    (planned,) = create_plan(task, limit=7)
    run_here(planned.plan)


@pytest.mark.parametrize("task", [peaks, raises], ids=lambda task: task.__name__)
def test_all_of_a_row_or_none(filled, task):
    bad = 7 if task is peaks else 2
    (planned,) = create_plan(task, limit=7, arguments={"bad": bad})
    run_here(planned.plan)
    found = status(planned.plan)
    assert found.rows["failed"] == 1 and verify(planned.plan).sound
    with connection():
        assert Peak.select().where(Peak.spectrum_pk == bad).count() == 0
        assert Peak.select().where(Peak.spectrum_pk == 1).count() == (1 if task is peaks else 2)


def test_rows_that_are_taken_together_end_one_by_one(filled):
    in_a_plan(ends)
    with connection():
        assert Peak.select().count() == 2 * (N - N // 5)
        assert NoResult.select().count() == N // 5


@pytest.mark.parametrize("task", [peaks, spectra_of], ids=lambda task: task.__name__)
def test_what_is_spooled_is_stored_as_it_would_have_been(filled, task, monkeypatch):
    """The database takes no checkpoint: all of it goes to the spool, and from there into tables."""

    def refuse(*_: object) -> None:
        raise DatabaseError("the database is away")

    in_a_plan(task)
    wanted = table(TASKS[task])
    with connection():
        for model in (TASKS[task], NoResult):
            model.delete().execute()
    (planned,) = create_plan(task)
    with monkeypatch.context() as patch:
        patch.setattr("astra.results.writer.write", refuse)
        run_here(planned.plan)
    assert table(TASKS[task]) == []
    recovered = recover(get_plan(planned.plan))
    assert recovered.files == 1 and recovered.passed_over == 0
    assert table(TASKS[task]) == wanted
    assert status(planned.plan).state == "whole" and verify(planned.plan).sound


_TRIGGER = """CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;
    CREATE TRIGGER meddle {} ON peak FOR EACH ROW EXECUTE FUNCTION meddle()"""
_OF_SQLITE = "CREATE TRIGGER meddle {} ON peak WHEN {} BEGIN {}; END"
_DELETE = "DELETE FROM peak WHERE spectrum_pk = NEW.spectrum_pk AND result_number = 0"

#: What a trigger does to some results of a row after, or when, others are written.
MEDDLING = {
    "a result is written, and its first one deleted": (
        _TRIGGER.format(
            f"IF NEW.result_number = 2 AND NEW.spectrum_pk % 3 = 0 THEN {_DELETE}; END IF; RETURN NEW;",
            "AFTER INSERT",
        ),
        _OF_SQLITE.format(
            "AFTER INSERT", "NEW.result_number = 2 AND NEW.spectrum_pk % 3 = 0", _DELETE
        ),
    ),
    "results of before are not deleted": (
        _TRIGGER.format(
            "IF OLD.spectrum_pk % 3 = 0 THEN RETURN NULL; END IF; RETURN OLD;", "BEFORE DELETE"
        ),
        _OF_SQLITE.format("BEFORE DELETE", "OLD.spectrum_pk % 3 = 0", "SELECT RAISE(IGNORE)"),
    ),
}  # fmt: skip


@task(many=True)
def several(spectra: Iterable[BossVisitSpectrum], n: int = 2) -> Iterable[Peak]:
    for spectrum in spectra:
        for i in range(n):
            yield Peak.from_spectrum(spectrum, height=float(i))


@pytest.mark.parametrize("change", MEDDLING)
def test_a_trigger_leaves_no_part_of_a_row(filled, change):
    """Its results are those that were yielded last, or the row fails and keeps the earlier ones."""
    in_a_plan(several)
    before = [row for row in table(Peak) if row[1] % 3 == 0]
    of_postgresql, of_sqlite = MEDDLING[change]
    with connection():
        of_this = of_sqlite if dialect().name == "sqlite" else of_postgresql.replace("%", "%%")
        database.execute_sql(of_this)
        BossVisitSpectrum.update(snr=-1.0).execute()
    (planned,) = create_plan(several, arguments={"n": 1 if "before" in change else 3})
    run_here(planned.plan)
    found = status(planned.plan)
    assert found.rows == {"done": N - N // 3, "failed": N // 3} and verify(planned.plan).sound
    assert [row for row in table(Peak) if row[1] % 3 == 0] == before
    with connection():
        assert {failure.exception for failure in Failure.select()} == {"NotStored"}


@task(many=True)
def fewer_each_time(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    for n, row in enumerate(spectra):
        for height in range(3 - n):
            yield Peak.from_spectrum(row, height=float(height))


def test_a_row_that_is_given_twice_leaves_the_later_results_of_a_table_with_a_trigger(filled):
    """The later ones delete further results that the same checkpoint has just written."""
    with connection():
        if dialect().name == "sqlite":
            database.execute_sql(_OF_SQLITE.format("AFTER INSERT", "0", "SELECT 1"))
        else:
            database.execute_sql(_TRIGGER.format("RETURN NEW;", "BEFORE INSERT"))
        row = BossVisitSpectrum.get()
    list(fewer_each_time([row, row]))
    assert [number for *_, number, _ in table(Peak)] == [0, 1]


@task(many=True)
def yields_numbers(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    for row in spectra:
        yield Peak.from_spectrum(row, height=1.0) if row.spectrum_pk % 5 else 3


@task
def twice_of_each(sources: Iterable[Source]) -> Iterable[SpectrumOfSource]:
    for result in spectra_of(sources, write_to_database=False):
        yield result
        if result.source_pk == 2:
            yield SpectrumOfSource(**{**result.__data__, "height": 2.0})


def test_a_second_result_of_a_spectrum_is_refused_with_its_source(filled):
    (planned,) = create_plan(twice_of_each)
    run_here(planned.plan)
    with connection():
        (failure,) = Failure.select()
        assert not SpectrumOfSource.select().where(SpectrumOfSource.source_pk == 2).exists()
    assert failure.key == "2" and failure.exception == "DuplicateResult"
    assert verify(planned.plan).rows["result"] == SOURCES - 1 and verify(planned.plan).sound


def test_what_is_no_result_is_refused_with_its_row(filled):
    (planned,) = create_plan(yields_numbers)
    run_here(planned.plan)
    with connection():
        assert {f.exception for f in Failure.select()} == {"WrongModel"}
    assert status(planned.plan).rows["done"] == N - N // 5 and verify(planned.plan).sound


def test_sources_of_which_some_have_the_result_of_a_spectrum(filled):
    """Each is stored by its own unique index, although the task does not say what it yields."""

    @task
    def of_either(sources: Iterable[Source]):
        for source in sources:
            spectrum = source.pk if source.pk % 2 else None
            yield Peak(source_pk=source.pk, spectrum_pk=spectrum, height=1.0)

    with connection():
        sources = list(Source.select())
    for _ in range(2):
        assert len(list(of_either(sources))) == SOURCES
    with connection():
        assert Peak.select().count() == SOURCES
        assert not Failure.select().count()
