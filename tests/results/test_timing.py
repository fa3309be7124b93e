"""What an attempt stores of its own cost, on every way out."""

import os
import signal
import subprocess
import sys
import time

import pytest

from astra.api import run_here
from astra.database.connection import database
from astra.models.attempts import Attempt
from astra.models.schema import init_database
from astra.models.table_checks import VERSION
from astra.plan.plan import create_plan
from astra.results.histogram import RowTimes
from astra.resume.resume import resume_local
from tests.conftest import ROOT
from tests.sample_tasks import costly, fill
from tests.servers import wait_for


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def plan_of(n: int, limit: int, **arguments) -> int:
    fill(n)
    (planned,) = create_plan(costly, limit=limit, arguments=arguments)
    return planned.plan


def attempts() -> list[Attempt]:
    return list(Attempt.select().order_by(Attempt.pk))


def check_costs(attempt: Attempt, n_rows: int, row_s: float, load_s: float, mb: float) -> None:
    times = RowTimes.parse(attempt.row_times)
    assert times.n_rows == n_rows
    # A machine with other work makes everything longer: what must hold is how times compare.
    assert row_s / 1.03 <= times.quantile(0.02) <= times.mean()
    assert n_rows * times.mean() < 1.1 * attempt.t_rows_s
    assert n_rows * row_s + load_s < attempt.t_task_s < attempt.t_rows_s + attempt.t_start_s
    assert attempt.t_start_s > load_s and attempt.t_rows_s > n_rows * row_s
    assert 0 < attempt.t_read_s < attempt.t_start_s + attempt.t_rows_s and attempt.t_write_s > 0
    assert mb < attempt.max_rss_mb < mb + 90


def test_rows_that_end_in_any_way_are_timed(url):
    plan = plan_of(40, 20, row_s=0.02, load_s=0.3, mb=100, raise_every=10, nothing_every=7)
    resume_local(plan)
    first, second = attempts()
    for attempt in first, second:
        assert attempt.state == "done"
        check_costs(attempt, 20, 0.02, 0.3, 100)
    ended = [sum(getattr(a, name) for a in (first, second)) for name in ("n_done", "n_failed")]
    assert ended == [31, 4]


def test_start_up_time_is_measured_apart_from_rows(pg_url):
    """The interpreter, imports and the task's own loading count as start-up, once."""
    plan = plan_of(10, 10, load_s=0.5)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import peewee, psycopg2"], check=True)
    imports_s, began = time.monotonic() - began, time.monotonic()
    resume_local(plan)
    whole_s = time.monotonic() - began
    (attempt,) = attempts()
    assert attempt.t_start_s > 0.5 + imports_s / 2  # half, as no two starts take equally long
    assert attempt.t_start_s + attempt.t_rows_s < whole_s


def test_an_interrupted_attempt_keeps_its_measurements(pg_url):
    plan = plan_of(400, 400, row_s=0.05, load_s=0.2, mb=50, write_frequency=0.2)
    _signalled(plan, signal.SIGTERM)
    (attempt,) = attempts()
    assert attempt.state == "interrupted"
    check_costs(attempt, attempt.n_done, 0.05, 0.2, 50)


def test_a_killed_attempt_keeps_those_of_its_last_checkpoint(pg_url):
    """Nothing is written at the end: the last checkpoint stays, and the parent adds what it knows."""
    plan = plan_of(400, 400, row_s=0.05, load_s=0.2, mb=50, write_frequency=0.2)
    _signalled(plan, signal.SIGKILL)
    (attempt,) = attempts()
    assert attempt.state == "running" and "signal 9" in attempt.message
    assert RowTimes.parse(attempt.row_times).n_rows >= attempt.n_done > 0
    assert attempt.t_start_s > 0.2 and attempt.t_rows_s >= attempt.n_done * 0.05
    assert 50 < attempt.max_rss_mb < 200


def test_an_attempt_that_died_keeps_its_measurements(pg_url):
    """The next attempt starts in a process that its parent has ready."""
    resume_local(plan_of(30, 30, mb=50, kill_at=20, write_frequency=0.1, row_s=0.02))
    died, *others, last = attempts()
    assert died.state == "died" and 50 < died.max_rss_mb < 200
    assert died.t_start_s > 0 and RowTimes.parse(died.row_times).n_rows >= died.n_done
    assert last.state == "done" and sum(a.n_done for a in (died, *others, last)) == 29


def _signalled(plan_pk: int, number: int) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            from astra.database.connection import reset

            reset()
            resume_local(plan_pk)
        finally:
            os._exit(0)
    try:
        found: list[Attempt] = []

        def at_work() -> bool:
            found[:] = Attempt.select().where(Attempt.n_checkpoints >= 2)
            return bool(found)

        wait_for(at_work, "an attempt at work", 60)
        os.kill(found[0].pid, number)
    finally:
        os.waitpid(pid, 0)


def test_initdb_adds_missing_columns_and_tables(url):
    run_here(plan_of(5, 5))
    for name in ("t_start_s", "t_rows_s", "row_times"):
        database.execute_sql(f"ALTER TABLE attempt DROP COLUMN {name}")
    for table in ("night_plan", "night"):
        database.execute_sql(f"DROP TABLE {table}")
    database.execute_sql("UPDATE astra_schema SET version = 0")
    init_database()
    (attempt,) = attempts()
    assert attempt.state == "done" and attempt.row_times is None
    assert database.execute_sql("SELECT version FROM astra_schema").fetchone()[0] == VERSION


def test_times_of_rows_add_up():
    seconds = [0.001 * 1.01**i for i in range(1000)]
    times = RowTimes(seconds[:300]) + RowTimes(seconds[300:])
    assert str(times) == str(RowTimes(seconds)) == str(RowTimes.parse(str(times)))
    for share in (0.01, 0.25, 0.5, 0.95, 1.0):
        exact = seconds[min(int(share * 1000), 999)]
        assert times.quantile(share) == pytest.approx(exact, rel=0.05)
    assert times.mean() == pytest.approx(sum(seconds) / 1000, rel=0.03)
    assert len(str(times)) < 2000
    empty = RowTimes.parse(None)
    assert (empty.n_rows, empty.quantile(0.5), empty.mean(), str(empty)) == (0, 0.0, 0.0, "")
