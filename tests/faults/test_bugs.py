"""The judge can fail: each deliberate bug is found by the fault that it does not stand."""

import pytest

from tests.faults import bugs, runner
from tests.faults.scenario import DIRECTED

pytestmark = pytest.mark.postgres

#: The bug, the fault that brings it out, and words of what is found.
FOUND_BY = {
    "no-fence": ("zombie", "verify: "),
    "living-resumed": ("kill resume", "lived when its page was given to another"),
    "progress-apart": ("kill child inside progress", "written-unseen"),
    "done-on-return": ("SIGTERM", "no-result-missing"),
    "read-when-written": ("modify", "a serial run has"),
    "living-taken": ("refuse while one watches", "lived when its page was given to another"),
    "outage-is-death": ("refuse while one watches", "lived when its page was given to another"),
    "stored-uncounted": ("keep out", "result-missing"),
    "archive-unchecked": ("archives", "did not ask for --moved"),
    "one-death": ("kill child", "innocent rows were given up"),
}


def test_every_patch_is_tried():
    assert sorted(FOUND_BY) == bugs.NAMES


@pytest.mark.parametrize("name", FOUND_BY)
def test_a_bug_is_found(faulty, name):
    fault, words = FOUND_BY[name]
    with bugs.planted(name) as code:
        for _ in range(6):  # a fault may come a moment too early or too late for the bug to matter
            report = runner.run(faulty, DIRECTED[fault], code=code)
            if report.breaches:
                break
    assert any(words in breach for breach in report.breaches), report
