"""The run directory full, read-only, or with blanks and quotes in its path.

Each case has a small disk of its own, mounted for its own processes alone.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from shlex import quote

import pytest

from astra import task
from astra.models import BossVisitSpectrum
from astra.models.plans import Submission
from astra.plan.plan import create_plan
from astra.status.verify import verify
from tests.conftest import ROOT
from tests.sample_tasks import Measured, fill, measure

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
        reason="this machine lets nobody mount a disk: root is needed",
    ),
]

_ASTRA = f"{quote(sys.executable)} -m astra"
_RESUME = f"{_ASTRA} resume 1 --local"


def on_a_small_disk(disk: object, script: str) -> "subprocess.CompletedProcess[str]":
    """Run lines of shell where `disk` is a disk of 256 kB that nobody else sees."""
    mount = 'mount -t tmpfs -o size=256k tmpfs "$DISK"\n'
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", mount + script],
        env={
            **os.environ, "DISK": str(disk), "PYTHONPATH": str(ROOT),
            "ASTRA_RUN_DIR": f"{disk}/runs",
        },
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def disk(pg_url, tmp_path):
    place = tmp_path / "a 'small' \"disk\""
    place.mkdir()
    return place


def plan_of(n: int, **arguments: object) -> None:
    fill(n)
    (planned, *_) = create_plan(measure, BossVisitSpectrum, limit=n, arguments=arguments)
    assert planned.plan == 1


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('mount -o remount,ro "$DISK"\n', "Read-only file system"),
        # Folders take nothing of a tmpfs, files do.
        (
            'dd if=/dev/zero of="$DISK/filler" bs=4k 2>/dev/null || true\n',
            "No space left on device",
        ),
    ],
)
def test_an_unusable_run_directory_is_reported_before_anything_is_started(disk, script, words):
    plan_of(5)
    done = on_a_small_disk(disk, script + _RESUME)
    assert done.returncode not in (0, 1), done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert "ASTRA_RUN_DIR" in done.stderr or "cannot be written" in done.stderr
    found = verify(1)
    assert found.sound and found.rows["pending"] == 5
    assert not [s for s in Submission.select() if s.state == "intent"]


def test_elements_go_on_where_it_fills_up(disk, tmp_path):
    computed = tmp_path / "computed"
    plan_of(40, row_s=0.05, computed=str(computed))
    script = f"""
        {_RESUME} & resume=$!
        until [ -s {computed} ]; do sleep 0.05; done
        dd if=/dev/zero of="$DISK/filler" bs=4k 2>/dev/null || true
        wait $resume
    """
    done = on_a_small_disk(disk, script)
    assert done.returncode == 0, done.stdout + done.stderr
    found = verify(1)
    assert found.sound and found.whole and found.rows["result"] == 40
    assert len(computed.read_text().split()) == 40


@task
def talkative(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        if "QUIET" not in os.environ:
            print("x" * 3000)
        yield Measured.from_spectrum(spectrum, value=1.0)


def test_a_task_whose_prints_fill_the_disk_of_its_log_breaks_its_pages_and_no_row(disk):
    fill(200)
    create_plan(talkative, BossVisitSpectrum, limit=100)
    script = f"""
        status=0; {_RESUME} -j 2 || status=$?; [ $status = 4 ]
        {_ASTRA} status 1 || true
        rm "$DISK"/runs/plan-*/logs/*
        QUIET=1 {_RESUME}
    """
    done = on_a_small_disk(disk, script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No space left on device: this is not attributed to a row" in done.stdout
    found = verify(1)
    assert found.sound and found.whole and found.rows["result"] == 200


def test_a_path_with_blanks_and_quotes(disk):
    plan_of(10)
    done = on_a_small_disk(disk, _RESUME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verify(1).whole
