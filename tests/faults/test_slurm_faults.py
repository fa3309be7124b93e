"""Faults of Slurm itself, each by itself, on a cluster of their own that keeps no accounts."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from astra.config import settings
from astra.database.connection import database
from astra.element.claiming import ElementProcess, claim_page
from astra.errors import SlurmError, Superseded
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Page, Submission
from astra.plan.lookup import get_plan
from astra.results.checkpoint import write
from astra.results.rows import Checkpoint, HandedRow, Target, YieldedResult
from astra.resume.cancel import cancel
from astra.resume.resume import resume
from astra.status.status import status
from astra.status.verify import verify
from astra.submit.submit import submit
from tests.conftest import ROOT
from tests.nights import plan_of, run_out
from tests.pools import running
from tests.sample_tasks import Measured
from tests.servers import Slurm, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]


@pytest.fixture(scope="module")
def plain() -> Iterator[Slurm]:
    """Without accounting: squeue and the database have to do."""
    with Slurm(nodes=2, accounting=False, extra=["SlurmdTimeout=10"]) as cluster:
        yield cluster


@pytest.fixture
def faulty(plain, pg_url, monkeypatch, tmp_path) -> Iterator[Slurm]:
    monkeypatch.setenv("SLURM_CONF", str(plain.conf))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ASTRA_CONFIG", str(tmp_path / "astra.toml"))
    configure(tmp_path, 60)
    yield plain
    plain.restore()


def configure(folder: Path, timeout_s: int) -> None:
    """Wait so long for Slurm's commands."""
    (folder / "astra.toml").write_text(
        f"[slurm]\ntimeout_s = {timeout_s}\nretries = 0\n"
        "[element]\nwrite_frequency = 0.3\nlease_s = 2\n"
    )
    settings.reset()


def computed_once(path: Path, rows: int) -> bool:
    counts = Counter(path.read_text().split())
    return len(counts) == rows and set(counts.values()) == {1}


def ended_well(plan: int) -> bool:
    found = verify(plan)
    return found.sound and found.whole


def test_slurmctld_is_down(faulty, tmp_path):
    """Submit, status and resume report it, and there is one array when slurmctld is back."""
    computed = tmp_path / "computed"
    plan = plan_of(20, 10, computed=str(computed))
    faulty.stop_controller()
    configure(tmp_path, 5)
    with pytest.raises(SlurmError, match=r"squeue|scontrol|sbatch"):
        submit(plan)
    found = status(plan)
    assert sum(found.rows.values()) == 20 and found.state != "whole"
    with pytest.raises(SlurmError, match=r"squeue|scontrol|sbatch"):
        resume(plan)
    faulty.start_controller()
    configure(tmp_path, 60)
    assert resume(plan).pages == 2 and resume(plan).pages == 0
    run_out(faulty)
    assert computed_once(computed, 20) and ended_well(plan)


def test_slurmctld_is_slow(faulty, tmp_path, monkeypatch):
    """sbatch creates the array after its caller has given up; that array is found."""
    computed, pid = tmp_path / "computed", faulty.controller_pid
    plan = plan_of(20, 10, computed=str(computed))
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f"#!/bin/sh\nkill -STOP {pid}\n"
        f"(sleep 8; kill -CONT {pid}) </dev/null >/dev/null 2>&1 &\n"
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    configure(tmp_path, 5)
    with suppress(SlurmError):
        submit(plan)
    shutil.rmtree(wrapper.parent)
    configure(tmp_path, 60)

    def went_on() -> bool:
        with suppress(SlurmError):
            resume(plan)
        return status(plan).state == "whole"

    wait_for(went_on, "the whole plan", 120)
    assert computed_once(computed, 20) and ended_well(plan)
    assert {attempt.job_id for attempt in Attempt.select()} == {Attempt.get().job_id}


#: What holds each checkpoint open while there is a row in `held`.
_HOLD = """
CREATE TABLE held (for_s float);
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_sleep(for_s) FROM held;
    RETURN NULL;
END $$;
CREATE TRIGGER hold AFTER INSERT ON measured FOR EACH STATEMENT EXECUTE FUNCTION hold();
"""


@pytest.mark.parametrize("moment", ["while a row computes", "while it writes"])
def test_signals_of_scancel(faulty, tmp_path, moment):
    """All that was yielded is stored, and the exit status says interrupted."""
    computed, fast = tmp_path / "computed", tmp_path / "fast"
    plan = plan_of(1500, 500, row_s=0.1, slow_until=str(fast), computed=str(computed))
    database.execute_sql(_HOLD)
    submit(plan)
    running(3)
    if moment == "while it writes":
        database.execute_sql("INSERT INTO held VALUES (1.5)")
        held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_for(lambda: database.execute_sql(held).fetchone() == (3,), "three checkpoints", 60)
    job = Attempt.get().job_id
    for index, name in enumerate(("TERM", "INT", "USR1"), 1):
        faulty.run("scancel", "--batch", f"--signal={name}", f"{job}_{index}")
    run_out(faulty)
    ends = faulty.run("scontrol", "-o", "show", "job", job).splitlines()
    assert ["ExitCode=75:0" in line for line in ends] == [True] * 3, ends
    found = status(plan)
    assert found.pages == {"interrupted": 3}
    assert found.rows["done"] == len(computed.read_text().split()) < 1500
    database.execute_sql("DELETE FROM held")
    fast.touch()
    assert resume(plan).pages == 3
    run_out(faulty)
    assert computed_once(computed, 1500) and ended_well(plan)


def test_an_element_at_its_time_limit_stores_its_rows(faulty, tmp_path):
    """Of one minute, for longer work: drained as Slurm ends it, and resumed where it stood."""
    computed, fast = tmp_path / "computed", tmp_path / "fast"
    plan = plan_of(10, 10, row_s=12, slow_until=str(fast), computed=str(computed))
    submit(plan, options={"time": "1"})
    run_out(faulty)
    n_done = status(plan).rows["done"]
    assert 3 <= n_done < 10 and status(plan).pages == {"interrupted": 1}
    (step,) = status(plan).steps
    assert step.state == "TIMEOUT" and "time 00:02:00 instead of 00:01:00" in step.explanation
    fast.touch()
    assert resume(plan).pages == 1
    run_out(faulty)
    assert ended_well(plan) and len(computed.read_text().split()) <= 10 + 1  # the row that was cut


def test_slurmctld_forgets_everything(faulty, tmp_path):
    """Its state is lost while elements run: they are ended or go on, and the plan becomes whole."""
    computed = tmp_path / "computed"
    plan = plan_of(120, 60, row_s=0.1, computed=str(computed))
    submit(plan)
    running(2)
    faulty.forget()
    wait_for(lambda: (resume(plan), status(plan).state == "whole")[1], "the whole plan", 120)
    assert ended_well(plan)
    rows_again = len(computed.read_text().split()) - 120
    assert 0 <= rows_again <= 2 * 20  # what two killed elements had not stored yet


def test_job_ids_start_again(faulty):
    """A stranger's job has the number of ours: it is neither looked at nor cancelled for it."""
    plan = plan_of(10, 10)
    submit(plan, options={"hold": True})
    assert status(plan).pages == {"waiting": 1} and status(plan).state == "attention"  # it is held
    number = Submission.get().job_id
    faulty.forget(number)
    words = ("sbatch", "--parsable", "--hold", "--job-name=stranger", "--array=1-1", "--wrap=true")
    made = int(faulty.run(*words))
    assert made == number
    wait_for(lambda: status(plan).pages == {"lost": 1}, "the page to be lost", 60)
    assert cancel(plan, page=1).jobs == ()
    (job,) = resume(plan).jobs
    faulty.run("scontrol", "release", job.job_id)
    wait_for(lambda: status(plan).state == "whole", "the whole plan", 60)
    assert ended_well(plan)
    other = plan_of(10, 10)
    submit(other, options={"hold": True})
    Submission.update(job_id=made).where(Submission.plan == other).execute()
    cancel(other)
    assert set(faulty.states(made).values()) == {"PENDING"}


def test_without_accounting_a_note_says_so(faulty):
    plan = plan_of(60, 60, row_s=0.1)
    submit(plan)
    (attempt,) = running(1)
    os.kill(attempt.pid, signal.SIGKILL)
    run_out(faulty)
    found = status(plan)
    assert found.pages == {"lost": 1} and sum(found.rows.values()) == 60
    assert any("sacct gave no answer" in note for note in found.notes)


def test_a_requeued_elements_old_attempt_cannot_write(faulty):
    """Its process is on a node that no longer answers, and lives."""
    plan = plan_of(4, 4)
    submission = Submission.create(
        plan=plan, token="t", kind="slurm", state="submitted", job_name="t", host="here", job_id=7,
        elements=[1], offset=0, pages_per_element=1, profile="{}", created_by="test",
    )  # fmt: skip
    Page.update(submission_pk=submission.pk).execute()
    old, new = (
        claim_page(get_plan(plan), 1, submission, 1, ElementProcess(f"n{n}", n, "began", 7, 1, n))
        for n in (0, 1)
    )
    assert old is not None and new is not None
    row = BossVisitSpectrum.get()
    handed = HandedRow(row.spectrum_pk, None, row.modified, Attempt.get().began)
    late = Checkpoint([YieldedResult(Measured.from_spectrum(row, value=1.0), handed)])
    target = Target(get_plan(plan).task, "boss_visit_spectrum", False, Measured, plan, 1)
    with pytest.raises(Superseded):
        write(late, target, old)
    assert Measured.select().count() == 0 and verify(plan).sound


def test_a_node_fails(faulty, tmp_path):
    """Its slurmd is killed and the node set down; its elements' processes live on."""
    fast = tmp_path / "fast"
    plan = plan_of(800, 800, row_s=0.15, slow_until=str(fast))
    submit(plan)
    (attempt,) = running(1)
    faulty.kill_slurmd(attempt.host)
    faulty.run("scontrol", "update", f"nodename={attempt.host}", "state=down", "reason=test")
    wait_for(lambda: (resume(plan), Attempt.select().count() > 1)[1], "another attempt", 150)
    fast.touch()
    wait_for(lambda: (resume(plan), status(plan).state == "whole")[1], "the whole plan", 150)
    assert ended_well(plan)


def test_an_element_is_suspended_longer_than_its_lease(faulty, tmp_path):
    """By scontrol suspend: nobody takes it over, and no row is called too slow."""
    computed, fast = tmp_path / "computed", tmp_path / "fast"
    plan = plan_of(160, 160, row_s=0.5, slow_until=str(fast), computed=str(computed))
    submit(plan, options={"row_timeout": 1.5})
    (attempt,) = running(1)
    job = f"{attempt.job_id}_{attempt.array_index}"
    faulty.run("scontrol", "suspend", job)
    stopped = Path(f"/proc/{attempt.pid}/stat")
    wait_for(lambda: stopped.read_text().rpartition(")")[2].split()[0] == "T", "the stop")
    wait_for(lambda: _silent_s(attempt) > 3, "its lease to run out", 60)
    assert resume(plan).pages == 0
    fast.touch()
    faulty.run("scontrol", "resume", job)
    run_out(faulty)
    assert computed_once(computed, 160) and ended_well(plan)
    assert status(plan).rows.get("failed", 0) == 0


def _silent_s(attempt: Attempt) -> float:
    from astra.database.connection import connection, dialect

    with connection():
        return (dialect().now() - Attempt.get_by_id(attempt.pk).seen).total_seconds()
