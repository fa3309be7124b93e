"""What the commands about nights print for a night that needs somebody."""

import json
from datetime import UTC, datetime

from click.testing import CliRunner

from astra.api import run_here
from astra.cli.group import main
from astra.config.nights import NightSettings, NightTask
from astra.database.connection import connection
from astra.models.nights import Night, NightPlan
from astra.night.nightly import _close
from astra.night.plans import NightStep
from astra.night.totals import refresh_totals
from astra.plan.plan import create_plan
from astra.resume.cancel import cancel
from tests.sample_tasks import fill, measure


def astra(*words: str) -> str:
    return CliRunner().invoke(main, list(words)).output


def test_a_half_failed_night_names_failed_rows_and_the_commands_about_them(url):
    fill(20)
    (failed,) = create_plan(measure, "BossVisitSpectrum", arguments={"raise_every": 7})
    run_here(failed.plan)
    fill(30)
    (left,) = create_plan(measure, "BossVisitSpectrum")
    with connection():
        columns = {"date": "2026-11-24", "cwd": "/", "host": "h", "created_by": "me"}
        sent = {"mail": {"of": "not whole", "at": "2026-11-24 06:00 UTC", "result": "sent"}}
        night = Night.create(name="survey", notified=json.dumps(sent), **columns)
        for plan in failed.plan, left.plan:
            NightPlan.create(night=night.pk, task="measure", plan_pk=plan)
        Night.create(name="other", state="whole", ended=datetime.now(UTC), **columns)
    settings = NightSettings("survey", (NightTask("measure"),))
    closed = _close(night, settings, NightStep(), refresh_totals(night), True)
    assert closed.state == "not whole"
    listed = astra("nights")
    assert f"astra nights survey {night.pk}   shows what to type" in listed
    assert "nights other" not in listed and "next:" not in astra("nights", "--csv")
    shown = astra("nights", "survey", str(night.pk))
    assert "2 of 50 rows failed, more than the night accepts" in shown
    assert "\n  notification by mail: sent (2026-11-24 06:00 UTC)\n" in shown
    assert f"astra failures {failed.plan}   shows which rows failed" in shown
    assert f"astra status {left.plan}   shows its pages" in shown
    cancel(left.plan)
    assert "shows its pages" not in astra("nights", "survey", str(night.pk))
