"""Each fault by itself: nothing is lost, nothing is done twice, and the plan becomes whole."""

import os

import pytest

from tests.faults import runner
from tests.faults.scenario import DIRECTED

pytestmark = pytest.mark.postgres


#: Faults that cost what was not stored yet, or change what is to be computed; after any other, no
#: row is computed again. A signal may cut the row in hand.
_LOSES = {"kill child", "kill parent", "zombie", "modify"}


@pytest.mark.parametrize("name", DIRECTED)
def test_a_fault_by_itself(faulty, name):
    scenario = DIRECTED[name]
    report = runner.run(faulty, scenario)
    assert not report.breaches, (report.breaches, report.faults)
    assert all("nobody there" not in told for told in report.faults), report.faults
    assert len(report.faults) == len(scenario.faults) and report.blamed == 0
    if scenario.faults[0].kind not in _LOSES:
        in_hand = scenario.jobs if scenario.faults[0].kind == "signal" else 0
        assert report.rows <= report.computed <= report.rows + in_hand, report
    assert os.environ.get("SLURMD_NODENAME") is None
