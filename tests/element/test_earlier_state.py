"""Elements run on while the database is in an earlier state, and gives their numbers again.

A standby that lacked the last commits has become the primary, or a backup was restored.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from peewee import OperationalError

from astra.database.connection import connection, database, dialect, writing
from astra.element.claiming import claim_page, this_process
from astra.element.deaths import give_up, note_death
from astra.element.element import Element
from astra.element.progress_board import ProgressBoard
from astra.element.suspects import Death
from astra.element.takeover import Watcher
from astra.errors import DatabaseError, Superseded, UsageError
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt, Suspect
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.results.claim import Claim, check_nothing_lost, hold_page
from astra.results.stopping import Stop
from astra.run_page import main as run_page
from astra.slurm.parse import JobId
from astra.submit import intent
from astra.submit.intent import bind_job, withdraw
from tests.claims import somewhere
from tests.configuration import configure
from tests.conftest import ROOT
from tests.pools import plan_of, pool_of
from tests.sample_tasks import measure


def give_numbers_again(*models) -> None:
    """Have the next row of each table, which is empty, get the number of the first."""
    if dialect().name == "postgresql":  # SQLite does so by itself
        for model in models:
            table = model._meta.table_name
            database.execute_sql(f"SELECT setval('{table}_pk_seq', 1, false)")


def with_lost_attempt(plan: Plan) -> tuple[Claim, Claim]:
    """A claim that the database has lost, and one of another element, with the same numbers."""
    submission = pool_of(plan)
    with connection():
        with writing():
            lost = claim_page(plan, 1, submission, 1, this_process("local", Path()))
        with writing():
            Attempt.delete().execute()
            Page.update(attempt_pk=None, free=True).execute()
            give_numbers_again(Attempt)
        with writing():
            found = claim_page(plan, 1, submission, 2, somewhere())
    assert (lost.attempt.pk, lost.page.pk) == (found.attempt.pk, found.page.pk)
    return lost, found


def with_lost_plan() -> tuple[Plan, Submission]:
    """A plan and its pool that the database has lost; others with their numbers are there."""
    lost = plan_of(20, 10)
    pool = pool_of(lost)
    with connection(), writing():
        Plan.delete().execute()
        give_numbers_again(Plan, Submission, Page, Attempt)
    create_plan(measure, BossVisitSpectrum, limit=10, arguments={"row_s": 0.1})
    found = get_plan(lost.pk)
    assert (found.pk, pool_of(found).pk) == (lost.pk, pool.pk)
    return lost, pool


def test_an_attempt_with_the_number_of_another_writes_nothing(url):
    lost, found = with_lost_attempt(plan_of(10, 10))
    with connection():
        for check in (hold_page, check_nothing_lost):
            with pytest.raises(DatabaseError, match=f"has lost attempt {lost.attempt.pk}"):
                with writing():
                    check(lost)
            with writing():
                check(found)


def test_its_death_is_not_the_death_of_another(url):
    lost, found = with_lost_attempt(plan_of(10, 10))
    board, death = ProgressBoard(), Death("KilledProcess", "killed its process")
    board.begin_page(lost.page.pk, lost.attempt.pk, lost.attempt.token, 10)
    board.flags[3] = 1
    note_death(board, death, 1.0, alive=True)
    give_up(board, death)
    with connection():
        assert Attempt.get().state == "running" and not Suspect.select().exists()
    board.begin_page(found.page.pk, found.attempt.pk, found.attempt.token, 10)
    board.flags[3] = 1
    note_death(board, death, 1.0, alive=True)
    with connection():
        assert Attempt.get().state == "died" and Suspect.get().place == 3


def test_a_process_that_crashes_with_no_row_in_progress_breaks_its_page(
    url, tmp_path, monkeypatch, caplog
):
    """As while its module is imported. The plan is paused, as at any broken page."""
    configure(tmp_path, "[element]\nmax_broken = 1\n", monkeypatch)
    plan = plan_of(10, 10)
    with connection():
        with writing():
            claim = claim_page(plan, 1, pool_of(plan), 1, this_process("local", Path()))
        board, death = ProgressBoard(), Death("KilledProcess", "killed its process")
        board.begin_page(claim.page.pk, claim.attempt.pk, claim.attempt.token, 10)
    assert note_death(board, death, 1.0, alive=True) is False
    with connection():
        assert Attempt.get().message == "no row was in progress: the task killed its process"
    give_up(board, death)
    with connection():
        (attempt,) = Attempt.select()
        assert attempt.state == "broken" and not Suspect.select().exists()
        assert "with no row in progress: the task killed its process" in attempt.message
        assert Plan.get().paused is not None
    assert f"plan {plan.pk} is paused: the last page that ended is broken" in caplog.text


def test_an_element_takes_no_page_of_another_plan(url):
    lost, pool = with_lost_plan()
    with connection(), pytest.raises(Superseded, match="no longer in the database"):
        claim_page(lost, None, pool, 1, somewhere())
    with Element(lost, pool, Stop()) as element:
        (outcome,) = element.pull(1)
    assert outcome.state == "refused" and "no longer in the database" in outcome.message
    with connection():
        assert not Attempt.select().exists()
        assert not Page.select().where(~Page.free).exists()
    assert Watcher(lost, pool, 1, Stop()).wait(None) is False
    with connection():
        assert Submission.get().watcher is None


def test_an_element_that_finds_no_tables_says_so(url):
    """As while a backup is being restored."""
    plan = plan_of(10, 10)
    submission = pool_of(plan)
    with connection():
        database.execute_sql('DROP TABLE "submission"')
    words = ["--plan", str(plan.pk), "--job", submission.token, "--element", "1"]
    run_page = [sys.executable, "-m", "astra", "run-page", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(run_page, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == DatabaseError.exit_status, done
    assert "astra initdb" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--plan 1 --job x", "run-page lacks --element; scripts of arrays call it"),
        ("--plan x --job x --element 1", "run-page --plan x: not a number"),
        ("--plan 1 --job x --element 1 --stop-at", "--stop-at takes one value, and there is no"),
        ("--plan 1 --page 1", "run-page --plan 1 --page 1: each of --plan, .* no other option"),
    ],
)
def test_an_element_takes_no_words_that_no_script_has(capsys, monkeypatch, words, said):
    monkeypatch.setattr("astra.run_page.start_command", lambda: None)
    assert run_page(words.split()) == UsageError.exit_status
    assert re.search(f"^astra: astra .*{said}", capsys.readouterr().err)


def test_a_job_is_not_bound_to_the_submission_of_another_plan(url):
    _, pool = with_lost_plan()
    with pytest.raises(DatabaseError, match="has lost submission"):
        bind_job(pool, JobId(17, None, pool.job_name))
    withdraw(pool, "refused")
    with connection():
        assert Submission.get().job_id != 17 and Submission.get().state == "submitted"
        assert not Page.select().where(Page.submission_pk.is_null()).exists()


def test_an_intent_whose_commit_was_not_acknowledged_is_not_committed_twice(url, monkeypatch):
    plan, answers = plan_of(10, 5), [OperationalError("database is locked")]

    @contextmanager
    def unacknowledged() -> Iterator[None]:
        with writing():
            yield
        if answers:
            raise answers.pop()

    monkeypatch.setattr(intent, "writing", unacknowledged)
    pool = pool_of(plan)
    with connection():
        assert [submission.pk for submission in Submission.select()] == [pool.pk]
        assert [page.submission_pk for page in Page.select()] == [pool.pk] * 2 and answers == []
