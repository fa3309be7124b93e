"""The lock of a plan or night: it is released when its holder stops answering; no invariant depends on it."""

import logging
import os
import re
import threading
import time
from contextlib import closing
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest

from astra.database.connection import bind, connection
from astra.database.locks import Holder, RowLock
from astra.database.postgresql_connection import ends_after
from astra.errors import BusyError
from astra.models import BossVisitSpectrum
from astra.models.locks import LockHeld, hold
from astra.models.plans import Page, Plan, Submission
from astra.models.schema import init_database
from astra.plan.plan import create_plan
from astra.processes import user_name
from astra.submit.intent import make_intent, new_submission
from tests.sample_tasks import fill, measure
from tests.servers import Postgres, Proxy, wait_for

#: Of one who is to lose its lock, and of all others: a busy machine may stand still for seconds.
SHORT_S, LONG_S = 1.0, 30.0

ME = Holder("login1", 4711, "operator")


def lock(url: str, silence_s: float = LONG_S) -> RowLock:
    connect = partial(psycopg2.connect, url, connect_timeout=20)
    return RowLock(connect, '"astra_lock"', "plan 1", ME, ends_after(silence_s), silence_s)


def through(proxy: Proxy, postgres: Postgres, url: str) -> str:
    """The address of a test's database by way of a proxy."""
    name = urlsplit(url).path.strip("/")
    far = proxy.way(postgres.url(name, user="astra"))
    assert str(proxy.port) in far
    return far


def holder(postgres: Postgres) -> list[Any]:
    """The backend that holds a lock of a name."""
    return postgres.sql(
        "SELECT pid FROM pg_stat_activity WHERE datname LIKE 'astra_%' "
        "AND state = 'idle in transaction'"
    )


@pytest.fixture
def elsewhere(pg_url: str) -> RowLock:
    """The same lock, as another process asks for it."""
    return lock(pg_url)


def test_it_is_held_for_longer_than_the_silence_that_frees_it(pg_url, elsewhere):
    silence_s = 7.0
    held = lock(pg_url, silence_s)
    assert held.take()
    end = time.monotonic() + silence_s + 1
    while time.monotonic() < end:
        assert not elsewhere.take()
        time.sleep(0.1)
    held.release()
    assert elsewhere.take()
    elsewhere.release()


def test_whoever_is_cut_off_holds_it_no_longer(postgres, pg_url, elsewhere, caplog):
    with Proxy(postgres.port) as proxy:
        held = lock(through(proxy, postgres, pg_url), SHORT_S)
        assert held.take()
        proxy.silence()
        wait_for(elsewhere.take, "the lock of one that is cut off", 20)  # TCP would take minutes
        with caplog.at_level(logging.WARNING):
            proxy.heal()
            wait_for(
                lambda: "another process holds it now" in caplog.text, "its holder to notice", 20
            )
        held.release()
        elsewhere.release()


def test_a_lock_is_taken_again_after_a_lost_connection(postgres, pg_url, elsewhere):
    held = lock(pg_url, 8)
    assert held.take()
    ((before,),) = holder(postgres)
    postgres.sql(f"SELECT pg_terminate_backend({before})")
    wait_for(lambda: holder(postgres) not in ([], [(before,)]), "another connection to hold it", 20)
    assert not elsewhere.take()
    held.release()
    assert not holder(postgres)


def test_its_end_does_not_wait_for_a_server_that_is_silent(postgres, pg_url, monkeypatch):
    asking = threading.Event()
    with Proxy(postgres.port) as proxy:
        held = lock(through(proxy, postgres, pg_url), 600)
        wait, is_held = held._over.wait, held._is_held

        def ask() -> bool:
            asking.set()
            answer = is_held()
            asking.clear()
            return answer

        monkeypatch.setattr(held, "_is_held", ask)
        monkeypatch.setattr(held._over, "wait", lambda seconds: wait(seconds / 1000))
        assert held.take()
        proxy.silence()
        wait_for(asking.is_set, "it to ask the server", 20)
        began = time.monotonic()
        held.release()
        assert time.monotonic() - began < 30


def test_a_lock_that_was_released_is_free_at_once(url):
    for _ in range(100):
        with hold("plan 1", "submits plan 1", "astra status 1"):
            pass


def test_names_do_not_hinder_each_other(url):
    # The second and the third were one byte of SQLite's lock file before.
    with hold("plan 1", "a", "it"), hold("plan 12", "b", "it"), hold("plan 21", "c", "it"):
        with pytest.raises(LockHeld, match="b; see it"), hold("plan 12", "b", "it"):
            pass


def test_who_is_refused_learns_who_holds_it_and_since_when(url):
    with hold("plan 1", "submits plan 1", "astra status 1", "step"):
        with pytest.raises(LockHeld) as refused, hold("plan 1", "submits plan 1", "astra status 1"):
            pass
    who = (
        rf"process {os.getpid()} of {user_name()} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d, "
    )
    assert re.match(who + "submits plan 1; see astra status 1", str(refused.value))
    assert refused.value.purpose == "step"


def test_a_schema_has_locks_of_its_own(pg_url, postgres):
    def holding(schema: str):
        bind(pg_url, schema)
        init_database()
        return hold("plan 1", "submits plan 1", "astra status 1")

    with holding("a"), holding("b"):
        pass


def test_a_role_that_may_only_read_cannot_hold_a_lock(pg_url, postgres):
    name = urlsplit(pg_url).path.strip("/")
    role = f"reader_{name}"
    postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    bind(postgres.url(name, user="astra"))
    init_database((), (f"{role}:reads",))
    with hold("plan 1", "submits plan 1", "astra status 1"):  # so that there is a row
        pass
    with (
        closing(psycopg2.connect(postgres.url(name, role, "x"))) as reader,
        reader.cursor() as cursor,
    ):
        for take in ("SELECT * FROM astra_lock FOR UPDATE", "LOCK TABLE astra_lock"):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(take)
            reader.rollback()


def test_a_planner_waits_and_says_for_whom(pg_url, caplog):
    fill(30)
    name = "planning tests.sample_tasks.measure boss_visit_spectrum"
    with hold(name, "plans", "it"):
        waiting = threading.Thread(target=create_plan, args=(measure, BossVisitSpectrum))
        waiting.start()
        wait_for(lambda: "waiting for process" in caplog.text, "the planner to wait")
        assert waiting.is_alive()
    waiting.join(20)
    with connection():
        assert Plan.select().count() == 1


def test_pages_that_were_seen_before_another_submitted_them_are_not_submitted_again(url):
    fill(30)
    (made,) = create_plan(measure, BossVisitSpectrum, limit=10)
    with connection():
        plan = Plan.get_by_id(made.plan)
        seen = list(Page.select().where(Page.plan == plan).order_by(Page.number))
    # Another process, which holds the plan after this one was cut off for a while.
    theirs = new_submission(plan, [2], 0, 1, "slurm")
    make_intent(theirs, seen[1:2])
    ours = new_submission(plan, [1, 2, 3], 0, 1, "slurm")
    with pytest.raises(BusyError, match=r"1 of these pages .* submits none"):
        make_intent(ours, seen)
    with connection():
        given = [page.submission_pk for page in Page.select().order_by(Page.number)]
        assert given == [None, theirs.pk, None]
        assert Submission.select().count() == 1
        again = list(Page.select().order_by(Page.number))
    make_intent(ours, again)
    with connection():
        assert {page.submission_pk for page in Page.select()} == {ours.pk}
