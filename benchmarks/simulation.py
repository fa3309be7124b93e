"""A model of a night: what it says of small cases, beside their measurement, and of large ones.

    python -m benchmarks.simulation [--quick]

What an element costs is measured first, as processor time in the element and in the server: its
start, a page, a checkpoint, a row. The model has elements that sleep through the science and then
want a core: of this machine, which they share with the server, or of their own node, with a server
that has cores of its own. Cores are given in the order in which they are asked for.
"""

import heapq
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.plan.plan import create_plan
from benchmarks.connections import processor_s
from benchmarks.elements import forked, submitted
from benchmarks.lines import Line, main, postgres, say
from benchmarks.tables import fill, often, sleeping, twenty


@dataclass(frozen=True)
class Costs:
    """Seconds of a processor for an element's start, a page, a checkpoint and a row."""

    start: float
    page: float
    checkpoint: float
    row: float


@dataclass(frozen=True)
class Case:
    """A night: `n_elements` start at once, each with so many pages of so many rows."""

    n_elements: int
    pages: int
    rows: int  # of a page
    row_s: float  # of science
    checkpoint_s: float = 1.0  # write_frequency
    batch: int = 1000
    server_cores: int = 0  # 0: everybody shares the cores of this machine


# ------------------------------------------------------------------------------- the model


class Cores:
    """Cores that are given to whoever asks first."""

    def __init__(self, n: int) -> None:
        self.free_at = [0.0] * n
        self.busy_s = 0.0

    def use(self, at: float, seconds: float) -> float:
        """When work that is wanted from `at` on has been done."""
        begun = max(at, heapq.heappop(self.free_at))
        heapq.heappush(self.free_at, begun + seconds)
        self.busy_s += seconds
        return begun + seconds


#: A step of an element: (seconds of science, of the element's core, of the server's).
Step = tuple[float, float, float]
#: Work is cut into pieces of so long, so that cores go round as the kernel's do.
_SLICE_S = 0.004


def steps(case: Case, client: Costs, server: Costs) -> Iterator[Step]:
    """The way of one element, checkpoint by checkpoint."""
    yield 0.0, client.start, server.start
    each = min(case.batch, max(1, round(case.checkpoint_s / max(case.row_s, 1e-9))))
    for _ in range(case.pages):
        yield 0.0, client.page, server.page
        left = case.rows
        while left:
            n = min(each, left)
            yield (
                n * case.row_s, client.checkpoint + n * client.row,
                server.checkpoint + n * server.row,
            )  # fmt: skip
            left -= n


@dataclass(frozen=True)
class Foretold:
    lasts_s: float
    median_s: float  # of what follows the science of a step: computing, waiting and writing
    server_busy: float  # share of its cores


def simulate(case: Case, client: Costs, server: Costs) -> Foretold:
    """How long a case takes, by the model."""
    own = case.server_cores > 0
    cores = Cores(case.server_cores or os.cpu_count() or 1)
    took: list[float] = []

    def element() -> Generator[tuple[float, float], float, None]:
        """Yields when it wants a core, and for how long; is told when that was done."""
        now = 0.0
        for science_s, client_s, server_s in steps(case, client, server):
            began = now = now + science_s
            if own:  # its node has a core for it
                now += client_s
            wanted_s = server_s if own else client_s + server_s
            while wanted_s > 1e-12:
                piece_s = min(wanted_s, _SLICE_S)
                now = yield now, piece_s
                wanted_s -= piece_s
            took.append(now - began)

    queue: list[tuple[float, int, float, Any]] = []
    lasts_s = 0.0
    for i in range(case.n_elements):
        one = element()
        at, piece_s = next(one)
        queue.append((at, i, piece_s, one))
    heapq.heapify(queue)
    while queue:
        at, i, piece_s, one = heapq.heappop(queue)
        done = cores.use(at, piece_s)
        try:
            at, piece_s = one.send(done)
            heapq.heappush(queue, (at, i, piece_s, one))
        except StopIteration:
            lasts_s = max(lasts_s, done)
    busy = cores.busy_s / (lasts_s * len(cores.free_at))
    return Foretold(lasts_s, float(np.median(took)), busy)


# ------------------------------------------------------------------------- the measurement


def run(task: Any, case: Case, server: Any) -> tuple[float, float, float, int]:
    """Seconds that a case takes, of processor in elements and in the server; its checkpoints."""
    with connection():
        database.execute_sql("TRUNCATE plan, twenty CASCADE")
    arguments = {"row_s": case.row_s} if task is sleeping else {}
    (made,) = create_plan(
        task, BossVisitSpectrum, limit=case.rows,
        max_rows=case.rows * case.pages * case.n_elements, arguments=arguments,
    )  # fmt: skip
    submission = submitted(made, case.n_elements, case.pages)
    before, began = processor_s(server), time.monotonic()
    statuses = forked(submission, case.n_elements)
    lasted_s, after = time.monotonic() - began, processor_s(server)
    with connection():
        attempts = list(Attempt.select())
    if any(statuses) or sum(a.n_done for a in attempts) != made.rows:
        raise SystemExit(f"elements ended with {statuses}")
    n_checkpoints = sum(a.n_checkpoints for a in attempts)
    return lasted_s, after[0] - before[0], after[1] - before[1], n_checkpoints


def costs(server: Any, quick: bool) -> tuple[Costs, Costs]:
    """What is spent in the element and in the server, from four runs of one element each."""
    few, many = (60, 400) if quick else (200, 8000)
    runs = [
        (twenty, Case(1, 1, few, 0.0)), (twenty, Case(1, 1, many, 0.0)),
        (often, Case(1, 1, many // 2, 0.0)), (twenty, Case(1, 20, few, 0.0)),
    ]  # fmt: skip
    amounts, client, database_ = [], [], []
    for task, case in runs:
        found = [run(task, case, server) for _ in range(1 if quick else 3)]
        best = min(found, key=lambda one: one[1] + one[2])
        amounts.append([1, case.pages, best[3], case.pages * case.rows])
        client.append(best[1])
        database_.append(best[2])
    # Noise may make one of them a little less than nothing.
    solved = (np.linalg.lstsq(np.array(amounts, float), np.array(side), rcond=None)[0]
              for side in (client, database_))  # fmt: skip
    ours, theirs = (Costs(*(max(float(x), 1e-6) for x in side)) for side in solved)
    return ours, theirs


def small_cases(quick: bool) -> list[Case]:
    if quick:
        return [Case(n, 1, 40, 0.02) for n in (1, 4)]
    return [Case(n, 2, 500, 0.01) for n in (1, 4, 16, 32)]


#: What two cores cannot run: a server of 16 cores, elements on nodes of their own.
LARGE = [
    Case(500, 1, 100, 0.1, server_cores=16),
    Case(2000, 1, 1000, 1.0, 300, server_cores=16),
    Case(2000, 10, 1000, 0.01, 300, server_cores=16),
    Case(10_000, 1, 1000, 1.0, 300, server_cores=16),
    Case(2000, 1, 100, 0.1, 1.0, server_cores=16),
]


def measure(quick: bool) -> Iterator[Line]:
    with postgres(max_connections=100) as server:
        with connection():
            fill(2_000 if quick else 40_000)
        say("costs")
        client, theirs = costs(server, quick)
        for name in ("start", "page", "checkpoint", "row"):
            ours_ms, theirs_ms = getattr(client, name) * 1e3, getattr(theirs, name) * 1e3
            yield Line(f"cost of a {name}, by processor time", ours_ms, theirs_ms, "ms", "",
                       "in the server", note="of the element; forked, without its imports"
                       if name == "start" else "")  # fmt: skip
        for case in small_cases(quick):
            say(f"{case.n_elements} elements")
            measured_s = min(run(sleeping, case, server)[0] for _ in range(1 if quick else 2))
            foretold = simulate(case, client, theirs)
            yield Line(f"simulated: {told(case)}", foretold.lasts_s, measured_s, "s", "",
                       "measured")  # fmt: skip
    yield from predicted(client, theirs, LARGE[:1] if quick else LARGE)


def predicted(client: Costs, server: Costs, cases: list[Case]) -> Iterator[Line]:
    with_imports = replace(client, start=client.start + 0.35)
    for case in cases:
        foretold = simulate(case, with_imports, server)
        science_s = case.pages * case.rows * case.row_s
        yield Line(
            f"predicted: {told(case)}, server of {case.server_cores} cores", foretold.lasts_s,
            science_s, "s", "", "its science",
            note=f"server {foretold.server_busy:.0%} busy; median step beyond its science "
            f"{foretold.median_s * 1e3:,.0f} ms",
        )  # fmt: skip


def told(case: Case) -> str:
    return (
        f"{case.n_elements:,} elements, {case.pages} pages of {case.rows:,} rows of "
        f"{case.row_s * 1e3:g} ms, checkpoints every {case.checkpoint_s:g} s"
    )


if __name__ == "__main__":
    main(measure, __doc__)
