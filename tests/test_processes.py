"""A task finds Python's collector as it expects it, and astra's own commands seldom meet it."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from astra.api import run_here
from astra.models import BossVisitSpectrum
from astra.models.failures import Failure
from astra.plan.plan import create_plan
from tests.conftest import ROOT
from tests.sample_tasks import fill, measure

_TASK = '''
import gc, json
from collections.abc import Iterable

from astra import task
from astra.models import BossVisitSpectrum
from tests.sample_tasks import Measured


class Cycle:
    """What only the collector can take away."""

    def __init__(self, path):
        self.itself, self.path = self, path

    def __del__(self):
        open(self.path, "w").close()


@task
def look(spectra: Iterable[BossVisitSpectrum], seen: str = "") -> Iterable[Measured]:
    for spectrum in spectra:
        Cycle(f"{seen}.{spectrum.spectrum_pk}")
        yield Measured.from_spectrum(spectrum, value=1.0)
    with open(seen, "w") as file:
        json.dump([gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()], file)
'''


@pytest.mark.parametrize("how", [["run"], ["submit", "--local"]])
def test_a_task_runs_as_in_any_process(how, sqlite_url, tmp_path):
    fill(5)
    (tmp_path / "looking.py").write_text(_TASK)
    for name in ("types", "random"):  # Python's own are imported nevertheless
        (tmp_path / f"{name}.py").write_text("1 / 0\n")
    subprocess.run(
        [sys.executable, "-P", "-m", "astra", *how, "looking.look", "--set", f"seen={tmp_path}/seen"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    threshold, n_frozen, enabled = json.loads((tmp_path / "seen").read_text())
    assert tuple(threshold) == gc.get_threshold() and enabled
    assert n_frozen > 10_000  # all that was imported
    # What a task left to the collector is taken away at the latest as the process ends.
    assert all((tmp_path / f"seen.{key}").exists() for key in range(1, 6))


def test_a_process_that_is_not_astras_is_left_as_it_is(sqlite_url, tmp_path):
    fill(3)
    (made,) = create_plan(measure, BossVisitSpectrum)
    before = gc.get_threshold(), gc.get_freeze_count()
    run_here(made.plan)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_command_collects_garbage_rarely(sqlite_url, tmp_path):
    """The collector's runs in a command, beside those of the same one without the entry."""
    told = "import atexit, gc, sys; n = []; gc.callbacks.append(lambda *_: n.append(1)); "
    told += "atexit.register(lambda: print(len(n), file=sys.stderr)); sys.argv[1:] = ['plans']; "
    counts = []
    for begin in ("from astra.__main__ import run; run()", "from astra.cli import main; main()"):
        done = subprocess.run(
            [sys.executable, "-c", told + begin], capture_output=True, text=True, check=True
        )
        counts.append(int(done.stderr.split()[-1]))
    assert counts[0] < counts[1] / 10


def test_the_command_is_the_entry():
    entry = Path(sys.executable).parent / "astra"
    assert "astra.__main__" in entry.read_text()


def test_what_is_printed_is_utf_8_whatever_the_environment_says(sqlite_url):
    fill(1)
    Failure.create(
        task="t", input_table="x", key="1", v_astra_major_minor=0, exception="Bad",
        message="λ Orionis", plan_pk=1, page=1,
    )  # fmt: skip
    create_plan(measure, "BossVisitSpectrum")
    done = subprocess.run(
        [sys.executable, "-m", "astra", "failures", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "λ Orionis" in done.stdout.decode()


@pytest.mark.parametrize("words", [["--help"], ["plans"], ["status", "1"]])
def test_a_full_disk_at_standard_output_is_reported(sqlite_url, words):
    fill(1)
    create_plan(measure, "BossVisitSpectrum")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "astra", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1 and "could not be written: No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
