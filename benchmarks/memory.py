"""Memory of an element on a long page, beside a short one; rows with and without spectra in them.

    python -m benchmarks.memory [--quick]

Each element is a process of its own (`astra run-page`), as Slurm would start it: the most memory
that its task's process had at its last 1,000th row.
"""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from astra.plan.plan import create_plan
from benchmarks.elements import submitted
from benchmarks.lines import Line, main, postgres, say
from benchmarks.start import python
from benchmarks.tables import fill, noting

_numbers = count(1)


def max_mb(folder: str, n_rows: int) -> float:
    """The most memory [MB] of an element that runs a page of so many rows."""
    note = Path(folder) / f"note-{next(_numbers)}"
    with connection():
        database.execute_sql("TRUNCATE plan, twenty CASCADE")
    (made,) = create_plan(
        noting, BossVisitSpectrum, limit=n_rows, max_rows=n_rows, arguments={"path": str(note)}
    )
    submission = submitted(made, 1)
    words = ["--plan", str(made.plan), "--job", submission.token, "--element", "1"]
    python("-m", "astra", "run-page", *words)
    return float(note.read_text().split()[-1]) / 1024


def with_pixels(n_rows: int, n_pixels: int) -> None:
    """Arrays in the first rows: flux, inverse variance and wavelengths, of eight bytes a pixel."""
    field = BossVisitSpectrum.stored_flux
    array = field.db_value(np.arange(float(n_pixels)))
    with connection():
        database.execute_sql(
            "UPDATE boss_visit_spectrum SET stored_flux = %s, stored_ivar = %s, "
            "stored_wavelength = %s WHERE spectrum_pk <= %s",
            (array, array, array, n_rows),
        )
        # The most recently modified come first: these are to be the plan.
        database.execute_sql(
            "UPDATE boss_visit_spectrum SET modified = now() + interval '1 day' "
            "WHERE spectrum_pk <= %s",
            (n_rows,),
        )


def measure(quick: bool) -> Iterator[Line]:
    n_long = 2_000 if quick else 100_000
    n_wide, n_pixels = (1_000, 400) if quick else (10_000, 4_000)
    with postgres(), tempfile.TemporaryDirectory() as folder:
        with connection():
            fill(n_long)
        say("pages without arrays")
        long, short = max_mb(folder, n_long), max_mb(folder, 1000)
        yield Line(
            f"memory of an element, page of {n_long:,} rows", long, short, "MB", "<= 60",
            "1,000 rows", ratio=long - short, note="the ratio is the difference in MB",
        )  # fmt: skip
        say("pages with arrays")
        with_pixels(n_wide, n_pixels)
        wide = max_mb(folder, n_wide)
        yield Line(
            f"memory, {n_wide:,} rows with three arrays of {n_pixels:,} pixels", wide, short, "MB",
            "<= 60", "1,000 rows without", ratio=wide - short,
            note=f"the arrays are {n_wide * n_pixels * 24 / 1e6:,.0f} MB",
        )  # fmt: skip


if __name__ == "__main__":
    main(measure, __doc__)
