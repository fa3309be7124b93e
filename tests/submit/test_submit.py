"""Several arrays of one plan: the next intent is made while sbatch runs, whatever comes of it."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from shlex import quote
from threading import Event

import psycopg2
import pytest

from astra.api import Execution, run_here, submit_task
from astra.database.connection import connection, database
from astra.errors import SlurmUnknown, UsageError
from astra.models import BossCombinedSpectrum, BossVisitSpectrum
from astra.models.plans import MadeBy, Page, Plan, Submission
from astra.night.cron import command_of
from astra.plan.plan import create_plan
from astra.resume.cancel import cancel
from astra.resume.resume import resume
from astra.status.status import status
from astra.submit.submit import submit
from tests.configuration import configure
from tests.conftest import ROOT
from tests.nights import counts, plan_of, run_out
from tests.sample_tasks import fill, measure
from tests.servers import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]


@pytest.fixture
def small_arrays(monkeypatch):
    """Arrays of two elements at most."""
    monkeypatch.setattr("astra.slurm.limits.max_array_size", lambda _: 3)


_SQL = """
import sys, psycopg2
with psycopg2.connect(sys.argv[1]) as link, link.cursor() as cursor:
    cursor.execute(sys.argv[2])
    if cursor.description:
        print(cursor.fetchone()[0])
"""


def wrap(folder: Path, monkeypatch, **commands: str) -> None:
    """Commands of Slurm's that do something else.

    In them, ``$REAL`` is what they would be, and ``sql`` asks the database of the test.
    """
    folder.mkdir()
    (folder / "sql.py").write_text(_SQL)
    url = os.environ["ASTRA_DATABASE_URL"]
    ask = f"sql() {{ {quote(sys.executable)} {folder}/sql.py '{url}' \"$1\"; }}"
    for name, what in commands.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\nREAL={shutil.which(name)}\n{ask}\n{what}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def states() -> list[str]:
    with connection():
        return [s.state for s in Submission.select().order_by(Submission.pk)]


def given() -> dict[int, int | None]:
    """The submission of each page, by the page's number."""
    with connection():
        return {p.number: p.submission_pk for p in Page.select().order_by(Page.number)}


def test_one_sbatch_at_a_time_and_each_after_its_intent(slurm, small_arrays, tmp_path, monkeypatch):
    """Its own intent stands in the database as sbatch begins, and no array is sent twice."""
    seen = tmp_path / "seen"
    name = '$(sed -n "s/^#SBATCH --job-name=//p" "$2")'
    ask = f"sql \"SELECT state FROM submission WHERE job_name = '{name}'\""
    wrap(
        tmp_path / "bin", monkeypatch,
        sbatch=f"echo begins $({ask}) >>{seen}\n$REAL \"$@\"\necho ends >>{seen}",
    )  # fmt: skip
    plan = plan_of(30, 5)
    done = submit(plan)
    assert [(job.pages, job.offset) for job in done.jobs] == [(2, 0), (2, 2), (2, 4)]
    assert seen.read_text().split() == ["begins", "intent", "ends"] * 3
    assert set(states()) <= {"submitted", "ended"}
    run_out(slurm)
    assert counts() == (30, 30) and status(plan).state == "whole"


def test_the_next_intent_is_committed_while_sbatch_runs(slurm, small_arrays, tmp_path, monkeypatch):
    """sbatch answers when two submissions stand in the database, and not before."""
    count = '$(sql "SELECT count(*) FROM submission")'
    wrap(tmp_path / "bin", monkeypatch, sbatch=f'until [ {count} = 2 ]; do :; done\n$REAL "$@"')
    plan = plan_of(20, 5)
    assert [job.pages for job in submit(plan).jobs] == [2, 2]
    run_out(slurm)
    assert counts() == (20, 20)


def test_slurm_is_not_waited_for_if_no_row_is_pending(pg_url, monkeypatch):
    fill(1)
    run_here(create_plan(measure, "BossVisitSpectrum")[0].plan)
    is_submitted, waited = Event(), []
    monkeypatch.setattr(
        "astra.api.submitting.prepare", lambda profile: waited.append(is_submitted.wait(20))
    )
    ((planned, submitted),) = submit_task(
        "tests.sample_tasks.measure", {"input_model": "BossVisitSpectrum"}, Execution()
    )
    is_submitted.set()
    wait_for(lambda: waited, "the background thread")
    assert waited == [True] and planned.plan is None and submitted is None


def test_slurm_without_an_answer_is_queried_once_and_the_plans_are_named(
    slurm, tmp_path, monkeypatch
):
    """A dry run deletes them, also those that come after the one it failed for."""
    calls = tmp_path / "calls"
    silent = f"echo >>{calls}; echo Unable to contact slurm controller >&2; exit 1"
    wrap(tmp_path / "bin", monkeypatch, scontrol=silent)
    configure(tmp_path, "[slurm]\nretries = 0\n", monkeypatch)
    for model in (BossVisitSpectrum, BossCombinedSpectrum):
        fill(1, model)
    with pytest.raises(SlurmUnknown):
        submit_task("tests.sample_tasks.measure", {}, Execution(dry_run=True))
    assert Plan.select().count() == MadeBy.select().count() == 0
    calls.unlink()
    with pytest.raises(SlurmUnknown) as raised:
        submit_task("tests.sample_tasks.measure", {}, Execution())
    for plan in Plan.select():
        assert f"; plan {plan.pk} is kept: astra submit {plan.pk}" in str(raised.value)
    assert Plan.select().count() == 2 and len(calls.read_text().splitlines()) == 1


def test_a_dry_run_takes_no_row_from_another_plan(slurm, monkeypatch):
    """Nor does one that is killed, and cannot delete its plan."""
    fill(4)
    plans = []

    def killed(number, *arguments):
        made = submit(number, *arguments)
        with pytest.raises(UsageError, match=f"plan {number} was cancelled"):
            submit(number)
        plans.append((status(number).state, create_plan(measure, BossVisitSpectrum)[0]))
        return made

    monkeypatch.setattr("astra.api.submitting.submit_plan", killed)
    ((_, made),) = submit_task(
        "tests.sample_tasks.measure", {"input_model": "BossVisitSpectrum"}, Execution(dry_run=True)
    )
    ((state, meanwhile),) = plans
    assert made.pages == 1 and state == "cancelled"
    assert (meanwhile.rows, meanwhile.held) == (4, 0)
    cancel(meanwhile.plan)
    with pytest.raises(UsageError, match="was cancelled"):
        submit(meanwhile.plan, dry_run=True)


def test_a_limit_is_reached_with_the_next_intent_made(slurm, small_arrays, job_limit):
    """Room for 3 elements: the second array has one for its two pages, the third has none."""
    plan = plan_of(30, 5)
    job_limit(3)
    done = submit(plan, options={"hold": True})
    job_limit(None)
    assert done.pages == 4 and done.unsubmitted == 2 and "resume" in done.message
    assert "intent" not in states()
    mine = {s.pk for s in Submission.select() if s.state == "submitted"}
    assert [n for n, pk in given().items() if pk is not None] == [1, 2, 3, 4]
    assert set(given().values()) == mine | {None}
    assert resume(plan, options={"hold": False}).pages == 2
    for job in done.jobs:
        slurm.run("scontrol", "release", str(job.job_id))
    run_out(slurm)
    assert counts() == (30, 30) and status(plan).state == "whole"


def test_a_resumed_plan_reaches_a_limit(slurm, small_arrays, job_limit):
    """Pages that belonged to a submission before are taken back and given anew."""
    plan = plan_of(30, 5)
    for job in submit(plan, options={"hold": True}).jobs:
        slurm.run("scancel", str(job.job_id))
    job_limit(3)
    done = resume(plan, only=["CANCELLED"], options={"hold": True})
    job_limit(None)
    assert done.pages == 4 and done.unsubmitted == 2 and "resume" in done.message
    assert "intent" not in states()
    # Before any element runs: a resume would add elements to a pool that lacks them.
    assert resume(plan, options={"hold": False}).pages == 2
    for job in done.jobs:
        slurm.run("scontrol", "release", str(job.job_id))
    run_out(slurm)
    assert counts() == (30, 30) and status(plan).state == "whole"


def test_a_refusal_of_a_later_array_takes_the_next_intent_back(
    slurm, small_arrays, tmp_path, monkeypatch
):
    calls = tmp_path / "calls"
    wrap(
        tmp_path / "bin", monkeypatch,
        sbatch=f"echo x >>{calls}\n[ $(wc -l <{calls}) = 2 ] || exec $REAL \"$@\"\n"
        "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2\nexit 1",
    )  # fmt: skip
    plan = plan_of(40, 5)
    done = submit(plan)
    assert done.pages == 2 and done.unsubmitted == 6 and "Invalid account" in done.message
    assert calls.read_text().split() == ["x"] * 2  # the third was not tried
    assert states() == ["submitted", "refused", "absent"]
    assert [pk is not None for pk in given().values()] == [True] * 2 + [False] * 6
    assert submit(plan).pages == 6
    run_out(slurm)
    assert counts() == (40, 40)


def test_an_array_that_is_sent_is_bound_though_the_next_cannot_be(
    slurm, small_arrays, tmp_path, monkeypatch
):
    """The plan is cancelled by another as the first array is sent."""
    cancel = 'sql "UPDATE plan SET cancelled = now()"'
    wrap(tmp_path / "bin", monkeypatch, sbatch=f'{cancel}\nexec $REAL "$@"')
    plan = plan_of(50, 5)
    with pytest.raises(UsageError, match="cancelled in the meantime"):
        submit(plan, options={"hold": True})
    with connection():
        sent = list(Submission.select())
    # The second intent may have come before or after the cancelling; no third can.
    assert 1 <= len(sent) <= 2 and all(s.state == "submitted" and s.job_id for s in sent)
    held = set(slurm.run("squeue", "-h", "-o", "%F").split())
    assert held == {str(s.job_id) for s in sent}


def test_killed_while_sbatch_runs_and_the_next_intent_is_made(slurm, tmp_path, monkeypatch):
    """The array that was sent is found, the other is not: each page is submitted once."""
    computed, answered = tmp_path / "computed", tmp_path / "answered"
    wrap(
        tmp_path / "bin", monkeypatch,
        scontrol='$REAL "$@" | sed "s/^MaxArraySize .*/MaxArraySize = 3/"',
        sbatch=f'$REAL "$@" >>{answered}\nexec sleep 60',
    )  # fmt: skip
    plan = plan_of(30, 5, computed=str(computed))
    words = [sys.executable, "-m", "astra", "submit", str(plan)]
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True) as sender:
        wait_for(lambda: states() == ["intent"] * 2, "two intents")
        wait_for(lambda: answered.exists() and answered.read_text(), "the answer of sbatch")
        os.killpg(sender.pid, signal.SIGKILL)
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    assert resume(plan).pages == 4
    with connection():
        first, second, *_ = Submission.select().order_by(Submission.pk)
        assert str(first.job_id) == answered.read_text().strip()
        assert first.state in ("submitted", "ended")  # its elements may have taken all pages by now
        assert second.state == "absent" and Plan.get().cancelled is None
    run_out(slurm)
    assert len(computed.read_text().split()) == 30 and counts() == (30, 30)
    assert status(plan).state == "whole"


def test_ctrl_c_while_sbatch_runs_sends_nothing_again(slurm, tmp_path, monkeypatch, pg_url):
    """The next intent waits for a lock; a terminal's SIGINT reaches sbatch, too."""
    calls = tmp_path / "calls"
    wrap(
        tmp_path / "bin", monkeypatch,
        scontrol='$REAL "$@" | sed "s/^MaxArraySize .*/MaxArraySize = 3/"',
        sbatch=f"echo x >>{calls}\nexec sleep 60",
    )  # fmt: skip
    plan = plan_of(20, 5)
    words = [sys.executable, "-m", "astra", "submit", str(plan)]
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with (
        closing(psycopg2.connect(pg_url)) as link,
        link.cursor() as cursor,
        subprocess.Popen(words, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE) as sender,
    ):
        cursor.execute("SELECT 1 FROM page WHERE number = 3 FOR UPDATE")
        wait_for(lambda: database.execute_sql(waits).fetchone()[0], "the second intent")
        wait_for(calls.exists, "sbatch")
        os.killpg(sender.pid, signal.SIGINT)
        link.rollback()  # the driver hears of a signal when it has its answer
        told = sender.communicate(timeout=120)[1].decode()
    assert sender.returncode == 130 and "Traceback" not in told
    assert "looks for it by its name" in told and "astra: interrupted" in told
    assert calls.read_text().split() == ["x"] and states() == ["intent"]
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    assert resume(plan).pages == 4
    run_out(slurm)
    assert counts() == (20, 20)


def test_a_script_and_a_crontab_name_the_server_that_variables_of_libpq_choose(
    sqlite_url, monkeypatch
):
    """With ``export = "NONE"``, and in cron, nothing else of this environment arrives there."""
    chosen = {"PGHOST": "db.example", "PGPORT": "5433", "PGUSER": "ann", "PGSSLMODE": "require"}
    chosen["PGTARGETSESSIONATTRS"] = "read-write"
    for name, value in {**chosen, "PGPASSWORD": "a-secret"}.items():
        monkeypatch.setenv(name, value)
    plan = plan_of(10, 10)
    (job,) = submit(plan, options={"hold": True}, dry_run=True).jobs
    command = command_of("survey")
    for name, value in chosen.items():
        assert f"export {name}={value}\n" in job.text and f" {name}={value} " in command
    assert "a-secret" not in job.text + command
