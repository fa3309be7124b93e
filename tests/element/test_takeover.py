"""Pages of dead elements are taken over by living ones of their pool, and those of living ones never."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from astra.config import settings
from astra.database.connection import connection, database, dialect, writing
from astra.element.claiming import claim_page, this_process
from astra.element.element import Element
from astra.element.page_pool import cancel_waiting
from astra.element.takeover import Watcher
from astra.errors import SlurmError
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.processes import now_s, process_began
from astra.results.stopping import Stop
from astra.resume.pause_and_throttle import throttle
from astra.resume.resume import resume_local
from astra.slurm.parse import Answer, Execution
from astra.states import PageState, SlurmState
from astra.submit.submit import submit
from tests.nights import run_out
from tests.pools import (
    elements,
    is_whole,
    kill_element,
    parent_of,
    plan_of,
    pool_of,
    running,
    states,
)
from tests.servers import Slurm, wait_for


def use_lease(lease_s: int, folder, monkeypatch):
    """There are four heartbeats in it, and Slurm may be asked five times."""
    file = folder / "astra.toml"
    file.write_text(f"[element]\nlease_s = {lease_s}\n")
    monkeypatch.setenv("ASTRA_CONFIG", str(file))
    settings.use(settings.load(file))


class TestLocal:
    def test_a_killed_element_holds_up_no_page(self, url, tmp_path):
        """Nobody resumes: another process of the same run takes the page over."""
        fast = tmp_path / "fast"
        plan = plan_of(4000, 1000, row_s=0.05, slow_until=str(fast))

        def kill() -> None:
            with connection():
                victim, _ = running(2, 0)
            kill_element(victim)
            fast.touch()

        killer = threading.Thread(target=kill)
        killer.start()
        resume_local(plan.pk, 2)
        killer.join()
        assert is_whole(plan)
        with connection():
            (dead,) = Attempt.select().where(Attempt.state == "superseded")
            assert "its process is gone" in dead.message
            assert Attempt.select().where(Attempt.page == dead.page).count() == 2

    def test_a_crashed_process_leaves_its_page_to_its_parent(self, url, tmp_path):
        """While the parent has not restarted it, no resume and no other element takes the page."""
        fast = tmp_path / "fast"
        plan = plan_of(200, 100, row_s=0.05, slow_until=str(fast))
        found: list[list[PageState]] = []

        def crash() -> None:
            with connection():
                victim, _ = running(2, 0)
            supervisor = parent_of(victim.pid)
            os.kill(supervisor, signal.SIGSTOP)
            os.kill(victim.pid, signal.SIGSEGV)
            wait_for(lambda: process_began(victim.pid) is None, "the crash")
            fast.touch()
            with connection():
                watched = Submission.select().where(Submission.watcher.is_null(False))
                wait_for(watched.exists, "a watcher")
            found.append(states(plan))
            os.kill(supervisor, signal.SIGCONT)
            with connection():
                wait_for(lambda: Attempt.get_by_id(victim.pk).state != "running", "the record")
            found.append(states(plan))

        killer = threading.Thread(target=crash)
        killer.start()
        resume_local(plan.pk, 2)
        killer.join()
        assert is_whole(plan)
        assert all(PageState.LOST not in after for after in found) and len(found) == 2
        with connection():
            assert not Attempt.select().where(Attempt.state == "superseded").exists()

    def test_whoever_is_throttled_stays_for_the_pages_of_those_who_die(self, url):
        """The only element that may run is dead: its page and the free one are run by another."""
        plan = plan_of(20, 10)
        submission = pool_of(plan)
        throttle(plan.pk, 1)
        died = replace(this_process("local", Path()), pid_began="gone")
        with connection(), writing():
            Page.update(free=False).where(Page.number == 1).execute()
            claim_page(plan, 1, submission, 1, died)
        with Element(plan, submission, Stop()) as this:
            runs = this.pull(2)
        assert sorted(run.page for run in runs) == [1, 2] and is_whole(plan)

    def test_who_takes_a_page_watches_no_more(self, url):
        plan = plan_of(10, 10)
        submission = pool_of(plan)
        watcher = Watcher(plan, submission, 1, Stop())
        with connection(), writing():
            Page.update(free=False).execute()
            claim_page(
                plan, 1, submission, 2, replace(this_process("local", Path()), pid_began="gone")
            )
        assert watcher.wait(None) and Submission.get().watcher is None

    def test_who_finds_no_page_and_nobody_at_work_ends(self, url):
        plan = plan_of(20, 10)
        submission = pool_of(plan)
        with connection(), writing():
            Page.update(free=False).execute()
        with Element(plan, submission, Stop()) as this:
            assert this.pull(1) == []


@pytest.mark.postgres
def test_an_attempt_that_ends_as_its_page_is_taken_over_has_ended_as_it_says(pg_url):
    """Its last checkpoint is not committed yet when another element reads that it runs."""
    plan = plan_of(10, 10)
    submission = pool_of(plan)
    gone = replace(this_process("local", Path()), pid_began="gone")
    with connection(), writing():
        claim_page(plan, 1, submission, 1, gone)

    def take_over() -> None:
        with connection():
            claim_page(plan, 1, submission, 2, this_process("local", Path()))

    other = threading.Thread(target=take_over)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with connection(), writing():
        Attempt.update(state="done").execute()
        other.start()
        wait_for(lambda: database.execute_sql(waiting).fetchone()[0], "a lock", 20)
    other.join()
    with connection():
        assert [a.state for a in Attempt.select().order_by(Attempt.pk)] == ["done", "running"]


def held(submission: Submission, plan, silent_s: float = 0.0) -> Attempt:
    """A page of a Slurm pool that element 1 holds, whose last heartbeat is so old."""
    with connection(), writing():
        Submission.update(kind="slurm", job_id=7, job_name="astra-1-x").execute()
        claim = claim_page(plan, 1, Submission.get(), 1, this_process("local", Path()))
        assert claim is not None
        Page.update(free=False).where(Page.number == 1).execute()
        seen = dialect().now() - timedelta(seconds=silent_s)
        Attempt.update(seen=seen, array_index=1, host="elsewhere").execute()
        return Attempt.get()


@pytest.fixture
def slurm_says(monkeypatch):
    """Slurm answers so, whenever it is asked; how often it was."""
    said: dict[str, Answer] = {}
    asked: list[float] = []

    def elements(jobs, **_):
        asked.append(1.0)
        return said["answer"]

    monkeypatch.setattr("astra.slurm.client.elements", elements)
    monkeypatch.setattr("astra.slurm.command.available", lambda: "answer" in said)
    said["asked"] = asked  # type: ignore[assignment]
    return said


def answer(state: SlurmState | None) -> Answer:
    return answer_of(Execution(state))


def answer_of(execution: Execution) -> Answer:
    return Answer({("astra-1-x", 1): execution}, queued=frozenset({"astra-1-x"}))


def held_of_three(plan, slurm_says, is_there: bool = True) -> None:
    """Of three elements, the first holds a page and runs, if Slurm is there to say so."""
    held(Submission.get(), plan)
    Submission.update(elements=[1, 2, 3]).execute()
    if is_there:
        slurm_says["answer"] = answer(SlurmState.RUNNING)


class TestLate:
    @pytest.mark.postgres
    def test_who_comes_late_and_finds_nothing_costs_little(self, pg_url):
        plan = plan_of(10, 10)
        submission = pool_of(plan)
        with connection(), writing():
            claim_page(plan, 1, submission, 1, this_process("local", Path()))
            Page.update(free=False).execute()
            # Not overdue, however long the commands below take: nobody stays in its place.
            watched = dialect().now() + timedelta(hours=1)
            Submission.update(watcher=1, watched=watched).execute()
        words = ["--plan", str(plan.pk), "--job", submission.token, "--element", "2"]
        run_page = [sys.executable, "-m", "astra", "run-page", *words]
        subprocess.run(run_page, check=True)  # it compiles what has changed
        bare = [sys.executable, "-c", "import peewee, psycopg2, numpy"]
        late_s, bare_s = (min(cpu_of(words) for _ in range(3)) for words in (run_page, bare))
        assert late_s < 0.3 or late_s < bare_s + 0.1, (late_s, bare_s)
        assert elements() == {1: 1}


def cpu_of(words: list[str]) -> float:
    """Processor time of a command, and of its own children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class TestDeaths:
    """Slurm decides which element has ended; without an answer, a watched heartbeat does."""

    def watcher(self, plan) -> Watcher:
        watcher = Watcher(plan, Submission.get(), 2, Stop())
        watcher.next_query_s = 0.0
        return watcher

    @pytest.fixture
    def plan(self, url, tmp_path, monkeypatch):
        use_lease(1000, tmp_path, monkeypatch)  # however long the test itself takes
        plan = plan_of(10, 10)
        pool_of(plan)
        return plan

    @pytest.mark.parametrize("end", [SlurmState.NODE_FAIL, SlurmState.PENDING])
    def test_a_crashed_node_that_slurm_notices_late(self, plan, slurm_says, end):
        """Its element is silent for a lease while Slurm says RUNNING; then it failed, or waits."""
        attempt = held(Submission.get(), plan)
        slurm_says["answer"] = answer(SlurmState.RUNNING)
        watcher = self.watcher(plan)
        assert watcher._check() is None
        watcher.unchanged[attempt.pk] = (attempt.seen, watcher.checked_s - 1250)
        assert watcher._check() is None and Attempt.get().state == "running"
        watcher.next_query_s = 0.0
        slurm_says["answer"] = answer(end)
        assert watcher._check() is True and Page.get().free

    def test_an_element_that_slurm_ends_is_dead_without_a_heartbeat(self, plan, slurm_says):
        """Where its node has crashed, Slurm calls it COMPLETING until an administrator acts."""
        attempt = held(Submission.get(), plan)
        slurm_says["answer"] = answer(SlurmState.RUNNING)
        watcher = self.watcher(plan)
        assert watcher._check() is None
        watcher.next_query_s = 0.0
        ends = Execution(SlurmState.RUNNING, is_completing=True)
        slurm_says["answer"] = answer_of(ends)
        assert watcher._check() is None  # it may store its results
        watcher.unchanged[attempt.pk] = (attempt.seen, watcher.checked_s - 1250)
        assert watcher._check() is True and Page.get().free

    def test_the_page_of_a_running_element_is_not_taken_over(self, plan, slurm_says):
        """The age of its heartbeat does not matter, since an element may be suspended."""
        attempt = held(Submission.get(), plan, silent_s=1000)
        slurm_says["answer"] = answer(SlurmState.RUNNING)
        watcher = self.watcher(plan)
        assert watcher._check() is None
        watcher.unchanged[attempt.pk] = (attempt.seen, watcher.checked_s - 5000)
        for _ in range(2):  # nobody waits for it either
            assert not watcher._check() and Attempt.get().state == "running"
        assert watcher._check() is False

    @pytest.mark.parametrize("has_time", [True, False])
    def test_elements_that_wait_are_cancelled_while_one_with_time_left_watches(
        self, plan, slurm_says, monkeypatch, has_time
    ):
        """Each would start, find nothing to do, and end; the watcher replaces all of them."""
        held_of_three(plan, slurm_says)
        watcher, cancelled = self.watcher(plan), []

        def cancel(job, waiting_only=False):
            cancelled.append((job.job_id, waiting_only))
            watcher.stop.ask("it was seen")

        monkeypatch.setattr("astra.slurm.client.cancel", cancel)
        assert watcher.wait(now_s() + 1e9 if has_time else now_s() + 0.2) is False
        assert cancelled == ([(7, True)] if has_time else [])
        assert Submission.get().state == ("ended" if has_time else "submitted")

    @pytest.mark.parametrize("is_there", [True, False])
    def test_elements_that_wait_and_cannot_be_cancelled_are_left(
        self, plan, slurm_says, monkeypatch, is_there
    ):
        """As without Slurm's commands in a container. They will find no page, and end."""

        def cancel(*_, **__):
            assert is_there
            raise SlurmError("scancel: Access/permission denied")

        held_of_three(plan, slurm_says, is_there)
        monkeypatch.setattr("astra.slurm.client.cancel", cancel)
        cancel_waiting(Submission.get())
        assert Submission.get().state == "ended"

    @pytest.mark.parametrize("is_ours", [True, False])
    def test_elements_of_a_job_that_was_given_the_number_since_are_not_cancelled(
        self, plan, slurm_says, monkeypatch, is_ours
    ):
        """As where slurmctld has lost its state, while the elements that it had started run on."""
        held_of_three(plan, slurm_says)
        name = Submission.get().job_name if is_ours else "stranger"
        ran = []

        def run(words, *_):
            ran.append(words[0])
            return f"7_2|PENDING|0||None|{name}|x.sh|\n" if words[0] == "squeue" else ""

        monkeypatch.setattr("astra.slurm.client.run", run)
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
        cancel_waiting(Submission.get())
        assert ("scancel" in ran) == is_ours

    @pytest.mark.parametrize("control", ["paused", "cancelled"])
    def test_no_page_is_taken_over_in_a_plan_that_nobody_may_continue(
        self, plan, slurm_says, control
    ):
        held(Submission.get(), plan)
        slurm_says["answer"] = answer(SlurmState.NODE_FAIL)
        Plan.update({control: dialect().now()}).execute()
        assert self.watcher(plan)._check() is False and Attempt.get().state == "running"

    @pytest.mark.parametrize("state", [SlurmState.NODE_FAIL, SlurmState.FAILED, SlurmState.ABSENT])
    def test_whom_slurm_knows_as_ended_is_dead_at_once(self, plan, slurm_says, state):
        held(Submission.get(), plan)
        slurm_says["answer"] = answer(state)
        assert self.watcher(plan)._check() is True
        attempt, page = Attempt.get(), Page.get()
        assert attempt.state == "superseded" and page.free
        assert attempt.slurm_state == (None if state is SlurmState.ABSENT else state.value)

    def test_whom_a_controller_without_its_state_does_not_know_is_dead_without_a_heartbeat(
        self, plan, slurm_says
    ):
        """The accounting calls it cancelled, while the watcher, of the same array, runs."""
        attempt = held(Submission.get(), plan)
        slurm_says["answer"] = answer(SlurmState.RUNNING)
        watcher = self.watcher(plan)
        assert watcher._check() is None
        watcher.next_query_s = 0.0
        slurm_says["answer"] = replace(answer(SlurmState.CANCELLED), queued=frozenset())
        assert watcher._check() is None and Attempt.get().state == "running"
        watcher.unchanged[attempt.pk] = (attempt.seen, watcher.checked_s - 1250)
        assert watcher._check() is True and Page.get().free

    def test_a_page_that_was_withdrawn_is_left_to_a_resume(self, plan, slurm_says):
        """Somebody cancelled its element, which may have hung at one of its rows."""
        held(Submission.get(), plan)
        slurm_says["answer"] = answer(SlurmState.CANCELLED)
        Page.update(free=None).execute()
        assert self.watcher(plan)._check() is False
        assert Attempt.get().state == "running" and Page.get().free is None

    def test_after_an_outage_nobody_looks_dead(self, plan, slurm_says):
        """All heartbeats are old after an outage, but the watcher has not checked them meanwhile."""
        attempt = held(Submission.get(), plan, silent_s=1000)
        watcher = self.watcher(plan)
        assert watcher._check() is None
        watcher.unchanged[attempt.pk] = (attempt.seen, watcher.checked_s - 2000)
        watcher.checked_s -= 1800  # the database was away
        assert watcher._check() is None and Attempt.get().state == "running"

    def test_a_heartbeat_that_stood_still_for_a_lease_is_a_death_without_blame(
        self, plan, slurm_says
    ):
        attempt = held(Submission.get(), plan, silent_s=1)
        watcher = self.watcher(plan)
        assert watcher._check() is None
        watcher.unchanged[attempt.pk] = (attempt.seen, watcher.checked_s - 1100)
        assert watcher._check() is True
        with connection():
            assert not list(Page.get().suspects)

    def test_the_time_that_slurm_takes_not_to_answer_is_no_silence(
        self, plan, slurm_says, monkeypatch
    ):
        """The database may be away meanwhile; afterwards, heartbeats are watched without a gap."""
        held(Submission.get(), plan)
        slurm_says["answer"] = Answer(queue=False)
        watcher = self.watcher(plan)

        def elements(jobs):
            """It takes two leases."""
            watcher.checked_s -= 2000
            watcher.unchanged = {
                pk: (seen, s - 2000) for pk, (seen, s) in watcher.unchanged.items()
            }
            return slurm_says["answer"]

        monkeypatch.setattr("astra.slurm.client.elements", elements)
        assert watcher._check() is None and Attempt.get().state == "running"
        assert watcher.next_query_s - time.monotonic() > watcher.lease_s

    def test_a_page_at_which_elements_run_out_of_memory_waits_for_a_resume(self, plan, slurm_says):
        """The first is taken over, the second is not: the next needs more memory."""
        slurm_says["answer"] = answer(SlurmState.OUT_OF_MEMORY)
        held(Submission.get(), plan)
        assert self.watcher(plan)._check() is True
        with connection(), writing():
            claim_page(plan, 1, Submission.get(), 3, this_process("local", Path()))
            Page.update(free=False).execute()
            Attempt.update(array_index=1).where(Attempt.number == 2).execute()
        watcher = self.watcher(plan)
        assert watcher._check() is None and watcher._check() is False
        assert not Page.get().free

    @pytest.mark.parametrize("place", ["policy", "profiles.careful.policy"])
    @pytest.mark.parametrize("state", [SlurmState.OUT_OF_MEMORY, SlurmState.FAILED])
    def test_a_policy_without_retries_leaves_a_page_to_a_person(
        self, plan, slurm_says, tmp_path, place, state
    ):
        with (file := tmp_path / "astra.toml").open("a") as text:
            text.write(f"[profiles.careful]\ntime = '1:00:00'\n[{place}.{state}]\nretries = 0\n")
        settings.use(settings.load(file))
        Submission.update(profile=json.dumps({"name": "careful"})).execute()
        held(Submission.get(), plan)
        slurm_says["answer"] = answer(state)
        watcher = self.watcher(plan)
        assert watcher._check() is None and watcher._check() is False
        assert not Page.get().free

    def test_slurm_is_asked_rarely(self, plan, slurm_says):
        held(Submission.get(), plan)
        slurm_says["answer"] = answer(SlurmState.RUNNING)
        watcher = self.watcher(plan)
        for _ in range(5):
            watcher._check()
        assert len(slurm_says["asked"]) == 1

    def test_a_pool_has_one_watcher(self, plan, slurm_says):
        held(Submission.get(), plan)
        assert self.watcher(plan)._check() is None
        other = Watcher(plan, Submission.get(), 3, Stop())
        assert other._check() is False

    def test_nobody_leaves_on_the_word_of_a_watcher_that_is_overdue(self, plan, slurm_says):
        """It may have died with the element whose page it watched."""
        held(Submission.get(), plan)
        slurm_says["answer"] = answer(SlurmState.RUNNING)
        watcher = self.watcher(plan)
        for silent_s, says in ((10, False), (30, None), (50, None)):
            watched = dialect().now() - timedelta(seconds=silent_s)
            Submission.update(watcher=3, watched=watched).execute()
            assert watcher._check() is says
            assert Submission.get().watcher == (2 if silent_s == 50 else 3)


@pytest.mark.slurm
@pytest.mark.postgres
def test_on_slurm_a_killed_elements_page_is_done_without_a_resume(
    slurm: Slurm, monkeypatch, tmp_path
):
    use_lease(2, tmp_path, monkeypatch)
    plan = plan_of(40, 20, row_s=0.3)
    submit(plan.pk)
    attempt = running(2, 0)[0]
    kill_element(attempt)
    run_out(slurm)
    assert is_whole(plan)
    with connection():
        dead = Attempt.get_by_id(attempt.pk)
        assert (dead.state, dead.slurm_state) == ("superseded", "FAILED")
        assert Submission.select().count() == 1
