"""Each fault by itself: nothing is lost, nothing is done twice, and the plan becomes whole."""

import os

import pytest

from tests.faults import runner
from tests.faults.kinds import KINDS
from tests.faults.scenario import DIRECTED

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("name", DIRECTED)
def test_a_fault_by_itself(faulty, name):
    scenario = DIRECTED[name]
    if scenario.small_disk and faulty.small_disk is None:
        pytest.skip("this machine lets nobody mount a disk")
    report = runner.run(faulty, scenario)
    assert not report.breaches, (report.breaches, report.faults)
    assert all("nobody there" not in told for told in report.faults), report.faults
    assert len(report.faults) == len(scenario.faults) and report.blamed == 0
    if not any(KINDS[fault.kind].repeats for fault in scenario.faults):
        # A signal may cut the row in progress.
        n_in_progress = scenario.jobs if scenario.faults[0].kind == "signal" else 0
        assert report.rows <= report.computed <= report.rows + n_in_progress, report
    assert os.environ.get("SLURMD_NODENAME") is None
