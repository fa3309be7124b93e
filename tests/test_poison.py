"""A night with rows that raise, crash, hang and eat memory: only they fail."""

from collections import Counter

import pytest

from astra.failures import failures
from astra.models import BossVisitSpectrum
from astra.models.orchestration import Attempt
from astra.plan import create_plan
from astra.resume import resume_local
from astra.status import status
from astra.verify import verify
from tests.tasks import Measured, fill, poisoned


@pytest.mark.parametrize("n, limit", [(2000, 250)])
def test_a_poisoned_night(url, n, limit):
    fill(n)
    (planned,) = create_plan(poisoned, BossVisitSpectrum, limit=limit)
    resume_local(planned.plan, 2, row_timeout=1.0)
    found = status(planned.plan)
    bad = Counter(row.exception for row in failures(planned.plan))
    assert bad == {"ValueError": 4, "KilledProcess": 1, "RowTimeout": 1, "OutOfMemory": 1}
    assert found.state == "whole" and found.rows == {"done": n - 7, "failed": 7}
    assert Measured.select().count() == n - 7
    said = {row.exception: row.message for row in failures(planned.plan)}
    assert "SIGSEGV" in said["KilledProcess"] and "row timeout of 1 s" in said["RowTimeout"]
    assert verify(planned.plan).sound
    (left,) = create_plan(poisoned, BossVisitSpectrum)
    assert (left.plan, left.failed, left.quarantined) == (None, 7, 3)
    # Each crash costs one process and a search, not a page.
    assert Attempt.select().count() <= n // limit + 3 * 12
