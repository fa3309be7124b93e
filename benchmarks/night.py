"""A whole night on a Slurm cluster: 200,000 rows of 1 ms in pages of 1,000, and where time goes.

    python -m benchmarks.night [--quick]

A slot is a node with one CPU of Slurm's, one for each core of this machine, which PostgreSQL and
Slurm have to share with the science. The night lasts from the start of `astra submit` until Slurm
has no job any more; the slots' time is that times their number. A row is a loop of 1 ms. The better
of two nights counts, each with tables of its own, and both are printed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Page
from astra.plan.plan import create_plan
from benchmarks.lines import Line, main, postgres, say
from benchmarks.start import environment
from benchmarks.tables import fill, waiting

ROW_S = 0.001


def by_element() -> dict[int, list[Attempt]]:
    """The attempts of each element, in the order of its pages."""
    found: dict[int, list[Attempt]] = defaultdict(list)
    with connection():
        n_pages = Page.select().count()
        for attempt in Attempt.select().join(Page).order_by(Page.number):
            found[attempt.element].append(attempt)
    if sum(len(pages) for pages in found.values()) != n_pages:
        raise SystemExit("not every page has its one attempt")
    return found


def began_s(first: Attempt) -> float:
    """When an element's process began."""
    return float(first.ended.timestamp() - first.t_rows_s - first.t_start_s)


def spent(pages: list[Attempt]) -> dict[str, float]:
    """Seconds of one element, by what they went to."""
    first, last = pages[0], pages[-1]
    rows_s = sum(page.t_rows_s for page in pages)
    science_s = sum(page.n_done for page in pages) * ROW_S
    return {
        "science": science_s,
        "imports, claim and first read of an element": first.t_start_s,
        "rows handed over, taken and written": rows_s - science_s,
        "from page to page: end, claim, first read": (
            last.ended.timestamp() - began_s(first) - first.t_start_s - rows_s
        ),
    }


def night(cluster: Any, n_rows: int, limit: int, each: int) -> tuple[dict[str, float], float]:
    """Seconds of one slot by what they went to, summed over all slots; and those of the night."""
    (made,) = create_plan(
        waiting, BossVisitSpectrum, limit=limit, max_rows=n_rows, arguments={"row_s": ROW_S}
    )
    with tempfile.TemporaryDirectory() as folder:
        env = environment() | cluster.env() | {"ASTRA_RUN_DIR": folder}
        words = [sys.executable, "-m", "astra", "submit", str(made.plan)]
        words += ["--pages-per-element", str(each)]
        began = time.time()
        subprocess.run(words, env=env, check=True, stdout=subprocess.DEVNULL)
        submitted_s = time.time() - began
        # squeue would take time of the slots, and before this the night cannot be over.
        time.sleep(max(n_rows * ROW_S / len(cluster.nodes) - submitted_s, 0.0))
        while not cluster.idle():
            time.sleep(0.1)
        lasted_s = time.time() - began
    elements = by_element()
    if sum(a.n_done for pages in elements.values() for a in pages) != n_rows:
        raise SystemExit("the plan is not whole")
    found: dict[str, float] = defaultdict(float)
    for pages in elements.values():
        for what, seconds in spent(pages).items():
            found[what] += seconds
    slots = len(cluster.nodes)
    # Elements may begin before the command has ended.
    alone_s = min(submitted_s, min(began_s(pages[0]) for pages in elements.values()) - began)
    found["astra submit, sbatch in it"] = alone_s * slots
    found["Slurm: until elements start, between them, at the end"] = lasted_s * slots - sum(
        found.values()
    )
    return found, lasted_s


def measure(quick: bool) -> Iterator[Line]:
    from tests.servers import Slurm

    n_rows, limit, each = (2_000, 250, 4) if quick else (200_000, 1000, 50)
    slots = os.cpu_count() or 1
    nights = []
    for _ in range(1 if quick else 2):
        with postgres() as _, Slurm(nodes=slots, cpus=1) as cluster:
            with connection():
                fill(n_rows)
                database.execute_sql("ANALYZE")
            say(f"a night of {n_rows:,} rows")
            nights.append(night(cluster, n_rows, limit, each))
    found, lasted_s = min(nights, key=lambda one: one[1])
    every_s = sum(found.values())
    all_s = " and ".join(f"{one[1]:.1f}" for one in nights)
    yield Line(
        f"a night of {n_rows:,} rows of 1 ms, {n_rows // limit} pages of {limit:,}, "
        f"{each} for each element", found["science"], every_s, "s", ">= 0.92",
        f"{slots} slots for {lasted_s:.1f} s; nights of {all_s} s",
    )  # fmt: skip
    for what, seconds in sorted(found.items(), key=lambda item: -item[1]):
        if what != "science":
            yield Line(f"the night's rest: {what}", seconds, every_s, "s", "", "the slots' time")


if __name__ == "__main__":
    main(measure, __doc__)
