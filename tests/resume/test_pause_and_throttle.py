"""Plans that are paused, throttled and continued while their elements run."""

from datetime import timedelta
from functools import partial

import pytest
from click.testing import CliRunner

from astra.api import run_here
from astra.cli import show
from astra.cli.group import main
from astra.database.connection import connection, dialect
from astra.database.threads import in_background
from astra.element.element import Element
from astra.errors import SlurmRefused, Superseded, UsageError
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.policy.next_steps import ends_of
from astra.results.stopping import Stop
from astra.resume.cancel import cancel
from astra.resume.pause_and_throttle import continue_plans, live_plans, pause, throttle
from astra.resume.refill import withdraw_pages
from astra.resume.resume import resume, resume_local
from astra.slurm.parse import Answer, Execution, parse_squeue
from astra.states import PageState, SlurmState
from astra.status.page_states import Pages
from astra.status.status import status
from astra.submit.submit import Submitted, submit
from tests.nights import run_out
from tests.pools import (
    array_of,
    elements,
    is_whole,
    kill_element,
    plan_of,
    pool_of,
    running,
    states,
)
from tests.sample_tasks import broken
from tests.servers import Slurm, wait_for


def pulled(plan: Plan, submission, element: int) -> list[int]:
    with Element(plan, submission, Stop()) as this:
        return [run.page for run in this.pull(element)]


def test_a_paused_plan_gives_no_page(url):
    plan = plan_of(30, 10)
    submission = pool_of(plan)
    (control,) = pause([plan.pk], "a backup")
    assert control.paused and control.reason == "a backup"
    assert pulled(plan, submission, 1) == []
    assert any("paused" in note and "a backup" in note for note in status(plan.pk).notes)
    assert status(plan.pk).advice[0].startswith(f"astra continue {plan.pk} ")
    assert f"astra continue {plan.pk}" in str(resume_local(plan.pk).message)
    assert continue_plans(live_plans())[0].paused is False
    assert pulled(plan, submission, 1) == [1, 2, 3]
    assert live_plans() == [] and is_whole(plan)
    pause([plan.pk])
    assert status(plan.pk).notes == () and status(plan.pk).advice == ()


def test_a_run_in_the_foreground_ends_when_its_plan_is_paused(sqlite_url, caplog):
    plan = plan_of(30, 10)
    run_here(plan.pk, lambda run: pause([plan.pk], "a backup"))
    assert status(plan.pk).rows == {"done": 10, "unsubmitted": 20}
    assert "a backup" in caplog.text and Submission.get().state == "ended"
    assert status(plan.pk).advice[0].startswith(f"astra continue {plan.pk} ")


def test_a_pause_keeps_failed_rows_from_being_retried_and_says_so(sqlite_url):
    plan = plan_of(30, 10, raise_every=7)
    run_here(plan.pk)
    pause([plan.pk], "a backup")
    assert f"astra continue {plan.pk}" in str(resume_local(plan.pk, failed=True).message)
    assert any("a backup" in note for note in status(plan.pk).notes)
    advice = [line.split("  ")[0] for line in status(plan.pk).advice]
    assert advice == [
        f"astra {verb}"
        for verb in (f"continue {plan.pk}", f"failures {plan.pk}", f"retry {plan.pk} --local")
    ]


def test_an_element_whose_plan_was_removed_ends(url):
    plan = plan_of(30, 10)
    submission = pool_of(plan)
    with Element(plan, submission, Stop()) as this:
        with connection():
            Plan.delete().execute()
        (run,) = this.pull(1)
    assert (run.state, run.exit_status) == ("refused", Superseded.exit_status)
    assert f"plan {plan.pk}, or its submission {submission.token}, is no longer" in run.message


def test_elements_beyond_the_throttle_leave(url):
    plan = plan_of(30, 10)
    submission = pool_of(plan)
    throttle(plan.pk, 1)
    with connection():
        page = Page.get(Page.number == 1)
        other = Attempt.create(
            page=page, submission_pk=submission.pk, number=1, element=1, state="running", host="x",
            pid=1,
        )  # fmt: skip
        Page.update(attempt_pk=other.pk, free=False).where(Page.pk == page.pk).execute()
    watching = in_background(partial(pulled, plan, submission, 2))
    wait_for(lambda: Submission.get().watcher == 2, "one that waits for its turn", 60)
    assert pulled(plan, submission, 3) == []
    assert throttle(plan.pk, 2).running == 1
    assert watching() == [2, 3]
    with pytest.raises(UsageError, match="at least 1"):
        throttle(plan.pk, 0)
    with connection():
        silent = dialect().now() - timedelta(hours=1)
        Attempt.update(seen=silent).where(Attempt.pk == other.pk).execute()
    control = throttle(plan.pk, None)
    assert (control.throttle, control.running) == (None, 0)


def test_a_plan_pauses_when_all_pages_break(url):
    """The limit is [element] max_broken, ten; what broke these pages may break all others."""
    plan = plan_of(24, 2, broken)
    submission = pool_of(plan)
    assert [len(pulled(plan, submission, n)) for n in range(1, 13)] == [1] * 10 + [0] * 2
    assert get_plan(plan.pk).paused is not None
    said = "the last 10 pages that ended are all broken"
    found = status(plan.pk)
    assert any(said in note for note in found.notes)
    first, second, *_ = found.advice  # to continue before the cause is fixed breaks ten more
    assert first.startswith(f"astra logs {plan.pk} 1 ") and "fix it, then astra continue" in first
    assert second.startswith(f"astra continue {plan.pk} ")


def test_what_keeps_one_plan_from_being_submitted_keeps_no_other(url, monkeypatch):
    plans = [plan_of(10, 10).pk for _ in range(3)]
    for plan in plans:
        pool_of(get_plan(plan))
    with connection():
        Submission.update(kind="slurm").execute()
    pause(plans)
    asked = []

    def resume(plan: int) -> Submitted:
        asked.append(plan)
        if plan == plans[0]:
            raise SlurmRefused("Slurm refused: the partition is down")
        return Submitted(plan, "", 1, 10)

    monkeypatch.setattr("astra.resume.pause_and_throttle.resume", resume)
    with pytest.raises(
        SlurmRefused, match=f"plan {plans[0]} is no longer paused.*partition is down"
    ):
        continue_plans(plans)
    assert asked == plans and not any(get_plan(plan).paused for plan in plans)


def test_a_cancelled_plan_has_no_controls(url):
    plan = plan_of(10, 10)
    cancel(plan.pk)
    for control in (lambda: pause([plan.pk]), lambda: continue_plans([plan.pk])):
        with pytest.raises(UsageError, match="cancelled"):
            control()


class TestRefill:
    """Few elements are left of those that were submitted, and would take all free pages."""

    def withdrawn(self, pages: Pages) -> dict[int, int]:
        """The pages that are withdrawn, and how many elements their pool lacks."""
        return {n: refill.missing for refill in withdraw_pages(pages) for n in refill.pages}

    @pytest.fixture
    def left(self, url):
        """The states of a plan whose first element is left, with eight free pages."""
        plan = plan_of(90, 10)
        array_of(plan, [1, 2, 3], {1: 1})

        def pages(*states: SlurmState, reason: str | None = None, queue: str = ""):
            """What Slurm says of each element, and why one waits; or the lines of squeue."""
            executions = {
                ("j", n): Execution(s, reason=reason if s is SlurmState.PENDING else None)
                for n, s in enumerate(states, 1)
            }
            executions |= parse_squeue(queue, {7: ["j"]})
            return Pages(plan, Answer(executions))

        return pages

    def test_their_share_is_submitted_again(self, left):
        pages = left(SlurmState.RUNNING, SlurmState.COMPLETED, SlurmState.COMPLETED)
        assert self.withdrawn(pages) == dict.fromkeys(range(5, 10), 2)
        found = left(SlurmState.RUNNING, SlurmState.COMPLETED, SlurmState.COMPLETED).states
        assert [s.value for s in found] == ["running"] + ["waiting"] * 3 + ["unsubmitted"] * 5

    def test_no_page_is_withdrawn_while_others_wait_or_none_is_left(self, left):
        assert self.withdrawn(left(SlurmState.RUNNING, SlurmState.PENDING)) == {}
        assert self.withdrawn(left(SlurmState.COMPLETED)) == {}

    @pytest.mark.parametrize("order", [1, -1])
    def test_one_that_is_held_keeps_the_pages_from_no_other(self, left, order):
        """Slurm requeued it, and holds it; the one that runs takes all pages that are free."""
        ends = [SlurmState.RUNNING, SlurmState.PENDING, SlurmState.COMPLETED][::order]
        pages = left(*ends, reason="launch failed requeued held")
        assert pages.states[1:] == [PageState.WAITING] * 8 and not pages.held
        assert len(left(SlurmState.PENDING, reason="job requeued in held state").held) == 9
        assert self.withdrawn(pages) == dict.fromkeys(range(5, 10), 2)

    def test_those_that_complete_take_no_page(self, left):
        """The epilog of their nodes may take minutes."""
        runs = "7_1|RUNNING|0|n1|None|j|"
        both = f"{runs}\n7_2|COMPLETING|0|n1|None|j|\n7_3|COMPLETING|0|n1|None|j|"
        assert self.withdrawn(left(queue=both)) == dict.fromkeys(range(5, 10), 2)
        alone = both.replace("RUNNING", "COMPLETING")
        assert left(queue=alone).states == [PageState.RUNNING] + [PageState.UNSUBMITTED] * 8
        with connection():  # its node has crashed
            Attempt.update(seen=dialect().now() - timedelta(hours=1)).execute()
        assert left(queue=alone).states[0] is PageState.LOST
        assert left(queue=runs).states[0] is PageState.RUNNING

    def test_the_throttle_and_a_pause_are_obeyed(self, left):
        throttle(1, 1)
        assert self.withdrawn(left(SlurmState.RUNNING)) == {}
        throttle(1, 2)
        pause([1])
        assert self.withdrawn(left(SlurmState.RUNNING)) == {}
        with connection():
            Plan.update(paused=None).execute()
        assert set(self.withdrawn(left(SlurmState.RUNNING)).values()) == {1}


@pytest.mark.slurm
@pytest.mark.postgres
def test_elements_that_have_left_are_replaced(slurm: Slurm, tmp_path):
    fast = tmp_path / "fast"
    plan = plan_of(600, 60, row_s=0.1, slow_until=str(fast))
    submit(plan.pk, options={"max_elements": 3})
    others = running(3, 0)[1:]
    slurm.run("scancel", *(f"{a.job_id}_{a.array_index}" for a in others))
    wait_for(lambda: states(plan).count(PageState.WAITING) == 9, "the pages of two elements", 60)
    wait_for(lambda: len(slurm.run("squeue", "-hr").splitlines()) == 1, "the end of both", 60)
    done = CliRunner().invoke(main, ["continue", str(plan.pk)])
    assert done.exit_code == 0, done.output
    assert f"plan {plan.pk}: not paused; 1 page running\njob " in done.output
    assert "array 5-6, 6 pages" in done.output and "6 pages submitted" in done.output
    fast.touch()
    run_out(slurm)
    assert is_whole(plan)


@pytest.mark.slurm
@pytest.mark.postgres
def test_a_pool_that_a_limit_cut_grows_when_it_is_lifted(slurm: Slurm, job_limit, tmp_path, capsys):
    """A resume at the limit takes no page from those that run, and one after it adds elements once."""
    fast = tmp_path / "fast"
    plan = plan_of(800, 100, row_s=0.1, slow_until=str(fast))
    job_limit(2)
    submit(plan.pk, options={"throttle": 6})
    running(2, 0)
    made = resume(plan.pk)
    assert (made.pages, resume(plan.pk).unsubmitted) == (0, 4)
    show.submitted(made)
    assert f"\n  not submitted: 4 pages: {made.message}\n" in capsys.readouterr().out
    assert states(plan) == [PageState.RUNNING] * 2 + [PageState.WAITING] * 6
    job_limit(None)
    again = resume(plan.pk)
    assert (again.pages, again.jobs[0].array) == (4, "5-8")
    running(6, 0)
    assert resume(plan.pk).pages == 0
    fast.touch()
    run_out(slurm)
    assert is_whole(plan)


@pytest.mark.slurm
@pytest.mark.postgres
def test_pages_that_a_limit_left_are_continued_as_before_it(slurm: Slurm, job_limit):
    """What ended their elements is not forgotten, and uses up a retry only when they are submitted."""
    plan = plan_of(30, 10, row_s=600)
    submit(plan.pk, options={"pull": False})
    for attempt in running(3, 0):
        kill_element(attempt)
    wait_for(slurm.idle, "the end of all elements", 60)
    job_limit(1)
    done = resume(plan.pk, options={"hold": True})
    assert (done.pages, done.unsubmitted) == (1, 2)
    assert [state is PageState.LOST for state in states(plan)] == [False, True, True]
    (step,) = status(plan.pk).steps
    assert step.pages == (2, 3) and step.state == "FAILED" and "retry 1 of" in step.explanation
    job_limit(None)
    assert resume(plan.pk, options={"hold": True}).pages == 2
    with connection():
        assert [len(ends_of(page)) for page in Page.select()] == [1] * 3


@pytest.mark.slurm
@pytest.mark.postgres
def test_elements_end_with_their_page_and_others_go_on_later(slurm: Slurm, tmp_path):
    fast = tmp_path / "fast"
    plan = plan_of(3600, 600, row_s=0.1, slow_until=str(fast))
    submit(plan.pk, options={"throttle": 2})
    running(1, 0)
    pause([plan.pk], "maintenance")
    fast.touch()
    run_out(slurm)
    stood = states(plan)
    assert set(stood) == {PageState.DONE, PageState.UNSUBMITTED}
    assert "paused" in str(resume(plan.pk).message) and "paused" in str(submit(plan.pk).message)
    (advice,) = status(plan.pk).advice
    assert advice.startswith(f"astra continue {plan.pk} ")
    (control,) = continue_plans([plan.pk])
    assert control.submitted.pages == stood.count(PageState.UNSUBMITTED)
    run_out(slurm)
    assert is_whole(plan) and elements().total() == 6


@pytest.mark.slurm
@pytest.mark.postgres
def test_a_pause_uses_up_no_retry_of_pages_that_had_not_begun(slurm: Slurm):
    """Elements without a pool are turned away and end; each page is then as if not submitted."""
    plan = plan_of(30, 10)
    (job,) = submit(plan.pk, options={"pull": False, "hold": True, "time": "7"}).jobs
    pause([plan.pk])
    slurm.run("scontrol", "release", str(job.job_id))
    run_out(slurm)
    assert states(plan) == [PageState.UNSUBMITTED] * 3
    (control,) = continue_plans([plan.pk])
    assert control.submitted.pages == 3
    slurm.run("scontrol", "release", str(control.submitted.jobs[0].job_id))
    run_out(slurm)
    assert is_whole(plan) and elements().total() == 3
    with connection():
        assert [page.retries for page in Page.select()] == [None] * 3
        assert [s.options["time"] for s in Submission.select()] == ["7"] * 2
