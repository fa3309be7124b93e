"""A server, or something on the way to it, that falls silent."""

import os
import select
import signal
import subprocess
import sys
from contextlib import nullcontext
from urllib.parse import urlsplit

import peewee
import psycopg2
import pytest

from astra.database.connection import (
    bind,
    connected,
    connection,
    database,
    keep_connected,
    retrying,
    writing,
)
from astra.element.element import Element
from astra.errors import DatabaseError
from astra.models import BossVisitSpectrum
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.results.stopping import Stop
from tests.configuration import configure
from tests.pools import elements, is_whole, plan_of, pool_of, running
from tests.sample_tasks import fill, measure
from tests.servers import PgBouncer, wait_for

pytestmark = pytest.mark.postgres

_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


class _TransactionTimeout(psycopg2.InternalError):
    """How the driver reports a transaction_timeout, which PostgreSQL 17 has."""

    pgcode = "25P04"


@pytest.mark.parametrize(
    "error",
    [
        # A server that shuts down immediately sometimes does this.
        psycopg2.DatabaseError("server closed the connection unexpectedly"),
        _TransactionTimeout("terminating connection due to transaction timeout"),
    ],
    ids=["a lost connection that the driver reports as a bare error", "a transaction's timeout"],
)
def test_work_is_repeated_after_what_the_server_ended(pg_url, error):
    calls = iter([error, None])

    def work() -> str:
        with peewee.ExceptionWrapper(peewee.EXCEPTIONS):
            if (error := next(calls)) is not None:
                raise error
        return "done"

    assert retrying(work) == "done"


def test_work_is_repeated_after_its_connection_was_closed_within_a_transaction(pg_url):
    """As by a task that closes all files of its process while its results are stored."""
    tries = []

    def work() -> object:
        with writing():
            tries.append(database.execute_sql("SELECT 1").fetchone())
            if len(tries) == 1:
                os.close(database.obj.connection().fileno())
            return database.execute_sql("SELECT 2").fetchone()

    bind()
    with keep_connected():
        assert retrying(work) == (2,)


@pytest.mark.parametrize("writes", [False, True])
def test_the_server_gives_up_what_its_client_has_given_up(pg_url, postgres, writes):
    """While a table is locked, retries do not use up the connections, nor write later."""

    def work() -> None:
        with writing() if writes else nullcontext():
            BossVisitSpectrum.update(snr=-1).execute()

    fill(1)
    with psycopg2.connect(pg_url) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE boss_visit_spectrum")
        with pytest.raises(DatabaseError):
            retrying(work, bound_s=0.3, statement_s=0.1)
        wait_for(lambda: postgres.sql(_WAITING) == [(0,)], "the end of what waits for the lock", 20)
    other.close()
    with connection():
        assert BossVisitSpectrum.get().snr == 0


def test_an_element_survives_the_idle_timeouts_of_pgbouncer(pg_url, postgres):
    """Before its first page and between two, its connection is idle, and so is the server's."""
    fill(20)
    with connection():
        for kind in ("TABLES", "SEQUENCES"):
            database.execute_sql(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO astra")
    timeouts = "client_idle_timeout = 0.2\nserver_idle_timeout = 0.2"
    with PgBouncer(postgres, extra=timeouts) as pool:
        bind(f"postgresql://astra@127.0.0.1:{pool.port}{urlsplit(pg_url).path}")
        (planned, *_) = create_plan(measure, BossVisitSpectrum, limit=10)
        plan = get_plan(planned.plan)
        submission = pool_of(plan)
        with Element(plan, submission, Stop()) as this:
            for number in (1, 2):
                connected()
                link = database.connection().fileno()
                assert select.select([link], [], [], 60)[0], "PgBouncer does not close it"
                assert this.run_page(number, 1).state == "done"
        assert is_whole(plan) and elements() == {1: 2}
    bind(pg_url)


def test_an_element_that_is_suspended_in_a_checkpoint_for_longer_than_an_outage(
    pg_url, postgres, tmp_path, monkeypatch
):
    """The time that Slurm suspends it is no outage: the database answers when it continues."""
    configure(tmp_path, "[database]\nretry_for_s = 2\nanswer_timeout_s = 2\n", monkeypatch)
    plan = plan_of(30, 30, row_s=0.2)
    words = ["--plan", str(plan.pk), "--job", pool_of(plan).token, "--element", "1"]
    with subprocess.Popen([sys.executable, "-m", "astra", "run-page", *words]) as element:
        with connection():
            (attempt,) = running(1)
        with psycopg2.connect(pg_url) as other, other.cursor() as cursor:
            cursor.execute("SELECT 1 FROM page FOR UPDATE")
            with connection():
                wait_for(lambda: database.execute_sql(_WAITING).fetchone()[0], "a checkpoint", 60)
            for pid in (element.pid, attempt.pid):
                os.kill(pid, signal.SIGSTOP)
        other.close()
        ended = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        wait_for(lambda: postgres.sql(ended) == [(0,)], "the end of its transaction", 20)
        for pid in (attempt.pid, element.pid):
            os.kill(pid, signal.SIGCONT)
        assert element.wait(60) == 0
    assert is_whole(plan) and elements() == {1: 1}


@pytest.mark.parametrize(
    ("table", "words"),
    [("plan", ["status", "1"]), ("astra_lock", ["plan", "tests.sample_tasks.measure"])],
)
def test_ctrl_c_ends_a_command_while_a_statement_waits(pg_url, postgres, table, words):
    """Also within a transaction, which cannot be rolled back on a closed connection."""
    fill(1)
    create_plan(measure, BossVisitSpectrum)
    fill(1)
    with psycopg2.connect(pg_url) as other, other.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table}")
        command = subprocess.Popen(
            [sys.executable, "-P", "-m", "astra", *words], stderr=subprocess.PIPE, text=True
        )
        try:
            wait_for(lambda: postgres.sql(_WAITING) == [(1,)], "the statement")
            command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=20)
        finally:
            command.kill()
    other.close()
    assert command.returncode == 130 and "interrupted" in said, said
