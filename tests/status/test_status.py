"""What the status of a plan says that needs somebody, with the command to type."""

import json
import os
from datetime import UTC, datetime, timedelta

from click.testing import CliRunner

from astra.api import run_here
from astra.cli.group import main
from astra.config.run_folder import run_folder
from astra.config.units import written_moment
from astra.database.postgresql_connection import PostgresqlDatabase
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.policy.next_steps import next_steps
from astra.processes import process_began
from astra.resume.pause_and_throttle import pause, throttle
from astra.slurm.parse import Answer, Execution, merge_answers
from astra.states import PlanState, SlurmState
from astra.status.headline import headline_of
from astra.status.logs import logs
from astra.status.status import status, statuses
from astra.submit.intent import make_intent, new_submission
from tests.sample_tasks import fill, measure


def planned(n: int = 40, run: bool = True) -> int:
    fill(n)
    (made,) = create_plan(measure, BossVisitSpectrum, limit=10)
    if run:
        run_here(made.plan)
    return made.plan


def submitted(plan: int, *numbers: int, job: int | None) -> None:
    """Pages in an array of a cluster that cannot be asked from here, or in a lost one."""
    frozen, n = get_plan(plan), list(numbers)
    submission = new_submission(frozen, n, 0, 1, "slurm")
    make_intent(submission, list(Page.select().where((Page.plan == plan) & Page.number.in_(n))))
    if job is not None:
        Submission.update(state="submitted", job_id=job).where(
            Submission.pk == submission.pk
        ).execute()


def test_no_connection_is_held_while_slurm_is_asked_and_one_does_for_all_else(pg_url, monkeypatch):
    plan = planned(run=False)
    opened, connect = [], PostgresqlDatabase._connect
    monkeypatch.setattr(
        PostgresqlDatabase, "_connect", lambda own: opened.append(own) or connect(own)
    )
    assert [found.pages for found in statuses([plan, plan])] == [{"unsubmitted": 4}] * 2
    assert len(opened) == 3  # for the plans, for the question, and after the answer


def test_without_slurm_its_pages_are_unknown(sqlite_url):
    plan = planned(run=False)
    submitted(plan, 1, 2, job=4711)
    submitted(plan, 3, job=None)
    found = status(plan)
    assert found.pages == {"unknown": 3, "unsubmitted": 1}
    assert [page.job for page in found.elements[:3]] == ["4711_1", "4711_2", None]
    assert len(found.elements) == 4 and found.state is PlanState.ATTENTION
    (note,) = found.notes
    assert note.startswith("Slurm is not installed on this machine") and "login node" in note
    assert (
        f"astra resume {plan}   looks up the array of an sbatch without an answer" in found.advice
    )
    assert f"astra status {plan}   again, when Slurm answers" in found.advice
    assert headline_of([found]).text == (
        "40 of 40 rows have not ended; 1 page will not end without intervention; Slurm does not "
        "say whether the elements of 3 pages have ended."
    )


def test_an_element_whose_end_the_accounting_missed_is_said_to_be_one(sqlite_url, monkeypatch):
    plan = planned(run=False)
    submitted(plan, 1, 2, 3, 4, job=4711)
    monkeypatch.setattr(
        "astra.status.page_states.query_slurm",
        lambda jobs, _: merge_answers({}, {(jobs[0].key, 2): Execution(SlurmState.RUNNING)}),
    )
    said = CliRunner().invoke(main, ["status", str(plan)]).output
    assert "sacct calls it RUNNING, squeue does not know it (any more)" in said
    assert status(plan).pages == {"unknown": 4}  # a controller may have forgotten elements that run
    Submission.update(created=datetime.now(UTC) - timedelta(hours=1)).execute()
    assert status(plan).pages == {"lost": 4}


def test_rows_that_do_not_add_up_need_attention(sqlite_url):
    plan = planned()
    Plan.update(n_rows=1041).execute()
    found = status(plan)
    assert found.state is PlanState.ATTENTION
    assert f"the rows add up to 40, not 1,041: astra verify {plan} shows where" in found.notes


def test_a_throttle_and_a_pause_are_noted_until_all_is_done(sqlite_url):
    plan = planned(run=False)
    for n, many in ((1, "1 element takes"), (2, "2 elements take")):
        throttle(plan, n)
        assert status(plan).notes == (
            f"at most {many} further pages: astra throttle {plan} --off ends this",
        )
    pause([plan])
    assert [note[:18] for note in status(plan).notes] == [
        "the plan is paused",
        "at most 2 elements",
    ]


def test_a_heartbeat_that_is_overdue_is_marked(sqlite_url):
    plan = planned(20)
    Page.update(n_done=9, outcomes=b"\1" * 9 + b"\0").where(Page.number == 2).execute()
    earlier = datetime.now(UTC) - timedelta(hours=1)
    alive = {"pid": os.getpid(), "pid_began": process_began(os.getpid())}
    second = Attempt.page == Page.get(Page.number == 2).pk
    Attempt.update(state="running", ended=None, began=earlier, seen=earlier, **alive).where(
        second
    ).execute()
    done = CliRunner().invoke(main, ["status", str(plan)])
    assert done.exit_code == 3 and f"{written_moment(earlier)} (overdue)" in done.output
    assert f"astra cancel {plan} --page 2   ends its element if that hangs" in done.output


def test_a_log_whose_path_was_not_recorded_is_in_the_folder_of_its_array(sqlite_url, tmp_path):
    """As where an element's output goes through a program of the site."""
    plan = planned(10)
    Attempt.update(job_id=7, array_index=1, log=None).execute()
    assert logs(plan)[0].path is None
    folder = run_folder(get_plan(plan).folder) / "logs"
    folder.mkdir(parents=True)
    (folder / "7_1.log").write_text("what it said\n")
    Submission.update(log_folder=str(folder)).execute()
    assert CliRunner().invoke(main, ["logs", str(plan), "1"]).output == "what it said\n"


def test_a_profile_that_is_no_longer_valid_hides_no_status(sqlite_url, monkeypatch):
    """As one with an option that another version of astra accepted."""
    plan = planned()
    profile = json.dumps({"given": {"time": "long"}, "options": {}})
    Submission.update(kind="slurm", job_id=7, profile=profile).execute()
    Page.update(n_done=0, outcomes=bytes(10)).where(Page.number == 2).execute()
    Attempt.update(state="running", job_id=7, array_index=2).execute()
    monkeypatch.setattr(
        "astra.status.page_states.query_slurm",
        lambda jobs, _: Answer({(jobs[0].key, 2): Execution(SlurmState.TIMEOUT, "n1")}),
    )
    found = status(plan)
    assert found.pages == {"done": 3, "lost": 1} and found.steps == ()
    (note,) = found.notes
    assert "next step of the unfinished pages is unknown: profile 'general'" in note
    assert len(next_steps(get_plan(plan), [found.elements[1]], "general")) == 1
    assert note.endswith(f"with another profile: astra resume {plan} --profile NAME")
