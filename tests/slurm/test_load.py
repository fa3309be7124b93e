"""What is asked of Slurm's controller, counted by commands on PATH: it is everyone's."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from astra.config import settings
from astra.database.connection import connection
from astra.models.attempts import Attempt
from astra.models.nights import Night
from astra.models.plans import Page, Submission
from astra.models.schema import init_database
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.slurm import command, query_cache
from astra.submit.intent import make_intent, new_submission
from tests.configuration import configure
from tests.conftest import ROOT
from tests.nights import astra, closed, totals
from tests.sample_tasks import Measured, fill, measure

_NAMES = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel")


class Calls:
    """Commands of Slurm's that leave a word of each call, and do as they always did."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.log = folder, folder / "calls"
        folder.mkdir()
        for name in _NAMES:
            self.does(name, f'exec {shutil.which(name)} "$@"')
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def does(self, name: str, what: str) -> None:
        script = self.folder / name
        script.write_text(f"#!/bin/sh\necho {name} >>{self.log}\n{what}\n")
        script.chmod(0o755)

    def count(self) -> Counter:
        """The calls since the last time."""
        found = Counter(self.log.read_text().split()) if self.log.exists() else Counter()
        self.log.unlink(missing_ok=True)
        return found


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Calls:
    return Calls(tmp_path / "counted", monkeypatch)


def fifty_arrays() -> int:
    """A plan of 50 pages, each in an array of its own that Slurm forgot long ago."""
    fill(50)
    (planned,) = create_plan(measure, "BossVisitSpectrum", limit=1)
    plan = get_plan(planned.plan)
    for place, page in enumerate(Page.select().order_by(Page.number)):
        submission = new_submission(plan, [page.number], 0, 1, "slurm")
        submission.state, submission.job_id = "submitted", 800_000 + place
        submission.cluster_name = "test"
        make_intent(submission, [page])
    return plan.pk


@pytest.mark.slurm
@pytest.mark.postgres
def test_status_of_50_arrays_is_one_squeue_and_one_sacct(slurm, calls):
    plan = str(fifty_arrays())
    calls.count()
    words = [sys.executable, "-m", "astra", "status", plan]
    subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
    found = calls.count()
    print("status of 50 arrays:", dict(found))
    # scontrol: which cluster this is, since that a job is absent counts only on its own.
    assert found == {"squeue": 1, "sacct": 1, "scontrol": 1}
    settings.use(settings.Config(slurm=settings.Slurm(retries=0, timeout_s=20)))
    # Without an answer of the accounting there is no call for each array either.
    calls.does("sacct", "echo 'sacct: error: slurm_persist_conn_open: refused' >&2; exit 1")
    subprocess.run([*words, "--json"], cwd=ROOT, capture_output=True, check=False)
    found = calls.count()
    print("the same, without accounting:", dict(found))
    assert found["scontrol"] <= 2 and found["squeue"] <= 1 and found["sacct"] <= 4


_TASK = """
class Out{n}(PipelineOutputModel):
    value = FloatField()


@task
def task_{n}(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Out{n}]:
    for spectrum in spectra:
        yield Out{n}.from_spectrum(spectrum, value=1.0)
"""


def twenty_tasks(folder: Path, monkeypatch) -> str:
    head = (
        "from collections.abc import Iterable\nfrom peewee import FloatField\n"
        "from astra import task\nfrom astra.models import BossVisitSpectrum, PipelineOutputModel\n"
    )
    (folder / "twenty.py").write_text(head + "".join(_TASK.format(n=n) for n in range(20)))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{folder}")
    monkeypatch.syspath_prepend(str(folder))
    init_database(("twenty",))
    names = ", ".join(f'"twenty.task_{n}"' for n in range(20))
    return f"[nights.survey]\nlimit = 10\nconnections = 60\ntasks = [{names}]\n"


@pytest.mark.slurm
@pytest.mark.postgres
def test_a_night_of_20_tasks_calls_slurm_rarely(slurm, tmp_path, monkeypatch, calls):
    """40 elements, of which 30 run at once; each command is called a bounded number of times."""
    configure(tmp_path, twenty_tasks(tmp_path, monkeypatch), monkeypatch)
    fill(20)
    assert json.loads(astra("nightly", "survey", "--json"))["rows"] == 400
    begun = calls.count()
    with connection():
        throttles = [json.loads(s.profile)["throttle"] for s in Submission.select()]
    assert len(throttles) == 20 and sum(throttles) <= 30
    night = closed(slurm)
    finished = calls.count()
    print("a night of 20 tasks:", dict(begun), "its finalizer:", dict(finished))
    assert night.state == "whole" and totals(night).n_done == 400
    assert begun["sbatch"] == 21 and begun["sacct"] == 0
    assert begun["scontrol"] + begun["sinfo"] <= 6
    assert finished["sacct"] <= 2 and finished["scontrol"] <= 3
    # One element of each array asks whose job it is before it cancels those that still wait.
    assert begun["squeue"] + finished["squeue"] <= 20 + 2


@pytest.mark.slurm
@pytest.mark.postgres
def test_a_submit_limit_and_no_slurmdbd_delay_a_night(slurm, tmp_path, monkeypatch):
    """No more than three jobs at once, and the accounting gone as soon as it has begun."""
    text = '[nights.survey]\nlimit = 5\ntasks = [{ task = "tests.sample_tasks.measure", %s }]\n'
    configure(tmp_path, text % 'input_model = "BossVisitSpectrum"', monkeypatch)
    fill(30)
    slurm.set_max_submit(3)
    begun = json.loads(astra("nightly", "survey", "--json"))
    slurm.stop_dbd()
    assert begun["state"] in ("begun", "joined") and begun["finalizer"]
    night = closed(slurm)
    slurm.start_dbd()
    assert (
        night.state == "whole" and totals(night).n_retries == 0 and Measured.select().count() == 30
    )
    with connection():
        assert Night.select().count() == 1 and Attempt.select().count() == 6
        assert not Page.select().where(Page.retries.is_null(False)).exists()


# -------------------------------------------------------------------------- what is kept


def test_an_answer_is_kept_for_some_seconds(monkeypatch, tmp_path):
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        return f"answer {len(asked)}"

    def answer(recent_s: float, *args: str) -> str:
        return query_cache.cached_output(["squeue", *args], "conf", recent_s, ask)

    assert answer(0) == "answer 1" and not (tmp_path / ".cache" / "astra").exists()
    assert [answer(60), answer(60), answer(60, "-j", "7")] == ["answer 2", "answer 2", "answer 3"]
    assert answer(0) == "answer 4"  # who acts upon it asks
    query_cache.forget_all()  # something was submitted
    assert answer(60) == "answer 5"
    for file in (tmp_path / ".cache" / "astra").iterdir():
        os.utime(file, (0, time.time() - 1))
    assert answer(60) == "answer 6" == answer(60)
    # A query of 50 s: the controller is slow, and is asked less often.
    clock = iter([0.0, 50.0])
    with monkeypatch.context() as patch:
        patch.setattr("astra.slurm.query_cache.time.monotonic", lambda: next(clock))
        assert answer(5, "-j", "8") == "answer 7"
    files = list((tmp_path / ".cache" / "astra").iterdir())
    (slow,) = [file for file in files if file.read_text().endswith("\nanswer 7")]
    assert 140 < slow.stat().st_mtime - time.time() <= 150
    # The clock is put back: a file from the future is not used.
    with monkeypatch.context() as patch:
        patch.setattr("astra.slurm.query_cache.time.time", lambda: slow.stat().st_ctime - 100)
        assert answer(5, "-j", "8") == "answer 8"
    # The clock of the file server is an hour ahead of that of this machine.
    now_s = time.time
    monkeypatch.setattr("astra.slurm.query_cache.time.time", lambda: now_s() - 3600)
    assert answer(60, "-j", "9") == "answer 9" == answer(60, "-j", "9")


def test_what_another_cluster_answered_is_not_used(commands, monkeypatch):
    """Two login nodes share the home folder, and each asks the cluster of its own slurm.conf."""
    monkeypatch.delenv("SLURM_CONF", raising=False)
    for host in ("login-a", "login-b", "login-a"):
        commands(squeue=f"echo {host}")
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        assert command.run(["squeue"], recent_s=60) == f"{host}\n"


def test_nobody_else_can_lie_about_jobs(monkeypatch, tmp_path):
    folder = tmp_path / ".cache" / "astra"

    def answer() -> str:
        return query_cache.cached_output(["squeue"], "conf", 60, lambda: "the truth")

    answer()
    (file,) = folder.iterdir()
    (tmp_path / "lie").write_text("0\na lie")
    later = (0, time.time() + 60)
    os.utime(tmp_path / "lie", later)
    file.unlink()
    file.symlink_to(tmp_path / "lie")
    assert answer() == "the truth" and not file.is_symlink()
    assert (tmp_path / "lie").read_text() == "0\na lie"
    file.write_bytes(b"0\n\xff damaged")
    os.utime(file, later)
    assert answer() == "the truth"
    file.write_text("0\na lie")
    os.utime(file, later)
    assert answer() == "a lie"
    folder.chmod(0o777)  # anybody may have written there
    assert answer() == "the truth"
    folder.chmod(0o700)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert answer() == "the truth"


def test_sbatch_is_called_with_pauses(monkeypatch):
    """Those of one plan are as long as slurmctld makes them; between two plans there is one."""
    from astra.slurm import client

    now, pauses = [100.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    def sbatch(lasts_s):
        now[0] += lasts_s
        return "1"

    monkeypatch.setattr("astra.slurm.client.time.sleep", sleep)
    monkeypatch.setattr("astra.slurm.client.time.monotonic", lambda: now[0])
    settings.use(settings.Config(slurm=settings.Slurm(pause_s=10.0)))
    pace, one, other = client._Pace(), Path("plan-1"), Path("plan-2")
    for folder, lasts_s in ((one, 0.01), (one, 0.01), (other, 3.0), (other, 90.0), (other, 0.0)):
        pace.call(folder, lambda lasts_s=lasts_s: sbatch(lasts_s))
    assert pauses[0] == 0 and 0 < pauses[1] < 0.002
    assert 5 <= pauses[2] <= 15 and 4.5 <= pauses[3] <= 13.5 and 15 <= pauses[4] <= 45
