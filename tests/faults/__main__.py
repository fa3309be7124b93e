"""``python -m tests.faults``: run seeds, and report how each ended."""

import argparse
import logging
import os
import subprocess
import sys
import time
from contextlib import ExitStack

from astra.database.connection import reset
from tests.faults import bugs, runner
from tests.faults.cluster import Cluster, served
from tests.faults.scenario import DIRECTED, draw
from tests.faults.world import SERVER, SMALL_DISK_MB, prepare
from tests.servers import Postgres, Slurm, hear_interrupts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many")
    parser.add_argument("--first", type=int, default=1, metavar="S")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="seeds side by side")
    parser.add_argument("--slurm", action="store_true", help="with elements run by a real Slurm")
    parser.add_argument("--stop", action="store_true", help="end at the first that fails")
    parser.add_argument("--keep", action="store_true", help="keep the folder of one that fails")
    parser.add_argument("--directed", choices=DIRECTED, help="no seeds: one fault by itself")
    parser.add_argument("--bug", choices=bugs.NAMES, help="with a deliberate bug in astra")
    parser.add_argument("--cluster", help=argparse.SUPPRESS)  # of the process that began it
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.getLogger("astra").setLevel(logging.CRITICAL)
    hear_interrupts()
    if given.slurm and not given.cluster:
        with (
            Slurm(cpus=16) as first,
            Slurm(cpus=16, nodes=2, beside=first) as second,
            served(first, second) as given.cluster,
        ):
            return side_by_side(given)
    return side_by_side(given) if given.jobs > 1 else one_by_one(given)


def side_by_side(given: argparse.Namespace) -> int:
    """Run every J-th seed in each process, with a PostgreSQL of its own, on the same clusters."""
    flags = [f"--{name}" for name in ("slurm", "stop", "keep") if getattr(given, name)]
    started = []
    for job in range(given.jobs):
        seeds = len(range(job, given.seeds, given.jobs))
        words = ["--seeds", seeds, "--first", given.first + job, "--step", given.jobs, *flags]
        words += ["--cluster", given.cluster] if given.slurm else []
        words += ["--bug", given.bug] if given.bug else []
        command = [sys.executable, "-m", "tests.faults", *map(str, words)]
        started.append(subprocess.Popen(command))
    return max(process.wait() for process in started)


def one_by_one(given: argparse.Namespace) -> int:
    began, failed, reports = time.monotonic(), [], []
    with ExitStack() as servers:
        server = servers.enter_context(Postgres(small_disk_mb=SMALL_DISK_MB, **SERVER))
        code = servers.enter_context(bugs.planted(given.bug))
        prepare(server)
        for number in range(given.seeds):
            seed = given.first + number * given.step
            drawn = DIRECTED[given.directed] if given.directed else draw(seed, given.slurm)
            cluster = Cluster(given.cluster, seed) if given.slurm else None
            report = runner.run(server, drawn, given.keep, cluster, code)
            reports.append(report)
            say(report, given.slurm)
            if report.breaches:
                failed.append(seed)
                if given.stop:
                    break
        reset()
    print(
        f"{len(reports)} seeds, {sum(len(r.faults) for r in reports)} faults, "
        f"{sum(r.rows for r in reports)} rows, {sum(r.computed for r in reports)} computed, "
        f"{sum(r.blamed for r in reports)} given up and taken again, "
        f"{time.monotonic() - began:.0f} s: "
        + (f"FAILED: {', '.join(map(str, failed))}" if failed else "no breach"),
        flush=True,
    )
    return 1 if failed else 0


def say(report: runner.Report, slurm: bool) -> None:
    word = "FAILED" if report.breaches else "ok"
    print(
        f"seed {report.seed}: {word}: {report.rows} rows, {report.computed} computed, "
        f"{report.rounds} rounds, {report.took_s:.1f} s; {'; '.join(report.faults)}",
        flush=True,
    )
    for breach in report.breaches:
        print(f"    {breach}")
    if report.breaches:
        more = " --slurm" if slurm else ""
        print(f"    again: python -m tests.faults --first {report.seed}{more} --keep", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
