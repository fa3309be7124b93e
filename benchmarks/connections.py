"""500 elements that checkpoint every second, on a PostgreSQL with room for 100 connections.

    python -m benchmarks.connections [--quick]

The elements are forked from one process, to share its memory: they stand in for as many nodes. A
row is a sleep, so that 500 elements and 50 yield the same rows per second. What a checkpoint takes
is what its attempt has measured: from the wish to write to the answer to the commit.
"""

import multiprocessing
import os
import random
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from astra.database.connection import bind, connection, database, drop_connection
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.plan.plan import create_plan
from benchmarks.elements import activity, forked, submitted
from benchmarks.lines import Line, main, postgres, say
from benchmarks.tables import fill, sleeping

#: Those of the elements, by the server's word.
_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'benchmark'"


@dataclass(frozen=True)
class Found:
    """What so many elements at once came to."""

    checkpoint_s: float  # the median
    per_s: float  # checkpoints
    client_ms: float  # processor time of a checkpoint in the element, its start shared out
    server_ms: float
    connections: int  # the most


def processor_s(server: Any) -> tuple[float, float]:
    """Of the processes that have ended: those of this one, and of the server."""
    mine = resource.getrusage(resource.RUSAGE_CHILDREN)
    stat = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(stat[13]) + int(stat[14])  # proc(5): cutime and cstime
    return mine.ru_utime + mine.ru_stime, ticks / os.sysconf("SC_CLK_TCK")


def elements(n_elements: int, rows_per_s: float, lasts_s: float, server: Any) -> Found:
    """Run so many elements at once, all started in the same moment."""
    n_rows = round(rows_per_s * lasts_s / n_elements)
    with connection():
        database.execute_sql("TRUNCATE plan, twenty CASCADE")
    (made,) = create_plan(
        sleeping, BossVisitSpectrum, limit=n_rows, max_rows=n_rows * n_elements,
        arguments={"row_s": n_elements / rows_per_s},
    )  # fmt: skip
    submission = submitted(made, n_elements)
    before, began = processor_s(server), time.monotonic()
    seen: list[int] = []
    with activity(server, _CONNECTIONS, lambda rows: seen.append(rows[0][0]), 0.05):
        statuses = forked(submission, n_elements)
    lasted_s, after = time.monotonic() - began, processor_s(server)
    if any(statuses):
        raise SystemExit(f"elements ended with {sorted(set(statuses))}")
    with connection():
        attempts = list(Attempt.select())
    done, n = sum(a.n_done for a in attempts), sum(a.n_checkpoints for a in attempts)
    if done != made.rows or len(attempts) != n_elements:
        raise SystemExit(f"{done} of {made.rows} rows are stored, by {len(attempts)} attempts")
    return Found(
        statistics.median(a.t_write_s / a.n_checkpoints for a in attempts), n / lasted_s,
        (after[0] - before[0]) / n * 1e3, (after[1] - before[1]) / n * 1e3, max(seen, default=0),
    )  # fmt: skip


def insert(url: str, keys: range) -> None:
    """The least that a checkpoint could be: a connection, one INSERT, COMMIT."""
    values = ", ".join(f"({key}, 1, 1, '', 1)" for key in keys)
    until = time.monotonic() + 60
    while True:
        try:
            link = psycopg2.connect(url)
            break
        except psycopg2.OperationalError:  # there is no room for another
            if time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.01, 0.1))
    with closing(link), link, link.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO twenty (spectrum_pk, source_pk, v_astra, tag, c0) VALUES {values}"
        )


def bare(n_elements: int, rows_per_s: float, lasts_s: float, url: str) -> float:
    """The median of what :func:`insert` takes so many processes, each once a second, in seconds."""
    n_rows, n_steps = round(rows_per_s / n_elements), round(lasts_s)
    told: Any = multiprocessing.Queue()

    def work(element: int) -> None:
        due, times = time.monotonic() + random.random(), []
        for step in range(n_steps):
            time.sleep(max(due - time.monotonic(), 0.0))
            first = 1 + (element * n_steps + step) * n_rows
            began = time.monotonic()
            insert(url, range(first, first + n_rows))
            times.append(time.monotonic() - began)
            due += 1.0
        told.put(times)

    with connection():
        database.execute_sql("TRUNCATE plan, twenty CASCADE")
    drop_connection()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(i,)) for i in range(n_elements)]
    for process in processes:
        process.start()
    times = [told.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    return statistics.median(seconds for found in times for seconds in found)


def measure(quick: bool) -> Iterator[Line]:
    from tests.servers import PgBouncer

    many, few, rows_per_s, lasts_s, budget, pool_size = (
        (20, 2, 40.0, 2.0, 16, 4) if quick else (500, 50, 1000.0, 10.0, 60, 8)
    )
    with postgres(user="astra", max_connections=100) as server:
        server.sql(f"ALTER ROLE astra CONNECTION LIMIT {budget}")
        with connection():
            fill(round(rows_per_s * lasts_s))
        say(f"{few} elements")
        theirs = elements(few, rows_per_s, lasts_s, server)
        say(f"{many} elements")
        ours = elements(many, rows_per_s, lasts_s, server)
        say(f"{few} and {many} elements behind PgBouncer")
        with PgBouncer(server, pool_size, 2 * many) as bouncer:
            pooled_url = f"postgresql://astra@127.0.0.1:{bouncer.port}/benchmark"
            bind(pooled_url)
            pooled = [elements(n, rows_per_s, lasts_s, server) for n in (few, many)]
            urls = (os.environ["ASTRA_DATABASE_URL"], pooled_url)
            least = [[bare(n, rows_per_s, lasts_s, url) for n in (many, few)] for url in urls]
    yield _median(many, few, rows_per_s, ours, theirs, "")
    yield _median(many, few, rows_per_s, pooled[1], pooled[0], ", behind PgBouncer")
    yield Line(
        f"connections of {many} elements, most at any moment", ours.connections, budget, "",
        "<= 1", "the budget, of max_connections=100", note="ALTER ROLE astra CONNECTION LIMIT",
    )  # fmt: skip
    yield Line(
        f"the same, behind PgBouncer with a pool of {pool_size}", pooled[1].connections, budget,
        "", "<= 1", "the budget",
    )  # fmt: skip
    for (ours_s, theirs_s), where in zip(least, ("", ", behind PgBouncer"), strict=True):
        yield Line(
            f"the least: a connection, an INSERT and COMMIT, by {many} processes{where}",
            ours_s * 1e3, theirs_s * 1e3, "ms", "", f"{few} processes, the same rows/s",
        )  # fmt: skip


def _median(many: int, few: int, rows_per_s: float, ours: Found, theirs: Found, where: str) -> Line:
    def told(found: Found) -> str:
        # The server's processes behind PgBouncer live on, so that theirs is not known.
        server = "" if where else f" and {found.server_ms:.1f} ms in the server"
        return f"{found.per_s:,.0f}/s, each {found.client_ms:.1f} ms in the element{server}"

    return Line(
        f"median checkpoint of {many} elements, one a second each{where}",
        ours.checkpoint_s * 1e3, theirs.checkpoint_s * 1e3, "ms",
        "<= 3", f"{few} elements, the same {rows_per_s:,.0f} rows/s",
        note=f"all whole; processor time of a checkpoint: {told(ours)}; "
        f"{few} elements: {told(theirs)}",
    )  # fmt: skip


if __name__ == "__main__":
    main(measure, __doc__)
