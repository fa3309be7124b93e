"""A short sweep of seeds, on this machine and on Slurm; python -m tests.faults runs more."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.faults import runner
from tests.faults.cluster import Cluster, served
from tests.faults.scenario import draw
from tests.servers import Slurm

pytestmark = pytest.mark.postgres


def test_seeds_side_by_side():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--first", "21", "--seeds", "2", "--jobs", "2"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok: ") == 2


@pytest.mark.parametrize("seed", [4, 6, 12])
def test_a_seed_on_this_machine(faulty, seed):
    report = runner.run(faulty, draw(seed))
    assert not report.breaches, report


@pytest.fixture(scope="module")
def shared(cluster: Slurm, other_cluster: Slurm) -> Iterator[str]:
    with served(cluster, other_cluster) as socket:
        yield socket


@pytest.mark.slurm
@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_on_slurm(faulty, slurm, shared, seed):
    report = runner.run(faulty, draw(seed, slurm=True), cluster=Cluster(shared, seed))
    assert not report.breaches, report
