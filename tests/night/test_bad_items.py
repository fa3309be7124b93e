"""One bad item of a night keeps no other from its turn."""

import pytest
from click.testing import CliRunner

from astra.api import run_here
from astra.cli.group import main
from astra.config import settings
from astra.database.connection import connection, database
from astra.errors import SlurmUnknown, UsageError
from astra.models import BossVisitSpectrum
from astra.models.nights import Night, NightPlan
from astra.models.plans import Plan
from astra.night import finalizer
from astra.night import nightly as nightly_module
from astra.night.history import night_of, nights
from astra.night.lock import call_when_released, night_lock
from astra.night.nightly import heal_all
from astra.night.notify import notify
from astra.night.plans import NightStep, assess_plans, begin_tasks
from astra.night.report import night_headline, report_of_night
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.report.earlier import earlier_of
from astra.slurm import client
from astra.slurm.parse import Answer, Execution, JobId
from astra.states import SlurmState as S
from astra.status.headline import Kind
from astra.submit.intent import plan_lock
from tests.configuration import configure
from tests.nights import a_night, settings_of_tasks
from tests.sample_tasks import fill, measure

FINALIZER = "astra-night-1-token", None
HELD = "launch failed requeued held"


def test_a_task_whose_table_lost_its_index_keeps_no_other_from_being_planned(url):
    fill(4)
    with connection():
        for index in database.get_indexes("measured"):
            if index.unique and index.columns != ["task_pk"]:
                database.execute_sql(f'DROP INDEX "{index.name}"')
        night = a_night()
    step = NightStep()
    begin_tasks(night, settings_of_tasks("measure", "costly"), step)
    assert [rows for _, rows in step.new] == [4]
    assert Plan.get().task == "tests.sample_tasks.costly"
    (problem,) = step.problems
    assert "no unique index" in problem and "measure cannot be planned" in problem


def test_a_plan_that_somebody_resumes_keeps_no_night_waiting(url, monkeypatch):
    fill(4)
    (made,) = create_plan(measure, BossVisitSpectrum)
    entry = NightPlan(night=1, task="tests.sample_tasks.measure", plan_pk=made.plan, leftover=True)
    step = NightStep()
    with plan_lock(get_plan(made.plan)):
        assess_plans([entry], settings_of_tasks("measure"), step)
    assert [due.plan for due in step.due] == [made.plan]


def test_a_plan_of_an_earlier_night_that_cannot_be_seen_keeps_no_night_from_beginning(
    url, monkeypatch
):
    """For example, its cluster no longer exists; the plans of this night are waited for."""
    fill(4)
    (made,) = create_plan(measure, BossVisitSpectrum)
    silent = Answer(notes=("no cluster `old` here",))
    monkeypatch.setattr("astra.night.plans.query_slurm_for", lambda plans: silent)
    monkeypatch.setattr("astra.night.plans.current_pages", lambda plan, asked: _Unknown())
    entry = NightPlan(night=1, task="tests.sample_tasks.measure", plan_pk=made.plan, leftover=True)
    step = NightStep()
    assert assess_plans([entry], settings_of_tasks("measure"), step) == [] and not step.open
    assert "no cluster `old` here" in step.problems[0]
    entry.pk = 1
    with pytest.raises(SlurmUnknown, match="no cluster"):
        assess_plans([entry], settings_of_tasks("measure"), step)


class _Unknown:
    """Pages of which nothing is known."""

    def __init__(self) -> None:
        from astra.states import PageState

        self.tally = {PageState.UNKNOWN: (1, 4)}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({"executions": {}}, "without a finalizer"),
        ({"executions": {}, "accounting": False}, "without a finalizer"),
        ({"executions": {}, "queue": False}, "running"),
        ({"executions": {}, "accounting": False, "queue": False}, "running"),
        ({"executions": {FINALIZER: Execution(S.PENDING, reason="Dependency")}}, "running"),
        ({"executions": {FINALIZER: Execution(S.PENDING, reason="PartitionDown")}}, "running"),
        (
            {"executions": {FINALIZER: Execution(S.PENDING, reason=HELD)}, "accounting": False},
            "without a finalizer",
        ),
        ({"executions": {FINALIZER: Execution(S.RUNNING)}}, "running"),
        ({"executions": {FINALIZER: Execution(S.NODE_FAIL)}}, "without a finalizer"),
    ],
)
def test_a_night_whose_finalizer_does_not_come_is_not_called_running(
    url, monkeypatch, found, state
):
    """It has ended, is not known, or is held by Slurm after the prolog failed on its node."""
    with connection():
        night = a_night()
        Night.update(finalizer="token", finalizer_job=7).execute()
        night = Night.get_by_id(night.pk)
    answer = Answer(jobs=frozenset({FINALIZER[0]}), **found)
    monkeypatch.setattr(client, "elements", lambda jobs, **_: answer)
    monkeypatch.setattr(client, "find", lambda *_, **__: [JobId(7)])  # it was not submitted again
    assert [listed.state for listed in nights()] == [state]
    if answer.queue:
        assert finalizer.is_alive(night) is (state == "running")
    else:
        with pytest.raises(SlurmUnknown):
            finalizer.is_alive(night)


@pytest.mark.parametrize(
    ("jobs", "state"), [([], "without a finalizer"), ([JobId(7)], "running"), (None, "running")]
)
def test_a_finalizer_whose_process_died_before_sbatch_answered(pg_url, monkeypatch, jobs, state):
    """Its token is stored, and no number: it is running only if Slurm has a job of its name."""

    def find(job):
        if jobs is None:
            raise SlurmUnknown("squeue gave no answer")
        return jobs

    with connection():
        a_night()
        Night.update(finalizer="token").execute()
    alive = Answer(executions={(7, None): Execution(S.PENDING)})
    monkeypatch.setattr(client, "elements", lambda *_, **__: alive)
    monkeypatch.setattr(client, "find", find)
    with night_lock("survey"):  # its process may still be waiting for the answer
        assert [listed.state for listed in nights()] == ["running"]
    assert [listed.state for listed in nights()] == [state]


def test_a_finalizer_that_its_node_submitted_again_is_found_by_its_name(url, monkeypatch):
    with connection():
        night = a_night()
        Night.update(finalizer="token", finalizer_job=7).execute()
        night = Night.get_by_id(night.pk)
    states = {7: S.FAILED, 8: S.PENDING}

    def elements(jobs, **_):
        return Answer(executions={(job.key, None): Execution(states[job.job_id]) for job in jobs})

    monkeypatch.setattr(client, "elements", elements)
    monkeypatch.setattr(client, "find", lambda *_, **__: [JobId(7), JobId(8)])
    assert finalizer.is_alive(night)
    assert Night.get_by_id(night.pk).finalizer_job == 8
    states[8] = S.FAILED
    assert not finalizer.is_alive(night)


def test_a_plan_with_failed_rows_is_not_called_whole_in_its_night(sqlite_url):
    fill(20)
    (made,) = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 10})
    run_here(made.plan)
    with connection():
        a_night()
        NightPlan.create(night=1, task="tests.sample_tasks.measure", plan_pk=made.plan)
    (plan,) = night_of("survey").plans
    assert (plan.failures, plan.pending, plan.whole) == (2, 0, False)
    shown = CliRunner().invoke(main, ["nights", "survey", "1"]).output
    assert "failed rows" in shown and "whole" not in shown
    earlier = earlier_of([made.plan], "a plan")
    assert (earlier.pending, earlier.whole) == (0, False)


def test_the_report_of_an_old_night_compares_it_with_the_nights_before(sqlite_url):
    fill(2)
    (made,) = create_plan(measure, BossVisitSpectrum)
    run_here(made.plan)
    with connection():
        first, second, *_ = [a_night() for _ in range(10)]
        NightPlan.create(night=first.pk, task="measure", plan_pk=made.plan)
    _, report = report_of_night("survey", str(second.pk))
    assert [(line.title, line.rows) for line in report.earlier] == [(first.date, 2)]


def test_a_night_that_cannot_be_healed_keeps_no_other_from_it(url, monkeypatch):
    with connection():
        for name in ("damaged", "other"):
            a_night(name)

    def heal(night, settings):
        if night.name == "damaged":
            raise ValueError("whatever is wrong with it")
        return True

    monkeypatch.setattr(nightly_module, "heal", heal)
    assert {n.name: n.state for n in heal_all()} == {
        "damaged": "without a finalizer", "other": "running"
    }  # fmt: skip
    shown = CliRunner().invoke(main, ["nights", "--heal"])
    assert "of damaged: it could not be given a finalizer: whatever is wrong" in shown.output
    assert "of other: it has a new finalizer" in shown.output and shown.exit_code == 4
    assert CliRunner().invoke(main, ["nights", "other", "--heal"]).exit_code == 0
    mistyped = CliRunner().invoke(main, ["nights", "othr", "--heal"])
    assert mistyped.exit_code == 2 and "every night" not in mistyped.output


def test_a_night_that_there_is_not_is_named_as_it_was_given(sqlite_url):
    a_night()
    for name, which, words in (
        ("survy", None, "no night 'survy' has begun yet, .*Did you mean 'survey'"),
        ("survey", "2026-01-03", "no night survey began on 2026-01-03. Did you mean '2026-01-02'"),
        ("survey", 77, "no night survey has the number 77. Known: 1[.]$"),
    ):
        with pytest.raises(UsageError, match=words):
            night_of(name, which)
    with pytest.raises(UsageError, match="no night 'survy' has begun yet"):
        nights("survy")


def test_a_night_that_is_not_configured_is_not_to_be_begun(sqlite_url, tmp_path, monkeypatch):
    a_night()
    text = '[nights.deep]\ntasks = ["tests.sample_tasks.measure"]\n'
    configure(tmp_path, text, monkeypatch)
    with pytest.raises(UsageError) as unknown:
        nights("x")
    assert str(unknown.value) == (
        "no night 'x' has begun yet, and none of this name is configured. Known: deep, survey."
    )
    with pytest.raises(
        UsageError, match=r"'deep' has begun yet; to begin it: astra nightly deep\. "
    ):
        nights("deep")


def test_a_finalizer_waits_by_the_clock_for_jobs_of_another_cluster():
    near, far = JobId(5, home="here"), JobId(6, "there")
    assert finalizer._waiting_options([far, near], "here", 30) == [
        "--dependency=afterany:5", "--begin=now+300"
    ]  # fmt: skip
    assert finalizer._waiting_options([near], "here", 0) == ["--dependency=afterany:5"]


def test_where_the_limits_of_its_partition_are_unknown_a_finalizer_keeps_its_time(monkeypatch):
    def unknown(partition, clusters):
        raise SlurmUnknown("scontrol gave no answer")

    monkeypatch.setattr(finalizer.limits, "partition_limits", unknown)
    assert finalizer._profile(settings_of_tasks("measure")).options["time"] == "12:00:00"


def test_the_report_of_a_night_that_waits_leaves_its_plans_to_it(sqlite_url, monkeypatch):
    """It is compared with the night before. Where it cannot be written, only this is logged."""
    for n in (4, 3):
        fill(n)
        (made,) = create_plan(measure, BossVisitSpectrum)
        if n == 4:
            run_here(made.plan)
        with connection():
            night = a_night()
            NightPlan.create(night=night.pk, task="t", plan_pk=made.plan, has_ended=n == 4)
            Night.update(finalizer="token", finalizer_job=7).execute()
            Night.update(ended="2026-01-03 05:00:00", state="whole").where(Night.pk == 1).execute()
    silent = Answer(queue=False, accounting=False)
    monkeypatch.setattr(client, "elements", lambda jobs, **_: silent)
    _, report = report_of_night("survey")
    assert report.kind is Kind.NOT_BEGUN and [e.title for e in report.earlier] == ["2026-01-02"]
    shown = night_headline(night_of("survey"), report.plans)
    assert shown.commands == ("astra nights survey 2   shows its progress",)


def test_a_night_ends_though_its_report_cannot_be_written(
    sqlite_url, tmp_path, monkeypatch, caplog
):
    night = a_night()
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASTRA_RUN_DIR", str(tmp_path / "file"))
    settings.reset()
    nightly_module._report(night)
    assert "the report of the night 1 could not be written" in caplog.text
    assert notify(Night(pk=9, name="gone"), settings_of_tasks("measure")) == {}
    assert "nobody was notified of the night 9" in caplog.text


def test_a_night_tries_again_after_its_connection_broke(pg_url, monkeypatch):
    monkeypatch.setattr("astra.night.lock.time.sleep", lambda pause_s: None)
    calls = iter(("pg_terminate_backend(pg_backend_pid())", "3"))

    def work() -> int:
        with connection():
            return database.execute_sql(f"SELECT {next(calls)}").fetchone()[0]

    assert call_when_released(work, 60, wait_for_all=True) == 3
