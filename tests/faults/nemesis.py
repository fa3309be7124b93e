"""The nemesis: does a scenario's faults, each when its share of the rows has been computed."""

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg2

from tests.faults.cluster import Cluster
from tests.faults.scenario import Fault
from tests.faults.world import World, send
from tests.servers import ServerError

#: Longest wait for a fault's moment, for a checkpoint to be inside of, and for an element.
_MOMENT_S, _CHECKPOINT_S, _ELEMENT_S = 20.0, 3.0, 2.0


class Nemesis(threading.Thread):
    """Works beside the run, until its faults are done or the plan is whole."""

    def __init__(self, world: World, resume: Callable[[], int | None]) -> None:
        super().__init__(daemon=True)
        self.world, self.resume = world, resume  # the pid of astra resume, while there is one
        self.dice = random.Random(world.scenario.seed + 1)
        self.over = threading.Event()
        self.done: list[str] = []  # what was done to whom, for the report
        self.n_deaths = 0  # ends without a word that rows in hand may be blamed for
        self.trouble: BaseException | None = None
        self.later: list[threading.Timer] = []

    def run(self) -> None:
        try:
            for fault in self.world.scenario.faults:
                if not self._await(fault):
                    return
                self._do(fault)
        except BaseException as error:
            self.trouble = error

    def finish(self) -> None:
        """No more faults; what was taken away is given back."""
        self.over.set()
        self.join(40)
        for timer in self.later:
            timer.join(20)
        if self.is_alive():
            raise TimeoutError("the nemesis does not end")

    def _await(self, fault: Fault) -> bool:
        """Wait for the fault's moment; whether it comes before all is over."""
        end = time.monotonic() + _MOMENT_S
        while self.world.share_computed() < fault.after and time.monotonic() < end:
            if self.over.wait(0.02):
                return False
        return not self.over.is_set()

    def _do(self, fault: Fault) -> None:
        did: str | None = None
        with suppress(psycopg2.Error, ServerError):
            if fault.inside:
                self._hold(fault.inside)
            did = getattr(self, "_" + fault.kind.replace(" ", "_").replace("-", "_"))(fault)
        with suppress(psycopg2.Error):
            if fault.inside:
                self.world.sql("DELETE FROM armed")
        inside = f" inside {fault.inside}" if fault.inside else ""
        self.done.append(f"{fault.kind}{inside}: {did or 'nobody there'}")

    def _hold(self, place: str) -> None:
        """Wait until a checkpoint stands in the middle of its transaction."""
        self.world.sql("INSERT INTO armed VALUES (%s, 0.7)", place)
        end = time.monotonic() + _CHECKPOINT_S
        while time.monotonic() < end and not self.over.wait(0.02):
            if self.world.sql(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event = 'PgSleep'"
            ):
                return

    # -- faults: processes --------------------------------------------------------------------

    def _kill_child(self, fault: Fault) -> str | None:
        killed = [child for _, child in self._chosen(fault) if child]
        return self._kill(killed)

    def _kill_parent(self, fault: Fault) -> str | None:
        return self._kill([parent for parent, _ in self._chosen(fault)])

    def _kill(self, pids: list[int]) -> str | None:
        for pid in pids:
            send(pid, signal.SIGKILL)
        self.n_deaths += bool(pids)
        return f"processes {pids}" if pids else None

    def _chosen(self, fault: Fault) -> list[tuple[int, int | None]]:
        """One element; all of them inside a checkpoint, whose own cannot be told."""
        end = time.monotonic() + _ELEMENT_S
        while not (found := self.world.elements()) and time.monotonic() < end:
            if self.over.wait(0.05):
                break
        return found if fault.inside or not found else [self.dice.choice(found)]

    def _kill_resume(self, fault: Fault) -> str | None:
        pid = self.resume()
        if pid is not None:
            send(pid, signal.SIGKILL)
        return f"process {pid}" if pid else None

    def _stop_resume(self, fault: Fault) -> str | None:
        pid = self.resume()
        if pid is not None:
            send(pid, signal.SIGINT if fault.number == signal.SIGINT else signal.SIGTERM)
        return f"process {pid}" if pid else None

    def _signal(self, fault: Fault) -> str | None:
        chosen = self._chosen(fault)
        for parent, _ in chosen:
            send(parent, fault.number)
        return f"{signal.Signals(fault.number).name} to {chosen}" if chosen else None

    def _zombie(self, fault: Fault) -> str | None:
        chosen = [pid for pair in self._chosen(fault) for pid in pair if pid]
        for pid in chosen:
            send(pid, signal.SIGSTOP)
        self.n_deaths += bool(chosen)
        wakes_s = self.world.scenario.lease_s + 1 + fault.lasts_s
        self._after(wakes_s, lambda: [send(pid, signal.SIGCONT) for pid in chosen])
        # Who waits for its elements does not see that one is a zombie: somebody resumes elsewhere.
        resume = self.resume()
        if chosen and resume is not None:
            send(resume, signal.SIGKILL)
        return f"processes {chosen} for {wakes_s:.1f} s" if chosen else None

    def _suspend(self, fault: Fault) -> str | None:
        """As Slurm suspends a job: all its processes stand still, and go on where they stood."""
        chosen = [pid for pair in self._chosen(fault) for pid in pair if pid]
        for pid in chosen:
            send(pid, signal.SIGSTOP)
        self._after(fault.lasts_s, lambda: [send(pid, signal.SIGCONT) for pid in chosen])
        return f"processes {chosen} for {fault.lasts_s} s" if chosen else None

    def _after(self, delay_s: float, work: Callable[[], Any]) -> None:
        timer = threading.Timer(delay_s, work)
        timer.daemon = True
        timer.start()
        self.later.append(timer)

    # -- faults: Slurm ------------------------------------------------------------------------

    def _job(self) -> str | None:
        """An element that runs, in Slurm's words."""
        running = self._cluster.jobs(self.world.folder, "-t", "R")
        return self.dice.choice(running) if running else None

    @property
    def _cluster(self) -> Cluster:
        assert self.world.cluster is not None
        return self.world.cluster

    def _scancel(self, fault: Fault) -> str | None:
        job = self._job()
        if job is not None and fault.number != signal.SIGTERM:
            self._cluster.run("scancel", "--batch", f"--signal={fault.number}", job)
        elif job is not None:
            self._cluster.run("scancel", job)
        return f"{job}, signal {fault.number}" if job else None

    def _requeue(self, fault: Fault) -> str | None:
        job = self._job()
        if job is not None:
            self._cluster.run("scontrol", "requeue", job)
        return job

    def _slurmd(self, fault: Fault) -> str:
        node = self.dice.choice(self._cluster.nodes)
        self._cluster.daemons.slurmd_away(node, fault.lasts_s)
        return f"{node} away for {fault.lasts_s} s"

    def _slurmctld(self, fault: Fault) -> str:
        self._cluster.daemons.slurmctld_away(fault.lasts_s)
        return f"away for {fault.lasts_s} s"

    # -- faults: the database -----------------------------------------------------------------

    def _terminate(self, fault: Fault) -> str | None:
        ended = self.world.sql(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'astra'"
        )
        return f"backends {[pid for pid, _ in ended]}" if ended else None

    def _read_only(self, fault: Fault) -> str:
        self._set("default_transaction_read_only = on", fault.lasts_s)
        return f"for {fault.lasts_s} s"

    def _idle_timeouts(self, fault: Fault) -> str:
        limits = ("idle_session_timeout = '50ms'", "idle_in_transaction_session_timeout = '50ms'")
        self._set(limits[0], fault.lasts_s, *limits[1:])
        return f"of 50 ms for {fault.lasts_s} s"

    def _set(self, setting: str, lasts_s: float, *more: str) -> None:
        name = self.world.name
        for each in (setting, *more):
            self.world.sql(f"ALTER DATABASE {name} SET {each}")
        try:
            self.over.wait(lasts_s)
        finally:
            self._patiently(lambda: self.world.sql(f"ALTER DATABASE {name} RESET ALL"))

    def _restart(self, fault: Fault) -> str:
        self.world.server.stop("fast")
        self._back(fault)
        return f"away for {fault.lasts_s} s"

    def _crash(self, fault: Fault) -> str:
        self.world.server.kill()
        self._back(fault)
        return f"away for {fault.lasts_s} s"

    def _back(self, fault: Fault) -> None:
        time.sleep(fault.lasts_s)
        self.world.server.start()

    def _silence(self, fault: Fault) -> str:
        n_open = self.world.proxy.silence()
        self.over.wait(fault.lasts_s)
        self.world.proxy.heal()
        return f"{n_open} connections, and new ones for {fault.lasts_s} s"

    def _refuse(self, fault: Fault) -> str:
        name, server = self.world.name, self.world.server
        server.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            n_ended = len(self._end_backends())
            self.over.wait(fault.lasts_s)
        finally:
            self._patiently(lambda: server.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        return f"{n_ended} connections ended, no new ones for {fault.lasts_s} s"

    def _pg_hba(self, fault: Fault) -> str:
        with self.world.server.locked_out("astra"):
            n_ended = len(self._end_backends())
            self.over.wait(fault.lasts_s)
        return f"{n_ended} connections ended, no new ones for {fault.lasts_s} s"

    def _too_many(self, fault: Fault) -> str:
        self.world.sql("ALTER ROLE astra CONNECTION LIMIT 0")
        try:
            n_ended = len(self._end_backends())
            self.over.wait(fault.lasts_s)
        finally:
            self._patiently(lambda: self.world.sql("ALTER ROLE astra CONNECTION LIMIT -1"))
        return f"{n_ended} connections ended, no new ones for {fault.lasts_s} s"

    def _end_backends(self) -> list[Any]:
        return self.world.server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{self.world.name}' AND usename = 'astra'"
        )

    def _slow(self, fault: Fault) -> str:
        self.world.sql("INSERT INTO armed VALUES ('results', 0.7)")
        try:
            self.over.wait(fault.lasts_s)
        finally:
            self._patiently(lambda: self.world.sql("DELETE FROM armed"))
        return f"checkpoints of more than 0.7 s for {fault.lasts_s} s"

    def _statement_timeout(self, fault: Fault) -> str:
        before = self.world.server.logged("due to statement timeout")
        self.world.sql("INSERT INTO armed VALUES ('results', 0.5)")
        try:
            self._set("statement_timeout = '200ms'", fault.lasts_s)
        finally:
            self._patiently(lambda: self.world.sql("DELETE FROM armed"))
        n = self.world.server.logged("due to statement timeout") - before
        return f"{n} statements" if n else "nobody there"

    def _serialisation(self, fault: Fault) -> str:
        before = self.world.server.logged("could not serialize access")
        name = self.world.name
        self.world.sql(
            f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
        )
        try:
            end = time.monotonic() + fault.lasts_s
            while time.monotonic() < end and not self.over.is_set():
                with self.world.link() as link, link, link.cursor() as cursor:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                    cursor.execute("UPDATE attempt SET message = message")
                    self.over.wait(0.1)
        finally:
            self._patiently(lambda: self.world.sql(f"ALTER DATABASE {name} RESET ALL"))
        n = self.world.server.logged("could not serialize access") - before
        return f"{n} failures" if n else "nobody there"

    def _disk_full(self, fault: Fault) -> str:
        before = self.world.server.logged("No space left on device")
        size = self.world.server.fill_disk()
        try:
            self.over.wait(fault.lasts_s)
        finally:
            self.world.server.clear_disk()
        n = self.world.server.logged("No space left on device") - before
        told = f"{n} statements failed" if n else "nobody there"
        return f"by {size / 1e6:.0f} MB for {fault.lasts_s} s: {told}"

    def _locks(self, fault: Fault) -> str:
        name = self.world.name
        self.world.sql(f"ALTER DATABASE {name} SET lock_timeout = '150ms'")
        try:
            with self.world.link() as link, link.cursor() as cursor:
                cursor.execute("SELECT pk FROM page FOR UPDATE")
                self.over.wait(fault.lasts_s)
        finally:
            self._patiently(lambda: self.world.sql(f"ALTER DATABASE {name} RESET ALL"))
        return f"all pages for {fault.lasts_s} s"

    def _deadlock(self, fault: Fault) -> str:
        n_lost = n_tried = 0
        end = time.monotonic() + fault.lasts_s
        while time.monotonic() < end and not self.over.wait(0.05):
            n_tried += 1
            try:
                with self.world.link() as link, link.cursor() as cursor:
                    cursor.execute("UPDATE attempt SET message = message")
                    self.over.wait(0.05)
                    cursor.execute("SELECT pk FROM page FOR UPDATE")
            except psycopg2.errors.DeadlockDetected:
                n_lost += 1
        return f"{n_tried} rivals, {n_lost} of them lost"

    def _patiently(self, work: Callable[[], Any]) -> None:
        for _ in range(50):
            try:
                work()
                return
            except psycopg2.Error:
                time.sleep(0.1)
        work()

    def _clock(self, fault: Fault) -> str:
        hours = -2.0 if fault.number == signal.SIGINT else 2.0
        self.world.set_clock(hours)
        heard = "" if self.world.scenario.clock_h is not None else ", which nobody looks at"
        return f"by {hours:+g} h{heard}"

    # -- faults: the rows ---------------------------------------------------------------------

    def _modify(self, fault: Fault) -> str:
        keys = self.dice.sample(range(1, self.world.scenario.rows + 1), 4)
        snr = round(self.dice.uniform(1000, 2000), 1)
        found = self.world.sql(
            "UPDATE boss_visit_spectrum SET snr = %s WHERE spectrum_pk = ANY(%s) "
            "RETURNING spectrum_pk, extract(epoch FROM modified)::float8, snr", snr, keys,
        )  # fmt: skip
        for key, modified, now in found:
            self.world.history[key][round(modified, 6)] = now
        return f"rows {keys}"
