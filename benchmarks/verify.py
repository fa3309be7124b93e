"""How long `astra verify` takes for a plan of a million rows.

    python benchmarks/verify.py [--rows 1000000] [--limit 1000] [--sqlite]

The plan is made as astra makes it, and its results, failures and attempts are written by SQL. A
PostgreSQL server of its own is started, and ended; with --sqlite a file is used. The exit status is
1 if the plan is not called sound, or took longer than 30 s, else 0.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from astra.database.connection import bind, database, dialect  # noqa: E402
from astra.models import BossVisitSpectrum  # noqa: E402
from astra.models.plans import Page, Plan, Submission  # noqa: E402
from astra.models.schema import init_database  # noqa: E402
from astra.plan.plan import create_plan  # noqa: E402
from astra.status.verify import verify  # noqa: E402
from tests.sample_tasks import fill, measure  # noqa: E402
from tests.servers import Postgres  # noqa: E402


def fill_many(n_rows: int) -> None:
    """As many spectra, the first made by astra and the others by SQL, as its copies."""
    fill(1)
    numbers = (
        f"SELECT i FROM generate_series(2, {n_rows}) AS s(i)"
        if dialect().name == "postgresql"
        else f"WITH RECURSIVE s(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM s WHERE i < {n_rows}) "
        "SELECT i FROM s"
    )
    database.execute_sql(
        f"INSERT INTO spectrum (pk, kind) SELECT i, 'boss_visit_spectrum' FROM ({numbers}) AS n"
    )
    names = [f.column_name for f in BossVisitSpectrum._meta.sorted_fields]
    copied = ", ".join(f'"{name}"' for name in names if name not in ("pk", "spectrum_pk"))
    database.execute_sql(
        f"INSERT INTO boss_visit_spectrum (spectrum_pk, {copied}) "
        f"SELECT i, {copied} FROM boss_visit_spectrum, ({numbers}) AS n WHERE spectrum_pk = 1"
    )


def end(plan: int) -> None:
    """All rows end: every 100th as a failure, the others with a result."""
    now = f"'{dialect().fetch_value(f'SELECT {dialect().now_sql}')}'"
    submission = Submission.create(
        plan=plan, token=f"b{plan}", kind="local", state="ended", job_name=f"b{plan}",
        host="here", elements=list(range(1, Page.select().count() + 1)), offset=0,
        pages_per_element=1, profile="{}", created_by="benchmark",
    )  # fmt: skip
    database.execute_sql(
        "INSERT INTO attempt (token, page_pk, submission_pk, number, element, state, host, pid, "
        "restarts, n_handed, n_found, n_checkpoints, t_task_s, t_read_s, t_write_s, n_done, "
        "n_failed, n_no_result, began, seen, ended) "
        f"SELECT 'x' || pk, pk, {submission.pk}, 1, number, 'done', 'here', 1, 0, 0, 0, 1, 0, 0, "
        f"0, n_rows - n_rows / 100, n_rows / 100, 0, {now}, {now}, {now} FROM page"
    )
    database.execute_sql(
        "UPDATE page SET attempt_pk = (SELECT a.pk FROM attempt a WHERE a.page_pk = page.pk), "
        "n_done = n_rows - n_rows / 100, n_failed = n_rows / 100"
    )
    if dialect().name == "postgresql":
        outcomes = (
            "decode(repeat('01', n_rows - n_rows / 100) || repeat('02', n_rows / 100), 'hex')"
        )
        keys = "unnest(p.keys) WITH ORDINALITY AS k(key, place)"
        place = "k.place - 1"
    else:
        database.connection().create_function(
            "ends", 1, lambda n: b"\1" * (n - n // 100) + b"\2" * (n // 100)
        )
        outcomes, keys, place = "ends(n_rows)", "json_each(p.keys) AS k", "k.key"
    made_by = Plan.get_by_id(plan).made_by
    key = "k.key" if dialect().name == "postgresql" else "k.value"
    database.execute_sql(f"UPDATE page SET outcomes = {outcomes}")
    database.execute_sql(
        "INSERT INTO measured (spectrum_pk, v_astra, tag, attempt_pk, made_by, input_modified, "
        f"input_read, value) SELECT {key}, 8001, '', p.attempt_pk, {made_by}, s.modified, "
        f"{now}, {key} FROM page p, {keys}, "
        f"boss_visit_spectrum s WHERE s.spectrum_pk = {key} AND {place} < p.n_rows - p.n_rows / 100"
    )
    database.execute_sql(
        "INSERT INTO failure (task, input_table, key_text, v_astra_major_minor, exception, "
        "message, times, refused, plan_pk, page, attempt_pk, made_by, input_modified) SELECT "
        f"'tests.sample_tasks.measure', 'boss_visit_spectrum', {key}, 8, 'ValueError', 'bad', 1, "
        "false, "
        f"{plan}, p.number, p.attempt_pk, {made_by}, {now} FROM page p, {keys} "
        f"WHERE {place} >= p.n_rows - p.n_rows / 100"
    )
    database.execute_sql("ANALYZE")


def measured(n_rows: int, limit: int) -> bool:
    init_database(("tests.sample_tasks",))
    fill_many(n_rows)
    (planned,) = create_plan(measure, BossVisitSpectrum, limit=limit)
    assert planned.plan is not None
    end(planned.plan)
    database.close()
    began = time.perf_counter()
    found = verify(planned.plan)
    took_s = time.perf_counter() - began
    words = "sound" if found.sound else f"not sound: {found.checks}"
    print(f"{dialect().name}: {n_rows:,} rows, {found.n_pages:,} pages: {words}, {took_s:.1f} s")
    return found.sound and found.whole and took_s < 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--sqlite", action="store_true")
    given = parser.parse_args()
    os.chdir(ROOT)
    if given.sqlite:
        with tempfile.TemporaryDirectory() as folder:
            bind(f"sqlite:///{folder}/astra.db")
            return 0 if measured(given.rows, given.limit) else 1
    with Postgres() as server:
        bind(server.create_database("verify"))
        return 0 if measured(given.rows, given.limit) else 1


if __name__ == "__main__":
    sys.exit(main())
