"""A short sweep of seeds, on this machine and on Slurm; python -m tests.faults runs more."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.postgres


def sweep(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_seeds_on_this_machine():
    assert sweep("--seeds", "12", "--jobs", "2").count(": ok: ") == 12


@pytest.mark.slurm
def test_seeds_on_slurm():
    assert sweep("--seeds", "2", "--slurm").count(": ok: ") == 2
