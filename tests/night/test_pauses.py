"""How long a night waits where nothing of it runs."""

from datetime import timedelta

import pytest

from astra.database.connection import connection, dialect, writing
from astra.models.nights import Night, NightPlan
from astra.night import nightly as nightly_module
from astra.resume.pause_and_throttle import pause
from tests.nights import a_night, settings_of_tasks
from tests.pools import plan_of


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
        assert nightly_module._advance(Night.get(), settings_of_tasks("measure")).state == "running"
    assert waits == [30, 60, 360, 600]
