"""Inject the faults of a scenario, each when its share of the rows has been computed."""

import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2

from tests.faults.cluster import Cluster
from tests.faults.kinds import KINDS, Fault
from tests.faults.world import World, send
from tests.servers import ServerError

#: Longest waits for the moment of a fault, for a checkpoint to interrupt, and for an element.
_MOMENT_S, _CHECKPOINT_S, _ELEMENT_S = 20.0, 3.0, 2.0

#: Longest wait for a fault that is in progress when the run ends; some call several commands.
_FINISH_S = 120.0


class Nemesis(threading.Thread):
    """Injects faults during the run, until all are done or the plan is whole."""

    def __init__(self, world: World, plan: int, resume: Callable[[], int | None]) -> None:
        super().__init__(daemon=True)
        self.world, self.plan = world, plan
        self.resume = resume  # the pid of astra resume, while there is one
        self.dice = random.Random(world.scenario.seed + 1)
        self.over = threading.Event()
        self.done: list[str] = []  # what was done to which process, for the report
        self.breaches: list[str] = []  # what astra did wrong while a fault was injected
        self.n_deaths = 0  # unexplained crashes, for which rows in progress may be blamed
        self.trouble: BaseException | None = None
        self.later: list[threading.Timer] = []
        self.doing = "nothing"
        self.hold = Path(f"{world.computed}.hold")
        if world.scenario.rows_wait:
            self.hold.write_text(str(int(0.9 * world.scenario.rows)))

    def run(self) -> None:
        try:
            for fault in self.world.scenario.faults:
                if not self._await(fault):
                    return
                self._do(fault)
        except BaseException as error:
            self.trouble = error
        finally:
            self.hold.unlink(missing_ok=True)

    def finish(self) -> None:
        """Inject no more faults, and undo those that last."""
        self.over.set()
        self.join(_FINISH_S)
        for timer in self.later:
            timer.join(20)
        if self.is_alive():
            frames = traceback.format_stack(sys._current_frames()[self.ident or 0])
            raise TimeoutError(
                f"after {_FINISH_S:g} s the nemesis still does {self.doing}:\n{''.join(frames)}"
            )

    def _await(self, fault: Fault) -> bool:
        """Wait for the fault's moment; whether it comes before all is over."""
        end = time.monotonic() + _MOMENT_S
        while self.world.share_computed() < fault.after and time.monotonic() < end:
            if self.over.wait(0.02):
                return False
        return not self.over.is_set()

    def _do(self, fault: Fault) -> None:
        did: str | None = None
        self.doing = f"{fault.kind} at {fault.after:.2f}"
        with suppress(psycopg2.Error, ServerError):
            if fault.inside:
                self._hold(fault.inside)
            did = KINDS[fault.kind].do(self, fault)
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

    def kill(self, pids: list[int]) -> str | None:
        for pid in pids:
            send(pid, signal.SIGKILL)
        self.n_deaths += bool(pids)
        return f"processes {pids}" if pids else None

    def chosen(self, fault: Fault) -> list[tuple[int, int | None]]:
        """One element; all of them inside a checkpoint, whose own cannot be told."""
        end = time.monotonic() + _ELEMENT_S
        while not (found := self.world.elements()) and time.monotonic() < end:
            if self.over.wait(0.05):
                break
        return found if fault.inside or not found else [self.dice.choice(found)]

    def command(self, *words: object, world: World | None = None) -> str:
        """The output of one of astra's commands, which must succeed: that of a person who repairs."""
        status, said = (world or self.world).command(*words)
        if status != 0:
            self.breaches.append(f"astra {' '.join(map(str, words))}: status {status}: {said}")
        return said if status == 0 else ""

    def after(self, delay_s: float, work: Callable[[], Any]) -> None:
        timer = threading.Timer(delay_s, work)
        timer.daemon = True
        timer.start()
        self.later.append(timer)

    @property
    def cluster(self) -> Cluster:
        assert self.world.cluster is not None
        return self.world.cluster


def patiently(work: Callable[[], Any]) -> None:
    """Do what gives something back, as soon as the database lets it be done."""
    for _ in range(50):
        try:
            work()
            return
        except psycopg2.Error:
            time.sleep(0.1)
    work()
