"""A night with rows that raise, crash, hang and eat memory: only they fail."""

import logging
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from peewee import OperationalError, fn

from astra.api import run_here
from astra.config import settings
from astra.database.connection import connection
from astra.element import deaths
from astra.element.claiming import claim_page, this_process
from astra.element.deaths import give_up, note_death
from astra.element.element import Element
from astra.element.progress_board import ProgressBoard
from astra.element.suspects import Death
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt, Suspect
from astra.models.plans import Page
from astra.plan.plan import create_plan
from astra.results.stopping import Stop
from astra.resume.resume import resume_local
from astra.status.failures import failures
from astra.status.status import status
from astra.status.verify import verify
from tests.configuration import configure
from tests.pools import plan_of, pool_of
from tests.sample_tasks import (
    Measured,
    close_files,
    collect_and_hang,
    costly,
    crash,
    deadly,
    fill,
    frugal,
    hang_at,
    leak_files,
    measure,
    poisoned,
)


@pytest.fixture(autouse=True)
def _short_grace(tmp_path, monkeypatch):
    """A row that hangs is not waited for long after it was asked to stop."""
    configure(tmp_path, "[element]\ngrace_s = 0.3\n", monkeypatch)


@pytest.mark.parametrize("n, limit", [(2000, 250)])
def test_a_poisoned_night_ends_with_every_row(url, n, limit):
    fill(n)
    (planned,) = create_plan(poisoned, BossVisitSpectrum, limit=limit)
    resume_local(planned.plan, 2, row_timeout=1.0)
    found = status(planned.plan)
    bad = Counter(row.exception for row in failures(planned.plan))
    assert bad == {"ValueError": 4, "KilledProcess": 1, "RowTimeout": 1, "OutOfMemory": 1}
    assert found.state == "failed rows" and found.rows == {"done": n - 7, "failed": 7}
    assert Measured.select().count() == n - 7
    said = {row.exception: row.message for row in failures(planned.plan)}
    assert "SIGSEGV" in said["KilledProcess"] and "row timeout of 1 s" in said["RowTimeout"]
    assert verify(planned.plan).sound
    (left,) = create_plan(poisoned, BossVisitSpectrum)
    assert (left.plan, left.failed, left.quarantined) == (None, 7, 3)
    # Each crash costs one process and a search, not a page.
    assert Attempt.select().count() <= n // limit + 3 * 12


def test_a_row_that_a_real_time_signal_kills_is_a_failure(url):
    """As where a profiler's timer goes on without its handler. The signal has no name of its own."""
    fill(6)
    arguments = {"kill_at": 3, "kill_with": signal.SIGRTMIN + 6}
    (planned,) = create_plan(costly, BossVisitSpectrum, arguments=arguments)
    resume_local(planned.plan)
    (failed,) = failures(planned.plan)
    assert failed.key == 3 and "(signal 40, SIGRTMIN+6)" in failed.message
    assert verify(planned.plan).whole


def test_a_row_that_hangs_in_a_task_that_collects(url):
    """Groups of rows are halved until the row is alone."""
    fill(8)
    (planned,) = create_plan(collect_and_hang, BossVisitSpectrum, arguments={"bad": 6})
    done = resume_local(planned.plan, 1, row_timeout=0.3)
    assert done.message is None, [log.read_text() for log in Path().rglob("local-*.log")]
    (failed,) = failures(planned.plan)
    assert (failed.key, failed.exception) == (6, "RowTimeout")
    assert Measured.select().count() == 7 and verify(planned.plan).whole
    states = [a.state for a in Attempt.select().order_by(Attempt.number)]
    assert states[-1] == "done" and set(states[:-1]) == {"died"} and len(states) <= 6


def test_a_task_that_leaves_no_memory_for_the_database_ends(url):
    """Its rows are stored, and each page costs one process; nothing waits for memory, or for a
    thread that has none to begin."""
    plan = plan_of(15, 5, frugal)
    resume_local(plan.pk, 1)
    (log,) = Path().rglob("local-*.log")
    assert "this process has no memory left to use the database" in log.read_text()
    assert verify(plan.pk).whole and verify(plan.pk).sound
    assert Measured.select().count() == 15
    assert {a.state for a in Attempt.select()} <= {"died", "done"}


def test_a_task_that_closes_all_files_loses_no_row(url):
    """The connection to the database is opened again."""
    fill(8)
    (planned,) = create_plan(close_files, BossVisitSpectrum, arguments={"at": 5})
    done = resume_local(planned.plan, 1)
    assert done.message is None, [log.read_text() for log in Path().rglob("local-*.log")]
    assert Measured.select().count() == 8 and verify(planned.plan).whole


def test_a_task_that_leaves_no_file_for_the_database_is_continued_by_a_new_process(pg_url):
    """It neither waits for a database that is there, nor says that the rows needed memory."""
    plan = plan_of(60, 60, leak_files, n_files=50)
    resume_local(plan.pk, 1)
    assert verify(plan.pk).whole and verify(plan.pk).sound
    assert Measured.select().count() == 60
    *died, done = Attempt.select().order_by(Attempt.number)
    assert done.state == "done" and died and all("no file descriptor" in a.message for a in died)


def test_a_row_that_hangs_is_waited_for_once_although_another_element_is_free(url):
    """The other one does not get the page before the suspect row is recorded."""
    plan = plan_of(40, 20, hang_at, bad=5)
    resume_local(plan.pk, 2, row_timeout=1.0)
    (failed,) = failures(plan.pk)
    assert (failed.key, failed.exception) == (5, "RowTimeout")
    assert Counter(a.state for a in Attempt.select()) == {"died": 1, "done": 2}


def test_rows_that_end_soon_after_their_timeout_do_not_break_their_page(url, tmp_path):
    """Each ends its process; but each is stored, and there are more than ``max_deaths``."""
    (tmp_path / "astra.toml").write_text("[element]\ngrace_s = 60\n")
    settings.reset()
    plan = plan_of(5, 5, measure, row_s=0.6)
    done = resume_local(plan.pk, 1, row_timeout=0.3)
    assert done.message is None, [log.read_text() for log in Path().rglob("local-*.log")]
    assert verify(plan.pk).whole and Measured.select().count() == 5


@pytest.mark.parametrize("timed_out", [True, False])
def test_a_page_is_given_back_unless_a_row_of_it_has_timed_out(url, timed_out):
    plan, board, stop = plan_of(3, 3), ProgressBoard(), Stop()
    if timed_out:
        board.timed_out = True
    stop.ask("SIGTERM")
    with Element(plan, pool_of(plan), stop, board) as element:
        run = element.run_page(None, 1)
    assert run is not None and run.state == "interrupted"
    with connection():
        assert Page.get().free != timed_out


@pytest.mark.parametrize("alive", [True, False])
def test_a_death_counts_once_although_its_record_was_not_acknowledged(url, alive):
    plan = plan_of(10, 10)
    claim = claim_page(plan, 1, pool_of(plan), 1, this_process("local", Path()))
    assert claim is not None
    board = ProgressBoard()
    board.begin_page(claim.page.pk, claim.attempt.pk, claim.attempt.token, claim.page.n_rows)
    board.flags[0] = 1
    for _ in range(2):  # what is committed, and repeated as the answer was lost
        assert note_death(board, Death("KilledProcess", "was killed"), 1.0, alive)
    assert [suspect.deaths for suspect in Suspect.select()] == [1]


def test_many_rows_in_progress_are_recorded_by_few_statements(url, caplog):
    """A task that collects its rows has a whole page in progress, which may be long."""
    plan = plan_of(2500, 2500)
    submission, here = pool_of(plan), this_process("local", Path())
    with connection():
        assert claim_page(plan, 1, submission, 1, here) is not None
        Attempt.update(n_handed=2500, pid_began="gone").execute()
        with caplog.at_level(logging.DEBUG, "peewee"):
            claim = claim_page(plan, 1, submission, 1, here)
        assert claim is not None and len(claim.suspects) == 2500
    assert sum('INSERT INTO "suspect"' in text for text in caplog.messages) == 3


def test_a_page_that_was_done_before_its_process_crashed_is_not_broken(url):
    plan, board = plan_of(4, 4), ProgressBoard()
    run_here(plan.pk)
    with connection():
        attempt = Attempt.get()
    board.begin_page(attempt.page_pk, attempt.pk, attempt.token, 4)
    give_up(board, Death("KilledProcess", "killed its process"))
    with connection():
        assert Attempt.get().state == "done"


@pytest.mark.parametrize("lost", ["database", "plan"])
def test_a_crash_that_cannot_be_recorded_does_not_end_the_element_by_a_bug(
    url, tmp_path, monkeypatch, caplog, lost
):
    (tmp_path / "astra.toml").write_text("[database]\nretry_for_s = 0\n")
    settings.reset()
    board, death = ProgressBoard(), Death("KilledProcess", "killed its process")
    board.begin_page(1, 1, "", 4)
    board.flags[0] = 1

    def is_away() -> None:
        raise OperationalError("database is locked")

    if lost == "database":
        monkeypatch.setattr(deaths, "writing", is_away)
    assert note_death(board, death, 1.0, True) is (lost == "plan")
    give_up(board, death)
    assert ("could not be recorded" in caplog.text) is (lost == "database")


def test_a_process_begins_with_no_row_in_progress():
    """The board is reset, although the crash of the process before may not be recorded."""
    board = ProgressBoard()
    for _ in range(2):
        board.reset(0.0)
        if (pid := os.fork()) == 0:
            board.begin_page(1, 1, "", 2)
            board.flags[1] = 1
            os._exit(0)
        os.waitpid(pid, 0)
        assert board.n_in_progress() == 1 and board.places() == [1]


def test_a_row_that_ends_the_whole_element(url):
    """No process is left that knows which rows were in progress; the database records it."""
    fill(4)
    (planned,) = create_plan(deadly, BossVisitSpectrum, arguments={"bad": 3})
    n_resumed = 0
    while status(planned.plan).state != "failed rows":
        resume_local(planned.plan, 1)
        n_resumed += 1
        assert n_resumed <= 9
    (failed,) = failures(planned.plan)
    assert (failed.key, failed.exception) == (3, "KilledProcess")
    assert "being processed when its process ended without a record, 3 times" in failed.message
    assert Measured.select().count() == 3 and verify(planned.plan).sound


@pytest.mark.parametrize("limit", [3, 6])
def test_an_element_whose_rows_all_crash_breaks_its_page_and_takes_no_other(url, tmp_path, limit):
    """Its node is to blame, and not the rows of one page after the other."""
    with open(tmp_path / "astra.toml", "a") as file:
        file.write("max_deaths = 1\nmax_failures_after = 4\n")
    settings.reset()
    good = tmp_path / "good"
    plan = plan_of(12, limit, crash, until=str(good))
    resume_local(plan.pk, 1)
    found = status(plan.pk)
    with connection():
        n_elements = Attempt.select(fn.COUNT(Attempt.element.distinct())).scalar()
        broken = [a.message for a in Attempt.select().where(Attempt.state == "broken")]
    n_failed = found.rows.get("failed", 0)
    assert found.state == "attention" and n_failed <= 4 * n_elements
    assert broken and all("of this element failed, more than the share" in m for m in broken)
    good.touch()
    resume_local(plan.pk, 1)
    rows = status(plan.pk).rows
    assert (rows["done"], rows.get("failed", 0)) == (12 - n_failed, n_failed)
    assert verify(plan.pk).sound


@pytest.mark.parametrize("since", ["deleted", "processed"])
def test_a_row_that_was_given_up_and_has_changed_since(url, since):
    """Its page ends all the same, and no failure is recorded beside a result."""
    plan = plan_of(4, 4)
    with connection():
        page = Page.get()
        row = BossVisitSpectrum.get(BossVisitSpectrum.spectrum_pk == page.row_keys[1])
        Suspect.create(
            page=page.pk, place=1, group=1, deaths=3, exception="KilledProcess", cause="was killed"
        )
        if since == "deleted":
            row.delete_instance()
    if since == "processed":
        list(measure([row]))
    run_here(plan.pk)
    found = verify(plan.pk)
    assert found.sound and found.rows["pending"] == 0
    assert [f.exception for f in failures(plan.pk)] == ["InputGone"] * (since == "deleted")


def test_a_number_of_rows_that_somebody_changed_crashes_no_process(url):
    """The supervisor would read what is behind the board."""
    plan = plan_of(4, 4)
    with connection():
        Page.update(n_rows=2**31 - 1).execute()
    resume_local(plan.pk, 1)
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["done"]
    assert Measured.select().count() == 4 and not verify(plan.pk).sound
