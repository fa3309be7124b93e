"""On a real Slurm cluster and a real PostgreSQL: what must hold, whatever dies."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from astra import generate_queries_for_task
from astra.api import run_here
from astra.config.value_checks import MAX_ANSWER_S, MAX_DAYS, MAX_S
from astra.database.connection import connection, database, reset
from astra.errors import SlurmError, SlurmRefused
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt, excluded_nodes
from astra.models.nights import Night, NightPlan
from astra.models.plans import Page, Plan, Submission
from astra.models.schema import init_database
from astra.night import nightly
from astra.night.clean import clean
from astra.night.finalizer import is_alive
from astra.night.plans import FIRST_CHECK_S, NightStep, queue_finalizer
from astra.night.totals import entries_of, plan_pks
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.policy import retry_policy
from astra.policy.next_steps import exclude_bad_nodes
from astra.resume.resume import resume
from astra.slurm.limits import configuration
from astra.slurm.parse import JobId
from astra.status.failures import failures
from astra.status.status import status
from astra.submit.submit import submit
from tests.configuration import configure
from tests.conftest import ROOT
from tests.nights import a_night, closed, counts, last, plan_of, run_out, settings_of_tasks
from tests.pools import running
from tests.sample_tasks import Measured, fill, measure
from tests.servers import Postgres, Slurm, folder, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]


def test_every_row_is_computed_once(slurm):
    plan = plan_of(4000, 250)
    done = submit(plan, options={"throttle": 4})
    assert done.pages == 16 and [job.array for job in done.jobs] == ["1-16%4"]
    again = submit(plan)  # submitted twice, run once
    assert again.pages == 0 and f"astra resume {plan}" in str(again.message)
    run_out(slurm)
    assert counts() == (4000, 4000)
    assert status(plan).state == "whole"


def test_killed_elements_are_lost_resumed_and_whole(slurm, tmp_path):
    computed = tmp_path / "computed"
    fast = tmp_path / "fast"
    plan = plan_of(
        3600, 600, row_s=0.1, slow_until=str(fast), write_frequency=0.5, computed=str(computed)
    )
    submit(plan, options={"pull": False})  # or the others would take over
    for attempt in running(3):
        os.kill(attempt.pid, signal.SIGKILL)
    fast.touch()
    run_out(slurm)
    found = status(plan)
    assert found.state == "attention" and found.state.exit_status == 4
    assert found.pages == {"done": 3, "lost": 3}
    assert sum(found.rows.values()) == 3600 and "resume" in found.advice[0]
    again = resume(plan, options={"mem": "200M"})
    assert again.pages == 3 and again.skipped == {"done": 3}
    assert resume(plan).pages == 0
    run_out(slurm)
    assert counts() == (3600, 3600) and status(plan).state == "whole"
    twice = len(computed.read_text().split()) - 3600
    # Half a second of rows each, and what a busy machine takes to write them.
    assert 0 < twice <= 3 * 60
    assert resume(plan).pages == 0


def test_scancelled_elements_compute_no_row_twice(slurm, tmp_path):
    computed = tmp_path / "computed"
    fast = tmp_path / "fast"
    plan = plan_of(
        3000, 1000, row_s=0.02, slow_until=str(fast), write_frequency=0.5, computed=str(computed)
    )
    submit(plan)
    running(3)
    slurm.run("scancel", status(plan).elements[0].job.partition("_")[0])
    run_out(slurm)
    found = status(plan)
    assert found.pages == {"interrupted": 3}
    assert found.rows["done"] == len(computed.read_text().split())
    fast.touch()
    resume(plan)
    run_out(slurm)
    assert counts() == (3000, 3000)
    assert Counter(computed.read_text().split()).most_common(1)[0][1] == 1


def test_a_requeued_element_goes_on(slurm):
    plan = plan_of(3000, 3000, row_s=0.02, write_frequency=0.5)
    submit(plan)
    (attempt,) = running(1)
    slurm.run("scontrol", "requeue", f"{attempt.job_id}_{attempt.array_index}")
    wait_for(lambda: status(plan).pages.get("waiting"), "the requeued element to wait", 60)
    assert status(plan).state == "running"
    assert resume(plan).pages == 0  # it lives


def test_failures_of_different_kinds_are_distinguished(slurm):
    plan = plan_of(1000, 250, raise_every=97, null_every=49, nothing_every=10)
    submit(plan)
    run_out(slurm)
    raised = {k for k in range(1, 1001) if k % 97 == 0}
    nothing = {k for k in range(1, 1001) if k % 10 == 0} - raised
    refused = {k for k in range(1, 1001) if k % 49 == 0} - raised - nothing
    bad = raised | refused
    found = status(plan)
    assert found.rows == {
        "done": 1000 - len(bad | nothing), "failed": len(bad), "no result": len(nothing)
    }  # fmt: skip
    told = {f.key: f for f in failures(plan)}
    assert told.keys() == bad
    assert all("is bad" in told[key].message for key in raised)
    assert all("null value in column" in told[key].message for key in refused)
    assert found.state == "failed rows"


def test_a_refusal_shows_slurms_words_and_leaves_the_plan(slurm):
    plan = plan_of(10, 10)
    with pytest.raises(SlurmError, match=r"(?i)partition"):
        submit(plan, options={"partition": "nowhere"})
    assert status(plan).pages == {"unsubmitted": 1}
    assert submit(plan).pages == 1
    run_out(slurm)
    assert status(plan).state == "whole"


def test_a_submit_limit_leaves_the_rest_for_resume(slurm, job_limit):
    """Where each page needs an element of its own."""
    plan = plan_of(40, 5)
    job_limit(5)
    # Held, as elements that end between two arrays would make room.
    done = submit(plan, options={"pull": False, "mem": "123M", "hold": True})
    job_limit(None)
    assert 1 <= done.pages <= 5 and done.unsubmitted == 8 - done.pages and "resume" in done.message
    rest = resume(plan)  # with the options that were given for the plan
    assert rest.pages == 8 - done.pages and "--mem=123M" in Path(rest.jobs[0].script).read_text()
    slurm.run("scontrol", "release", ",".join(str(j.job_id) for j in (*done.jobs, *rest.jobs)))
    run_out(slurm)
    assert counts() == (40, 40)


def test_pages_that_a_limit_leaves_are_submitted_within_the_same_round(
    slurm, job_limit, monkeypatch
):
    """A night's resume takes one of three pages at the limit, and its next step the others."""
    night, plan = a_night(), plan_of(30, 10)
    with connection():
        NightPlan.create(night=night.pk, task="tests.sample_tasks.measure", plan_pk=plan)
    (job,) = submit(plan, options={"hold": True, "pull": False}).jobs
    slurm.run("scancel", str(job.job_id))
    monkeypatch.setattr(nightly, "queue_finalizer", lambda *of_night: None)
    limited = replace(settings_of_tasks("measure"), rounds=1)
    for limit, pages, n_rounds in ((1, {"waiting": 1, "lost": 2}, 0), (None, {"waiting": 3}, 1)):
        job_limit(limit)
        nightly._advance(last(), limited)
        assert status(plan).pages == pages and last().round == n_rounds


def test_leftovers_that_run_are_taken_and_others_wait_for_free_elements(slurm):
    """With a throttle of one element; the pages of the second plan have lost theirs."""
    plans = [plan_of(10, 10), plan_of(10, 10)]
    with connection():
        for plan in plans:
            NightPlan.create(night=a_night().pk, task="tests.sample_tasks.measure", plan_pk=plan)
        Night.update(ended="2026-01-03 05:00:00").execute()
    jobs = [submit(plan, options={"hold": True}).jobs[0].job_id for plan in plans]
    slurm.run("scancel", str(jobs[1]))
    night, step = a_night(), NightStep()
    nightly._take_new(night, replace(settings_of_tasks("measure"), throttle=1), step)
    assert [job.job_id for job in step.jobs] == jobs[:1] and step.n_elements == 1
    assert step.open and step.postponed and step.new == [(plan, 10) for plan in plans]
    assert Submission.select().count() == 2
    assert plan_pks(night) == plans and all(e.leftover for e in entries_of(night)[:2])


def test_rows_that_a_refused_retry_made_pending_are_taken_by_the_next_night(slurm):
    """Every row of their plan had ended when its night was closed."""
    night, settings, plan = a_night(), settings_of_tasks("measure"), plan_of(20, 20, raise_every=7)
    with connection():
        NightPlan.create(night=night.pk, task="tests.sample_tasks.measure", plan_pk=plan)
    run_here(plan)
    assert nightly._advance(night, settings).state == "failed rows"
    with pytest.raises(SlurmRefused):
        resume(plan, failed=True, options={"partition": "nowhere"})
    nightly._take_new(a_night(), settings, step := NightStep())
    assert step.new == [(plan, 2)] and step.open


def test_a_plan_is_run_and_cleaned_with_the_greatest_values_that_are_accepted(
    slurm, tmp_path, monkeypatch
):
    """PostgreSQL, poll(2) and dates all have a largest number."""
    text = f"""
[database]
answer_timeout_s = {MAX_ANSWER_S}
retry_for_s = {MAX_S}
[element]
lease_s = {MAX_S}
write_frequency = {MAX_S}
grace_s = {MAX_S}
row_timeout_s = {MAX_S}
[slurm]
timeout_s = {MAX_ANSWER_S}
[policy]
exclude_for_s = {MAX_S}
[clean]
keep_days = {MAX_DAYS}
compress_days = {MAX_DAYS}
keep_nights_days = {MAX_DAYS}
"""
    configure(tmp_path, text, monkeypatch)
    reset()
    plan = plan_of(20, 10)
    submit(plan)
    run_out(slurm)
    assert status(plan).state == "whole" and clean(dry_run=False).plans == ()
    monkeypatch.setattr(retry_policy, "bad_nodes", lambda *seen: {("c", "n"): "bad"})
    exclude_bad_nodes(get_plan(plan), [], [])
    assert [excluded.node for excluded in excluded_nodes()] == ["n"]


def test_pages_that_were_never_submitted_are_submitted_with_those_that_ended(
    slurm, job_limit, monkeypatch
):
    night, plan = a_night(), plan_of(30, 10)
    with connection():
        NightPlan.create(night=night.pk, task="tests.sample_tasks.measure", plan_pk=plan)
    job_limit(1)
    (job,) = submit(plan, options={"hold": True, "pull": False}).jobs
    slurm.run("scancel", str(job.job_id))
    job_limit(None)
    assert status(plan).pages == {"lost": 1, "unsubmitted": 2}
    monkeypatch.setattr(nightly, "queue_finalizer", lambda *of_night: None)
    nightly._advance(last(), settings_of_tasks("measure"))
    assert status(plan).pages == {"waiting": 3} and last().round == 1


def test_within_a_submit_limit_fewer_elements_take_all_pages(slurm, job_limit):
    plan = plan_of(40, 5, row_s=0.01)
    job_limit(3)
    done = submit(plan)
    job_limit(None)
    (job,) = done.jobs
    assert job.array.startswith("1-2%") and (done.pages, done.unsubmitted, done.message) == (
        8,
        0,
        None,
    )
    run_out(slurm)
    assert counts() == (40, 40) and status(plan).state == "whole"


def test_an_element_gives_way_to_the_finalizer_where_a_limit_leaves_no_room_for_it(
    slurm, job_limit, tmp_path, monkeypatch
):
    """It would be refused for as long as the elements run."""
    text = '[nights.survey]\nlimit = 10\ntasks = [{ task = "tests.sample_tasks.measure", set = '
    text += f'{{ row_s = 60, slow_until = "{tmp_path}/go" }}, input_model = "BossVisitSpectrum" }}]'
    configure(tmp_path, text, monkeypatch)
    fill(40)
    job_limit(4)
    begun = nightly.nightly("survey", max_wait_s=60)
    assert begun.state == "joined" and begun.finalizer and not Measured.select().exists()
    (tmp_path / "go").touch()
    job_limit(None)
    assert closed(slurm).state == "whole" and counts() == (40, 40)


def test_the_answer_of_sbatch_is_lost(slurm, tmp_path, monkeypatch):
    """A wrapper that submits, and then says that it timed out."""
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\n{shutil.which("sbatch")} "$@" >>{tmp_path}/calls\n'
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv "
        "operation' >&2\nexit 1\n"
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    plan = plan_of(20, 10)
    done = submit(plan)
    calls = (tmp_path / "calls").read_text().split()
    assert [str(job.job_id) for job in done.jobs] == calls and len(calls) == 1
    run_out(slurm)
    assert status(plan).state == "whole"


def test_a_finalizer_whose_array_slurm_has_forgotten_begins_by_itself(slurm, tmp_path, monkeypatch):
    """As versions of Slurm do that refuse to let a job wait for one that they do not know."""
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    refused = "sbatch: error: Batch job submission failed: Job dependency problem"
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *--dependency*) echo "{refused}" >&2; exit 1;; esac\n'
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    night, settings = a_night(), settings_of_tasks("measure")
    queue_finalizer(night, settings, NightStep(jobs={JobId(99999, name="array")}))
    assert slurm.run("squeue", "-h", "-o", "%i %T").split() == [
        str(last().finalizer_job),
        "PENDING",
    ]
    shown = slurm.run("scontrol", "show", "job", str(last().finalizer_job))
    assert "Dependency=(null)" in shown and is_alive(last())
    begins, submitted = (
        datetime.fromisoformat(re.search(rf"{key}=(\S+)", shown)[1])
        for key in ("EligibleTime", "SubmitTime")
    )
    assert (begins - submitted).total_seconds() >= FIRST_CHECK_S - 1


def test_a_second_array_for_the_same_pages_does_nothing(slurm, tmp_path):
    computed = tmp_path / "computed"
    plan = plan_of(100, 50, row_s=0.02, computed=str(computed))
    (job,) = submit(plan).jobs
    slurm.run("sbatch", "--parsable", job.script)
    run_out(slurm)
    assert len(computed.read_text().split()) == 100 and counts() == (100, 100)


def test_cron_gives_only_path_and_home(slurm, pg_url, tmp_path):
    fill(20)
    config = tmp_path / "conf" / "astra.toml"
    config.parent.mkdir()
    config.write_text(f'[database]\nurl = "{pg_url}"\n[run]\ndir = "runs"\n')
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "SLURM_CONF": os.environ["SLURM_CONF"]
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "astra", "--config", str(config), "submit", "tests.sample_tasks.measure",
         "--json", "--limit", "7"],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any(answer.get("pages") == 3 for answer in _as_list(json.loads(done.stdout)))
    run_out(slurm)
    assert counts() == (20, 20)


def _as_list(answer):
    return answer if isinstance(answer, list) else [answer]


def test_a_dry_run_leaves_nothing_behind(slurm, tmp_path):
    fill(10)
    done = subprocess.run(
        [sys.executable, "-m", "astra", "submit", "tests.sample_tasks.measure", "--dry-run"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "#SBATCH --array=1" in done.stdout
    assert Plan.select().count() == Submission.select().count() == Page.select().count() == 0
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.sh"))


def test_no_inherited_variable_leaks(slurm, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "99")
    plan = plan_of(5, 5)
    assert submit(plan).pages == 1
    run_out(slurm)
    assert status(plan).state == "whole"


def test_a_status_without_an_answer_is_unknown(slurm, tmp_path, monkeypatch):
    plan = plan_of(50, 50, row_s=0.2)
    submit(plan)
    (attempt,) = running(1, checkpoints=0)
    os.kill(attempt.pid, signal.SIGSTOP)  # it gives no further sign of life
    silent = tmp_path / "bin"
    silent.mkdir()
    for name in ("squeue", "sacct"):
        (silent / name).write_text("#!/bin/sh\nexit 1\n")
        (silent / name).chmod(0o755)
    Attempt.update(seen="2020-01-01 00:00:00").execute()
    monkeypatch.setenv("PATH", f"{silent}:{os.environ['PATH']}")
    found = status(plan)
    assert found.pages == {"unknown": 1} and found.notes and found.state.exit_status == 4
    assert resume(plan).pages == 0


def test_more_elements_than_connections_store_every_row(cluster, monkeypatch, tmp_path):
    """25 elements in four nodes' worth of slots, on a server that takes 10 connections."""
    with folder() as path:
        server = Postgres(path / "postgres", max_connections=10)
        try:
            server.sql("CREATE DATABASE small")
            monkeypatch.setenv("ASTRA_DATABASE_URL", server.url("small"))
            monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
            monkeypatch.setenv("ASTRA_RUN_DIR", str(tmp_path / "runs"))
            reset()
            init_database(("tests.sample_tasks",))
            fast = tmp_path / "fast"
            plan = plan_of(5000, 200, row_s=0.5, slow_until=str(fast), write_frequency=1)
            database.close()
            submit(plan, options={"throttle": 60})
            wait_for(
                lambda: len(cluster.run("squeue", "-h", "-r", "-t", "R").splitlines()) > 22,
                "more than 22 elements at once",
                60,
            )
            fast.touch()
            run_out(cluster)
            assert counts() == (5000, 5000) and status(plan).state == "whole"
        finally:
            reset()
            server.stop()


def test_changes_are_seen_although_clocks_are_an_hour_apart(cluster, monkeypatch, tmp_path):
    """The database is an hour ahead of the nodes; a row is changed while it is processed."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    with folder() as path:
        ahead = {"LD_PRELOAD": str(library), "FAKETIME": "+1h"}
        server = Postgres(path / "postgres", env=ahead)
        try:
            server.sql("CREATE DATABASE ahead")
            monkeypatch.setenv("ASTRA_DATABASE_URL", server.url("ahead"))
            monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
            monkeypatch.setenv("ASTRA_RUN_DIR", str(tmp_path / "runs"))
            reset()
            init_database(("tests.sample_tasks",))
            (age_s,) = server.sql(f"SELECT extract(epoch FROM now()) - {time.time()}")[0]
            assert 3500 < age_s < 3700
            plan = plan_of(100, 100, row_s=0.05, write_frequency=0.5)
            submit(plan)
            running(1)
            server.sql(
                "UPDATE boss_visit_spectrum SET snr = 7 WHERE spectrum_pk IN (3, 98)", "ahead"
            )
            run_out(cluster)
            assert counts() == (100, 100) and status(plan).state == "whole"
            ((_, query),) = generate_queries_for_task(measure, "BossVisitSpectrum")
            pending = {row.spectrum_pk for row in query}
            # The first rows come last: row 3 may have been read after it was changed.
            late = Measured.get(spectrum_pk=3).input_modified
            changed = BossVisitSpectrum.get(spectrum_pk=3).modified
            assert pending == ({98} if late == changed else {3, 98})
            (again, _) = create_plan(measure)
            assert again.rows == len(pending)
        finally:
            reset()
            server.stop()


def test_more_pages_than_an_array_holds(pg_url, monkeypatch, tmp_path):
    """11 pages on a cluster with MaxArraySize=5: three arrays, each with its offset."""
    with folder() as path:
        small = Slurm(path / "slurm", nodes=1, max_array_size=5, accounting=False)
        try:
            monkeypatch.setenv("SLURM_CONF", str(small.conf))
            monkeypatch.setenv("ASTRA_RUN_DIR", str(tmp_path / "a run's folder"))
            configuration.cache_clear()
            plan = plan_of(22, 2)
            done = submit(plan)
            assert [(job.array.partition("%")[0], job.offset) for job in done.jobs] == [
                ("1-4", 0),
                ("1-4", 4),
                ("1-3", 8),
            ]
            run_out(small)
            assert counts() == (22, 22) and status(plan).state == "whole"
        finally:
            configuration.cache_clear()
            small.stop()
