"""Cancelling: a row is free when nobody can write it any more, and not before."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from peewee import SQL

from astra.cli import show
from astra.cli.group import main
from astra.config import settings
from astra.database.connection import connection, dialect
from astra.element import claiming
from astra.element.claiming import claim_page, this_process
from astra.element.element import _write_heartbeat
from astra.errors import BusyError, SlurmError, SlurmUnknown, Superseded, UsageError
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.results.checkpoint import write
from astra.results.rows import Checkpoint, HandedRow, YieldedResult, target_of
from astra.results.stopping import Stop
from astra.resume.cancel import _cancel_element, cancel
from astra.slurm import client
from astra.slurm.parse import JobId
from astra.status.status import status
from astra.submit.intent import make_intent, new_submission, plan_lock, recover_intents
from astra.submit.local import pages_to_run, start_local
from tests.claims import somewhere
from tests.conftest import ROOT
from tests.pools import array_of, plan_of, running
from tests.sample_tasks import Measured, fill, measure
from tests.servers import wait_for


def planned(n: int = 20, limit: int = 10, **arguments) -> int:
    fill(n)
    return create_plan(measure, BossVisitSpectrum, limit=limit, arguments=arguments)[0].plan


def running_elsewhere(plan: int):
    """The claim of an attempt at page 1 that another machine runs."""
    frozen = get_plan(plan)
    page = Page.get((Page.plan == plan) & (Page.number == 1))
    submission = new_submission(frozen, [1], 0, 1, "local")
    make_intent(submission, [page])
    return claim_page(frozen, 1, submission, 1, somewhere())


def checkpoint(plan: int, claim, n: int) -> list:
    keys = claim.page.keys[:n]
    now = Attempt.get_by_id(claim.attempt.pk).began
    results = [
        YieldedResult(
            Measured.from_spectrum(row, value=-1.0), HandedRow(row.spectrum_pk, row, None, now)
        )
        for row in BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk << keys)
    ]
    target = target_of(get_plan(plan), BossVisitSpectrum, Measured, 1)
    return write(Checkpoint(results), target, claim)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("astra.resume.cancel._STOPPING_S", -3.0)


def test_rows_that_an_attempt_runs_are_not_free(url):
    plan = planned()
    claim = running_elsewhere(plan)
    done = cancel(plan)
    assert (done.rows_freed, done.rows_held) == (10, 10)
    (other,) = create_plan(measure, BossVisitSpectrum)
    assert (other.rows, other.held, other.live_plans) == (10, 10, (plan,))
    # What it has yielded is stored; it is asked to stop.
    assert len(checkpoint(plan, claim, 4)) == 4 and claim.cancelled
    Attempt.update(state="interrupted").execute()
    assert create_plan(measure, BossVisitSpectrum)[0].rows == 6


def test_an_attempt_that_is_silent_can_write_no_more(url):
    plan = planned()
    claim = running_elsewhere(plan)
    cancel(plan)
    began = Attempt.get().seen
    Attempt.update(seen=began.replace(year=began.year - 1)).execute()
    assert create_plan(measure, BossVisitSpectrum)[0].rows == 20
    with pytest.raises(Superseded, match="taken back: the plan was cancelled"):
        checkpoint(plan, claim, 4)
    Plan.update(cancelled=None).execute()  # as in a file that was restored under an element
    with pytest.raises(Superseded, match="taken back: the database is in an earlier state"):
        checkpoint(plan, claim, 4)
    assert Measured.select().count() == 0


def test_a_claim_that_meets_a_cancelled_plan_does_nothing(url):
    plan = planned()
    cancel(plan)
    with pytest.raises(UsageError, match="cancelled in the meantime"):
        running_elsewhere(plan)
    submission = new_submission(get_plan(plan), [1], 0, 1, "local")
    submission.save(force_insert=True)
    Page.update(submission_pk=submission.pk).execute()
    with pytest.raises(Superseded, match="was cancelled"):
        claim_page(get_plan(plan), 1, submission, 1, somewhere())


def test_a_claim_that_is_committed_as_the_plan_is_cancelled_is_released(url, monkeypatch):
    plan, is_cancelled = planned(), claiming.is_cancelled

    def cancelled_now(pk: int) -> bool:
        with connection():
            Plan.update(cancelled=SQL(dialect().now_sql)).execute()
        return is_cancelled(pk)

    monkeypatch.setattr(claiming, "is_cancelled", cancelled_now)
    with pytest.raises(Superseded, match="was cancelled"):
        running_elsewhere(plan)
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["superseded"]
    assert create_plan(measure, BossVisitSpectrum)[0].rows == 20


def test_an_element_of_an_earlier_submission_has_no_part_in_its_page(url):
    plan = get_plan(planned())
    earlier, later = (new_submission(plan, [1], 0, 1, "local") for _ in range(2))
    for submission in (earlier, later):
        make_intent(submission, [Page.get(Page.number == 1)])
    with pytest.raises(Superseded, match=r"was given to submission 2 since .* \(1\) was submitted"):
        claim_page(plan, 1, earlier, 1, somewhere())
    assert not Attempt.select().exists()
    assert claim_page(plan, 1, later, 1, somewhere()) is not None


def test_an_element_that_stores_nothing_notices_that_its_plan_is_cancelled(url):
    plan, stop = planned(), Stop()
    claim = running_elsewhere(plan)
    with connection():
        _write_heartbeat(claim, stop)
        assert not stop.is_wanted
    cancel(plan)
    with connection():
        _write_heartbeat(claim, stop)
    assert stop.is_wanted and stop.reason == "the plan was cancelled"


def test_a_whole_plan_is_left_alone(url):
    plan = planned(4)
    Page.update(n_done=4).execute()
    assert cancel(plan).whole
    assert Plan.get().cancelled is None


def test_one_page_is_cancelled_by_its_number(url):
    plan = planned()
    with pytest.raises(UsageError, match="pages 1 to 2, not 3"):
        cancel(plan, 3)
    assert cancel(plan, 1).jobs == ()
    said = CliRunner().invoke(main, ["cancel", str(plan), "--page", "2"])
    assert "no element was running" in said.output and said.exit_code == 0


def test_what_becomes_of_a_page_is_said(url):
    plan = planned(30)
    start_local(get_plan(plan), pages_to_run(get_plan(plan))[1:])
    running_elsewhere(plan)
    with pytest.raises(UsageError, match="run by a process of elsewhere: nothing was cancelled"):
        cancel(plan, 1)
    words = ["cancel", str(plan), "--page", "2"]
    said = CliRunner().invoke(main, words).output
    assert f"page 2 belongs to no element any more: astra resume {plan}" in said
    assert status(plan).pages == {"running": 1, "unsubmitted": 1, "waiting": 1}
    said = CliRunner().invoke(main, ["cancel", str(plan)]).output
    assert "no element was running" not in said and "10 rows in pages whose element" in said


def test_a_local_run_ends_and_frees_its_rows(url, tmp_path, monkeypatch):
    monkeypatch.setattr("astra.resume.cancel._STOPPING_S", 20)
    plan = planned(6000, 3000, row_s=0.02, computed=str(tmp_path / "computed"))
    runner = subprocess.Popen(
        [sys.executable, "-m", "astra", "submit", str(plan), "--local", "-j", "2"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(
            lambda: Attempt.select().where(Attempt.state == "running").count() == 2, "attempts", 120
        )
        done = cancel(plan)
        assert len(done.processes) == 2 and done.rows_held == 0
        assert Measured.select().count() + done.rows_freed == 6000
        assert Submission.get().state in ("submitted", "ended")
    finally:
        runner.send_signal(signal.SIGINT)
        runner.wait(60)


@pytest.mark.parametrize("of_page", [True, False])
def test_a_process_of_this_machine_that_hangs_is_killed(url, monkeypatch, caplog, capsys, of_page):
    """A library may hold the interpreter's lock: nothing of the process handles a signal."""
    monkeypatch.setattr("astra.resume.cancel._STORING_S", 0.5)
    plan = planned(20, 20, row_s=0.5)
    words = [sys.executable, "-m", "astra", "submit", str(plan), "--local"]
    runner = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (attempt,) = running(1)
    os.kill(attempt.pid, signal.SIGSTOP)
    done = cancel(plan, 1 if of_page else None)
    runner.wait(60)
    assert done.processes == (attempt.pid,) and f"process {attempt.pid} hangs" in caplog.text
    show.cancelled(done)
    said = capsys.readouterr().out
    assert said.startswith(f"plan {plan}: process {attempt.pid}\n  asked to stop")
    if of_page:
        assert "asked to stop (page 1)\n" in said and f"astra status {plan} shows" in said
        assert done.rows_held and status(plan).pages == {"lost": 1}
    else:
        cancel(plan)  # the element's parent may have ended only after it
        assert create_plan(measure, BossVisitSpectrum)[0].rows == 20 - Measured.select().count()


def test_processes_of_another_user_end_at_their_next_checkpoint(url, tmp_path, monkeypatch):
    plan = planned(6000, 3000, row_s=0.02)
    words = [sys.executable, "-m", "astra", "submit", str(plan), "--local", "-j", "2"]
    runner = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    try:
        running(2)
        with monkeypatch.context() as patch:
            patch.setattr("astra.resume.cancel.os.kill", refuse)
            with pytest.raises(UsageError, match="process of another user: nothing was cancelled"):
                cancel(plan, 1)
            done = cancel(plan)
        assert done.processes == ()
        runner.wait(60)
        assert Measured.select().count() < 6000
    finally:
        runner.terminate()
        runner.wait(60)


def test_ctrl_c_twice_ends_a_local_run_at_once(url, tmp_path, monkeypatch):
    (tmp_path / "astra.toml").write_text("[element]\ngrace_s = 600\n")
    monkeypatch.setenv("ASTRA_CONFIG", str(tmp_path / "astra.toml"))
    plan = planned(2, 1, row_s=600)
    code = (
        "import os\nfrom astra.submit.local import LocalRun\nask = LocalRun.ask_to_stop\n"
        "def ask_and_say_so(processes):\n    ask(processes)\n    os.write(1, b'asked\\n')\n"
        "LocalRun.ask_to_stop = ask_and_say_so\nfrom astra.__main__ import run\nrun()"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code, "submit", str(plan), "--local", "-j", "2"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    wait_for(
        lambda: Attempt.select().where(Attempt.state == "running").count() == 2, "attempts", 120
    )
    assert runner.stdout is not None
    runner.send_signal(signal.SIGINT)
    while runner.stdout.readline() != "asked\n":  # two signals in the same instant are one
        assert runner.poll() is None
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=60)
    assert runner.returncode == 75


def test_a_second_ctrl_c_does_not_take_the_last_words(url, tmp_path):
    """The signal arrives when all rows have ended and the message is being printed."""
    plan = planned(6000, 3000, row_s=0.02, computed=str(tmp_path / "computed"))
    again = "os.kill(os.getpid(), signal.SIGINT)"
    code = (
        "import os, signal\nfrom astra.cli import show\nsay = show.error\n"
        f"def error(text):\n    {again}\n    say(text)\n    {again}\n"
        "show.error = error\nfrom astra.__main__ import run\nrun()"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code, "submit", str(plan), "--local", "-j", "2"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(
        lambda: Attempt.select().where(Attempt.state == "running").count() == 2, "attempts", 120
    )
    runner.send_signal(signal.SIGINT)
    said = runner.communicate(timeout=60)[1]
    assert runner.returncode == 75
    assert f"plan {plan} was interrupted; its yielded results are stored" in said


def test_of_those_who_claim_a_page_at_once_one_has_it(url):
    """Slurm may start an element again while the earlier one is still starting."""
    plan = get_plan(planned(60, 10))
    pages = list(Page.select().where(Page.plan == plan.pk).order_by(Page.number))
    submission = new_submission(plan, [page.number for page in pages], 0, 1, "local")
    make_intent(submission, pages)
    together = threading.Barrier(6)

    def claim(number: int) -> str:
        with connection():
            together.wait()
            try:
                where = this_process("local", Path())
                return claim_page(plan, number, submission, number, where) and "claimed"
            except BusyError as error:
                return str(error)

    with ThreadPoolExecutor(6) as claimants:
        for page in pages:
            said = list(claimants.map(claim, [page.number] * 6))
            assert said.count("claimed") == 1, said
    assert Attempt.select().count() == len(pages)


@pytest.mark.parametrize("job", ["4242_3", "-1_1", f"{2**40}_1"])
def test_a_job_that_the_plan_did_not_submit_is_not_cancelled(url, job, monkeypatch):
    """The number of a job in an attempt may be anybody's."""
    plan = planned()
    running_elsewhere(plan)
    monkeypatch.setattr(client, "cancel", lambda *job: pytest.fail(f"scancel of {job}"))
    page = SimpleNamespace(page=1, job=job, element=1)
    with pytest.raises(UsageError, match=rf"did not submit: nothing .* astra verify {plan}"):
        _cancel_element(get_plan(plan), page)


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """Commands that stand for Slurm's: squeue, sacct and scancel do what they are given."""

    def say(**commands: str) -> Path:
        calls, folder = tmp_path / "calls", tmp_path / "bin"
        folder.mkdir()
        for name in ("squeue", "sacct", "scancel", "scontrol"):
            what = commands.get(name, "echo 'Unable to contact slurm controller' >&2; exit 1")
            (folder / name).write_text(f"#!/bin/sh\necho {name} $* >>{calls}\n{what}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        settings.use(settings.Config(slurm=settings.Slurm(timeout_s=20, retries=0)))
        return calls

    return say


_ASKS_AGAIN = "plan 1 is cancelled: no further element begins, .* astra cancel 1 asks again"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("submitted", "squeue: Unable to contact"),
        ("intent", "^job j may or may not exist: squeue: Unable"),
    ],
)
def test_a_plan_is_cancelled_although_slurm_does_not_answer(url, slurm_says, state, message):
    plan = plan_of(20, 10)
    array_of(plan, [1, 2], {}, state=state, job_id=7 if state == "submitted" else None)
    slurm_says()
    with pytest.raises(SlurmUnknown, match=rf"{message}.*\. {_ASKS_AGAIN}$"):
        cancel(plan.pk)
    with connection():
        assert Plan.get().cancelled is not None and Submission.get().state == state


def test_a_job_that_slurm_refuses_to_cancel_does_not_keep_the_others(url, slurm_says):
    """As one that another user submitted; each is asked for."""
    plan = plan_of(20, 10)
    array_of(plan, [1, 2], {})
    with connection():
        other = new_submission(plan, [1], 0, 1, "slurm")
        other.state, other.job_id, other.job_name = "submitted", 8, "k"
        other.save(force_insert=True)
    refuses = "scancel: error: Kill job error on job id 7: Access/permission denied"
    calls = slurm_says(
        squeue="echo '7_1|RUNNING|0|n1|None|j|'; echo '8_1|RUNNING|0|n1|None|k|'",
        scancel=f'case "$*" in *7) echo "{refuses}" >&2; exit 1;; esac',
    )
    with pytest.raises(SlurmError, match=rf"job id 7: Access/permission denied\. {_ASKS_AGAIN}$"):
        cancel(plan.pk)
    cancelled = [line for line in calls.read_text().splitlines() if line.startswith("scancel")]
    assert cancelled == ["scancel 7", "scancel 8"]


def test_a_cancelled_plan_that_was_paused_is_not_to_be_continued(url, slurm_says, monkeypatch):
    """Slurm did not let its elements be cancelled, as those of another user."""
    monkeypatch.setenv("SLURM_CONF", __file__)
    plan = plan_of(20, 10)
    array_of(plan, [1, 2], {})
    with connection():
        now = dialect().now()
        Plan.update(paused=now, pause_reason="by me", cancelled=now, throttle=1).execute()
    held = [f"7_{n}|PENDING|0||JobHeldUser|j|" for n in (1, 2)]
    slurm_says(squeue="".join(f"echo '{line}';" for line in held), sacct="true", scancel="true")
    found = status(plan.pk)
    said = "\n".join((*found.notes, *found.advice))
    assert found.pages == {"waiting": 2}
    assert "astra cancel 1" in said and "astra continue" not in said and "throttle" not in said
    said = CliRunner().invoke(main, ["cancel", "1", "--page", "2"]).output
    assert "20 rows can be planned again" in said and "astra resume" not in said, said


#: squeue, as it is asked for the jobs of a name, and for the elements of a job.
_TWO_JOBS = """case "$*" in *ArrayJobID*) echo '18|j|j.sh|c|'; echo '17|j|j.sh|c|';;
*) echo '18_1|PENDING|0||None|j|j.sh|';; esac"""


def test_of_two_jobs_of_an_intent_the_second_is_cancelled(url, slurm_says):
    plan = plan_of(20, 10)
    array_of(plan, [1, 2], {}, state="intent", job_id=None)
    calls = slurm_says(squeue=_TWO_JOBS, scancel="true")
    assert recover_intents(plan) == []
    assert calls.read_text().endswith("\nscancel 18\n")
    with connection():
        assert (Submission.get().state, Submission.get().job_id) == ("submitted", 17)


@pytest.mark.parametrize("reason", ["Access/permission denied", "Unable to contact slurm"])
def test_a_second_job_that_slurm_does_not_cancel_keeps_nothing_from_going_on(
    url, slurm_says, caplog, reason
):
    """Its elements do nothing: the submission is bound to the first."""
    plan = plan_of(20, 10)
    array_of(plan, [1, 2], {}, state="intent", job_id=None)
    slurm_says(squeue=_TWO_JOBS, scancel=f"echo '{reason}' >&2; exit 1")
    assert recover_intents(plan) == []
    with connection():
        assert (Submission.get().state, Submission.get().job_id) == ("submitted", 17)
    assert f"{reason}; its elements will start and do nothing: scancel 18" in caplog.text


def test_a_plan_is_cancelled_although_it_is_being_submitted(url, monkeypatch):
    plan = plan_of(20, 10)
    monkeypatch.setattr("astra.resume.cancel._LOCK_S", 0.0)
    with (
        plan_lock(plan),
        pytest.raises(BusyError, match=rf"submits, resumes or .*\. {_ASKS_AGAIN}$"),
    ):
        cancel(plan.pk)
    with connection():
        assert Plan.get().cancelled is not None


def test_slurm_is_asked_for_no_number_that_no_job_can_have():
    numbers = (-1, 0, 1, 2**32 - 1, 2**32)
    assert client._ids([JobId(number) for number in numbers]) == [1, 2**32 - 1]
