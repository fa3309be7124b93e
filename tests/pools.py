"""Plans whose pages are pulled, and what became of them."""

import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from astra.database.connection import connection, writing
from astra.element import reader
from astra.element.claiming import claim_page, this_process
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.states import PageState
from astra.status.page_states import current_pages
from astra.status.verify import verify
from astra.submit.local import pages_to_run, start_local
from tests.sample_tasks import fill, measure
from tests.servers import wait_for


def plan_of(n: int, limit: int, task=measure, **arguments) -> Plan:
    fill(n)
    (planned, *_) = create_plan(task, BossVisitSpectrum, limit=limit, arguments=arguments)
    return get_plan(planned.plan)


def read_only_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let an element read three rows, and fail by `error` to read those after them."""
    read, n_read = reader.Reader._read_retrying, []

    def fail_later(self, keys):
        n_read.append(len(keys))
        if len(n_read) > 1:
            raise error
        return read(self, keys)

    monkeypatch.setattr(reader, "CHUNK_ROWS", 3)
    monkeypatch.setattr(reader.Reader, "_read_retrying", fail_later)


def pool_of(plan: Plan) -> Submission:
    return start_local(plan, pages_to_run(plan))


def array_of(plan: Plan, elements: list[int], begun: Mapping[int, int], **columns: object) -> None:
    """Make a pool that stands for Slurm's array "j"; `begun` are its pages with their elements."""
    pool_of(plan)
    with connection(), writing():
        for page, element in begun.items():
            claim_page(plan, page, Submission.get(), element, this_process("local", Path()))
        array = {"kind": "slurm", "job_id": 7, "job_name": "j", "elements": elements}
        Submission.update({**array, **columns}).execute()


def is_whole(plan: Plan) -> bool:
    found = verify(plan.pk)
    return found.sound and found.whole


def elements() -> Counter[int]:
    """How many attempts each element made."""
    with connection():
        return Counter(a.element for a in Attempt.select())


def states(plan: Plan) -> list[PageState]:
    return [page.state for page in current_pages(plan)]


def running(n: int, checkpoints: int = 1) -> list[Attempt]:
    """`n` attempts that have written and are still at work."""
    found: list[Attempt] = []

    def are_there() -> bool:
        found[:] = Attempt.select().where(
            (Attempt.state == "running") & (Attempt.n_checkpoints >= checkpoints)
        )
        return len(found) >= n

    wait_for(are_there, f"{n} attempts at work", 60)
    return found[:n]


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def kill_element(attempt: Attempt) -> None:
    """Both processes of an element, as the death of its node kills them."""
    supervisor = parent_of(attempt.pid)
    os.kill(supervisor, signal.SIGKILL)
    os.kill(attempt.pid, signal.SIGKILL)
