"""How long an element takes until its task has the first row, and what importing astra costs.

    python -m benchmarks.start [--quick]

Each is a process of its own, from before it is started; the least of several rounds, in turn. The
files that Python compiled are there, as they are once astra is installed.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from astra.database.connection import connection
from astra.models import BossVisitSpectrum
from astra.plan.plan import create_plan
from benchmarks.elements import submitted
from benchmarks.lines import ROOT, Line, best, main, postgres, say
from benchmarks.tables import fill, noting

IMPORTS = "import peewee, psycopg2, numpy"


def environment() -> dict[str, str]:
    """This one, but that Python keeps what it compiled."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPATH": str(ROOT)
    }


def python(*words: str) -> None:
    subprocess.run(
        [sys.executable, *words], env=environment(), check=True, stdout=subprocess.DEVNULL
    )


def imports_cpu_s() -> float:
    """Processor time [s] of the libraries that an element cannot do without."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python("-c", IMPORTS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_row_s(plan: int, token: str, elements: Iterator[int], note: Path) -> tuple[float, float]:
    """Seconds from the start of an element to its task's first row, and of processor time."""
    note.unlink(missing_ok=True)
    began = time.monotonic()
    words = ["-m", "astra", "run-page", "--plan", str(plan), "--job", token]
    python(*words, "--element", str(next(elements)))
    at_s, cpu_s = map(float, note.read_text().split()[:2])
    return at_s - began, cpu_s


def measure(quick: bool) -> Iterator[Line]:
    rounds = 2 if quick else 15
    say("imports")
    bare, orm, theirs, ours, help_ = best(
        rounds,
        partial(python, "-c", ""),
        partial(python, "-c", "import peewee, psycopg2"),
        partial(python, "-c", IMPORTS),
        partial(python, "-c", "import astra"),
        partial(python, "-m", "astra", "--help"),
    )
    with postgres(), tempfile.TemporaryDirectory() as folder:
        say("elements")
        with connection():
            fill(1000)
        note = Path(folder) / "note"
        (made,) = create_plan(
            noting, BossVisitSpectrum, limit=1, max_rows=rounds, arguments={"path": str(note)}
        )
        submission = submitted(made, rounds)
        elements = iter(range(1, rounds + 1))
        element = theirs = cpu = their_cpu = float("inf")
        for _ in range(rounds):
            took_s, used_s = first_row_s(made.plan, submission.token, elements, note)
            element, cpu = min(element, took_s), min(cpu, used_s)
            theirs = min(theirs, best(1, partial(python, "-c", IMPORTS))[0])
            their_cpu = min(their_cpu, imports_cpu_s())
    yield Line(
        "start of an element to its first row", element, theirs, "s", "<= 0.35",
        f'python -c "{IMPORTS}"', ratio=element - theirs, note="the ratio is the difference in s",
    )  # fmt: skip
    yield Line(
        "the same, by processor time of both processes", cpu, their_cpu, "s", "<= 0.1",
        f'python -c "{IMPORTS}"', ratio=cpu - their_cpu, note="the ratio is the difference in s",
    )  # fmt: skip
    yield Line("import astra", ours, orm, "s", "<= 1.3", "import peewee, psycopg2")
    yield Line(
        "astra --help", help_, bare, "s", "<= 0.2", "python -c ''", ratio=help_ - bare,
        note="the ratio is the difference in s",
    )  # fmt: skip


if __name__ == "__main__":
    main(measure, __doc__)
