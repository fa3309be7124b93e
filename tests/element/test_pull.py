"""Elements that take pages as long as there are any."""

import json
import os
import signal
import threading
from pathlib import Path

import peewee
import pytest
from peewee import PostgresqlDatabase
from psycopg2.extensions import parse_dsn

from astra.database.connection import connection, database, writing
from astra.database.postgresql import PostgreSQL
from astra.element.claiming import claim_page, this_process
from astra.element.element import Element, run_element
from astra.element.page_pool import end_of_element, take_page
from astra.models.attempts import Attempt, Suspect
from astra.models.plans import Page, Submission
from astra.plan.pages import PageStatus, give_back
from astra.processes import process_start_s
from astra.results.stopping import Stop
from astra.resume.cancel import cancel
from astra.resume.resume import resume, resume_local
from astra.slurm import client
from astra.slurm.parse import JobId
from astra.states import PageState
from astra.status.page_states import current_pages
from astra.submit.submit import submit
from tests.configuration import configure
from tests.nights import run_out
from tests.pools import elements, is_whole, plan_of, pool_of, running, states
from tests.sample_tasks import broken
from tests.servers import Slurm, wait_for


def lose_answer(monkeypatch: pytest.MonkeyPatch, nth: int) -> list[int | None]:
    """Lose the answer to the n-th claim, which was committed; return the claimed pages."""
    numbers: list[int | None] = []

    def claimed(*arguments):
        claim = claim_page(*arguments)
        numbers.append(claim and claim.page.number)
        if len(numbers) == nth:
            raise peewee.OperationalError("server closed the connection unexpectedly")
        return claim

    monkeypatch.setattr("astra.element.element.claim_page", claimed)
    return numbers


class TestClaims:
    def test_its_own_page_first_then_the_largest(self, url):
        plan = plan_of(35, 10)
        submission = pool_of(plan)
        with connection(), writing():
            Page.update(n_rows=30).where(Page.number == 4).execute()
            taken = [take_page(submission, 2) for _ in range(5)]
        assert taken == [2, 4, 1, 3, None]

    @pytest.mark.postgres
    def test_a_page_that_is_being_taken_is_waited_for(self, pg_url):
        """The element that is taking the page may fail, so another one waits for it."""
        plan = plan_of(20, 10)
        submission, taken = pool_of(plan), []

        def take() -> None:
            with connection(), writing():
                taken.append(take_page(submission, 2))
            with connection(), writing():
                taken.append(take_page(submission, 2))

        other = PostgresqlDatabase(pg_url)
        other.execute_sql("BEGIN")
        other.execute_sql("UPDATE page SET free = false WHERE number = 1")
        taker = threading.Thread(target=take)
        taker.start()
        try:
            wait_for(lambda: taken == [2], "the page that nobody else takes", 20)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            wait_for(lambda: database.execute_sql(waiting).fetchone()[0], "a lock", 20)
        finally:
            other.rollback()
            other.close()
            taker.join()
        assert taken == [2, 1]

    @pytest.mark.postgres
    @pytest.mark.parametrize("nth", [1, 3])
    def test_a_page_whose_claim_was_not_acknowledged_is_run_all_the_same(
        self, pg_url, monkeypatch, nth
    ):
        """The server committed the claim and died before it answered: no other element runs the page."""
        plan, stop = plan_of(40, 10), Stop()
        numbers = lose_answer(monkeypatch, nth)
        timer = threading.Timer(30, stop.ask, ["it waits for itself"])
        timer.start()
        with Element(plan, pool_of(plan), stop) as this:
            runs = this.pull(1)
        timer.cancel()
        assert is_whole(plan) and [run.done for run in runs] == [10] * 4
        assert numbers[nth - 1] == numbers[nth] and stop.reason == ""
        with connection():
            assert {s.deaths for s in Suspect.select()} == set()

    @pytest.mark.postgres
    def test_the_same_where_each_element_has_its_pages(self, pg_url, monkeypatch):
        plan = plan_of(10, 10)
        lose_answer(monkeypatch, 1)
        with Element(plan, pool_of(plan), Stop()) as this:
            run = this.run_page(1, 1)
            again = this.run_page(1, 1)
        assert run is not None and run.done == 10 and is_whole(plan)
        assert again == run and elements() == {1: 2}  # the page had ended: no third attempt

    def test_a_page_that_is_released_as_its_element_returns_is_not_free_any_more(self, url):
        """A watcher released the page between the query for its number and the claim."""
        plan = plan_of(20, 10)
        submission = pool_of(plan)
        with connection():
            assert claim_page(plan, 1, submission, 1, this_process("local", Path())) is not None
            assert [page.free for page in Page.select().order_by(Page.number)] == [False, True]

    def test_one_element_takes_all_pages(self, url):
        plan = plan_of(50, 10)
        with Element(plan, pool_of(plan), Stop()) as this:
            runs = this.pull(3)
        assert [run.page for run in runs] == [3, 1, 2, 4, 5]
        assert is_whole(plan) and elements() == {3: 5}

    def test_no_page_is_begun_that_the_time_does_not_suffice_for(self, url, monkeypatch):
        plan = plan_of(30, 10)
        monkeypatch.setattr("astra.element.element.end_of_element", lambda submission: 1)
        with Element(plan, pool_of(plan), Stop()) as this:
            assert [run.page for run in this.pull(1)] == [1]
            assert [run.page for run in this.pull(2)] == [2]

    @pytest.mark.parametrize(
        "time, warning, time_s",
        [
            ("02:00:00", "B:USR1@120", 7080), ("90", "B:TERM", 5340), (10, None, 600),
            ("0", "B:USR1@120", None), ("0-0", None, None), ("UNLIMITED", "B:TERM", None),
        ],
    )  # fmt: skip
    def test_the_time_is_what_slurm_makes_of_the_options(self, sqlite_url, time, warning, time_s):
        """A limit of 0 is none, and a warning without a time comes a minute before the limit."""
        submission = pool_of(plan_of(10, 10))
        submission.profile = json.dumps({"options": {"time": time, "signal": warning}})
        begins_s = process_start_s(os.getppid())
        assert end_of_element(submission) == (time_s and pytest.approx(begins_s + time_s))

    def test_the_end_that_slurm_gives_an_element_counts_more_than_the_options(
        self, sqlite_url, monkeypatch
    ):
        """With --time-min, Slurm shortens the time of a job that so begins earlier."""
        submission = pool_of(plan_of(10, 10))
        submission.profile = json.dumps({"options": {"time": 90, "signal": "B:TERM@20"}})
        monkeypatch.setenv("SLURM_JOB_START_TIME", "1000000")  # by the clock of slurmctld
        monkeypatch.setenv("SLURM_JOB_END_TIME", "1000060")
        begins_s = process_start_s(os.getppid())
        assert end_of_element(submission) == begins_s + 5400 - 20
        submission.kind = "slurm"
        assert end_of_element(submission) == begins_s + 60 - 20

    def test_an_interrupted_page_goes_back_with_what_it_has(self, url, tmp_path):
        computed, fast = tmp_path / "computed", tmp_path / "fast"
        plan = plan_of(40, 20, row_s=0.5, slow_until=str(fast), computed=str(computed))
        submission, stop = pool_of(plan), Stop()

        def interrupt() -> None:
            wait_for(computed.exists, "the first row", 60)
            stop.ask("the time is over")

        thread = threading.Thread(target=interrupt)
        thread.start()
        with Element(plan, submission, stop) as this:
            (run,) = this.pull(1)
        thread.join()
        fast.touch()
        assert run.state == "interrupted" and 0 < run.done < 20
        assert states(plan) == [PageState.WAITING] * 2
        with Element(plan, submission, Stop()) as this:
            runs = this.pull(2)
        assert [run.done for run in runs] == [20, 20]
        assert is_whole(plan) and elements() == {1: 1, 2: 2}

    @pytest.mark.postgres
    def test_a_page_that_an_outage_ended_is_continued_with_what_was_spooled(
        self, pg_url, postgres, tmp_path, monkeypatch
    ):
        configure(tmp_path, "[database]\nretry_for_s = 0.5\n", monkeypatch)
        monkeypatch.setattr("astra.element.reader.CHUNK_ROWS", 3)
        computed, fast = tmp_path / "computed", tmp_path / "fast"
        plan = plan_of(20, 10, row_s=0.3, slow_until=str(fast), computed=str(computed))
        submission, over = pool_of(plan), threading.Event()

        def close() -> None:
            wait_for(
                lambda: computed.exists() and len(computed.read_text().split()) > 3, "rows", 60
            )
            with postgres.closed_database(parse_dsn(pg_url)["dbname"]):
                over.wait(60)

        outage = threading.Thread(target=close)
        outage.start()
        with Element(plan, submission, Stop()) as this:
            (run,) = this.pull(1)
        over.set()
        outage.join()
        fast.touch()
        assert "are kept in" in (run.message or "")
        with Element(plan, submission, Stop()) as this:
            assert sorted(run.page for run in this.pull(2)) == [1, 2]
        assert is_whole(plan) and len(computed.read_text().split()) == 20

    def test_a_page_that_no_element_has_the_time_for_does_not_cost_the_time_of_all(self, url):
        plan = plan_of(10, 10)
        submission = pool_of(plan)
        for element, is_free in ((1, True), (2, False)):
            with connection():
                claim = claim_page(plan, None, submission, element, this_process("local", Path()))
                assert claim is not None
                Attempt.update(state="interrupted").where(Attempt.element == element).execute()
                give_back(claim.page)
                assert Page.get().free == is_free
        assert states(plan) == [PageState.INTERRUPTED]

    def test_an_element_that_breaks_a_page_takes_no_other(self, url):
        plan = plan_of(50, 10, broken)
        with Element(plan, pool_of(plan), Stop()) as this:
            runs = this.pull(1)
        assert [(run.page, run.state) for run in runs] == [(1, "broken")]
        with connection():
            assert Page.select().where(Page.free).count() == 4


class TestLocal:
    def test_two_processes_share_the_pages(self, url):
        plan = plan_of(60, 10, row_s=0.02)
        resume_local(plan.pk, 2)
        assert is_whole(plan) and set(elements()) <= {1, 2} and elements().total() == 6

    def test_another_element_continues_an_interrupted_page(self, pg_url, tmp_path):
        fast = tmp_path / "fast"
        plan = plan_of(6000, 1000, row_s=0.05, slow_until=str(fast))

        def interrupt() -> None:
            os.kill(running(2, 0)[0].pid, signal.SIGTERM)
            wait_for(lambda: len(elements()) == 3, "a third element", 60)
            fast.touch()

        thread = threading.Thread(target=interrupt)
        thread.start()
        done = resume_local(plan.pk, 2)
        thread.join()
        assert "failed" in (done.message or "")
        assert is_whole(plan) and len(elements()) == 3


@pytest.mark.slurm
@pytest.mark.postgres
class TestSlurm:
    def test_few_elements_run_many_pages(self, slurm: Slurm):
        """Those that wait when all pages have ended are cancelled; none ran a page twice."""
        plan = plan_of(300, 10, row_s=0.01)
        assert submit(plan.pk, options={"throttle": 2}).jobs[0].array == "1-30%2"
        run_out(slurm)
        assert is_whole(plan) and elements().total() == 30 and len(elements()) < 15
        with connection():
            assert [s.state for s in Submission.select()] == ["ended"]
            own = Attempt.select().join(Page).where(Page.number == Attempt.element)
            assert own.count() >= 1

    def test_fewer_elements_than_pages_run_all_of_them(self, slurm: Slurm):
        """Each array has its share of them, and pages beyond the last element are no less safe."""
        plan = plan_of(200, 10, row_s=0.001)
        done = submit(plan.pk, options={"max_elements": 3, "hold": True})
        assert [(job.array, job.pages) for job in done.jobs] == [("1-3%200", 20)]
        assert states(plan) == [PageState.WAITING] * 20
        slurm.run("scancel", str(done.jobs[0].job_id))
        wait_for(lambda: PageState.WAITING not in states(plan), "the end of the array", 60)
        resume(plan.pk, only=["CANCELLED"], options={"max_elements": 2, "hold": False})
        run_out(slurm)
        assert is_whole(plan) and elements().total() == 20 and set(elements()) <= {1, 2}

    @pytest.mark.parametrize("options", [{"pull": False}, {"pages_per_element": 1}])
    def test_without_pull_each_element_runs_its_own_page(self, slurm: Slurm, options):
        plan = plan_of(30, 10)
        submit(plan.pk, options=options)
        run_out(slurm)
        assert is_whole(plan) and elements() == {1: 1, 2: 1, 3: 1}

    def test_a_page_is_taken_from_the_pool(self, slurm: Slurm):
        """A free page of a living pool waits, and no element of it is ended for it."""
        plan = plan_of(30, 10)
        submit(plan.pk, options={"hold": True})
        assert states(plan) == [PageState.WAITING] * 3
        assert cancel(plan.pk, 2).pages == (2,)
        assert states(plan) == [PageState.WAITING, PageState.UNSUBMITTED, PageState.WAITING]
        assert resume(plan.pk).pages == 1
        cancel(plan.pk)

    def test_an_element_that_hangs_before_its_first_page_is_seen_and_cancelled(
        self, slurm: Slurm, tmp_path, monkeypatch
    ):
        going_on = tmp_path / "going_on"
        wait = f"[ $SLURM_ARRAY_TASK_ID = 1 ] || until [ -e {going_on} ]; do sleep 0.1; done"
        configure(tmp_path, f"[profiles.general]\nsetup = ['{wait}']\n", monkeypatch)
        plan = plan_of(60, 20, row_s=30, slow_until=str(going_on))
        (job,) = submit(plan.pk).jobs

        def second() -> PageStatus:
            return current_pages(plan)[1]

        running(1, 0)
        wait_for(lambda: second().slurm_state == "RUNNING", "the set-up of the element", 60)
        assert (second().state, second().job) == (PageState.WAITING, f"{job.job_id}_2")
        assert second().node is not None
        done = cancel(plan.pk, 2)
        assert (done.jobs, done.pages) == ((f"{job.job_id}_2",), (2,))
        element = JobId(job.job_id or 0)
        wait_for(
            lambda: client.elements([element]).of(job.job_id, 2).state == "CANCELLED",
            "the end of the element",
            60,
        )
        assert states(plan)[1] is PageState.UNSUBMITTED
        going_on.touch()
        assert resume(plan.pk).pages == 1
        run_out(slurm)
        assert is_whole(plan)

    def test_cancelling_a_page_ends_the_element_that_took_it(self, slurm: Slurm):
        """No other element takes the page."""
        plan = plan_of(60, 30, row_s=0.2)
        submit(plan.pk, options={"throttle": 1})
        (attempt,) = running(1, 0)
        with connection():
            number = attempt.page.number
        assert cancel(plan.pk, number).pages == (number,)
        run_out(slurm)
        expected = [PageState.UNSUBMITTED if n == number else PageState.DONE for n in (1, 2)]
        assert states(plan) == expected
        resume(plan.pk)
        run_out(slurm)
        assert is_whole(plan)

    def test_the_page_of_a_requeued_element_stays_in_the_pool(self, slurm: Slurm, tmp_path):
        fast = tmp_path / "fast"
        plan = plan_of(600, 300, row_s=0.1, slow_until=str(fast))
        submit(plan.pk, options={"throttle": 1})
        (attempt,) = running(1, 0)
        slurm.run("scontrol", "requeue", f"{attempt.job_id}_{attempt.array_index}")
        wait_for(lambda: _state_of(attempt) != "running", "the end of the attempt", 60)
        assert _state_of(attempt) == "interrupted"
        assert set(states(plan)) <= {PageState.WAITING, PageState.RUNNING}
        assert resume(plan.pk).pages == 0
        fast.touch()
        run_out(slurm)
        assert is_whole(plan)
        with connection():
            assert Attempt.select().where(Attempt.page == attempt.page).count() == 2

    def test_an_element_that_waits_again_is_cancelled_when_all_pages_have_ended(
        self, slurm: Slurm, tmp_path
    ):
        """Every element has begun; one was requeued and held, and another runs its page."""
        fast = tmp_path / "fast"
        plan = plan_of(600, 300, row_s=0.1, slow_until=str(fast))
        submit(plan.pk)
        attempt = running(2, 0)[0]
        slurm.run("scontrol", "requeuehold", f"{attempt.job_id}_{attempt.array_index}")
        wait_for(lambda: _state_of(attempt) == "interrupted", "the end of the attempt", 60)
        fast.touch()
        run_out(slurm)
        assert is_whole(plan)

    def test_free_pages_of_a_dead_pool_are_submitted_again(self, slurm: Slurm):
        plan = plan_of(40, 10, broken)
        submit(plan.pk, options={"throttle": 1})
        run_out(slurm)
        assert states(plan) == [PageState.BROKEN] * 4


def _state_of(attempt: Attempt) -> str:
    with connection():
        return Attempt.get_by_id(attempt.pk).state


@pytest.mark.postgres
def test_a_page_waits_for_a_connection_before_its_task_is_imported(pg_url, monkeypatch):
    """Whoever made the plan is looked up after the claim, when a server may have no room."""
    plan = plan_of(5, 5)
    refusals = iter([peewee.OperationalError('FATAL:  too many connections for role "astra"')])
    look_up = PostgreSQL.session_role

    def session_role(dialect):
        for refusal in refusals:
            raise refusal
        return look_up(dialect)

    monkeypatch.setattr(PostgreSQL, "session_role", session_role)
    (outcome,) = run_element(plan.pk, 1, pool_of(plan).token)
    assert next(refusals, None) is None and outcome.state == "done"
    assert is_whole(plan)
