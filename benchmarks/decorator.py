"""What `@task` costs a row where nothing is written, beside the bare generator.

    python -m benchmarks.decorator [--quick]

The least time of nine rounds of each, in turn.
"""

from collections.abc import Iterator
from typing import Any

from astra import task
from benchmarks.lines import Line, best, main
from benchmarks.tables import Twenty, rows_in_memory, science


def passing(spectra: Any) -> Iterator[Twenty]:
    yield from science(spectra)


decorated = task(write_to_database=False)(passing)


def drain(results: Any) -> None:
    for _ in results:
        pass


def measure(quick: bool) -> Iterator[Line]:
    n_rows, rounds = (2_000, 3) if quick else (50_000, 9)
    rows = rows_in_memory(n_rows)
    ours_s, bare_s = best(rounds, lambda: drain(decorated(rows)), lambda: drain(passing(rows)))
    ours, bare = ours_s / n_rows * 1e6, bare_s / n_rows * 1e6
    yield Line(
        "@task with write_to_database=False", ours, bare, "µs/row", "<= 3", "bare generator",
        ratio=ours - bare, note="the ratio is the difference in µs",
    )  # fmt: skip


if __name__ == "__main__":
    main(measure, __doc__)
