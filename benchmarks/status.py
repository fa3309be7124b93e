"""`astra status` of a plan of 100,000 pages in 50 arrays, half of them ended.

    python -m benchmarks.status [--quick]

`squeue` and `sacct` are small programs that print what Slurm would say of so many elements: what
is measured is astra. How often each table is asked is counted by the server (pg_stat_statements).
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from astra.database.connection import connection, database
from benchmarks.lines import Line, main, postgres, say
from benchmarks.start import environment

TABLES = ("plan", "page", "submission", "attempt", "suspect", "exclusion", "failure", "no_result")


def fill(n_pages: int, n_arrays: int) -> None:
    """A plan of pages with a row each; of the first half an attempt has ended, and its page."""
    run = database.execute_sql
    run(
        "INSERT INTO plan (token, task, task_path, input_model, input_table, output_model, "
        'arguments, "limit", n_pages, n_rows, v_astra, created_by, created_on, cwd) VALUES '
        "('x', 'benchmarks.tables.twenty', 'benchmarks.tables:twenty', "
        "'astra.models.boss:BossVisitSpectrum', 'boss_visit_spectrum', "
        "'benchmarks.tables:Twenty', '{}', 1000, %s, %s, 8001, 'me', 'here', '/')",
        (n_pages, n_pages),
    )
    each = n_pages // n_arrays
    run(
        "INSERT INTO submission (plan_pk, token, kind, state, job_id, job_name, host, elements, "
        '"offset", pages_per_element, pulls, profile, log_folder, created_by) '
        "SELECT 1, 'token' || i, 'slurm', 'submitted', 1000 + i, 'job' || i, 'here', "
        "array(SELECT generate_series((i - 1) * %s + 1, i * %s)), (i - 1) * %s, 1, false, "
        "'{}', '/', 'me' FROM generate_series(1, %s) AS s(i)",
        (each, each, each, n_arrays),
    )
    run(
        "INSERT INTO page (plan_pk, number, n_rows, keys, outcomes, n_done, n_failed, n_no_result, "
        "submission_pk, attempt_pk) SELECT 1, i, 1, array[i], "
        "CASE WHEN i <= %s THEN '\\x01'::bytea ELSE '\\x00'::bytea END, "
        "(i <= %s)::int, 0, 0, (i - 1) / %s + 1, "
        "CASE WHEN i <= %s THEN i END "
        "FROM generate_series(1, %s) AS s(i)",
        (n_pages // 2, n_pages // 2, each, n_pages // 2, n_pages),
    )
    run(
        "INSERT INTO attempt (token, pk, page_pk, submission_pk, number, element, state, host, "
        "pid, restarts, n_handed, n_done, n_failed, n_no_result, n_found, n_checkpoints, t_task_s, "
        "t_read_s, t_write_s, ended) "
        "SELECT 'x', i, i, (i - 1) / %s + 1, 1, i, 'done', 'n1', 1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, "
        "now() FROM generate_series(1, %s) AS s(i)",
        (each, n_pages // 2),
    )
    run("VACUUM ANALYZE")


#: Prints the files of the jobs that are asked about, as squeue and sacct print their elements.
_PROGRAM = """#!/bin/sh
while [ "$1" != -j ]; do shift; done
IFS=,
for job in $2; do [ -f {folder}/{name}.$job ] && cat {folder}/{name}.$job; done
exit 0
"""


def programs(folder: Path, n_pages: int, n_arrays: int) -> None:
    """`squeue` and `sacct` that know these arrays: the first half ended, the others wait.

    As Slurm does, squeue tells waiting elements of an array in one line.
    """
    each = n_pages // n_arrays
    for job in range(1001, 1001 + n_arrays):
        if job <= 1000 + n_arrays // 2:
            lines = [f"{job}_{i}|COMPLETED|0:0|n1|60|60||None" for i in range(1, each + 1)]
            (folder / f"sacct.{job}").write_text("\n".join(lines) + "\n")
        else:
            line = f"{job}_[1-{each}]|PENDING|0|0||0:00|1:00:00|Resources|\n"
            (folder / f"squeue.{job}").write_text(line)
            (folder / f"sacct.{job}").write_text(f"{job}_[1-{each}]|PENDING|0:0||0|60||None\n")
    for name in ("squeue", "sacct", "sbatch"):
        (folder / name).write_text(_PROGRAM.format(folder=folder, name=name))
        (folder / name).chmod(0o755)
    (folder / "slurm.conf").touch()


def measured(words: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Seconds and most memory [MB] of a process that shows a plan."""
    began = time.perf_counter()
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3, 4):
        raise SystemExit(f"{' '.join(words)} ended with status {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def statements() -> list[tuple[str, int]]:
    with connection():
        rows = database.execute_sql(
            "SELECT query, calls FROM pg_stat_statements WHERE query LIKE 'SELECT%%'", ()
        )
        return list(rows.fetchall())


def asked() -> Counter[str]:
    """How often each table was asked, by the first one that a statement names."""
    found: Counter[str] = Counter()
    for query, calls in statements():
        first = re.search(r'FROM "(\w+)"', query)
        if first and first[1] in TABLES:
            found[first[1]] += calls
    return found


def measure(quick: bool) -> Iterator[Line]:
    n_pages, n_arrays, rounds = (1000, 5, 1) if quick else (100_000, 50, 5)
    words = [sys.executable, "-m", "astra", "status", "1"]
    with (
        postgres(shared_preload_libraries="pg_stat_statements") as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        server.sql("CREATE EXTENSION pg_stat_statements", "benchmark")
        say(f"filling {n_pages:,} pages")
        with connection():
            fill(n_pages, n_arrays)
        programs(Path(folder), n_pages, n_arrays)
        env = environment() | {
            "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_CONF": f"{folder}/slurm.conf",
        }  # fmt: skip
        measured(words, env)
        server.sql("SELECT pg_stat_statements_reset()", "benchmark")
        say("status")
        found, help_ = [], []
        for _ in range(rounds):
            found.append(measured(words, env))
            help_.append(measured([sys.executable, "-m", "astra", "status", "--help"], env)[0])
        counts = {table: n / rounds for table, n in asked().items()}
    seconds, memory = min(found)[0], max(mb for _, mb in found)
    what = f"astra status, {n_pages:,} pages in {n_arrays} arrays"
    told = ", ".join(f"{table} {n:g}" for table, n in sorted(counts.items()))
    yield Line(what, seconds, min(help_), "s", "<= 1", "astra status --help", ratio=seconds,
               note="the ratio is the time in s")  # fmt: skip
    yield Line(f"{what}: statements that ask one table, most", max(counts.values()), 0, "",
               "<= 1", ratio=max(counts.values()), note=told)  # fmt: skip
    yield Line(f"{what}: memory", memory, 0, "MB", "<= 100", ratio=memory)


if __name__ == "__main__":
    main(measure, __doc__)
