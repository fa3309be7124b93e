"""Lines of the table: both sides of a ratio from one run, and what the ratio is to be.

Every script of this folder is a function that gives lines, ended by ``main(measure)``; it takes
``--quick`` (small tables: does it still work?) and ``--json`` (for benchmarks/all.py).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Line:
    """One line of the table: ``ours / against`` is the ratio, unless `ratio` is given."""

    what: str
    ours: float
    against: float
    unit: str
    wanted: str = ""  # ">= 4", "<= 1.1", "" for what is only told
    against_what: str = ""
    ratio: float | None = None
    note: str = ""

    @property
    def value(self) -> float:
        return self.ours / self.against if self.ratio is None else self.ratio

    @property
    def reached(self) -> bool | None:
        if not self.wanted:
            return None
        sign, bound = self.wanted.split()
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)

    def markdown(self) -> str:
        verdict = {None: "", True: "yes", False: "**no**"}[self.reached]
        cells = (
            self.what, f"{number(self.ours)} {self.unit}",
            f"{self.against_what}: {number(self.against)} {self.unit}" if self.against_what else "",
            number(self.value), self.wanted, verdict, self.note,
        )  # fmt: skip
        return f"| {' | '.join(in_cell(cell) for cell in cells)} |"


HEAD = """\
| what | astra | against | ratio | wanted | reached | note |
| --- | --- | --- | --- | --- | --- | --- |"""


def in_cell(text: str) -> str:
    """A text as a cell of a table holds it: a query of a note may have ``||`` in it."""
    return " ".join(text.split()).replace("|", r"\|")


def number(value: float) -> str:
    """Three digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main(measure: Callable[[bool], Iterable[Line]], doc: str | None) -> None:
    """Run one script's measurements and print them."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small tables, no statement of speed")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)  # of the processes that it starts
    if not given.json:
        print(HEAD, flush=True)
    for line in measure(given.quick):
        print(json.dumps(asdict(line)) if given.json else line.markdown(), flush=True)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def best(rounds: int, *works: Callable[[], Any]) -> list[float]:
    """The least seconds of each, called in turn so that a noisy machine meets all alike."""
    found = [float("inf")] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            found[i] = min(found[i], timed(work))
    return found


def say(text: str) -> None:
    """Progress, for who waits."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def postgres(name: str = "benchmark", user: str = "postgres", **settings: object) -> Iterator[Any]:
    """A PostgreSQL of its own, with astra's tables in a database that astra is bound to.

    Everybody comes in by the socket, without a password.
    """
    from tests.servers import Postgres

    with Postgres(**settings) as server:
        bound(server.create_database(name).replace("//postgres@", f"//{user}@"))
        try:
            yield server
        finally:
            from astra.database.connection import reset

            reset()


def bound(url: str) -> str:
    """Bind astra, and the processes that are started, to a database, and make its tables."""
    os.environ["ASTRA_DATABASE_URL"] = url
    from astra.database.connection import bind
    from astra.models.schema import init_database

    bind(url)
    init_database(("benchmarks.tables",))
    return url
