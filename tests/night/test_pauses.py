"""How long a night waits where nothing of it runs."""

from datetime import timedelta

import pytest

from astra.database.connection import connection, dialect, writing
from astra.models.attempts import Attempt
from astra.models.nights import Night, NightPlan
from astra.models.plans import Plan
from astra.night import nightly as nightly_module
from astra.night.plans import _pause_left, next_check_s
from astra.resume.pause_and_throttle import pause
from astra.slurm.parse import Answer, Execution
from astra.states import SlurmState
from astra.status.page_states import Pages
from astra.submit.intent import new_submission
from tests.nights import a_night, settings_of_tasks
from tests.pools import array_of, plan_of


@pytest.mark.postgres
def test_a_paused_night_is_looked_at_more_and_more_rarely(pg_url, monkeypatch):
    plan = plan_of(4, 2)
    with connection():
        night = a_night()
        NightPlan.create(night=night.pk, task="tests.sample_tasks.measure", plan_pk=plan.pk)
    pause([plan.pk], "by somebody")
    waits: list[int] = []
    queue = lambda night, settings, step, wait_s: waits.append(wait_s)  # noqa: E731
    monkeypatch.setattr(nightly_module, "queue_finalizer", queue)
    for idle_s in (0, 600, 3600, 10**5):
        with connection(), writing():
            since = dialect().now() - timedelta(seconds=idle_s)
            Night.update(began=since).execute()
            Plan.update(paused=since).execute()
        assert (
            nightly_module._advance(Night.get(), settings_of_tasks("measure"), 0).state == "running"
        )
    assert waits == [30, 60, 360, 600]
    pause([plan.pk])
    with connection():
        assert next_check_s(Night.get()) == 30


def test_what_slurm_refused_is_no_submission_in_which_no_row_ended(url):
    """At a limit of Slurm, the last arrays of a plan are refused, and rows of the first ended."""
    plan = plan_of(40, 10)
    array_of(plan, [1], {1: 1})
    pages = Pages(plan, Answer({("j", 1): Execution(SlurmState.TIMEOUT)}))
    assert 0 < _pause_left(plan, pages, 600) <= 600
    with connection(), writing():
        Attempt.update(n_done=1).execute()
        refused = new_submission(plan, [5], 0, 1, "slurm")
        refused.state = "refused"
        refused.save(force_insert=True)
    pages = Pages(plan, pages.answer)
    assert len(pages.submissions) == 2 and _pause_left(plan, pages, 600) == 0
