"""Plans that are paused, throttled and continued while their elements run."""

from datetime import timedelta
from functools import partial

import pytest

from astra.database.connection import connection, dialect
from astra.database.threads import in_background
from astra.element.element import Element
from astra.errors import UsageError
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.results.stopping import Stop
from astra.resume.cancel import cancel
from astra.resume.controls import continue_plans, live_plans, pause, throttle
from astra.resume.resume import resume, resume_local
from astra.states import PageState
from astra.status.status import status
from astra.submit.submit import submit
from tests.nights import run_out
from tests.pools import elements, is_whole, plan_of, pool_of, running, states
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
    with pytest.raises(UsageError, match="astra continue"):
        resume_local(plan.pk)
    assert continue_plans(live_plans())[0].paused is False
    assert pulled(plan, submission, 1) == [1, 2, 3]
    assert live_plans() == [] and is_whole(plan)
    pause([plan.pk])
    assert status(plan.pk).notes == () and status(plan.pk).advice == ()


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
    wait_for(lambda: Submission.get().watcher == 2, "one that waits for its turn", 20)
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
    """Ten, as [element] max_broken says; what broke them may break all others."""
    plan = plan_of(24, 2, broken)
    submission = pool_of(plan)
    assert [len(pulled(plan, submission, n)) for n in range(1, 13)] == [1] * 10 + [0] * 2
    assert get_plan(plan.pk).paused is not None
    said = "the last 10 pages that ended are all broken"
    assert any(said in note for note in status(plan.pk).notes)


def test_a_cancelled_plan_has_no_controls(url):
    plan = plan_of(10, 10)
    cancel(plan.pk)
    for control in (lambda: pause([plan.pk]), lambda: continue_plans([plan.pk])):
        with pytest.raises(UsageError, match="cancelled"):
            control()


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
    assert "paused" in str(resume(plan.pk).message)
    (control,) = continue_plans([plan.pk])
    assert control.submitted.pages == stood.count(PageState.UNSUBMITTED)
    run_out(slurm)
    assert is_whole(plan) and elements().total() == 6
