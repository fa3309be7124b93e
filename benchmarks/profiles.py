"""Where the time of an element and of planning goes.

    python -m benchmarks.profiles [--rows N]

Of an element: its threads' stacks, sampled every 2 ms while it runs pages of 1,000 rows whose
science costs nothing, as a flame graph (benchmarks/element.svg) and by part. Of planning: the
server's own word on the statement that freezes, node by node (EXPLAIN ANALYZE), and what Python
does beside it. It is not part of the table.
"""

import argparse
import sys
import threading
import time
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from astra.database.connection import connection, database
from astra.element.element import run_element
from astra.models import BossVisitSpectrum
from astra.plan.plan import create_plan
from benchmarks.elements import sampled, submitted
from benchmarks.lines import ROOT, postgres, timed
from benchmarks.tables import fill, twenty

SVG = ROOT / "benchmarks" / "element.svg"

#: By the first that a stack holds: file and function.
PARTS = {
    "reading rows": ("reader.py", "_read"),
    "writing checkpoints": ("checkpoint.py", "write"),
    "claiming pages": ("claiming.py", "claim_page"),
    "ending pages": ("element.py", "_record_end"),
    "making results (the task)": ("tables.py", "science"),
    "handing rows over, taking results": ("run.py", "__iter__"),
}
#: A thread that stands in one of these waits, and costs nothing.
JOIN = "join" if sys.version_info >= (3, 13) else "_wait_for_tstate_lock"
IDLE = {("threading.py", "wait"), ("threading.py", JOIN),
        ("signals.py", "watch"), ("statement_timeout.py", "_close_expired"),
        ("queue.py", "get")}  # fmt: skip

Stack = tuple[tuple[str, str], ...]


def count_stacks(seen: Counter[Stack]) -> None:
    """Count the stack of each thread that works, outermost first; not of the one that looks."""
    mine = threading.get_ident()
    for ident, frame in sys._current_frames().items():
        if ident != mine and (stack := stack_of(frame))[-1] not in IDLE:
            seen[stack] += 1


def stack_of(frame: Any) -> Stack:
    found = []
    while frame is not None:
        found.append((Path(frame.f_code.co_filename).name, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(reversed(found))


def by_part(seen: Counter[Stack]) -> list[tuple[str, float]]:
    """The share of samples of each part; of nested ones the innermost counts."""
    found: Counter[str] = Counter()
    for stack, n in seen.items():
        place = {frame: i for i, frame in enumerate(stack)}
        parts = [(place[frame], part) for part, frame in PARTS.items() if frame in place]
        found[max(parts)[1] if parts else "all else"] += n
    return [(part, n / found.total()) for part, n in found.most_common()]


def flames(seen: Counter[Stack], width: int = 1200, height: int = 15) -> str:
    """A flame graph: each box is a function, as wide as its share of the samples."""
    total, boxes, deepest = seen.total(), [], 0

    def draw(stacks: list[tuple[Stack, int]], depth: int, left: float) -> None:
        nonlocal deepest
        groups: dict[tuple[str, str], list[tuple[Stack, int]]] = {}
        for stack, n in stacks:
            if len(stack) > depth:
                groups.setdefault(stack[depth], []).append((stack, n))
        for (file, function), members in sorted(groups.items()):
            wide = sum(n for _, n in members) / total * width
            if wide >= 1:
                deepest = max(deepest, depth)
                boxes.append((left, depth, wide, f"{function} ({file})"))
                draw(members, depth + 1, left)
            left += wide

    draw(list(seen.items()), 0, 0.0)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {(deepest + 1) * height}" '
        'font-family="monospace" font-size="10">'
    ]
    for x, depth, wide, name in boxes:
        y, shade = (deepest - depth) * height, 60 + sum(map(ord, name)) % 30
        share = f"{wide / width:.1%}"
        lines.append(
            f'<g><title>{escape(name)} {share}</title><rect x="{x:.1f}" y="{y}" '
            f'width="{wide:.1f}" height="{height - 1}" fill="hsl(30,80%,{shade}%)"/>'
            f'<text x="{x + 2:.1f}" y="{y + 11}">{escape(name[: int(wide / 6.2)])}</text></g>'
        )
    return "\n".join([*lines, "</svg>\n"])


def element(n_rows: int) -> None:
    (made,) = create_plan(twenty, BossVisitSpectrum, limit=1000)
    submission = submitted(made, 1, made.pages)
    seen = Counter[Stack]()
    began = time.perf_counter()
    with sampled(lambda: count_stacks(seen), 0.002):
        run_element(submission.plan_pk, 1, submission.token)
    lasted_s = time.perf_counter() - began
    SVG.write_text(flames(seen))
    print(f"an element: {n_rows:,} rows in {made.pages} pages, {lasted_s:.2f} s; of its work")
    for part, share in by_part(seen):
        print(f"  {share:5.1%}  {part}")
    print(f"  flame graph: {SVG.relative_to(ROOT)}")


def planning() -> None:
    with connection():
        database.execute_sql("TRUNCATE plan CASCADE")
    statements: list[tuple[str, Any, float]] = []
    bound = database.bound()
    execute = bound.execute_sql

    def noting(sql: str, parameters: Any = None) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, parameters)
        finally:
            statements.append((sql, parameters, time.perf_counter() - began))

    bound.execute_sql = noting  # type: ignore[method-assign]
    try:
        lasted_s = timed(lambda: create_plan(twenty, BossVisitSpectrum, limit=1000))
    finally:
        del bound.execute_sql
    in_database_s = sum(seconds for *_, seconds in statements)
    print(f"planning: {lasted_s:.2f} s, of which {in_database_s:.2f} s in the database")
    for sql, _, seconds in sorted(statements, key=lambda one: -one[2])[:3]:
        print(f"  {seconds:6.3f} s  {' '.join(sql.split())[:80]}")
    sql, parameters, _ = max(statements, key=lambda one: one[2])
    with connection():
        database.execute_sql("DELETE FROM page")
        rows = database.execute_sql("EXPLAIN (ANALYZE, COSTS OFF) " + sql, parameters)
        print("\n".join(f"  {row[:100]}" for (row,) in rows.fetchall()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000)
    n_rows = parser.parse_args().rows
    with postgres(shared_buffers="512MB", work_mem="64MB"):
        with connection():
            fill(n_rows)
        element(n_rows)
    with postgres(shared_buffers="512MB", work_mem="64MB"):
        with connection():
            fill(10 * n_rows, 5 * n_rows)
        planning()


if __name__ == "__main__":
    main()
