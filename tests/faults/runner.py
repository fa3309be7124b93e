"""One scenario from its beginning to its judgement."""

import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import peewee
import psycopg2

from astra.database.connection import database, drop_connection
from astra.errors import AstraError
from astra.status.verify import verify
from tests.faults import judge
from tests.faults.cluster import Cluster
from tests.faults.nemesis import Nemesis
from tests.faults.scenario import Scenario
from tests.faults.world import ROOT, World, send
from tests.servers import Postgres, ServerError

#: A plan has to be whole after so long, and so many calls of astra resume; elements that are told
#: to end, or have nothing to do, have to end. Nothing takes so long but on a machine that others
#: keep busy.
BOUND_S, ROUNDS, END_S = 400.0, 25, 120.0
#: Slurm starts what was requeued only after a while, and sets down a node that does not answer.
SLURM_BOUND_S = 600.0
#: How often the plan is verified while it runs.
LOOK_S = 1.0


@dataclass(frozen=True)
class Report:
    """What became of a seed."""

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
            world.kill_elements()
            world.close()


def _judged(world: World, began: float) -> Report:
    plan = world.plan()
    assert plan is not None
    drive = Drive(world, plan)
    said = drive.to_the_end()
    n_blamed = 0
    if not said:
        n_blamed, said = _retried(world, drive)
    said = said or [*drive.seen, *judge.breaches(world, plan)]
    said = said or _next_plan(world, plan)
    return Report(
        world.scenario.seed, tuple(said), tuple(drive.nemesis.done), world.n_rounds,
        world.scenario.rows, len(world.computed.read_text().splitlines()), n_blamed,
        time.monotonic() - began,
    )  # fmt: skip


class Drive:
    """A user who calls astra resume until the plan is whole, and knows nothing of the faults."""

    def __init__(self, world: World, plan: int) -> None:
        self.world, self.plan = world, plan
        self.pid: int | None = None
        self.seen: set[str] = set()  # breaches while it ran
        self.nemesis = Nemesis(world, lambda: self.pid)

    def to_the_end(self) -> list[str]:
        self.nemesis.start()
        end = time.monotonic() + (SLURM_BOUND_S if self.world.cluster else BOUND_S)
        while time.monotonic() < end and self.world.n_rounds < ROUNDS:
            self.resume(end)
            if self._is_whole():
                break
        self.nemesis.finish()
        if self.nemesis.trouble is not None:
            raise self.nemesis.trouble
        if not self.world.wait_for_elements(END_S):
            return [f"elements did not end within {END_S:g} s"]
        while not self._is_whole():  # the last fault came when nobody looked any more
            if time.monotonic() > end or self.world.n_rounds >= ROUNDS:
                return [f"not whole after {self.world.n_rounds} times of astra resume"]
            self.resume(end)
            self.world.wait_for_elements(END_S)
        return []

    def resume(self, end: float, *words: str) -> None:
        self.world.n_rounds += 1
        jobs = self.world.scenario.jobs
        how = ["--throttle", 2 * jobs] if self.world.cluster else ["--local", "-j", jobs]
        process = self.world.start("resume", self.plan, *how, *words)
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
        time.sleep(0.3)
        while self.world.cluster and time.monotonic() < end:
            if self._is_idle(self.world.cluster) or self._is_whole():
                break
            self.look()
            time.sleep(0.3)

    def look(self) -> None:
        """A plan is sound at every moment, not only when it is whole."""
        try:
            found = verify(self.plan, most=3)
        except (AstraError, peewee.PeeweeException):  # the database is away
            return
        finally:
            drop_connection()
        self.seen |= {
            f"while it ran: {b.check}: {b.page} {b.key}: {b.found}" for b in found.breaches
        }

    def _is_idle(self, cluster: Cluster) -> bool:
        try:
            return not cluster.jobs(self.world.folder)
        except ServerError:  # slurmctld is down
            return False

    def _is_whole(self) -> bool:
        try:
            left = self.world.sql(
                "SELECT sum(n_rows - n_done - n_failed - n_no_result) FROM page WHERE plan_pk = %s",
                self.plan,
            )
        except psycopg2.Error:
            return False
        return left[0][0] == 0


def _retried(world: World, drive: Drive) -> tuple[int, list[str]]:
    """Take innocent rows again that were given up; it is a breach if too little was done to them."""
    innocent = judge.blamed(world, drive.plan)
    if not innocent:
        return 0, []
    n_silent = world.sql("SELECT count(*) FROM attempt WHERE state = 'superseded'")[0][0]
    if max(drive.nemesis.n_deaths, n_silent) < 3:
        return 0, [f"innocent rows were given up: {innocent}"]
    drive.resume(time.monotonic() + 60, "--failed")
    world.wait_for_elements(END_S)
    return len(innocent), []


def _next_plan(world: World, first: int) -> list[str]:
    """The rows that were modified since they ended, and no others, are pending again."""
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
    drive.resume(time.monotonic() + 60)
    said = judge.breaches(world, plan)
    if not verify(first).sound:
        said.append(f"plan {first} is not sound any more, since plan {plan} ended")
    database.close()
    return said


def _keep(world: World, kept: Path) -> None:
    import json
    import shutil

    shutil.copytree(world.folder, kept, dirs_exist_ok=True)
    (kept / "state.json").write_text(json.dumps(judge.state(world), default=str, indent=1))
