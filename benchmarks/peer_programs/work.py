"""What every peer runs: rows that take a while, and their results in PostgreSQL.

Each row that is computed leaves a line in a log, so that rows computed twice can be counted,
whoever died meanwhile.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(os.environ["PEERS_FOLDER"])
HERE = Path(__file__).resolve().parent
DSN = os.environ.get("PEERS_DSN", "")
N_ROWS, PER_PAGE, SLOTS = (int(os.environ[f"PEERS_{n}"]) for n in ("ROWS", "PER_PAGE", "SLOTS"))
ROW_S = float(os.environ["PEERS_ROW_S"])

_log = os.open(FOLDER / "computed", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def compute(row: int) -> float:
    """The result of one row, after so many seconds; a line in the log says who computed it."""
    time.sleep(ROW_S)
    os.write(_log, b"%d %d\n" % (os.getpid(), row))
    return row / 2


def pages() -> list[int]:
    return list(range(-(-N_ROWS // PER_PAGE)))


def rows_of(page: int) -> range:
    return range(page * PER_PAGE, min((page + 1) * PER_PAGE, N_ROWS))


def process_page(page: int) -> None:
    """Compute the rows of a page, and store their results in one transaction."""
    import psycopg2
    from psycopg2.extras import execute_values

    results = [(row, compute(row)) for row in rows_of(page)]
    connection = psycopg2.connect(DSN)
    with connection, connection.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO result (row, value) VALUES %s"
            " ON CONFLICT (row) DO UPDATE SET value = excluded.value",
            results,
            page_size=1000,
        )
    connection.close()


def missing_pages() -> list[int]:
    """The pages of which a result is missing: what a person looks up before a second try."""
    import psycopg2

    connection = psycopg2.connect(DSN)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT row FROM result")
        stored = {row for (row,) in cursor}
    connection.close()
    return [page for page in pages() if not stored.issuperset(rows_of(page))]


def sbatch_workers(program: str) -> None:
    """Submit as many workers of a program as may run at once, as one job array."""
    import subprocess

    script = FOLDER / "workers.sh"
    script.write_text(
        f"#!/bin/sh\n#SBATCH --array=1-{SLOTS} -n1 -o {FOLDER}/%A_%a.log\n"
        f"exec {sys.executable} {program} worker\n"
    )
    subprocess.run(["sbatch", script], check=True, stdout=subprocess.DEVNULL)


def main(**verbs: Callable[[], None]) -> None:
    """Run the verb that the command line names."""
    verbs[sys.argv[1]]()
