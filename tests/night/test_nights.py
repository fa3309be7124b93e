"""Nights on a real cluster: begun by one command, and seen to their end by their finalizers."""

import json
import os
import signal
import subprocess
import sys
from datetime import date

import pytest

from astra.config import settings
from astra.database.connection import connection, reset
from astra.errors import ConfigError, SlurmRefused, UsageError
from astra.models.attempts import Attempt, excluded_nodes
from astra.models.nights import Night
from astra.models.plans import Page, Plan, Submission
from astra.night.finalizer import job_name
from astra.night.history import night_of, nights
from astra.night.lock import night_lock
from astra.night.nightly import heal_all, nightly
from tests import forks
from tests.configuration import configure
from tests.conftest import ROOT
from tests.nights import astra, closed, last, totals
from tests.pages import blocks, commands
from tests.sample_tasks import Measured, OfSource, fill
from tests.servers import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]

TWO = """
[nights.survey]
throttle = 20
limit = 50
[[nights.survey.tasks]]
task = "tests.sample_tasks.measure"
input_model = "BossVisitSpectrum"
{more}
[[nights.survey.tasks]]
task = "tests.sample_tasks.on_sources"
after = ["tests.sample_tasks.measure"]
limit = 3
[policy.FAILED]
retries = 2
"""


def test_a_night_is_seen_to_its_end(slurm, tmp_path, monkeypatch):
    """Two tasks run one after the other and an element is killed, without intervention."""
    configure(tmp_path, TWO.format(more="set = { row_s = 0.02 }"), monkeypatch)
    fill(300)
    begun = json.loads(astra("nightly", "survey", "--json"))
    assert begun["state"] == "begun" and begun["rows"] == 300 and begun["finalizer"]

    def at_work() -> bool:
        return Attempt.select().where(Attempt.state == "running").exists()

    wait_for(at_work, "an attempt", 60)
    os.kill(Attempt.select().where(Attempt.state == "running").get().pid, signal.SIGKILL)
    night = closed(slurm)
    logs = "".join(p.read_text() for p in (tmp_path / "runs").glob("night-*/logs/*"))
    assert night.state == "whole", (night.message, logs)
    assert Measured.select().count() == 300 and OfSource.select().count() == 5
    assert (total := totals(night)).n_rows == total.n_done == 305 and total.n_failed == 0
    assert total.task_s > 3 and "Traceback" not in logs
    assert astra("nightly", "survey").strip() == "night survey: nothing new"
    assert astra("nightly", "survey", "--quiet") == ""
    assert Night.select().count() == 1
    found = night_of("survey", date.fromisoformat(night.date))
    assert found == night_of("survey", night.date) == night_of("survey", night.pk)
    assert found.exit_status == 0 and [p.rows for p in found.plans] == [300, 5]
    assert "300 results" not in astra("nights") and "whole" in astra("nights", "survey")
    assert "305 results + 0 failed" in astra("nights", "survey", night.date)
    (page,) = (tmp_path / "runs" / "nights").glob(f"survey-{night.pk}.html")
    assert f"night survey of {night.date}" in page.read_text()
    told = json.loads(astra("report", "survey", night.date, "--json"))
    assert [p["plan"] for p in told["plans"]] == [p.plan for p in found.plans]
    assert "no night" in astra("report", "servey", status=2)
    assert "night 1 of survey: whole" in astra("nightly", "survey", "--continue", "1")
    assert "no night 2 of the name survey" in astra(
        "nightly", "survey", "--continue", "2", status=2
    )


def test_two_at_once_are_one_night_and_a_dead_finalizer_is_replaced(slurm, tmp_path, monkeypatch):
    configure(tmp_path, TWO.format(more="set = { row_s = 0.05 }"), monkeypatch)
    fill(400)
    words = [sys.executable, "-m", "astra", "nightly", "survey", "--json"]
    both = [
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [(process.communicate(), process.returncode) for process in both]
    assert Night.select().count() == 1 and Plan.select().count() == 1, told
    assert 0 in {status for _, status in told} <= {0, 7}, told
    for (_, words_of), status in told:
        assert status == 0 or ("since" in words_of and "works on the night" in words_of)
    night = last()
    slurm.run("scancel", str(night.finalizer_job))
    wait_for(lambda: night_of("survey").state == "without a finalizer", "its end", 60)
    assert "new finalizer" in astra("nights", "--heal")
    assert "every night" in astra("nights", "survey", "--heal")
    assert last().finalizer_job != night.finalizer_job
    assert closed(slurm).state == "whole"
    assert Measured.select().count() == 400 and Night.select().count() == 1


def test_a_held_finalizer_is_replaced_and_leaves_the_queue(slurm, tmp_path, monkeypatch):
    configure(tmp_path, TWO.format(more="set = { row_s = 0.05 }"), monkeypatch)
    fill(200)
    astra("nightly", "survey")
    held = str(last().finalizer_job)
    slurm.run("scontrol", "hold", held)
    wait_for(lambda: night_of("survey").state == "without a finalizer", "its hold", 60)
    assert "new finalizer" in astra("nights", "--heal")
    assert held not in slurm.run("squeue", "-h", "-o", "%i").split()
    assert closed(slurm).state == "whole"


def test_the_holder_is_named_and_its_death_frees_the_night(slurm, tmp_path, monkeypatch):
    """The holder is stopped in the middle of sbatch; killed, it leaves an intent to be cleared."""
    configure(tmp_path, TWO.format(more=""), monkeypatch)
    fill(60)
    stuck = tmp_path / "bin" / "sbatch"
    stuck.parent.mkdir()
    stuck.write_text(f"#!/bin/sh\ntouch {tmp_path}/there\nexec sleep 600\n")
    stuck.chmod(0o755)
    env = {**os.environ, "PATH": f"{stuck.parent}:{os.environ['PATH']}"}
    words = [sys.executable, "-m", "astra", "nightly", "survey"]
    holder = subprocess.Popen(words, cwd=ROOT, env=env, start_new_session=True)
    try:
        wait_for((tmp_path / "there").exists, "the holder at work", 60)
        said = astra("nightly", "survey", status=7)
        assert f"process {holder.pid} of" in said and "since" in said
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
    assert json.loads(astra("nightly", "survey", "--json"))["state"] == "joined"
    assert closed(slurm).state == "whole" and Measured.select().count() == 60
    assert Plan.select().count() == 2 and Night.select().count() == 1


def test_a_finalizers_step_is_waited_for(slurm, tmp_path, monkeypatch):
    """Cron may start a night while people are being notified of the last one."""
    configure(tmp_path, TWO.format(more=""), monkeypatch)
    words = [sys.executable, "-m", "astra", "nightly", "survey"]
    with night_lock("survey", step=True):
        waits = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waits.wait(3)
    assert waits.communicate(timeout=60)[0].strip() == "night survey: nothing new"


def test_what_a_night_leaves_is_taken_up_by_the_next(slurm, tmp_path, monkeypatch):
    """Rows of a broken task are given up; once it is fixed, the next night continues the plan."""
    text = """
[nights.survey]
tasks = [{{ task = "tests.sample_tasks.measure", input_model = "BossVisitSpectrum", profile = "p" }}]
rounds = {rounds}
retry_pause_s = 0
[profiles.p]
extends = "debug"
setup = ["{setup}"]
"""
    configure(tmp_path, text.format(rounds=1, setup="exit 3"), monkeypatch)
    fill(40)
    astra("nightly", "survey")
    night = closed(slurm)
    assert night.state != "whole" and night.round == 1 and "astra status 1" in night.message
    assert night_of("survey").exit_status == 4 and totals(night).n_retries == 1
    configure(tmp_path, text.format(rounds=5, setup="true"), monkeypatch)
    assert json.loads(astra("nightly", "survey", "--json"))["plans"] == [1]
    night = closed(slurm)
    assert night.pk == 2 and night.state == "whole" and Plan.select().count() == 1
    assert Measured.select().count() == 40 and night_of("survey").plans[0].leftover


IDLE = """
[nights.survey]
tasks = [{{ task = "tests.sample_tasks.measure", input_model = "BossVisitSpectrum", profile = "p" }}]
limit = 20
retry_pause_s = 0
rounds = 2
[profiles.p]
extends = "debug"
max_elements = 1
setup = ["test -e {marker} || exit 0"]
"""


def test_pages_that_their_elements_left_unbegun_are_submitted_again(slurm, tmp_path, monkeypatch):
    """As where an element's time is over after some pages: it ends well, and the rest is free."""
    marker = tmp_path / "ready"
    text = IDLE.format(marker=marker).replace("|| exit 0", "|| { echo not ready; exit 0; }")
    configure(tmp_path, text, monkeypatch)
    fill(60)
    astra("nightly", "survey")
    night = closed(slurm)
    assert (
        night.round == 2 and night.state != "whole"
    )  # elements that begin nothing are not repeated for ever
    assert Submission.select().count() == 3
    said = astra("status", "1", status=4)
    assert "astra resume 1 " in said and "astra logs 1 1   shows why" in said
    assert "not ready" in astra("logs", "1", "1")
    marker.touch()
    assert json.loads(astra("nightly", "survey", "--json"))["plans"] == [1]
    night = closed(slurm)
    assert night.pk == 2 and night.state == "whole" and night.round == 0
    assert Measured.select().count() == 60


def test_an_element_without_time_for_a_further_page_costs_no_round(slurm, tmp_path, monkeypatch):
    """Each array has one element, which ends after one page, and each page is done once."""
    (tmp_path / "sitecustomize.py").write_text(
        "from astra.element import page_pool\npage_pool.end_of_element = lambda submission: 0\n"
    )
    text = IDLE.format(marker=tmp_path).replace("rounds = 2", "rounds = 1")
    shorten = f'setup = ["export PYTHONPATH={tmp_path}:$PYTHONPATH", '
    configure(tmp_path, text.replace("setup = [", shorten), monkeypatch)
    fill(60)
    astra("nightly", "survey")
    night = closed(slurm)
    assert night.state == "whole" and night.round == 0 and totals(night).n_retries == 0
    assert Submission.select().count() == 3 and Measured.select().count() == 60


def test_a_plan_whose_pages_all_break_does_not_keep_its_night_open(slurm, tmp_path, monkeypatch):
    """It is paused after ten of them, and nobody would continue it before the morning."""
    text = (
        IDLE.format(marker=tmp_path).replace("measure", "broken").replace("limit = 20", "limit = 1")
    )
    configure(tmp_path, text.replace("max_elements = 1", "throttle = 4"), monkeypatch)
    fill(15)
    astra("nightly", "survey")
    night = closed(slurm)
    assert night.state != "whole" and "plan 1 is paused (the last 10 pages" in night.message
    again = astra("nightly", "survey", status=6)
    assert "astra continue 1" in again and last().pk == 1


@pytest.mark.parametrize(
    ("setup", "whole"), [("test $SLURMD_NODENAME != n1", True), ("false", False)]
)
def test_a_node_on_which_no_element_can_begin(slurm, tmp_path, monkeypatch, setup, whole):
    """Slurm fills it first, again and again, as its elements end at once. Others are tried, too."""
    text = IDLE.format(marker=tmp_path).replace("rounds = 2", "rounds = 5")
    text = text.replace("max_elements = 1", "throttle = 3")
    configure(tmp_path, text.replace("setup = [", f'setup = ["{setup}", '), monkeypatch)
    fill(60)
    astra("nightly", "survey")
    night = closed(slurm)
    assert (night.state == "whole") == whole and Measured.select().count() == (60 if whole else 0)
    assert [e.node for e in excluded_nodes()] == (["n1"] if whole else [])


def test_what_ends_all_elements_for_some_seconds_uses_up_no_more_than_two_retries(
    slurm, tmp_path, monkeypatch
):
    """As a file system that is away: without a pause, no retry would be left when it is back."""
    marker = tmp_path / "ready"
    text = IDLE.format(marker=marker).replace("|| exit 0", "")
    configure(tmp_path, text.replace("retry_pause_s = 0", "retry_pause_s = 8"), monkeypatch)
    fill(60)
    astra("nightly", "survey")
    first = last().finalizer
    wait_for(lambda: last().ended or last().finalizer != first, "the next finalizer", 60)
    assert last().ended is None and Submission.select().count() == 2
    wait_for(lambda: "BeginTime" in slurm.run("squeue", "-ho", "%r"), "its pause", 60)
    marker.touch()
    night = closed(slurm)
    assert night.state == "whole" and night.round == 2 and Submission.select().count() == 3


def test_a_night_that_only_a_person_can_continue_says_so(slurm, tmp_path, monkeypatch):
    """Its elements ask for more time than their partition allows, and so wait for ever."""
    text = IDLE.format(marker=tmp_path).replace("extends =", 'partition = "short"\nextends =')
    configure(tmp_path, text, monkeypatch)
    fill(40)
    astra("nightly", "survey")
    wait_for(lambda: "PartitionTimeLimit" in slurm.run("squeue"), "the reason", 60)
    (listed,), shown = nights("survey"), night_of("survey")
    assert (listed.rows, listed.pending, listed.plans) == (40, 40, ())
    assert shown.state == "running" and shown.message is not None
    assert "astra status 1   shows its pages" in astra("nights", "survey", shown.date, status=3)
    assert "holds 2 of its pages back (PartitionTimeLimit): astra status 1" in shown.message
    assert shown.message in astra("nightly", "survey", status=6)  # cron mails it
    configure(tmp_path, text.replace("rounds = 2", 'running = "leave"'), monkeypatch)
    held, _ = last().finalizer_job, fill(1)
    slurm.run("scontrol", "hold", str(held))
    said = astra("nightly", "survey", status=6)
    assert shown.message in said and "running = 'leave'" in said
    assert Plan.select().count() == 1 and last().finalizer_job > held
    astra("pause", "1")
    assert "plan 1 is paused (by " in str(night_of("survey").message)


def test_a_finalizer_whose_node_cannot_run_it_goes_to_another(slurm, tmp_path, monkeypatch):
    """Slurm sends it where elements end at once, too, when the set-up of all jobs fails there."""
    text = IDLE.format(marker=tmp_path).replace(', profile = "p"', "")
    text = text.replace("rounds = 2", 'profile = "p"').replace("max_elements = 1", "throttle = 3")
    configure(
        tmp_path, text.replace("setup = [", 'setup = ["test $SLURMD_NODENAME != n1", '), monkeypatch
    )
    fill(60)
    astra("nightly", "survey")
    assert closed(slurm).state == "whole" and Measured.select().count() == 60
    logs = "".join(p.read_text() for p in (tmp_path / "runs").glob("night-*/logs/*"))
    assert "n1 cannot run this job" in logs and [e.node for e in excluded_nodes()] == ["n1"]
    (last_script,) = (tmp_path / "runs").glob(f"night-*/astra-night-1-{last().finalizer}.sh")
    assert "#SBATCH --exclude=n1\n" in last_script.read_text()


def test_a_finalizer_that_no_node_can_run_comes_again_later(slurm, tmp_path, monkeypatch):
    """As where the file system that the set-up needs is away from all nodes."""
    marker = tmp_path / "ready"
    text = IDLE.format(marker=marker).replace(', profile = "p"', "").replace("|| exit 0", "")
    configure(tmp_path, text.replace("rounds = 2", 'profile = "p"'), monkeypatch)
    fill(40)
    astra("nightly", "survey")
    finalizers = ["-h", "-n", job_name(last()), "-o", "%i %r"]
    wait_for(lambda: "BeginTime" in slurm.run("squeue", *finalizers), "one that waits", 90)
    assert [night.state for night in nights("survey")] == ["running"]
    assert "every night" in astra("nights", "survey", "--heal")
    shown = str(night_of("survey").message)
    assert "its finalizer could not run on n" in shown
    log = shown.partition("again: ")[2].partition(" says why")[0]
    assert "cannot run this job" in (tmp_path / log).read_text()
    assert "astra nightly survey --continue 1" in astra("nightly", "survey", status=6)
    marker.touch()
    job = slurm.run("squeue", *finalizers).split()[0]
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert closed(slurm).state == "whole" and Measured.select().count() == 40
    assert not night_of("survey").message


def test_a_night_waits_until_its_partition_is_open_again(slurm, tmp_path, monkeypatch):
    """As after a maintenance. Slurm takes no job of it meanwhile; the finalizer is in another."""
    text = IDLE.format(marker=tmp_path).replace(
        "extends =", 'partition = "short"\ntime = 5\nextends ='
    )
    configure(tmp_path, text.replace("rounds = 2", 'finalizer_profile = "general"'), monkeypatch)
    fill(40)
    slurm.run("scontrol", "update", "PartitionName=short", "State=DRAIN")
    try:
        assert "when `sinfo -s` shows the partition as up" in astra("nightly", "survey", status=6)
        first = last().finalizer
        wait_for(lambda: last().ended or last().finalizer != first, "its first finalizer", 60)
    finally:
        slurm.run("scontrol", "update", "PartitionName=short", "State=UP")
    assert last().ended is None
    astra("nightly", "survey", "--continue", str(last().pk))
    night = closed(slurm)
    assert night.state == "whole" and night.round == 0 and Measured.select().count() == 40


def test_a_night_whose_finalizer_is_refused_says_how_to_continue(slurm, tmp_path, monkeypatch):
    text = IDLE.format(marker=tmp_path).replace("extends =", 'partition = "short"\nextends =')
    text = text.replace("rounds = 2", 'finalizer_profile = "p"')
    configure(tmp_path, text.replace('extends = "debug"', "time = 5"), monkeypatch)
    fill(40)
    slurm.run("scontrol", "update", "PartitionName=short", "State=DRAIN")
    try:
        with pytest.raises(SlurmRefused, match=r"shows the partition as up.*--heal"):
            nightly("survey", max_wait_s=0)
    finally:
        slurm.run("scontrol", "update", "PartitionName=short", "State=UP")
    assert "new finalizer" in astra("nights", "survey", "--heal")
    assert closed(slurm).state == "whole" and Measured.select().count() == 40


def test_a_night_whose_run_directory_is_unusable_says_how_to_continue(slurm, tmp_path, monkeypatch):
    configure(tmp_path, IDLE.format(marker=tmp_path), monkeypatch)
    fill(40)
    folder = tmp_path / "no folder"
    folder.touch()
    monkeypatch.setenv("ASTRA_RUN_DIR", str(folder))
    settings.reset()
    with pytest.raises(UsageError, match=r"is not a folder.*the night stays open.*--heal"):
        nightly("survey")
    assert last().finalizer is None
    folder.unlink()
    assert "new finalizer" in astra("nights", "survey", "--heal")
    assert closed(slurm).state == "whole" and Measured.select().count() == 40


def test_what_cannot_be_is_refused_before_anything_is_stored(slurm, tmp_path, monkeypatch):
    fill(5)
    for text, words in (
        ('tasks = ["tests.sample_tasks.mesure"]', "measure"),
        ('tasks = ["tests.sample_tasks.measure"]\nprofile = "gen"', "general"),
        ('tasks = [{ task = "tests.sample_tasks.measure", set = { rows = 1 } }]', "row_s"),
    ):
        configure(tmp_path, f"[nights.survey]\n{text}", monkeypatch)
        assert words in astra("nightly", "survey", status=2)
    assert "'survey'" in astra("nightly", "survei", status=2)
    assert Night.select().count() == Plan.select().count() == 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("tasks = 3", "list of tasks"),
        ("", "has no tasks"),
        ('tasks = ["a"]\nround = 3', "'rounds'"),
        ('tasks = ["a"]\nrunning = "maybe"', "'join' or 'leave'"),
        ('tasks = ["a", "a"]', "twice"),
        ('tasks = [{ task = "a", after = ["b"] }, "b"]', "not listed before"),
        ('tasks = [{ tsk = "a" }]', "'task'"),
        ("tasks = [{ limit = 3 }]", "lacks 'task'"),
        ('tasks = ["a"]\nlimit = true', "whole number"),
        ("tasks = [3]", "3 should be a task's name"),
        ('tasks = [{ task = "a", set = 3 }]', "arguments by their names"),
    ],
)
def test_an_invalid_night_is_reported_with_its_key(tmp_path, text, words):
    (tmp_path / "astra.toml").write_text(f"[nights.x]\n{text}\n")
    with pytest.raises(ConfigError, match=r": \[?\[nights\.x(\.tasks\])?\] ") as error:
        settings.load(tmp_path / "astra.toml")
    assert words in str(error.value)


def test_the_page_about_nights_runs_from_top_to_bottom(slurm, tmp_path, monkeypatch):
    """Its tasks, its configuration and its commands, as they are written."""
    page = ROOT / "docs" / "nights.md"
    (module,), (toml,) = blocks(page, "python"), blocks(page, "toml")
    (tmp_path / "mytasks.py").write_text(module)
    configure(tmp_path, toml, monkeypatch)
    fill(20)
    run = [words for program, *words in commands(page) if program == "astra"]
    evening = run.index(["nights", "survey", "--heal"]) + 1
    for words in run[:evening]:
        _typed(*words)
    assert closed(slurm).state == "whole"
    for words in run[evening:]:
        if words[0] != "cron":  # test_cron.py has a crontab of its own
            _typed(*(last().date if word == "2026-11-24" else word for word in words))
    plans = Plan.select().order_by(Plan.pk)  # of today: kept
    assert [plan.task for plan in plans] == ["slam.slam", "mytasks.quality"]


def _typed(*words: str) -> None:
    """Run a command in a process with this current folder, whose modules it finds."""
    forks.astra(*words).check_returncode()


@pytest.mark.parametrize("accepted, state", [(0.0, "failed rows"), (0.2, "whole")])
def test_failures_beyond_what_a_night_accepts_keep_it_from_being_whole(
    slurm, tmp_path, monkeypatch, accepted, state
):
    text = (
        "[nights.survey]\nlimit = 30\naccept_failures = %g\ntasks = "
        '[{ task = "tests.sample_tasks.measure", input_model = "BossVisitSpectrum", '
        "set = { raise_every = 7 } }]\n"
    )
    configure(tmp_path, text % accepted, monkeypatch)
    fill(30)
    astra("nightly", "survey")
    night = closed(slurm)
    assert ((total := totals(night)).n_done, total.n_failed, night.state) == (26, 4, state)
    (found,) = nights("survey")
    assert found.exit_status == (8 if state == "failed rows" else 0)
    if state == "failed rows":
        assert "4 of 30 rows failed, more than the night accepts" in night.message
        assert "astra failures 1, astra retry 1" in night.message
        assert "since then" not in astra("nights", "survey", str(night.pk), status=8)
        with connection():  # as after a retry without the argument that made them fail
            Page.update(n_done=Page.n_done + Page.n_failed, n_failed=0).execute()
        healed = astra("nights", "survey", str(night.pk), status=8)
        assert "since then, every row has ended, and none failed" in healed


def test_a_night_that_left_the_configuration_is_closed_and_blocks_no_other(
    slurm, tmp_path, monkeypatch
):
    text = (
        "[nights.%s]\nlimit = 30\ntasks = "
        '[{ task = "tests.sample_tasks.measure", input_model = "BossVisitSpectrum" }]\n'
    )
    configure(tmp_path, text % "old", monkeypatch)
    fill(30)
    astra("nightly", "old")
    with connection():  # its finalizer, and that of another night, died
        Night.update(finalizer=None, finalizer_job=None).execute()
        Night.create(name="other", date="2026-01-01", cwd="/", host="h", created_by="u")
    configure(tmp_path, text % "other", monkeypatch)
    reset()
    healed = {night.name: night.state for night in heal_all()}
    assert healed == {"old": "running", "other": "running"}
    wait_for(slurm.idle, "the finalizers", 90)
    with connection():
        assert {night.name: night.state for night in Night.select()} == {
            "old": "whole", "other": "whole"
        }  # fmt: skip
        assert Measured.select().count() == 30
