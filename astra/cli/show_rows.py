"""What is shown of single rows and of what is stored for them."""

import csv
import json
import sys
from itertools import islice
from typing import Any

from astra.cli import show
from astra.status.results import StoredResults, plain

#: Results that a table shows where nobody says how many.
SHOWN = 20


def as_json(found: StoredResults) -> None:
    """Print results as a JSON array, one a line, as they are read."""
    mark = "["
    for row in found:
        print(mark + json.dumps({name: plain(value) for name, value in row.items()}))
        mark = ","
    print("]" if mark == "," else "[]")


def as_csv(found: StoredResults) -> None:
    """Print results as CSV; lists are JSON, and what is not known is empty."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(found.columns)
    for row in found:
        writer.writerow([_cell(plain(value)) for value in row.values()])


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict | bool):
        return json.dumps(value)
    return "" if value is None else value


def results(found: StoredResults, limit: int | None) -> None:
    """Print the keys of results, and what the task set, as a table."""
    rows = list(islice(found, limit or SHOWN + 1))
    if not rows:
        show.line(f"{found.task} has stored no result" + (" for these keys" * bool(found.given)))
        return
    more = limit is None and len(rows) > SHOWN
    rows = rows[:SHOWN] if more else rows
    names = [n for n in found.own_columns if any(row[n] is not None for row in rows)]
    made = show.table(*names, "modified")
    for row in rows:
        made.add_row(
            *(show.escape(_short(row[name])) for name in names),
            f"{row['modified']:%Y-%m-%d %H:%M:%S}",
        )
    show.console.print(made)
    if more:
        show.line(f"... and more (--limit N; --csv and --json print all of {found.task})")


def _short(value: Any) -> str:
    """A value as a cell of a table has room for it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if (shape := getattr(value, "shape", None)) is not None:
        return f"array {shape}"
    text = value if isinstance(value, str) else str(plain(value))
    text = text.replace("\n", " ")
    return text if len(text) <= 40 else text[:39] + "…"
