"""Run one scenario, and judge how it ended."""

import re
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import peewee
import psycopg2

from astra.database.connection import connection, database, drop_connection
from astra.errors import AstraError
from astra.slurm.parse import never_starts
from astra.states import PlanState
from astra.status.verify import verify
from tests.faults import judge
from tests.faults.cluster import Cluster
from tests.faults.nemesis import Nemesis
from tests.faults.scenario import Scenario
from tests.faults.world import ROOT, World, send
from tests.servers import Postgres, ServerError

#: A plan has to be whole within this time and this many calls of astra resume, and elements that
#: are asked to stop, or have nothing to do, have to end within the last one. Only on a busy machine
#: does anything take this long.
BOUND_S, ROUNDS, END_S = 400.0, 25, 120.0
#: Slurm waits before it starts a requeued job, and sets a node that does not answer DOWN.
SLURM_BOUND_S = 600.0
#: How often the plan is verified while it runs.
LOOK_S = 1.0
#: The pause of a user before the next astra resume. It doubles if one has submitted nothing, because
#: elements of an earlier one still run, or Slurm has not reported how they ended.
PAUSE_S, LONGEST_PAUSE_S = 0.3, 5.0


@dataclass(frozen=True)
class Report:
    """How a seed ended."""

    seed: int
    breaches: tuple[str, ...]
    faults: tuple[str, ...]
    rounds: int  # how often a user called astra resume
    rows: int
    computed: int  # rows, some of them more than once
    blamed: int  # innocent rows that were given up, and taken again by astra retry
    took_s: float


def run(
    server: Postgres,
    scenario: Scenario,
    keep: bool = False,
    cluster: Cluster | None = None,
    code: Path = ROOT,
) -> Report:
    """Run a scenario with the astra in `code`, and return its report.

    With `keep`, the folder of one that failed is kept.
    """
    began = time.monotonic()
    holder = tempfile.TemporaryDirectory(prefix=f"astra-faults-{scenario.seed}-")
    with holder as path:
        world = World(server, scenario, Path(path), cluster, code)
        try:
            report = _judged(world, began)
            if report.breaches and keep:
                kept = tempfile.mkdtemp(prefix=f"astra-failed-{scenario.seed}-")
                _keep(world, Path(kept))
                print(f"kept: {kept}")
            return report
        finally:
            if cluster is not None:
                cluster.restore(world.folder)
            world.close()


def _judged(world: World, began: float) -> Report:
    plan = world.plan()
    assert plan is not None
    drive = Drive(world, plan)
    said, n_blamed = drive.judged()
    said = said or _next_plan(world, plan)
    for stranger in world.strangers:
        said += stranger.breaches()
    for neighbour in world.neighbours:
        if neighbour.plan is not None and neighbour.process is not None:
            neighbour.process.wait(BOUND_S)
            neighbour.world.bind()
            beside = Drive(neighbour.world, neighbour.plan)
            beside.nemesis.n_deaths = drive.nemesis.n_deaths
            said += [f"{neighbour.world.name}: {each}" for each in beside.judged()[0]]
    return Report(
        world.scenario.seed, tuple(said), tuple(drive.nemesis.done), world.n_rounds,
        world.scenario.rows, len(world.computed.read_text().splitlines()), n_blamed,
        time.monotonic() - began,
    )  # fmt: skip


class Drive:
    """Calls astra resume until the plan is whole, as a user who does not know of the faults."""

    def __init__(self, world: World, plan: int) -> None:
        self.world, self.plan = world, plan
        self.pid: int | None = None
        self.n_rounds, self.pause_s = 0, PAUSE_S
        self.advice: list[str] = []  # options of astra resume for pages that it gave up
        self.seen: set[str] = set()  # breaches while it ran
        self.nemesis = Nemesis(world, plan, lambda: self.pid)
        self._forgotten = world.cluster.forgotten() if world.cluster else 0

    def n_deaths(self) -> int:
        """Return the number of unexplained ends: by the nemesis, and by a controller's lost state."""
        now = self.world.cluster.forgotten() if self.world.cluster else 0
        return self.nemesis.n_deaths + now - self._forgotten

    def judged(self) -> tuple[list[str], int]:
        """Return the breaches at the end, and how many innocent rows had been given up."""
        said, n_blamed = self.to_the_end(), 0
        if not said:
            n_blamed, said = _retried(self.world, self)
        said = said or [*self.seen, *judge.breaches(self.world, self.plan)]
        return said + self.nemesis.breaches, n_blamed

    def to_the_end(self) -> list[str]:
        self.nemesis.start()
        end = time.monotonic() + (SLURM_BOUND_S if self.world.cluster else BOUND_S)
        while time.monotonic() < end and self.n_rounds < ROUNDS:
            self.resume(end)
            if self._is_whole():
                break
        self.nemesis.finish()
        if self.nemesis.trouble is not None:
            raise self.nemesis.trouble
        if not self.world.wait_for_elements(END_S):
            return [f"elements did not end within {END_S:g} s"]
        return self.until_whole(end)  # the last fault came when nobody looked any more

    def until_whole(self, end: float) -> list[str]:
        while not self._is_whole():
            if time.monotonic() > end or self.n_rounds >= ROUNDS:
                return [f"not whole after {self.n_rounds} times of astra resume"]
            self.resume(end)
            self.world.wait_for_elements(END_S)
        return []

    def resume(self, end: float, *words: str) -> None:
        self.n_rounds += 1
        self.world.n_rounds += 1
        if self._is_paused():
            self.world.command("continue", self.plan)
        before, said_before = self._n_submissions(), self.world.log_size()
        # A page may break too often before its table is repaired.
        advice = self.advice if self.world.is_repaired else []
        process = self.world.resume(self.plan, *(words or advice))
        self.pid = process.pid
        look = time.monotonic()
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.03)
            if time.monotonic() - look > LOOK_S:
                self.look()
                look = time.monotonic()
        self.pid = None
        if process.poll() is None:
            send(process.pid, signal.SIGKILL)
            process.wait()
        self.advice = _advice(self.world.logged(said_before))
        submitted = self._n_submissions() != before
        self.pause_s = PAUSE_S if submitted else min(2 * self.pause_s, LONGEST_PAUSE_S)
        time.sleep(self.pause_s)
        while self.world.cluster and time.monotonic() < end:
            if self._is_idle(self.world.cluster) or self._is_whole():
                break
            self._release_held(self.world.cluster)
            self.look()
            time.sleep(0.3)

    def look(self) -> None:
        """Check that the plan is consistent while it runs; a guard may be missing for a while."""
        try:
            with connection():  # one for all that it reads
                found = verify(self.plan, max_listed=3)
        except (AstraError, peewee.PeeweeException):  # the database is away
            return
        finally:
            drop_connection()
        self.seen |= {
            f"while it ran: {b.check}: {b.page} {b.key}: {b.problem}"
            for b in found.breaches
            if b.check != "guards"
        }

    def _is_idle(self, cluster: Cluster) -> bool:
        try:
            return not cluster.jobs(self.world.folder)
        except ServerError:  # slurmctld is down
            return False

    def _release_held(self, cluster: Cluster) -> None:
        """Release elements that Slurm holds, as `astra status` advises if no other is left."""
        with suppress(ServerError):  # slurmctld is down
            jobs = cluster.jobs(self.world.folder)
            held = [job for job in jobs if never_starts(job.reason)]
            if not held:
                return
            status, said = self.world.command("status", self.plan)
            if status == PlanState.RUNNING.exit_status and held == jobs and not self._is_whole():
                self.seen.add(f"astra status does not say that {held} are held: {said}")
            cluster.release(held)

    def _is_paused(self) -> bool:
        """Return whether all pages broke, so that the plan has to be continued."""
        with suppress(psycopg2.Error):
            return bool(
                self.world.sql("SELECT 1 FROM plan WHERE pk = %s AND paused IS NOT NULL", self.plan)
            )
        return False

    def _n_submissions(self) -> int | None:
        with suppress(psycopg2.Error):
            return int(self.world.sql("SELECT count(*) FROM submission")[0][0])
        return None

    def _is_whole(self) -> bool:
        try:
            left = self.world.sql(
                "SELECT sum(n_rows - n_done - n_failed - n_no_result) FROM page WHERE plan_pk = %s",
                self.plan,
            )
        except psycopg2.Error:
            return False
        return left[0][0] == 0


def _advice(said: str) -> list[str]:
    """Return the options that astra resume names for pages whose retries are used up."""
    found = re.search(r"retries used up; astra resume \d+ (--only \w+)", said)
    return found[1].split() if found else []


def _retried(world: World, drive: Drive) -> tuple[int, list[str]]:
    """Retry innocent rows that were given up; it is a breach if too few crashes explain them."""
    innocent = judge.blamed(world, drive.plan)
    if not innocent:
        return 0, []
    n_silent = world.sql("SELECT count(*) FROM attempt WHERE state = 'superseded'")[0][0]
    if max(drive.n_deaths(), n_silent) < 3:
        return 0, [f"innocent rows were given up: {innocent}"]
    drive.resume(time.monotonic() + 60, "--failed")
    world.wait_for_elements(END_S)
    return len(innocent), []


def _next_plan(world: World, first: int) -> list[str]:
    """Check that the rows that were modified since they ended, and no others, are pending."""
    modified = [
        key
        for (key,) in world.sql(
            "SELECT spectrum_pk FROM boss_visit_spectrum s WHERE NOT EXISTS (SELECT 1 FROM ordeal o "
            "WHERE o.spectrum_pk = s.spectrum_pk AND o.input_modified = s.modified) AND NOT EXISTS "
            "(SELECT 1 FROM failure f WHERE f.key_text = s.spectrum_pk::text AND f.input_modified = s.modified)"
            " AND NOT EXISTS (SELECT 1 FROM no_result n WHERE n.key_text = s.spectrum_pk::text "
            "AND n.input_modified = s.modified) ORDER BY 1"
        )
    ]
    plan = world.plan()
    pages = world.sql("SELECT keys FROM page WHERE plan_pk = %s", plan) if plan else []
    planned = sorted(key for (keys,) in pages for key in keys)
    if planned != modified:
        return [f"modified since were {modified}, planned were {planned}"]
    if plan is None:
        return []
    drive = Drive(world, plan)
    said = drive.until_whole(time.monotonic() + END_S)
    said = said or [*drive.seen, *judge.breaches(world, plan)]
    if not verify(first).sound:
        said.append(f"plan {first} is not sound any more, since plan {plan} ended")
    database.close()
    return said


def _keep(world: World, kept: Path) -> None:
    import json
    import shutil

    shutil.copytree(world.folder, kept, dirs_exist_ok=True)
    (kept / "state.json").write_text(json.dumps(judge.state(world), default=str, indent=1))
