"""A resume leaves a page to the element that claims it meanwhile."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import astra.resume.resume as resume_module
from astra.api import run_here
from astra.cli import show
from astra.database.connection import connection, dialect
from astra.element.claiming import ElementProcess, claim_page, this_process
from astra.errors import BusyError, SlurmError, UsageError
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.plan import create_plan
from astra.resume.cancel import cancel
from astra.resume.pause_and_throttle import pause
from astra.resume.resume import checked_states, resume, resume_local
from astra.slurm.parse import Answer, Execution
from astra.states import PageState, SlurmState
from astra.status.status import status
from astra.submit.submit import submit
from tests.configuration import configure
from tests.forks import astra
from tests.pools import array_of, plan_of, pool_of, states
from tests.sample_tasks import fill, measure
from tests.servers import Slurm, wait_for


def claim(plan: Plan, submission: Submission, where: ElementProcess) -> None:
    with connection():
        assert claim_page(plan, 1, submission, 1, where) is not None


def before(monkeypatch: pytest.MonkeyPatch, name: str, work) -> None:
    """Do `work` just before a resume calls the function of a name."""
    original = getattr(resume_module, name)

    def called(*arguments):
        monkeypatch.setattr(resume_module, name, original)
        work()
        return original(*arguments)

    monkeypatch.setattr(resume_module, name, called)


def still_belongs_to(submission: Submission) -> bool:
    with connection():
        page = Page.get(Page.number == 1)
        last = Attempt.get_by_id(page.attempt_pk)
        return page.submission_pk == submission.pk and last.state == "running"


@pytest.fixture
def interrupted(url: str) -> tuple[Plan, Submission]:
    """A plan of one page, whose process has ended; another one is about to claim it."""
    plan = plan_of(10, 10)
    submission = pool_of(plan)
    claim(plan, submission, ElementProcess(host=socket.gethostname(), pid=1, pid_began="gone"))
    assert states(plan) == [PageState.LOST]
    return plan, submission


def test_a_process_of_another_container_with_this_host_name_is_not_called_dead(url):
    """Its number means nothing here: only a heartbeat that is overdue says that it has ended."""
    plan = plan_of(20, 10)
    submission = pool_of(plan)
    here = this_process("local", Path())
    elsewhere = replace(here, pid=1, pid_began="other-boot 4026531999 17")
    earlier = replace(here, pid_began=str(here.pid_began).split()[-1])  # as version 0.8.1 wrote it
    with connection():
        for number, process in ((1, elsewhere), (2, earlier)):
            assert claim_page(plan, number, submission, number, process) is not None
    assert states(plan) == [PageState.RUNNING] * 2
    with pytest.raises(BusyError), connection():
        claim_page(plan, 1, submission, 3, here)
    assert resume_local(plan.pk).skipped == {"running": 2}
    with connection():
        Attempt.update(seen=datetime(2026, 1, 1)).where(Attempt.pid == 1).execute()
    assert states(plan) == [PageState.LOST, PageState.RUNNING]


def test_failed_rows_that_a_later_plan_will_run_are_left_to_it(url, caplog):
    """They would be computed twice."""
    fill(10)
    (first,) = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 4})
    run_here(first.plan)
    (later,) = create_plan(measure, BossVisitSpectrum, again=True, max_rows=1)
    assert (status(first.plan).rows["failed"], later.rows) == (2, 1)
    assert resume_local(first.plan, failed=True).rows == 1
    assert f"1 failed rows are left to plan {later.plan}, which will" in caplog.text
    assert status(first.plan).rows["failed"] == 2  # of which one is that of the later plan
    assert status(first.plan).advice[-1].startswith(f"astra retry {first.plan}")
    create_plan(measure, BossVisitSpectrum, again=True)
    assert [line[:14] for line in status(first.plan).advice[-2:]] == [
        f"astra status {plan}" for plan in (later.plan, later.plan + 1)
    ]
    cancel(later.plan + 1)
    cancel(later.plan)
    assert resume_local(first.plan, failed=True).rows == 2


class TestHere:
    def test_a_page_that_is_claimed_after_its_state_was_read(self, interrupted, monkeypatch):
        plan, submission = interrupted
        here = this_process("local", Path())
        before(monkeypatch, "pages_without_keys", lambda: claim(plan, submission, here))
        done = resume_local(plan.pk)
        assert done.pages == 0 and done.skipped == {"running": 1}
        assert still_belongs_to(submission)

    def test_a_page_that_is_claimed_after_it_was_chosen(self, interrupted, monkeypatch):
        plan, submission = interrupted
        here = this_process("local", Path())
        before(monkeypatch, "start_local", lambda: claim(plan, submission, here))
        with pytest.raises(BusyError, match="an element began them"):
            resume_local(plan.pk)
        assert still_belongs_to(submission)
        with connection():
            assert Submission.select().count() == 1
        assert resume_local(plan.pk).skipped == {"running": 1}


def test_a_thread_of_a_program_runs_a_plan_here(url):
    """It cannot handle signals, which are the main thread's."""
    plan = plan_of(30, 10)
    with ThreadPoolExecutor() as threads:
        assert threads.submit(resume_local, plan.pk).result().rows == 30
    assert states(plan) == [PageState.DONE] * 3


def test_an_array_that_slurm_was_not_asked_about_is_unknown(url):
    """An array whose answer was lost may be bound after Slurm was asked, also without accounting."""
    plan = plan_of(30, 10)
    pool_of(plan)
    with connection():
        long_ago = dialect().now() - timedelta(days=1)
        array = {"kind": "slurm", "job_id": 7, "job_name": "j", "created": long_ago}
        Submission.update(**array).execute()
    for accounting in (True, False):
        asked_before = Answer(accounting=accounting, jobs=frozenset({"another"}))
        chosen, skipped, _ = resume_module._choose(plan, False, frozenset(), True, asked_before)
        assert (chosen, skipped) == ([], {"unknown": 3})
    gone = Answer(accounting=False, jobs=frozenset({"j"}))
    assert len(resume_module._choose(plan, False, frozenset(), True, gone)[0]) == 3


def test_how_an_element_that_hangs_is_ended_is_said(url, monkeypatch):
    plan = plan_of(30, 10)
    array_of(plan, [1, 2, 3], {1: 1, 2: 2, 3: 3})
    runs = {("j", n): Execution(SlurmState.RUNNING) for n in (1, 2, 3)}
    monkeypatch.setattr("astra.status.page_states.query_slurm", lambda *_: Answer(executions=runs))
    assert status(plan.pk).advice == ()
    with connection():
        long_ago = dialect().now() - timedelta(hours=1)
        Attempt.update(seen=long_ago).where(Attempt.element == 2).execute()
    (advice,) = status(plan.pk).advice
    assert advice.startswith(f"astra cancel {plan.pk} --page 2   ")
    for reason, command in (("SUSPENDED", "scontrol resume"), ("STOPPED", "scancel --signal=CONT")):
        runs["j", 2] = Execution(SlurmState.RUNNING, reason=reason)
        (advice,) = status(plan.pk).advice
        assert advice.startswith(command) and " 7_2   " in advice


def test_a_page_is_of_the_element_that_took_it_also_when_it_is_not_given_back(url, monkeypatch):
    """The element of its number runs another page, and that which took the page was killed."""
    plan = plan_of(30, 10)
    array_of(plan, [1, 2, 3], {3: 1, 2: 3})
    with connection():
        Page.update(free=None).where(Page.number == 3).execute()  # as astra cancel --page does
    ends = {("j", 1): SlurmState.CANCELLED, ("j", 3): SlurmState.RUNNING}
    answer = Answer({key: Execution(state) for key, state in ends.items()}, queued=frozenset("j"))
    monkeypatch.setattr("astra.status.page_states.query_slurm", lambda *_: answer)
    page = status(plan.pk).elements[2]
    assert (page.state, page.job, page.slurm_state) == (PageState.LOST, "7_1", "CANCELLED")


def test_a_mistyped_state_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'TIMEOUT'"):
        checked_states(["timeuot"])


def test_a_command_that_submits_no_page_ends_with_another_status(pg_url, monkeypatch):
    plan = plan_of(30, 10)
    pause([plan.pk])
    for verb, *words in (("submit",), ("resume",), ("retry",), ("resume", "--local")):
        done = astra(verb, plan.pk, *words)
        assert done.returncode == 4 and f"astra continue {plan.pk}" in done.stdout, done.stdout
    array_of(plan, [1, 2, 3], {})
    done = astra("submit", plan.pk, env={**os.environ, "PATH": "/nowhere"})  # without Slurm
    assert done.returncode == 4 and f"astra status {plan.pk}   again" in done.stdout, done.stdout
    monkeypatch.setenv("SLURM_CONF", "/nowhere")  # Slurm does not answer
    for verb in ("resume", "continue"):
        done = astra(verb, plan.pk)
        assert done.returncode == 6 and "3 unknown" in done.stdout, done.stdout
        assert f"astra resume {plan.pk}   again" in done.stdout


def test_to_continue_a_plan_of_this_machine_says_what_starts_its_elements(sqlite_url):
    plan = plan_of(30, 10)
    pause([plan.pk])
    done = astra("continue", plan.pk)
    assert done.returncode == 4 and f"astra submit {plan.pk} --local" in done.stdout, done.stdout
    resume_local(plan.pk)
    done = astra("continue", plan.pk)
    assert done.returncode == 0 and "next:" not in done.stdout, done.stdout


@pytest.mark.parametrize("verb", ["submit", "resume", "retry"])
def test_what_to_type_when_slurm_answers_again_is_said(pg_url, tmp_path, monkeypatch, verb):
    plan = plan_of(6, 3, raise_every=5)
    if verb == "retry":
        resume_local(plan.pk)
    for name in ("sbatch", "squeue", "sacct", "scontrol", "sinfo"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    configure(tmp_path, "[slurm]\nretries = 0\n", monkeypatch)
    done = astra(verb, plan.pk)
    assert done.returncode == 6, done.stdout + done.stderr
    assert done.stderr.endswith(f"; when Slurm answers: astra {verb} {plan.pk}\n"), done.stderr


@pytest.mark.parametrize(("n_held", "exit_status"), [(3, 4), (1, 4), (0, 0)])
def test_a_resume_of_pages_that_slurm_holds_back_says_so(
    pg_url, monkeypatch, capsys, n_held, exit_status
):
    plan = plan_of(30, 10)
    array_of(plan, [1, 2, 3], {})
    with connection():
        Submission.update(pulls=False).execute()
        Page.update(free=None).execute()
    held = Execution(SlurmState.PENDING, reason="JobHeldUser")
    queued = Execution(SlurmState.PENDING, reason="Priority")
    elements = {("j", n): held if n <= n_held else queued for n in (1, 2, 3)}
    done = resume(plan.pk, slurm_answer=Answer(executions=elements))
    show.submitted(done)
    said = capsys.readouterr().out
    assert (done.pages, done.exit_status) == (0, exit_status), said
    assert (f"astra status {plan.pk}   says why" in said) == bool(n_held)
    assert (f"not touched: {n_held} held" in said) == bool(n_held)
    assert ("waiting" in said) == (n_held < 3)


def test_a_page_that_a_requeued_element_claimed_is_not_submitted(slurm: Slurm, monkeypatch):
    """Slurm requeues a cancelled element, which claims its page as that is submitted again."""
    plan = plan_of(10, 10)
    (job,) = submit(plan.pk, options={"hold": True}).jobs
    slurm.run("scancel", str(job.job_id))
    wait_for(lambda: states(plan) == [PageState.LOST], "the end of the array", 60)
    with connection():
        submission = Submission.get()
    where = ElementProcess("n1", 1, "began", submission.job_id, 1, restarts=1)
    before(monkeypatch, "submit_pages", lambda: claim(plan, submission, where))
    with pytest.raises(BusyError, match="an element began them"):
        resume(plan.pk)
    assert still_belongs_to(submission)
    with connection():
        assert Submission.select().count() == 1


def test_rows_that_a_retry_released_and_could_not_submit_are_unsubmitted(pg_url, monkeypatch):
    plan = plan_of(6, 3, raise_every=5)
    resume_local(plan.pk)
    assert status(plan.pk).state == "failed rows"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SlurmError, match="not on PATH"):
        resume(plan.pk, failed=True)
    assert status(plan.pk).rows == {"done": 5, "unsubmitted": 1}
    (advice,) = status(plan.pk).advice
    assert advice.startswith(f"astra resume {plan.pk} --local ")
