"""What a task's own code may do: it costs the row it was done in, and nothing else.

One plan of which each page is misused in another way; what became of each page is a test.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from astra.database.connection import reset
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Page
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from astra.states import Outcome
from astra.status.failures import failures
from astra.status.status import status
from astra.status.verify import verify
from tests.conftest import ROOT
from tests.faults.unruly import LEFT_BEHIND, PLACE, ROWS, WAYS, hopeless, misbehave
from tests.sample_tasks import Measured, fill
from tests.servers import Postgres


@dataclass(frozen=True)
class Found:
    """A page after the run: rows that failed, and how; its note; the attempts that it took."""

    failed: dict[int, str]  # place in the page: exception and message
    message: str | None  # of the last attempt
    attempts: list[str]


@pytest.fixture(scope="module")
def pages(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Found]]:
    folder = tmp_path_factory.mktemp("unruly")
    reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASTRA_DATABASE_URL", postgres.create_database("unruly", "astra_template"))
        patch.setenv("ASTRA_RUN_DIR", str(folder / "runs"))
        patch.chdir(ROOT)
        fill(len(WAYS) * ROWS)
        (planned,) = create_plan(misbehave, BossVisitSpectrum, limit=ROWS)
        resume_local(planned.plan, 2)
        found = verify(planned.plan)
        assert found.sound and found.whole, found
        assert BossVisitSpectrum.select().count() == len(WAYS) * ROWS
        yield _pages(planned.plan)
        for log in folder.rglob("*.log"):
            log.unlink()
        for pid in _left_behind(folder.parent):
            os.kill(pid, signal.SIGKILL)
    reset()
    postgres.drop_database("unruly")


def _pages(plan: int) -> dict[str, Found]:
    said = {row.key: f"{row.exception}: {row.message}" for row in failures(plan)}
    found = {}
    for page in Page.select().order_by(Page.number):
        failed = {}
        for place, key in enumerate(page.keys):
            if page.outcomes[place] == Outcome.FAILURE:
                failed[place] = said[key]
            else:
                assert Measured.get(Measured.spectrum_pk == key).value == key * 0.5
        tried = list(Attempt.select().where(Attempt.page == page.pk).order_by(Attempt.number))
        states = [attempt.state for attempt in tried]
        found[WAYS[(page.keys[0] - 1) // ROWS]] = Found(failed, tried[-1].message, states)
    return found


def _left_behind(folder: Path) -> list[int]:
    """The processes that the task left behind, in runs of which a folder is part of the settings."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_child = LEFT_BEHIND.encode() in (process / "cmdline").read_bytes().split(b"\0")
            if is_child and f"={folder}/".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


_BAD = "ValueError: row {} is bad"

#: Way: the rows that fail, and with which words.
_FAILED = {
    "raises in the first row": {0: _BAD.format(0)},
    "raises in the middle": {PLACE: _BAD.format(PLACE)},
    "raises in the last row": {ROWS - 1: _BAD.format(ROWS - 1)},
    "calls sys.exit": {PLACE: "SystemExit: 5"},
    "raises megabytes": {PLACE: f"ValueError: … {'x' * 2000}"},
    "panics": {PLACE: "Panic: in Rust"},
    "raises KeyboardInterrupt": {PLACE: "KeyboardInterrupt: of its own"},
    "raises GeneratorExit": {PLACE: "GeneratorExit: of its own"},
    "calls os._exit": {PLACE: "KilledProcess: ended its process (exit status 5), 3 times"},
    "segfaults": {PLACE: "KilledProcess: killed its process (signal 11, SIGSEGV), 3 times"},
}


@pytest.mark.postgres
@pytest.mark.parametrize("way", WAYS)
def test_what_a_tasks_code_does(pages, way, tmp_path_factory):
    page = pages[way]
    assert page.failed == _FAILED.get(way, {})
    deadly = way in ("calls os._exit", "segfaults")
    # Two deaths set the row apart from those it was handed with, at most; three more are its own.
    assert page.attempts[-1] == "done" and set(page.attempts[:-1]) == (
        {"died"} if deadly else set()
    )
    assert len(page.attempts) <= (6 if deadly else 1)
    if way == "raises after the last row":
        assert page.message == "ValueError after a result: all is done"
    if way == "leaves a child behind":
        assert len(_left_behind(tmp_path_factory.getbasetemp())) == 1


def test_a_task_that_raises_before_its_first_row_breaks_its_page(url):
    """No row is to blame: the rows stay pending, and the page records the exception."""
    fill(ROWS)
    (planned,) = create_plan(hopeless, BossVisitSpectrum)
    resume_local(planned.plan, 1)
    found, (attempt,) = status(planned.plan), Attempt.select()
    assert found.pages == {"broken": 1} and found.rows == {"done": 0, "broken": ROWS}
    assert "raised before it took a row: FileNotFoundError: model.npz" in attempt.message
    assert failures(planned.plan) == [] and verify(planned.plan).sound


_MODULE = """
from collections.abc import Iterable
from astra import task
from astra.models import BossVisitSpectrum
from tests.sample_tasks import Measured

@task
def fragile(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=1.0)
"""


def test_a_task_that_cannot_be_imported_breaks_its_page(url, tmp_path, monkeypatch):
    """The module cannot be imported when elements run; once it is fixed, the plan continues."""
    module = tmp_path / "fragile.py"
    module.write_text(_MODULE)
    fill(ROWS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    run = [sys.executable, "-m", "astra"]
    subprocess.run([*run, "plan", "fragile.fragile"], check=True, capture_output=True)
    module.write_text("raise RuntimeError('no licence for it')" + _MODULE)
    resume = [*run, "resume", "1", "--local"]
    done = subprocess.run(resume, capture_output=True, text=True, check=False)
    (attempt,) = Attempt.select()
    assert done.returncode == 4 and attempt.state == "broken", done.stdout + done.stderr
    assert "fragile" in attempt.message and "no licence for it" in attempt.message
    assert status(1).rows == {"done": 0, "broken": ROWS} and failures(1) == []
    module.write_text(_MODULE)
    assert subprocess.run(resume, capture_output=True, check=False).returncode == 0
    assert verify(1).whole and Measured.select().count() == ROWS
