"""One row has one result in a table, of one task: another's never takes its place."""

from collections.abc import Iterable

import pytest
from click.testing import CliRunner
from peewee import FloatField

from astra import task
from astra.api import run_here
from astra.cli.group import main
from astra.database.connection import connection
from astra.errors import TaskError, UsageError
from astra.models import BossCombinedSpectrum, BossVisitSpectrum, PipelineOutputModel, Source
from astra.models.failures import Failure
from astra.models.plans import MadeBy, Plan
from astra.plan.lookup import get_plan
from astra.plan.ownership import rename_task
from astra.plan.plan import create_plan
from astra.resume.cancel import cancel
from astra.status.verify import verify
from astra.tasks.provenance import fingerprint
from astra.tasks.signature import find_task
from tests.sample_tasks import Measured, fill, measure


class OtherMeasured(Measured):
    pass


class Shared(PipelineOutputModel):
    value = FloatField()


@task
def remeasure(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=-1.0)


@task
def remeasure_combined(spectra: Iterable[BossCombinedSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=-1.0)


@task
def remeasure_apart(spectra: Iterable[BossVisitSpectrum]) -> Iterable[OtherMeasured]:
    for spectrum in spectra:
        yield OtherMeasured.from_spectrum(spectrum, value=-1.0)


@task
def of_sources(sources: Iterable[Source]) -> Iterable[Shared]:
    for source in sources:
        for spectrum in BossVisitSpectrum.select().where(BossVisitSpectrum.source == source):
            yield Shared.from_spectrum(spectrum, value=1.0)


@task
def of_spectra(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Shared]:
    for spectrum in spectra:
        yield Shared.from_spectrum(spectrum, value=2.0)


REFUSED = r"one result for each row of BossVisitSpectrum, and (?:has|will get) .*{}.*output model of its own.*astra rename"
MEASURE = REFUSED.format("tests.sample_tasks.measure")


def test_a_second_task_is_refused_and_has_its_own_table(url: str) -> None:
    OtherMeasured.create_table()
    fill(4)
    (first,) = create_plan(measure, BossVisitSpectrum)
    with pytest.raises(TaskError, match=f"{MEASURE[:-15]}.*astra cancel {first.plan}"):  # will be
        create_plan(remeasure)
    run_here(first.plan)
    with pytest.raises(TaskError, match=MEASURE):  # it is
        create_plan(remeasure)
    (apart,) = create_plan(remeasure_apart)
    run_here(apart.plan)
    with connection():
        assert {m.value for m in Measured.select()} == {0.5, 1.0, 1.5, 2.0}
        assert [m.value for m in OtherMeasured.select()] == [-1.0] * 4
    assert apart.rows == 4 and verify(first.plan).sound and verify(apart.plan).sound
    fill(3, BossCombinedSpectrum)  # rows that the first has no results of
    (combined,) = create_plan(remeasure_combined)
    assert combined.rows == 3


def test_a_plan_that_never_stored_a_result_blocks_no_other(url: str) -> None:
    fill(4)
    (first,) = create_plan(measure, BossVisitSpectrum)
    cancel(first.plan)
    (second,) = create_plan(remeasure)
    run_here(second.plan)
    assert verify(second.plan).sound and second.rows == 4
    with pytest.raises(TaskError, match=REFUSED.format(".*remeasure,")):
        create_plan(measure, BossVisitSpectrum)


#: The same function, by another name in a module.
measured_by_another_name = measure


def test_the_same_function_by_another_name_is_the_same_task(url: str) -> None:
    fill(4)
    (first,) = create_plan(measure, BossVisitSpectrum)
    run_here(first.plan)
    again = create_plan(find_task(f"{__name__}.measured_by_another_name"), BossVisitSpectrum)
    assert again[0].plan is None
    with connection():
        assert Plan.select(Plan.task).distinct().scalar() == "tests.sample_tasks.measure"


def test_what_a_direct_call_has_stored_counts(url: str) -> None:
    fill(4)
    list(measure(BossVisitSpectrum.select()))
    with pytest.raises(TaskError, match=MEASURE):
        create_plan(remeasure)


def test_results_of_spectra_by_a_task_on_sources_keep_others_out(url: str) -> None:
    Shared.create_table()
    fill(4)
    (spectra,) = create_plan(of_spectra)  # and the other way round
    with pytest.raises(
        TaskError, match=rf"row of Source, and will get .* {spectra.plan}, of .*spec"
    ):
        create_plan(of_sources)
    cancel(spectra.plan)
    (sources,) = create_plan(of_sources)
    with pytest.raises(TaskError, match=REFUSED.format(".*of_sources")):
        create_plan(of_spectra)
    run_here(sources.plan)
    with pytest.raises(TaskError, match=REFUSED.format(".*of_sources")):
        create_plan(of_spectra)


def test_a_task_whose_package_was_renamed(url: str) -> None:
    fill(8)
    (first,) = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 4})
    run_here(first.plan)
    gone = {"task": "gone.tasks.measure"}
    with connection():  # as if all had been made then
        Plan.update(
            task_path="gone.tasks:measure", output_model="gone.tasks:Measured", **gone
        ).execute()
        Failure.update(gone).execute()
        for origin in MadeBy.select():
            origin.task = gone["task"]
            origin.fingerprint = f"{fingerprint(origin)}-{get_plan(first.plan).token}"
            origin.save()
    with pytest.raises(TaskError, match=r"astra rename gone.tasks.measure tests.sample_tasks.m"):
        create_plan(measure, BossVisitSpectrum)
    done = CliRunner().invoke(main, ["rename", "gone.tasks.measure", "tests.sample_tasks.measure"])
    assert done.exit_code == 0 and done.output.startswith("1 plan of gone.tasks.measure"), done
    (again,) = create_plan(measure, BossVisitSpectrum)
    assert (again.plan, again.failed) == (None, 2)
    assert verify(first.plan).sound


def test_what_direct_calls_made_before_and_after_a_renaming_is_kept(url: str) -> None:
    fill(4)
    rows = list(BossVisitSpectrum.select())
    list(measure(rows[:2]))
    with connection():
        (origin,) = MadeBy.select()
        origin.task = "gone.tasks.measure"
        origin.fingerprint = fingerprint(origin)
        origin.save()
    list(measure(rows[2:]))
    assert rename_task("gone.tasks.measure", "tests.sample_tasks.measure") == 0
    with connection():
        for origin in MadeBy.select():
            assert origin.task == "tests.sample_tasks.measure"
            assert origin.fingerprint.partition("-")[0] == fingerprint(origin)
        assert MadeBy.select().count() == 2


def test_what_cannot_be_renamed(url: str) -> None:
    fill(4)
    (first,) = create_plan(measure, BossVisitSpectrum)
    with pytest.raises(UsageError, match="no results of a former task 'nothing'"):
        rename_task("nothing", "tests.sample_tasks.costly")
    with pytest.raises(UsageError, match=rf"plan {first.plan} .* is active.*astra cancel"):
        rename_task("tests.sample_tasks.measure", "tests.sample_tasks.costly")
