"""Faults of the database and of the clock."""

from __future__ import annotations

import time
from signal import SIGINT
from typing import TYPE_CHECKING, Any

import psycopg2

from tests.faults.kinds import Fault, kind
from tests.faults.nemesis import patiently

if TYPE_CHECKING:
    from tests.faults.nemesis import Nemesis

#: Seconds that a fault lasts beyond its time, at most, if nothing has met it.
_MEETS_S = 20.0


@kind(4, inside=True)
def terminate(nemesis: Nemesis, fault: Fault) -> str | None:
    """End all of astra's connections."""
    ended = nemesis.world.sql(
        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'astra %'"
    )
    return f"backends {[pid for pid, _ in ended]}" if ended else None


@kind(2, name="read-only")
def read_only(nemesis: Nemesis, fault: Fault) -> str:
    """Make transactions read-only, as after a failover."""
    _set(nemesis, "default_transaction_read_only = on", fault.lasts_s)
    return f"for {fault.lasts_s} s"


@kind(0)
def idle_timeouts(nemesis: Nemesis, fault: Fault) -> str:
    """End idle connections at once."""
    limits = ("idle_session_timeout = '50ms'", "idle_in_transaction_session_timeout = '50ms'")
    _set(nemesis, limits[0], fault.lasts_s, *limits[1:])
    return f"of 50 ms for {fault.lasts_s} s"


@kind(2, inside=True)
def restart(nemesis: Nemesis, fault: Fault) -> str:
    """Restart PostgreSQL."""
    nemesis.world.server.stop("fast")
    _back(nemesis, fault)
    return f"away for {fault.lasts_s} s"


@kind(2, inside=True)
def crash(nemesis: Nemesis, fault: Fault) -> str:
    """Kill PostgreSQL, which recovers."""
    nemesis.world.server.kill()
    _back(nemesis, fault)
    return f"away for {fault.lasts_s} s"


@kind(3, inside=True)
def silence(nemesis: Nemesis, fault: Fault) -> str:
    """Let no data pass on the connections to PostgreSQL, which stay open."""
    n_open = nemesis.world.proxy.silence()
    nemesis.over.wait(fault.lasts_s)
    nemesis.world.proxy.heal()
    return f"{n_open} connections, and new ones for {fault.lasts_s} s"


@kind(1)
def refuse(nemesis: Nemesis, fault: Fault) -> str:
    """Make the database refuse connections."""
    with nemesis.world.server.closed_database(nemesis.world.name) as n_ended:
        nemesis.over.wait(fault.lasts_s)
    return f"{n_ended} connections ended, no new ones for {fault.lasts_s} s"


@kind(1, name="pg_hba")
def pg_hba(nemesis: Nemesis, fault: Fault) -> str:
    """Reject the role in pg_hba.conf."""
    with nemesis.world.server.locked_out("astra"):
        n_ended = len(_end_backends(nemesis))
        nemesis.over.wait(fault.lasts_s)
    return f"{n_ended} connections ended, no new ones for {fault.lasts_s} s"


@kind(1)
def too_many(nemesis: Nemesis, fault: Fault) -> str:
    """Use up the connections of the role."""
    nemesis.world.sql("ALTER ROLE astra CONNECTION LIMIT 0")
    try:
        n_ended = len(_end_backends(nemesis))
        nemesis.over.wait(fault.lasts_s)
    finally:
        patiently(lambda: nemesis.world.sql("ALTER ROLE astra CONNECTION LIMIT -1"))
    return f"{n_ended} connections ended, no new ones for {fault.lasts_s} s"


@kind(2)
def slow(nemesis: Nemesis, fault: Fault) -> str:
    """Make each checkpoint slow."""
    nemesis.world.sql("INSERT INTO armed VALUES ('results', 0.7)")
    try:
        nemesis.over.wait(fault.lasts_s)
    finally:
        patiently(lambda: nemesis.world.sql("DELETE FROM armed"))
    return f"checkpoints of more than 0.7 s for {fault.lasts_s} s"


@kind(1)
def statement_timeout(nemesis: Nemesis, fault: Fault) -> str:
    """Set the server's timeout shorter than a checkpoint."""
    met = _Met(nemesis, "due to statement timeout")
    nemesis.world.sql("INSERT INTO armed VALUES ('results', 0.5)")
    try:
        _set(nemesis, "statement_timeout = '200ms'", fault.lasts_s, met=met)
    finally:
        patiently(lambda: nemesis.world.sql("DELETE FROM armed"))
    return f"{met.n()} statements" if met.n() else "nobody there"


@kind(1)
def serialisation(nemesis: Nemesis, fault: Fault) -> str:
    """Write what a checkpoint writes, under repeatable read."""
    met = _Met(nemesis, "could not serialize access")
    name = nemesis.world.name
    nemesis.world.sql(
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    )
    try:
        while met.lasts(fault.lasts_s):
            with nemesis.world.link() as link, link, link.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                cursor.execute("UPDATE attempt SET message = message")
                nemesis.over.wait(0.1)
    finally:
        _reset(nemesis)
    return f"{met.n()} failures" if met.n() else "nobody there"


@kind(0)
def disk_full(nemesis: Nemesis, fault: Fault) -> str:
    """Fill the database's disk."""
    met = _Met(nemesis, "No space left on device")
    size = nemesis.world.server.fill_disk()
    try:
        met.wait(fault.lasts_s)
    finally:
        nemesis.world.server.clear_disk()
    told = f"{met.n()} statements failed" if met.n() else "nobody there"
    return f"by {size / 1e6:.0f} MB for {fault.lasts_s} s: {told}"


@kind(2)
def locks(nemesis: Nemesis, fault: Fault) -> str:
    """Hold the pages for longer than lock_timeout."""
    name = nemesis.world.name
    nemesis.world.sql(f"ALTER DATABASE {name} SET lock_timeout = '150ms'")
    try:
        with nemesis.world.link() as link, link.cursor() as cursor:
            cursor.execute("SELECT pk FROM page FOR UPDATE")
            nemesis.over.wait(fault.lasts_s)
    finally:
        patiently(lambda: nemesis.world.sql(f"ALTER DATABASE {name} RESET ALL"))
    return f"all pages for {fault.lasts_s} s"


@kind(2)
def deadlock(nemesis: Nemesis, fault: Fault) -> str:
    """Lock attempt and page in the opposite order."""
    n_lost = n_tried = 0
    end = time.monotonic() + fault.lasts_s
    while time.monotonic() < end and not nemesis.over.wait(0.05):
        n_tried += 1
        try:
            with nemesis.world.link() as link, link.cursor() as cursor:
                cursor.execute("UPDATE attempt SET message = message")
                nemesis.over.wait(0.05)
                cursor.execute("SELECT pk FROM page FOR UPDATE")
        except psycopg2.errors.DeadlockDetected:
            n_lost += 1
    return f"{n_tried} rivals, {n_lost} of them lost"


@kind(1)
def clock(nemesis: Nemesis, fault: Fault) -> str:
    """Set the clock by hours, unless it is that of the machine."""
    hours = -2.0 if fault.number == SIGINT else 2.0
    nemesis.world.set_clock(hours)
    heard = "" if nemesis.world.scenario.clock_h is not None else ", which nobody looks at"
    return f"by {hours:+g} h{heard}"


class _Met:
    """Return how often a fault had an effect, by phrases in the server's log."""

    def __init__(self, nemesis: Nemesis, words: str) -> None:
        self.nemesis, self.words, self.began_s = nemesis, words, time.monotonic()
        self.before = self.logged()

    def logged(self) -> int:
        return self.nemesis.world.server.logged(self.words)

    def n(self) -> int:
        return self.logged() - self.before

    def lasts(self, lasts_s: float) -> bool:
        """Return whether the fault continues: for its time, or longer until it has had an effect."""
        gone_s = time.monotonic() - self.began_s
        is_early = gone_s < lasts_s or (gone_s < _MEETS_S and not self.n())
        return is_early and not self.nemesis.over.is_set()

    def wait(self, lasts_s: float) -> None:
        while self.lasts(lasts_s):
            self.nemesis.over.wait(0.1)


def _set(
    nemesis: Nemesis, setting: str, lasts_s: float, *more: str, met: _Met | None = None
) -> None:
    name = nemesis.world.name
    for each in (setting, *more):
        nemesis.world.sql(f"ALTER DATABASE {name} SET {each}")
    try:
        met.wait(lasts_s) if met else nemesis.over.wait(lasts_s)
    finally:
        _reset(nemesis)


def _reset(nemesis: Nemesis) -> None:
    """Take the database's settings back, also from the connections that PgBouncer keeps."""
    patiently(lambda: nemesis.world.sql(f"ALTER DATABASE {nemesis.world.name} RESET ALL"))
    if nemesis.world.pool:
        nemesis.world.pool.reconnect()


def _back(nemesis: Nemesis, fault: Fault) -> None:
    time.sleep(fault.lasts_s)
    nemesis.world.server.start()


def _end_backends(nemesis: Nemesis) -> list[Any]:
    return nemesis.world.server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{nemesis.world.name}' AND usename = 'astra'"
    )
