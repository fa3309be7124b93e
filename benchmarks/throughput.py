"""Rows per second at 1, 2, 4 ... 64 elements, and what the limit is.

    python -m benchmarks.throughput [--quick]

A row is 2 ms of a busy core, and a result of 20 columns, written in batches of 1,000 rows. The
elements are forked from one process. What the server's processes wait for while most elements run
is sampled from pg_stat_activity, its time by statement is that of pg_stat_statements, and how busy
the cores are is the kernel's word: what of these is full is the limit. An element has 400 rows at
least: of fewer, what is measured is how elements start.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.plan.plan import create_plan
from benchmarks.connections import processor_s
from benchmarks.elements import activity, forked, submitted
from benchmarks.lines import Line, main, postgres, say
from benchmarks.tables import fill, waiting

#: What the server's processes are at: each a row.
_WAITS = """SELECT coalesce(wait_event_type || ': ' || wait_event, 'running')
            FROM pg_stat_activity WHERE datname = 'benchmark' AND state <> 'idle'"""


def busy_s() -> tuple[float, float]:
    """Seconds of all cores since the machine started: at work, and in all (proc(5), stat)."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    idle, every = ticks[3] + ticks[4], sum(ticks)
    return (every - idle) / os.sysconf("SC_CLK_TCK"), every / os.sysconf("SC_CLK_TCK")


def most_expensive(server: Any) -> str:
    rows = server.sql(
        "SELECT left(regexp_replace(query, '\\s+', ' ', 'g'), 40), total_exec_time, "
        "sum(total_exec_time) OVER () FROM pg_stat_statements WHERE query !~ 'pg_stat' "
        "ORDER BY 2 DESC LIMIT 1",
        "benchmark",
    )
    query, ms, every_ms = rows[0]
    return f"{query.strip()} ({ms / every_ms:.0%} of {every_ms / 1000:.2f} s of statements)"


def at_once(n_elements: int, n_rows: int, row_s: float, server: Any) -> tuple[float, str]:
    """Rows per second of so many elements with a page of so many rows each, and the limit."""
    with connection():
        database.execute_sql("TRUNCATE plan, twenty CASCADE")
    (made,) = create_plan(
        waiting, BossVisitSpectrum, limit=n_rows, max_rows=n_rows * n_elements,
        arguments={"row_s": row_s},
    )  # fmt: skip
    submission = submitted(made, n_elements)
    server.sql("SELECT pg_stat_statements_reset()", "benchmark")
    (_, server_s), (work_s, every_s) = processor_s(server), busy_s()
    began = time.monotonic()
    seen: list[list[str]] = []
    with activity(server, _WAITS, lambda rows: seen.append([event for (event,) in rows]), 0.02):
        statuses = forked(submission, n_elements)
    lasted_s = time.monotonic() - began
    server_s = processor_s(server)[1] - server_s
    work_s, every_s = busy_s()[0] - work_s, busy_s()[1] - every_s
    with connection():
        done = sum(n for (n,) in Attempt.select(Attempt.n_done).tuples())
    if any(statuses) or done != made.rows:
        raise SystemExit(f"{done} of {made.rows} rows are stored; {statuses}")
    events = Counter(event for sample in seen for event in sample).most_common(4)
    waits = ", ".join(f"{event} {n / len(seen):.2f}" for event, n in events)
    told = (
        f"cores {work_s / every_s:.0%} busy, {server_s / lasted_s:.2f} of them with PostgreSQL; "
        f"its processes at a moment: {waits}; most for {most_expensive(server)}"
    )
    return done / lasted_s, told


def measure(quick: bool) -> Iterator[Line]:
    counts = (1, 2, 4) if quick else (1, 2, 4, 8, 16, 32, 64)
    n_rows, least, row_s = (200, 50, 0.002) if quick else (8_000, 400, 0.002)
    cores = os.cpu_count() or 1
    with postgres(shared_preload_libraries="pg_stat_statements") as server:
        server.sql("CREATE EXTENSION pg_stat_statements", "benchmark")
        with connection():
            fill(max(n_rows, least * counts[-1]))
        alone = 0.0
        for n in counts:
            say(f"{n} elements")
            rate, told = at_once(n, max(n_rows // n, least), row_s, server)
            alone = alone or rate
            # Beyond the cores there is nothing to grow by: 0.8 of theirs is to be kept.
            wanted = f">= {0.8 * min(n, cores):g}" if n > 1 else ""
            yield Line(
                f"throughput of {n} element{'s' * (n > 1)}, rows of 2 ms", rate,
                alone if n > 1 else 1 / row_s, "rows/s", wanted,
                "one element" if n > 1 else "the science alone",
                note=told,
            )  # fmt: skip


if __name__ == "__main__":
    main(measure, __doc__)
