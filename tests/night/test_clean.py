"""Cleaning: what is old and ended goes, and nothing that is needed; the database stays flat."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from astra.api import run_here
from astra.cli import show_nights
from astra.cli.group import main
from astra.config import settings
from astra.config.run_folder import run_folder, spool_folder
from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.nights import Night, NightPlan
from astra.models.plans import Page, Plan
from astra.night.clean import clean
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.resume.resume import _reset, resume_local
from astra.status.logs import logs, text_of
from astra.status.status import status
from astra.submit.intent import plan_lock
from tests.configuration import configure
from tests.conftest import ROOT
from tests.forks import astra
from tests.sample_tasks import Measured, fill, measure


def plan_of(**arguments) -> int:
    (planned,) = create_plan(measure, "BossVisitSpectrum", limit=10, arguments=arguments)
    return planned.plan


def test_old_and_whole_plans_go_and_nothing_else(url, capsys):
    fill(30)
    whole = plan_of(raise_every=7)
    run_here(whole)
    fill(10)
    unfinished = plan_of()
    logs = run_folder(get_plan(whole).folder) / "logs"
    logs.mkdir(parents=True)
    (logs / "1_1.log").write_text("x" * 1000)
    later = datetime.now(UTC) + timedelta(days=91)
    assert clean().plans == ()  # it is of today
    shown = clean(now=later)
    assert shown.plans == (whole,) and shown.pages == 3 and shown.dry_run and shown.mb > 0
    assert "not whole" in shown.kept[0] and str(unfinished) in shown.kept[0]
    show_nights.cleaned(shown)
    assert f"\n  kept: {shown.kept[0]}\nnothing was changed" in capsys.readouterr().out
    with connection():
        assert Plan.select().count() == 2 and logs.is_dir()
        Night.create(name="n", date="2026-01-01", cwd="/", host="h", created_by="u")
        NightPlan.create(night=1, task="t", plan_pk=whole)
    assert "not closed" in clean(now=later).kept[0]  # a night still needs it
    with connection():
        Night.update(ended="2026-01-02 00:00:00", state="whole").execute()
    results = Measured.select().count()
    assert clean(now=later, dry_run=False).plans == (whole,)
    with connection():
        assert [p.pk for p in Plan.select()] == [unfinished] and not logs.parent.exists()
        assert Measured.select().count() == results == 26 and Failure.select().count() == 4
        assert not Attempt.select().exists() and Page.select().count() == 1
        assert Night.select().count() == 1  # its line stays
    database.close()
    (planned,) = create_plan(measure, "BossVisitSpectrum")
    assert planned.plan is None and planned.failed == 4 and planned.held == 10


def test_plans_that_are_in_use_stay(sqlite_url):
    fill(4)
    plan = get_plan(plan_of())
    run_here(plan.pk)
    later = datetime.now(UTC) + timedelta(days=91)
    with connection():
        Attempt.update(state="running").execute()
    assert clean(now=later).kept == ("plan 1 has an attempt that has not ended: astra status 1",)
    with connection():
        Attempt.update(state="done").execute()
    file = spool_folder(plan.folder) / "page-1-attempt-1.spool"
    file.parent.mkdir(parents=True)
    file.touch()
    assert clean(now=later).kept == ("plan 1 has spool files: astra recover 1",)
    file.unlink()
    assert clean(now=later).plans == (1,)
    with connection():  # made long ago, and worked on today
        Plan.update(created=datetime(2020, 1, 1, tzinfo=UTC)).execute()
    assert clean().plans == clean().kept == ()


def test_two_may_clean_at_once(sqlite_url, monkeypatch):
    """One shows what would be removed while the other removes it."""
    fill(4)
    plan = get_plan(plan_of())
    run_here(plan.pk)
    folder = run_folder(plan.folder)
    (folder / "logs").mkdir(parents=True)
    rglob = Path.rglob

    def removed_meanwhile(path, pattern):
        found = list(rglob(path, pattern))
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(Path, "rglob", removed_meanwhile)
    assert clean(now=datetime.now(UTC) + timedelta(days=91)).plans == (plan.pk,)


@pytest.mark.parametrize("removes", [True, False])
def test_a_plan_that_is_retried_meanwhile_stays(url, tmp_path, monkeypatch, removes):
    """It is chosen, and its rows are made pending again before it is locked."""
    configure(tmp_path, "[clean]\ncompress_days = 10\n", monkeypatch)
    fill(30)
    plan = get_plan(plan_of(raise_every=7))
    run_here(plan.pk)
    folder = run_folder(plan.folder)
    folder.mkdir(parents=True, exist_ok=True)

    def locked(chosen):
        _reset(chosen, {1, 2, 3})
        return plan_lock(chosen)

    monkeypatch.setattr("astra.night.clean.plan_lock", locked)
    cleaned = clean(now=datetime.now(UTC) + timedelta(days=91 if removes else 20), dry_run=False)
    assert cleaned.plans == () and folder.is_dir()
    assert status(plan.pk).n_ended == 26
    assert not removes or cleaned.kept == (f"plan {plan.pk} is not whole: astra status {plan.pk}",)


@pytest.mark.parametrize("does", ["removes", "packs"])
def test_a_folder_that_cannot_be_removed_keeps_no_other(sqlite_url, tmp_path, monkeypatch, does):
    """It may be another user's: its plan is kept, and named."""
    fill(30)
    plans, remove = [], shutil.rmtree
    for _ in range(2):
        plans.append(plan_of())
        run_here(plans[-1])
        (run_folder(get_plan(plans[-1]).folder) / "logs").mkdir(parents=True)
        BossVisitSpectrum.update(snr=1.0).execute()
    with connection():
        night = {"name": "n", "date": "d", "cwd": "/", "host": "h", "created_by": "u"}
        night = Night.create(**night, ended="2026-01-02 00:00:00")
    run_folder(night.folder).mkdir()
    others = {run_folder(get_plan(plans[0]).folder), run_folder(night.folder)}
    gone = run_folder(get_plan(plans[1]).folder)

    def refuse(folder):
        if folder in others:
            raise PermissionError(13, "Permission denied", str(folder))
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    if does == "packs":
        (tmp_path / "astra.toml").write_text("[clean]\ncompress_days = 10\n")
        settings.use(settings.load(tmp_path / "astra.toml"))
    later = datetime.now(UTC) + timedelta(days=30 if does == "packs" else 91)
    if does == "removes":
        later += timedelta(days=settings.current().clean.keep_nights_days)
    found = clean(now=later, keep_days=90 if does == "packs" else None, dry_run=False)
    folder = run_folder(get_plan(plans[0]).folder)
    assert any(str(folder) in reason and "Permission" in reason for reason in found.kept)
    if does == "packs":
        assert len(found.compressed) == 1
        return
    assert found.plans == (plans[1],) and any("night-" in reason for reason in found.kept)
    assert (found.pages, found.nights) == (3, ())
    assert found.folders == (str(gone),)
    with connection():
        assert [p.pk for p in Plan.select()] == plans[:1] and Night.select().count() == 1


def test_the_command_shows_before_it_removes(sqlite_url):
    fill(5)
    run_here(plan_of())
    words = ["clean", "--json", "--keep-days", "0"]
    assert "1 plan (1 page, 1 attempt)" in (shown := astra("clean", "--keep-days", "0").stdout)
    assert shown.endswith("would be removed\nnothing was changed; add --yes to do this\n")
    for more, dry in (([], True), (["--yes"], False)):
        done = astra(*words, *more)
        done.check_returncode()
        found = json.loads(done.stdout)
        assert found["plans"] == [1] and found["dry_run"] is dry
    assert not Plan.select().exists() and Measured.select().count() == 5


_PLAN = {
    "task": "t", "task_path": "t", "input_model": "m", "input_table": "m", "output_model": "o",
    "arguments": "{}", "limit": 500, "n_pages": 10, "n_rows": 5000, "v_astra": 8001,
    "created_by": "u", "created_on": "h", "cwd": "/",
}  # fmt: skip
_ATTEMPT = {"submission_pk": 1, "number": 1, "state": "done", "host": "h", "pid": 1}
_NIGHT = {"name": "n", "state": "whole", "cwd": "/", "host": "h", "created_by": "u"}


def a_night_went_by(number: int, at: datetime) -> None:
    """What a night of 10 pages leaves behind."""
    plan = Plan.insert(created=at, **_PLAN).execute()
    first = number * 5000
    pages = [
        {"plan": plan, "number": n, "n_rows": 500, "n_done": 500, "outcomes": b"\1" * 500,
         "keys": list(range(first + n * 500, first + n * 500 + 500)), "modified": at}
        for n in range(1, 11)
    ]  # fmt: skip
    made = [page.pk for page in Page.insert_many(pages).returning(Page.pk).execute()]
    times = {"began": at, "seen": at, "ended": at}
    Attempt.insert_many([{"page": pk, "element": pk, **times, **_ATTEMPT} for pk in made]).execute()
    night = Night.insert(date=f"{at:%Y-%m-%d}", began=at, ended=at, **_NIGHT).execute()
    NightPlan.insert(night=night, task="t", plan_pk=plan, n_rows=5000, has_ended=True).execute()


def test_the_database_stays_flat_over_a_year(pg_url, postgres):
    """365 nights, cleaned each fifteenth night."""
    began, sizes = datetime(2025, 1, 1, 20, tzinfo=UTC), {}
    with connection():
        ((name,),) = database.execute_sql("SELECT current_database()").fetchall()
        for number in range(1, 366):
            at = began + timedelta(days=number)
            with database.atomic():
                a_night_went_by(number, at)
            if number % 15 == 0 or number == 365:
                clean(30, dry_run=False, now=at)
                postgres.sql("VACUUM page", name)
                postgres.sql("VACUUM attempt", name)
            if number in (60, 120, 240, 365):
                ((sizes[number],),) = postgres.sql(f"SELECT pg_database_size('{name}')")
        assert Plan.select().count() == 31  # of the last 30 days, and the day itself
        assert Night.select().count() == 365
    print("database after nights:", {n: f"{size / 1e6:.2f} MB" for n, size in sizes.items()})
    assert sizes[365] < 1.05 * sizes[120], sizes


def test_logs_that_were_packed_before_a_retry_stay(sqlite_url, tmp_path, monkeypatch):
    configure(tmp_path, "[clean]\ncompress_days = 10\n", monkeypatch)
    fill(5)
    plan = plan_of(raise_every=2)
    for n in (1, 2):
        resume_local(plan, failed=True)
        month = datetime.now(UTC) + timedelta(days=30)
        (folder,) = clean(now=month, dry_run=False).compressed
        with tarfile.open(f"{folder}.tar.gz") as tar:
            assert len([name for name in tar.getnames() if name.endswith(".log")]) == n
    printed = [text_of(plan, log) for log in logs(plan)]
    assert ["row 4 is bad" in text for text in printed] == [True, True]


def test_a_process_that_is_killed_while_it_packs_loses_no_log_and_leaves_no_file(
    sqlite_url, tmp_path, monkeypatch
):
    configure(tmp_path, "[clean]\ncompress_days = 10\n", monkeypatch)
    fill(5)
    run_here(plan := plan_of())
    folder = run_folder(get_plan(plan).folder)
    (folder / "logs").mkdir(parents=True)
    for n in range(n_logs := 8000):
        (folder / "logs" / f"{n}.log").write_bytes(os.urandom(1000))
    words = [sys.executable, "-c", "import sys; sys.path.append(sys.argv[1]); " + _CLEANS, ROOT]
    archive = folder.with_name(f"{folder.name}.tar.gz")
    for until in (
        lambda: [*folder.parent.glob(".*")],  # it packs
        lambda: len(os.listdir(folder / "logs")) < n_logs,  # it removes what it has packed
    ):
        with subprocess.Popen(words) as packs:
            while packs.poll() is None and not until():
                time.sleep(0.001)
            packs.kill()
    assert archive.exists() and folder.exists()
    subprocess.run(words, check=True)
    with tarfile.open(archive) as tar:
        assert len([name for name in tar.getnames() if name.endswith(".log")]) == n_logs
    assert [path.name for path in folder.parent.iterdir()] == [archive.name]


_CLEANS = """
from datetime import UTC, datetime, timedelta
from astra.night.clean import clean
clean(now=datetime.now(UTC) + timedelta(days=30), dry_run=False)
"""


def test_logs_are_packed_before_they_go(sqlite_url, tmp_path, capsys):
    fill(5)
    plan = plan_of()
    run_here(plan)
    folder = get_plan(plan).folder
    log = run_folder(folder) / "logs" / "1_1.log"
    log.parent.mkdir(parents=True)
    log.write_text("what it said")
    Attempt.update(log=str(log)).execute()
    printed = CliRunner().invoke(main, ["logs", str(plan), "1"]).output
    assert printed == "what it said"
    (tmp_path / "astra.toml").write_text("[clean]\ncompress_days = 10\n")
    settings.use(settings.load(tmp_path / "astra.toml"))
    week, month = (datetime.now(UTC) + timedelta(days=days) for days in (7, 30))
    assert clean(now=week).compressed == () and clean(now=month).plans == ()
    (shown,) = clean(now=month).compressed
    assert Path(shown).is_dir()
    show_nights.cleaned(packed := clean(now=month, dry_run=False))
    assert packed.compressed == (shown,)
    assert "1 folder of plans that stay was packed" in capsys.readouterr().out
    archive = Path(f"{shown}.tar.gz")
    assert not Path(shown).exists() and archive.stat().st_mode & 0o777 == 0o600
    assert CliRunner().invoke(main, ["logs", str(plan), "1"]).output == printed
    assert CliRunner().invoke(main, ["logs", str(plan), "1", "--follow"]).output == printed
    archive.rename(tmp_path / "elsewhere")
    whole = (tmp_path / "elsewhere").read_bytes()
    for damaged in (
        b"no archive",
        whole[: len(whole) // 2],
        whole[:60] + b"\xff" * 20 + whole[80:],
    ):
        archive.write_bytes(damaged)
        shown = CliRunner().invoke(main, ["logs", str(plan), "1"])
        assert shown.exit_code == 2, (damaged, shown.exception)
        assert f"{archive} cannot be read: " in " ".join(shown.stderr.split())
    archive.unlink()
    gone = CliRunner().invoke(main, ["logs", str(plan), "1"])
    assert (
        gone.exit_code == 2
        and f"is not on this machine, or only its owner may read it: {log}"
        in " ".join(gone.stderr.split())
    )
    (tmp_path / "elsewhere").rename(archive)
    with tarfile.open(archive) as tar:
        assert tar.extractfile(f"{folder}/logs/1_1.log").read() == b"what it said"
    assert clean(now=month, dry_run=False).compressed == ()
    later = datetime.now(UTC) + timedelta(days=100)
    assert clean(now=later, dry_run=False).folders == (str(archive),) and not archive.exists()
