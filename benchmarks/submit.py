"""`astra submit` of 100,000 pages to a Slurm cluster, beside sbatch alone with the same scripts.

    python -m benchmarks.submit [--quick]

The arrays are held, so that what is measured is submitting. Each side is a process that calls
sbatch once for each array; both in turn, the least time of each.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from astra.plan.plan import create_plan
from benchmarks.lines import Line, main, postgres, say, timed
from benchmarks.start import environment
from benchmarks.tables import fill, twenty


def plan_of(n_pages: int) -> int:
    """A plan of so many pages with a row each."""
    with connection():
        database.execute_sql("TRUNCATE plan CASCADE")
    (made,) = create_plan(twenty, BossVisitSpectrum, limit=1, max_rows=n_pages)
    assert made.plan is not None and made.pages == n_pages
    return made.plan


def run(words: list[str], env: dict[str, str]) -> None:
    subprocess.run(words, env=env, check=True, stdout=subprocess.DEVNULL)


def by_hand(folder: Path, env: dict[str, str]) -> None:
    """The scripts of astra's last submission, one sbatch for each."""
    for script in sorted(folder.glob("plan-*/*.sh")):
        words = ["sbatch", "--parsable", str(script)]
        subprocess.run(words, env=env, check=True, capture_output=True)


def rounds(n_pages: int, n_rounds: int, folder: Path, cluster: Any) -> list[float]:
    env = environment() | {**cluster.env(), "ASTRA_RUN_DIR": str(folder)}
    words = [sys.executable, "-m", "astra", "submit", "--option", "hold"]
    found = [float("inf")] * 2
    for _ in range(n_rounds):
        for old in folder.glob("plan-*"):
            shutil.rmtree(old)
        plan = plan_of(n_pages)
        works = (partial(run, [*words, str(plan)], env), partial(by_hand, folder, env))
        for i, work in enumerate(works):
            found[i] = min(found[i], timed(work))
            cluster.run("scancel", "--user=root")
    return found


def measure(quick: bool) -> Iterator[Line]:
    from tests.servers import Slurm

    n_pages, size, n_rounds = (60, 21, 1) if quick else (100_000, 2001, 6)
    n_arrays = -(-n_pages // (size - 1))
    with postgres(), tempfile.TemporaryDirectory() as folder:
        say(f"filling {n_pages:,} rows")
        with connection():
            fill(n_pages)
        with Slurm(nodes=1, max_array_size=size, extra=["MaxJobCount=1000000"]) as cluster:
            say("submitting")
            ours, theirs = rounds(n_pages, n_rounds, Path(folder), cluster)
    yield Line(
        f"astra submit, {n_pages:,} pages in {n_arrays} arrays", ours, theirs, "s", "<= 1.2",
        "sbatch alone", ratio=(ours - 1) / theirs,
        note="the ratio is that of what astra takes beyond 1 s",
    )  # fmt: skip


if __name__ == "__main__":
    main(measure, __doc__)
