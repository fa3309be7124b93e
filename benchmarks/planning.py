"""Finding pending rows, freezing them, and reading pages back, beside the same SQL by hand.

    python -m benchmarks.planning [--quick]

4,000,000 spectra, of which half have an up-to-date result of 20 columns; then 99 in a hundred.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from astra import generate_queries_for_task
from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from astra.models.keys import all_rows, key_of
from astra.models.plans import Page
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.version import CURRENT
from benchmarks.lines import Line, best, main, postgres, say, timed
from benchmarks.tables import Marked, Named, OfMarked, OfNamed, fill, on_marked, on_named, twenty

#: As wide as astra's own, by hand. `result` and `modified` stand for what a person would compare.
ANTI_JOIN = """
    FROM boss_visit_spectrum s WHERE NOT EXISTS (
        SELECT 1 FROM twenty r WHERE r.spectrum_pk = s.spectrum_pk
          AND r.v_astra_major_minor = {version}
          AND (r.input_modified = s.modified
               OR (r.input_modified IS NULL AND r.input_read >= s.modified)))"""


def run(sql: str, parameters: Any = None) -> Any:
    with connection():
        cursor = database.execute_sql(sql, parameters)
        return cursor.fetchall() if cursor.description else None


def shape(sql: str, parameters: Any = None) -> list[str]:
    """The nodes of a statement's plan, without their costs and names."""
    rows = run("EXPLAIN (COSTS OFF) " + sql, parameters)
    nodes = [row for (row,) in rows if "->" in row or not row.startswith(" ")]
    return [
        re.sub(r"\b(r|s|t1|result)\b", "", row.split("->")[-1]).split("(")[0].strip()
        for row in nodes
    ]


def counting(n_rows: int, n_done: int) -> Iterator[Line]:
    by_hand = "SELECT count(*)" + ANTI_JOIN.format(version=CURRENT.major_minor)
    ((_, query),) = generate_queries_for_task(twenty, BossVisitSpectrum)

    def count() -> None:
        with connection():
            assert query.count() == n_rows - n_done

    say("counting pending rows")
    count()
    ours, theirs = best(3, count, lambda: run(by_hand))
    statements: list[tuple[str, Any]] = []
    with connection():
        execute = database.obj.execute_sql
        database.obj.execute_sql = lambda sql, parameters=None: (
            statements.append((sql, parameters)), execute(sql, parameters))[1]  # fmt: skip
        try:
            query.count()
        finally:
            del database.obj.execute_sql
    ours_, theirs_ = shape(*statements[0]), shape(by_hand)
    if ours_[0] == "Limit":  # peewee's scalar(): of the one row that a count has
        del ours_[0]
    note = "the same plan by EXPLAIN" if ours_ == theirs_ else f"another plan: {ours_}, {theirs_}"
    what = f"counting {n_rows - n_done:,} pending of {n_rows:,}"
    yield Line(what, ours, theirs, "s", "<= 1.1", "anti-join by hand", note=note)


def freezing(n_rows: int, n_done: int, limit: int) -> Iterator[Line]:
    say("freezing")
    bare = (
        "CREATE TEMPORARY TABLE frozen ON COMMIT DROP AS SELECT s.spectrum_pk"
        + ANTI_JOIN.format(version=CURRENT.major_minor)
    )
    plans: list[Any] = []

    def freeze() -> None:
        plans[:] = create_plan(twenty, BossVisitSpectrum, limit=limit)

    found = [float("inf")] * 2
    for _ in range(2):
        run("TRUNCATE plan CASCADE")
        found[0] = min(found[0], timed(freeze))
        found[1] = min(found[1], timed(lambda: run(bare)))
    (made,) = plans
    assert made.rows == n_rows - n_done
    what = f"freezing {made.rows:,} pending rows into {made.pages:,} pages"
    yield Line(what, *found, "s", "<= 3", "bare anti-join into a temporary table")
    yield from reading(made.plan, made.pages, limit)


def in_database_s(work: Callable[[], Any]) -> float:
    """Seconds of the server for what a call asks of it, planning included."""
    run("SELECT pg_stat_statements_reset()")
    work()
    sums = "SELECT sum(total_plan_time + total_exec_time) / 1000 FROM pg_stat_statements"
    ((seconds,),) = run(sums + " WHERE query NOT LIKE '%%pg_stat_statements%%'", ())
    return float(seconds)


def reading(plan_pk: int, n_pages: int, limit: int) -> Iterator[Line]:
    """What one element asks of the database to read its page, beside a window of the query."""
    say("reading pages")
    plan = get_plan(plan_pk)
    key = key_of(BossVisitSpectrum)

    def read(number: int) -> None:
        """The page, and its rows with their sources."""
        with connection():
            page = Page.get((Page.plan == plan.pk) & (Page.number == number))
            query = key.narrowed(all_rows(BossVisitSpectrum), page.row_keys)
            rows = database.execute(query).fetchall()
            assert len(rows) == page.n_rows

    def window(number: int) -> None:
        ((_, query),) = generate_queries_for_task(
            twenty, BossVisitSpectrum, limit=limit, page=number
        )
        with connection():
            assert len(database.execute(query).fetchall()) == limit

    sample = sorted(
        {1, max(n_pages // 4, 1), max(n_pages // 2, 1), max(n_pages * 3 // 4, 1), n_pages}
    )
    frozen = {number: float("inf") for number in sample}
    with connection():
        for _ in range(7):  # in turn: a noisy machine meets all alike
            for number in sample:
                frozen[number] = min(frozen[number], in_database_s(partial(read, number)))
        live = {number: in_database_s(partial(window, number)) for number in sample}
    ours = sum(frozen.values()) / len(sample) * n_pages
    theirs = sum(live.values()) / len(sample) * n_pages
    yield Line(
        f"reading all {n_pages:,} pages", ours, theirs, "s", ">= 250", "LIMIT/OFFSET",
        ratio=theirs / ours,
        note=f"database time of both, from pages {', '.join(map(str, sample))}",
    )  # fmt: skip
    middle = max(n_pages // 2, 1)
    three = {number: frozen[number] * 1e3 for number in (1, middle, n_pages)}
    slowest, fastest = max(three.values()), min(three.values())
    what = f"reading page 1, {middle:,} or {n_pages:,}"
    yield Line(what, slowest, fastest, "ms", "<= 1.5", "the fastest of them")


def planning_nodes(sql: str, parameters: Any) -> list[str]:
    return [row.strip() for (row,) in run("EXPLAIN (COSTS OFF) " + sql, parameters)]


def few(n_rows: int) -> Iterator[Line]:
    """One row in a hundred is pending: the archive is passed once, and nothing is sorted by it."""
    say("one row in a hundred is pending")
    run("TRUNCATE plan CASCADE")
    # The results of all others, as a night leaves them.
    run(
        "INSERT INTO twenty (spectrum_pk, source_pk, v_astra, tag, input_modified, input_read, c0) "
        "SELECT s.spectrum_pk, s.source_pk, %s, '', s.modified, s.modified, 1 "
        "FROM boss_visit_spectrum s WHERE s.spectrum_pk %% 100 <> 0 "
        "ON CONFLICT DO NOTHING",
        (CURRENT.number,),
    )
    run("DELETE FROM twenty WHERE spectrum_pk %% 100 = 0", ())
    run("COMMIT")
    run("VACUUM ANALYZE twenty")
    joined = (
        "SELECT count(*) FROM boss_visit_spectrum s "
        "LEFT JOIN twenty r ON r.spectrum_pk = s.spectrum_pk"
    )
    ((_, query),) = generate_queries_for_task(twenty, BossVisitSpectrum)
    sql, parameters = query.select(BossVisitSpectrum.spectrum_pk).sql()
    nodes = planning_nodes(sql, parameters)
    plans: list[Any] = []

    def freeze() -> None:
        plans[:] = create_plan(twenty, BossVisitSpectrum, limit=1000)

    found = [float("inf")] * 2
    for _ in range(2):
        run("TRUNCATE plan CASCADE")
        found[0] = min(found[0], timed(freeze))
        found[1] = min(found[1], timed(lambda: run(joined)))
    rows = plans[0].rows
    assert rows == n_rows // 100
    yield Line(
        f"planning {rows:,} pending of {n_rows:,}", found[0], found[1], "s", "<= 2",
        "one join of both tables", note=f"{'; '.join(nodes)}",
    )  # fmt: skip


#: How the keys of a table of others are made of the numbers 1 to n: texts in no order.
OWN_KEYS = {
    "text": (Named, OfNamed, on_named, "'obj-' || md5(i::text)"),
    "UUID": (Marked, OfMarked, on_marked, "md5(i::text)::uuid"),
}


def own_keys(n_rows: int, limit: int) -> Iterator[Line]:
    """Tables of others, of whose rows half have a result."""
    for kind, (model, output, task, key) in OWN_KEYS.items():
        say(f"keys of type {kind}")
        with connection():
            for made in (model, output):
                made.create_table()
        table, results = model._meta.table_name, output._meta.table_name
        pointer = next(iter(output.declared_links.values())).key(output).fields[0].column_name
        run(f"INSERT INTO {table} SELECT {key}, 1 FROM generate_series(1, {n_rows}) AS i")
        run(
            f"INSERT INTO {results} ({pointer}, v_astra, tag) SELECT {key}, {CURRENT.number}, '' "
            f"FROM generate_series(1, {n_rows // 2}) AS i"
        )
        for name in (table, results):
            run(f"ANALYZE {name}")
        bare = (
            f"CREATE TEMPORARY TABLE frozen ON COMMIT DROP AS SELECT s.key FROM {table} s "
            f"WHERE NOT EXISTS (SELECT 1 FROM {results} r WHERE r.{pointer} = s.key "
            f"AND r.v_astra_major_minor = {CURRENT.major_minor})"
        )
        plans: list[Any] = []

        def freeze(task: Any = task, plans: list[Any] = plans) -> None:
            plans[:] = create_plan(task, limit=limit)

        found = [float("inf")] * 2
        for _ in range(2):
            run("TRUNCATE plan CASCADE")
            found[0] = min(found[0], timed(freeze))
            found[1] = min(found[1], timed(lambda bare=bare: run(bare)))
        (planned,) = plans
        assert planned.rows == n_rows - n_rows // 2
        what = f"freezing {planned.rows:,} rows with {kind} keys"
        yield Line(what, *found, "s", "<= 3", "bare anti-join into a temporary table")
        yield from reading_own(kind, planned.plan, planned.pages, model)


def reading_own(kind: str, plan_pk: int, n_pages: int, model: Any) -> Iterator[Line]:
    key = key_of(model)

    def read(number: int) -> None:
        with connection():
            page = Page.get((Page.plan == plan_pk) & (Page.number == number))
            rows = database.execute(key.narrowed(all_rows(model), page.row_keys)).fetchall()
            assert len(rows) == page.n_rows

    sample = sorted({1, max(n_pages // 2, 1), n_pages})
    best_ms = dict.fromkeys(sample, float("inf"))
    with connection():
        for _ in range(7):
            for number in sample:
                best_ms[number] = min(best_ms[number], in_database_s(partial(read, number)) * 1e3)
    what = f"reading page {', '.join(f'{n:,}' for n in sample)} with {kind} keys"
    yield Line(what, max(best_ms.values()), min(best_ms.values()), "ms", "<= 1.5",
               "the fastest of them")  # fmt: skip


def measure(quick: bool) -> Iterator[Line]:
    n_rows = 10_000 if quick else 4_000_000
    settings = {"shared_buffers": "512MB", "work_mem": "64MB", "max_wal_size": "8GB"}
    settings |= {"shared_preload_libraries": "pg_stat_statements"}
    settings |= {"pg_stat_statements.track_planning": "on"}
    with postgres(**settings) as server:
        server.sql("CREATE EXTENSION pg_stat_statements", "benchmark")
        say(f"filling {n_rows:,} rows")
        with connection():
            fill(n_rows, n_rows // 2)
        yield from counting(n_rows, n_rows // 2)
        yield from freezing(n_rows, n_rows // 2, 100 if quick else 1000)
        yield from few(n_rows)
        yield from own_keys(n_rows, 100 if quick else 1000)


if __name__ == "__main__":
    main(measure, __doc__)
