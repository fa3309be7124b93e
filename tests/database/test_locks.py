"""The lock of a plan or night: it ends when its holder stops answering; no invariant depends on it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from astra.config import settings
from astra.database.connection import bind, connection, database, keep_connected
from astra.database.postgresql_connection import PostgresqlDatabase
from astra.errors import BusyError, UsageError
from astra.models import BossVisitSpectrum
from astra.models.locks import Lock, LockHeld, hold, transaction_with_locks
from astra.models.plans import Page, Plan, Submission
from astra.models.schema import init_database
from astra.plan.plan import create_plan
from astra.processes import user_name
from astra.submit.intent import make_intent, new_submission
from tests.sample_tasks import fill, measure
from tests.servers import Proxy, wait_for

#: How long a lock lasts whose holder is silent: of one that is to lose it, and of all others, since
#: a busy machine may stand still for seconds.
SHORT_S, LONG_S = 4, 600

_HOLDER = """
import logging, sys
from astra.models.locks import hold
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
with hold("plan 1", "submits plan 1", "astra status 1"):
    print("held", flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process that holds the lock."""

    def __init__(self, folder: Path, url: str, lasts_s: float) -> None:
        (folder / "holder.toml").write_text(
            f"[database]\nanswer_timeout_s = {lasts_s}\nconnect_timeout_s = 2\n"
        )
        self.log = folder / "holder.log"
        environment = {"ASTRA_DATABASE_URL": url, "ASTRA_CONFIG": str(folder / "holder.toml")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _HOLDER],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        self.wait_for("held")

    def wait_for(self, words: str) -> None:
        wait_for(lambda: words in self.log.read_text(), f"the holder to say {words!r}", 60)


@contextmanager
def other(folder: Path, url: str, lasts_s: float = LONG_S) -> Iterator[Other]:
    holder = Other(folder, url, lasts_s)
    try:
        yield holder
    finally:
        holder.process.kill()
        holder.process.communicate()


def is_free() -> bool:
    with suppress(LockHeld), hold("plan 1", "submits plan 1", "astra status 1"):
        return True
    return False


def test_it_is_held_for_longer_than_the_silence_that_frees_it(url, tmp_path):
    with other(tmp_path, url, SHORT_S + 1):
        end = time.monotonic() + SHORT_S + 2
        while time.monotonic() < end:
            assert not is_free()
            time.sleep(0.1)


def test_one_whose_holder_was_killed_is_free_at_once(url, tmp_path):
    with other(tmp_path, url) as holder:
        assert not is_free()
        holder.process.kill()
        holder.process.wait()
        assert is_free()


def test_one_of_another_host_ends_when_its_holder_is_silent(url, tmp_path):
    with other(tmp_path, url, SHORT_S) as holder:
        holder.process.kill()
        holder.process.wait()
        with connection():  # its processes have numbers of their own
            Lock.update(token="another-boot 1 a").execute()
        assert not is_free()
        wait_for(is_free, "the lock to end", 20)


def test_whoever_is_stopped_holds_it_no_longer(url, tmp_path):
    with other(tmp_path, url, SHORT_S) as holder:
        holder.process.send_signal(signal.SIGSTOP)
        wait_for(is_free, "the lock of a process that is stopped", 20)
        with hold("plan 1", "submits plan 1", "astra status 1"):
            holder.process.send_signal(signal.SIGCONT)
            holder.wait_for("was lost, and another process may hold it now")
            holder.process.communicate(timeout=60)
            assert not is_free()  # its release is none of ours


def test_it_is_kept_while_the_server_does_not_answer(postgres, pg_url, tmp_path):
    name = urlsplit(pg_url).path.strip("/")
    with Proxy(postgres.port) as proxy:
        way = proxy.way(postgres.url(name, user="astra"))
        with other(tmp_path, way, 12) as holder:
            proxy.silence()
            holder.wait_for("cannot be renewed or released now")
            proxy.heal()
            end = time.monotonic() + 13
            while time.monotonic() < end:
                assert not is_free()
                time.sleep(0.1)


def test_its_end_does_not_wait_for_a_server_that_is_silent(postgres, pg_url):
    with Proxy(postgres.port) as proxy:
        bind(proxy.way(postgres.url(urlsplit(pg_url).path.strip("/"), user="astra")))
        with hold("plan 1", "submits plan 1", "astra status 1"):
            proxy.silence()
            began = time.monotonic()
        assert time.monotonic() - began < 30


def test_a_lock_that_was_released_is_free_at_once(url):
    for _ in range(100):
        with hold("plan 1", "submits plan 1", "astra status 1"):
            pass


def test_a_short_command_needs_one_more_connection_for_its_lock(pg_url, postgres, monkeypatch):
    opened, connect = [], PostgresqlDatabase._connect
    monkeypatch.setattr(
        PostgresqlDatabase, "_connect", lambda own: opened.append(own) or connect(own)
    )
    with keep_connected(), hold("plan 1", "submits plan 1", "astra status 1"):
        pass
    assert len(opened) == 2  # the command's, and one for the release


def test_one_whose_connection_is_lost_is_released_all_the_same(pg_url, postgres):
    name = urlsplit(pg_url).path.strip("/")
    with keep_connected(), hold("plan 1", "submits plan 1", "astra status 1"):
        ended = postgres.sql(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            f"WHERE datname = '{name}'"
        )
        assert ended == [(True,)]
    with connection():
        assert Lock.get().until is None


def test_it_is_refused_in_a_transaction_of_the_caller(url):
    """It would be seen by nobody, and then, after the commit, be held by nobody."""
    with connection(), database.atomic():
        with pytest.raises(UsageError, match="outside of it"):
            with hold("plan 1", "submits plan 1", "astra status 1"):
                pass
    assert is_free()


def test_names_do_not_hinder_each_other(url):
    with hold("plan 1", "a", "it"), hold("plan 12", "b", "it"), hold("plan 21", "c", "it"):
        with pytest.raises(LockHeld, match="b; see it"), hold("plan 12", "b", "it"):
            pass


def test_who_is_refused_learns_who_holds_it_and_since_when(url):
    with hold("plan 1", "submits plan 1", "astra status 1", "step"):
        with pytest.raises(LockHeld) as refused, hold("plan 1", "submits plan 1", "astra status 1"):
            pass
    who = rf"process {os.getpid()} of {user_name()} on \S+, since [\d-]{{10}} [\d:]{{8}} \S+, "
    assert re.match(who + "submits plan 1; see astra status 1", str(refused.value))
    assert refused.value.purpose == "step"


def test_a_schema_has_locks_of_its_own(pg_url, postgres):
    def holding(schema: str):
        settings.use(settings.Config(database=settings.Database(url=pg_url, schema=schema)))
        bind()
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
    with connection(), transaction_with_locks([name], "plans"):
        waiting = threading.Thread(target=create_plan, args=(measure, BossVisitSpectrum))
        waiting.start()
        wait_for(lambda: "waiting for process" in caplog.text, "the planner to wait")
        assert re.search(r"on \S+, since [^,]+, which plans \S+measure on", caplog.text)
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
