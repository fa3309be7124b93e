"""A folder of pages: one for each plan and night, and an index."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from astra.api import run_here
from astra.cli import show_watch
from astra.cli.group import main
from astra.errors import UsageError
from astra.models.archive import Archive
from astra.models.nights import Night, NightPlan
from astra.models.plans import Plan
from astra.night.dashboard import Dashboard, keep_up_to_date
from astra.plan.plan import create_plan
from tests.conftest import ROOT
from tests.report.browser import chromium, show
from tests.sample_tasks import fill, measure


def planned(n: int = 20, **arguments) -> int:
    fill(n)
    (made,) = create_plan(measure, "BossVisitSpectrum", limit=10, arguments=arguments)
    return made.plan


def a_night(plan: int, **columns) -> Night:
    night = Night.create(
        name="survey",
        date="2026-11-24",
        cwd="/",
        host="here",
        created_by="me",
        **columns,
    )
    NightPlan.create(night=night.pk, task="tests.sample_tasks.measure", plan_pk=plan, n_rows=20)
    return night


def stamps(folder):
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.html")}


def test_pages_are_written_once_and_again_when_something_changed(sqlite_url, tmp_path):
    folder = tmp_path / "www" / "astra"
    dashboard = Dashboard(folder)
    assert dashboard.update().written == []  # of an archive without plans
    first, second = planned(), planned(raise_every=7)
    run_here(first)
    assert set(dashboard.update().written) == {f"plan-{first}.html", f"plan-{second}.html"}
    before = stamps(folder)
    assert Dashboard(folder).update().written == []  # another process finds all of it on the disk
    changed = {name for name, stamp in stamps(folder).items() if stamp != before[name]}
    assert changed == {"index.html"} and {p.name for p in folder.iterdir()} == before.keys()
    run_here(second)
    assert set(dashboard.update().written) == {f"plan-{second}.html"}
    text = (folder / f"plan-{second}.html").read_text()
    assert "Failed rows" in text and f"astra failures {second}" in text
    assert dashboard.update().written == []


def test_a_night_and_its_plan_in_a_browser(sqlite_url, tmp_path):
    plan = planned()
    night = a_night(plan)
    dashboard = Dashboard(tmp_path / "www")
    dashboard.update()
    with chromium() as browser:
        page = show(browser, tmp_path / "www" / "index.html")
        assert page.locator("td b", has_text="not begun").count() == 1
        page.get_by_role("link", name="survey").click()
        assert page.inner_text("h1") == "night survey of 2026-11-24"
        assert page.locator(".next code").first.inner_text() == "astra nights survey --heal"
        page.get_by_role("link", name="all nights and plans").click()
        run_here(plan)
        is_same = Night.pk == night.pk
        Night.update(ended=datetime.now(UTC), state="whole").where(is_same).execute()
        assert f"night-{night.pk}.html" in dashboard.update().written
        page.reload()
        assert page.locator("td b", has_text="whole").count() == 2
        for width in (400, 1400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.errors == []
    assert dashboard.update().written == []


def test_pages_of_what_has_ended_are_kept_for_some_days(sqlite_url, tmp_path):
    old, young, living = planned(), planned(), planned()
    run_here(old)
    run_here(young)
    dashboard = Dashboard(tmp_path / "www")
    dashboard.update()
    page = tmp_path / "www" / f"plan-{old}.html"
    left = tmp_path / "www" / f".{'0a' * 8}"  # of a process that was killed
    left.touch()
    others = tmp_path / "www" / "plan-of-mine.html"
    others.touch()
    ago = datetime.now(UTC) - timedelta(days=31)
    Plan.update(created=ago).where(Plan.pk << [old, living]).execute()
    assert dashboard.update().removed == []  # it changed within thirty days
    for path in (page, left, others, tmp_path / "www" / f"plan-{living}.html"):
        os.utime(path, (ago.timestamp(),) * 2)
    assert set(dashboard.update().removed) == {page.name, left.name}
    assert f"plan-{old}.html" not in (tmp_path / "www" / "index.html").read_text()
    run_here(living)  # it ends when it is old: its page says so, and stays
    assert f"plan-{living}.html" in dashboard.update().written
    assert others.exists() and not page.exists()


def test_a_folder_is_of_one_archive(sqlite_url, tmp_path):
    Dashboard(tmp_path / "www").update()
    Archive.update(identifier="another").execute()
    with pytest.raises(UsageError, match="pages of another archive"):
        Dashboard(tmp_path / "www").update()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be created: File exists; name another"):
        Dashboard(tmp_path / "file").update()


def test_a_plan_without_a_page_hides_no_other(sqlite_url, tmp_path, monkeypatch, capsys):
    broken, good = planned(), planned()
    Plan.update(n_pages=77, input_model="no.such.module:Model").where(Plan.pk == broken).execute()
    from astra.night import dashboard

    real = dashboard.report_of

    def report_of(plans):
        if plans == [broken]:
            raise UsageError("its model is gone")
        return real(plans)

    monkeypatch.setattr(dashboard, "report_of", report_of)
    update = Dashboard(tmp_path / "www").update()
    assert update.problems == [f"plan-{broken}.html cannot be written: its model is gone"]
    assert f"plan-{good}.html" in update.written
    show_watch.pages(update)
    assert update.problems[0] in capsys.readouterr().err
    assert "its model is gone" in (tmp_path / "www" / "index.html").read_text()


@pytest.mark.postgres
def test_the_database_is_away_for_a_while(postgres, pg_url, tmp_path, monkeypatch):
    plan = planned()
    index = tmp_path / "www" / "index.html"
    updates, changed = keep_up_to_date(Dashboard(tmp_path / "www")), []
    for change in (postgres.stop, postgres.restart, lambda: None):
        before = index.exists() and index.stat().st_mtime_ns
        next(updates)
        changed.append(index.stat().st_mtime_ns != before)
        change()
    assert changed == [True, False, True]
    assert (tmp_path / "www" / f"plan-{plan}.html").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(sqlite_url, tmp_path, number):
    planned()
    index = tmp_path / "www" / "index.html"
    words = ["report", "--watch", str(tmp_path / "www"), "--every", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "astra", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert "plan-1.html" in process.stdout.readline()
    added = planned()
    assert f"plan-{added}.html" in process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert {p.suffix for p in index.parent.iterdir()} == {".html"}
    once = CliRunner().invoke(main, [*words[:3], "--once"])
    assert once.exit_code == 0, once.output


@pytest.mark.parametrize(
    "words", [["1", "--watch", "www"], ["--watch", "www", "--json"], ["--once"]]
)
def test_conflicting_options_are_refused(sqlite_url, words):
    wrong = CliRunner().invoke(main, ["report", *words])
    assert wrong.exit_code == 2 and "--watch" in wrong.output
