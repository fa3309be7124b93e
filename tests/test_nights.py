"""Nights on a real cluster: begun by one command, and seen to their end by their finalizers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from astra import config
from astra.database import connection
from astra.errors import ConfigError
from astra.models.orchestration import Attempt, Night, NightPlan, Page, Plan
from tests.conftest import ROOT
from tests.servers import wait_for
from tests.tasks import Measured, OfSource, fill

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]

TWO = """
[nights.survey]
throttle = 20
limit = 50
[[nights.survey.tasks]]
task = "tests.tasks.measure"
input_model = "BossVisitSpectrum"
{more}
[[nights.survey.tasks]]
task = "tests.tasks.on_sources"
after = ["tests.tasks.measure"]
limit = 3
[policy.FAILED]
retries = 2
"""


def write(folder: Path, text: str, monkeypatch) -> Path:
    file = folder / "astra.toml"
    file.write_text(text)
    monkeypatch.setenv("ASTRA_CONFIG", str(file))
    config.reset()
    return file


def astra(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "astra", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout if not status else done.stdout + done.stderr


def last() -> Night:
    with connection():
        return Night.select().order_by(Night.pk.desc()).get()


def closed(slurm) -> Night:
    wait_for(lambda: last().ended is not None, "the end of the night", 150)
    return last()


def test_a_night_is_seen_to_its_end(slurm, tmp_path, monkeypatch):
    """Two tasks, one after the other; an element dies; nobody types anything in between."""
    write(tmp_path, TWO.format(more="set = { row_s = 0.02 }"), monkeypatch)
    fill(300)
    begun = json.loads(astra("nightly", "survey", "--json"))
    assert begun["state"] == "begun" and begun["rows"] == 300 and begun["finalizer"]

    def at_work() -> bool:
        return Attempt.select().where(Attempt.state == "running").exists()

    wait_for(at_work, "an attempt", 60)
    os.kill(Attempt.select().where(Attempt.state == "running").get().pid, signal.SIGKILL)
    night = closed(slurm)
    logs = "".join(p.read_text() for p in (tmp_path / "runs").glob("night-*/logs/*"))
    assert night.whole, (night.message, logs)
    assert Measured.select().count() == 300 and OfSource.select().count() == 5
    assert (night.n_rows, night.n_done, night.n_failed) == (305, 305, 0)
    assert night.task_s > 3 and "Traceback" not in logs
    assert astra("nightly", "survey").strip() == "night survey: nothing new"
    assert astra("nightly", "survey", "--quiet") == ""
    assert Night.select().count() == 1
