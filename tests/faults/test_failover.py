"""PostgreSQL fails over: a standby becomes the primary, with all that was committed or with less."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from astra.database.connection import reset
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.plan.plan import create_plan
from astra.status.verify import verify
from tests.conftest import ROOT, prepare_template
from tests.pools import parent_of, running
from tests.sample_tasks import Measured, fill, measure
from tests.servers import Postgres, Standby, wait_for

pytestmark = pytest.mark.postgres

_RESUME = [sys.executable, "-m", "astra", "resume", "1", "--local", "-j", "2"]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Postgres, Standby]]:
    """A primary and its standby, behind a URL that names both and wants the one that writes."""
    with Postgres(synchronous_commit="on") as primary:
        primary.create_database("night")
        prepare_template(primary.url("night", user="astra"))
        with Standby(primary) as standby:
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            url = f"postgresql://astra:astra@{hosts}/night?target_session_attrs=read-write"
            monkeypatch.setenv("ASTRA_DATABASE_URL", url)
            monkeypatch.setenv("PYTHONPATH", str(ROOT))
            (tmp_path / "astra.toml").write_text("[element]\nbatch_size = 3\nlease_s = 2\n")
            yield primary, standby
            reset()


def resumed_over(part: float, fail_over: Callable[[], None], computed: Path) -> int:
    """Run a plan of 80 rows, inject the fault once this share is stored, and return the status."""
    fill(80)
    arguments = {"row_s": 0.05, "computed": str(computed)}
    create_plan(measure, BossVisitSpectrum, limit=40, arguments=arguments)
    process = subprocess.Popen(_RESUME, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: Measured.select().count() >= part * 80, "some results", 120)
    fail_over()
    reset()
    return process.wait(300)


def times_computed(computed: Path) -> Counter[str]:
    return Counter(computed.read_text().split())


def test_a_standby_takes_over(pair, tmp_path):
    """The standby has every acknowledged commit, so that only a pause is noticed."""
    primary, standby = pair
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.sql("SELECT pg_reload_conf()")

    def fail_over() -> None:
        primary.kill()
        standby.promote()

    assert resumed_over(0.2, fail_over, tmp_path / "computed") == 0
    found = verify(1)
    assert found.sound and found.whole and found.rows["result"] == 80
    times = times_computed(tmp_path / "computed")
    assert len(times) == 80 and set(times.values()) == {1}
    assert os.environ["ASTRA_DATABASE_URL"].count(":") == 4


def test_a_standby_that_lacks_the_last_commits(pair, tmp_path):
    """Rows whose results are gone are pending again, and no page says otherwise."""
    primary, standby = pair
    stored = []

    def fail_over() -> None:
        standby.leave_behind()
        behind = Measured.select().count()
        wait_for(lambda: Measured.select().count() >= behind + 12, "results that will be lost", 120)
        wait_for(lambda: all(a.n_checkpoints > 1 for a in Attempt.select()), "checkpoints", 60)
        reset()
        primary.kill()
        standby.promote()
        reset()
        stored.append(Measured.select().count())

    assert resumed_over(0.2, fail_over, tmp_path / "computed") != 0
    found = verify(1)
    assert found.sound and not found.whole and stored[0] < 80
    assert subprocess.run(_RESUME, stdout=subprocess.DEVNULL, check=False).returncode == 0
    found = verify(1)
    assert found.sound and found.whole and found.rows["result"] == 80
    assert len(times_computed(tmp_path / "computed")) == 80


def test_a_standby_that_lacks_a_running_element(pair, tmp_path):
    """On the standby, another element's attempt gets the number of the lost one."""
    primary, standby = pair
    fill(80)
    computed, fast = tmp_path / "computed", tmp_path / "fast"
    arguments = {"row_s": 0.2, "computed": str(computed), "slow_until": str(fast)}
    create_plan(measure, BossVisitSpectrum, limit=80, arguments=arguments)
    plans = "SELECT count(*) FROM plan"
    wait_for(lambda: standby.sql(plans, "night") == [(1,)], "the plan on the standby", 60)
    standby.leave_behind()
    lost = subprocess.Popen(_RESUME, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    (attempt,) = running(1, checkpoints=3)
    stopped = [attempt.pid, parent_of(attempt.pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    reset()
    primary.kill()
    standby.promote()
    other = subprocess.Popen(_RESUME, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    (its,) = running(1, checkpoints=6)
    assert its.pk == attempt.pk and its.pid != attempt.pid
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert lost.wait(120) == 3
    fast.touch()
    assert other.wait(120) == 0
    found = verify(1)
    assert found.sound and found.whole and found.rows["result"] == 80
