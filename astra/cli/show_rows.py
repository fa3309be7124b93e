"""Show single rows and their results."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from textwrap import indent
from typing import TYPE_CHECKING

from astra.api import json_value
from astra.cli import json_output, show
from astra.cli.listing import Listing
from astra.config.secrets import hide
from astra.config.units import written_moment
from astra.errors import count

if TYPE_CHECKING:
    from astra.element.trial import Tried
    from astra.status.results import StoredResults
    from astra.status.row_history import PlanOfRow, Provenance, RecordedEnd, RowHistory

#: How many results a table shows by default.
SHOWN = 20


def as_json(stored: StoredResults) -> None:
    """Print results as a JSON array, one a line, as they are read."""
    mark = "["
    for row in stored:
        values = {name: json_value(value) for name, value in row.items()}
        json_output.write(mark + json.dumps(values))
        mark = ","
    json_output.write("]" if mark == "," else "[]")


def as_csv(stored: StoredResults) -> None:
    """Print results as CSV; lists are JSON, and what is not known is empty."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(stored.columns)
    for row in stored:
        writer.writerow([_cell(json_value(value)) for value in row.values()])


def _cell(value: object) -> object:
    if isinstance(value, list | dict | bool):
        return json.dumps(value)
    return "" if value is None else value


def results(stored: StoredResults, limit: int | None) -> None:
    """Print the keys of results, and what the task set, as a table."""
    rows = list(islice(stored, limit or SHOWN + 1))
    if not rows:
        show.line(f"{stored.task} has stored no result" + (" for these keys" * bool(stored.given)))
        return
    more = limit is None and len(rows) > SHOWN
    rows = rows[:SHOWN] if more else rows
    names = [n for n in stored.own_columns if any(row[n] is not None for row in rows)]
    table = Listing(*names, "modified", out="modified")
    for row in rows:
        table.add(*(_short(row[name]) for name in names), row["modified"])
    table.print(show.console)
    if more:
        show.line(f"... and more (--limit N; --csv and --json print all of {stored.task})")


def _short(value: object) -> str:
    """Shorten a value for a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if (shape := getattr(value, "shape", None)) is not None:
        return f"array {shape}"
    text = value if isinstance(value, str) else str(json_value(value))
    text = text.replace("\n", " ")
    return text if len(text) <= 40 else text[:39] + "…"


def row_history(history: RowHistory) -> None:
    """Print whether a row is pending, what is stored, and what happened, in order."""
    show.line(f"{history.task}, row {history.key} of {history.table} ({history.input_model})")
    pending = "pending" if history.pending else "not pending"
    show.line(f"  {pending}: {history.why}")
    if history.next:
        show.line(f"  next: {history.next}")
    show.line("results:" if history.results else "results: none")
    for result in history.results:
        state = "up to date" if result.up_to_date else "out of date"
        number = f", number {result.number}" if result.number else ""
        show.line(
            f"  {written_moment(result.modified)}  task_pk {result.task_pk}{number}, version "
            f"{result.version}, {state}, by {_who(result.attempt)}"
        )
        _made_by(result.made_by)
    show.line("history:" if history.plans or history.ends else "history: none")
    events = [event for plan in history.plans for event in _of_plan(plan)]
    events += [(end.at, _of_end(end)) for end in history.ends]
    for at, (text, *more) in sorted(events, key=lambda event: event[0]):
        show.line(f"  {written_moment(at)}  {text}")
        for block in more:
            show.line(indent(block.rstrip(), " " * 27))


def _who(attempt: int | None) -> str:
    return "a program" if attempt is None else f"attempt {attempt}"


def _made_by(provenance: Provenance | None) -> None:
    """Print the provenance of a result."""
    if provenance is None:
        return
    arguments = ", ".join(f"{name}={json.dumps(v)}" for name, v in provenance.arguments.items())
    parts = [f"arguments: {arguments or 'none'} (digest {provenance.arguments_digest[:12]})"]
    for name, files in provenance.files.items():
        parts += [f"{name}: {path} (SHA-256 {digest[:12]})" for path, digest in files.items()]
    parts += [f"revision {provenance.revision}"] if provenance.revision is not None else []
    if provenance.commit:
        parts.append(f"code {provenance.commit[:12]}{'+' * provenance.commit.endswith('+')}")
    where = "outside of plans" if provenance.plan is None else f"in plan {provenance.plan}"
    show.line(f"    computed {where}; {'; '.join(parts)}")


def _of_plan(plan: PlanOfRow) -> Iterator[tuple[datetime, list[str]]]:
    """Yield the events of one plan that contains the row."""
    how = f", --redo {plan.redo}" if plan.redo else ""
    how += f", --where {plan.where!r}" if plan.where else ""
    where = f"the row is in page {plan.page}{how}: {plan.outcome}"
    yield plan.created, [f"plan {plan.plan} was created; {where}"]
    for moment, change in ((plan.paused, "paused"), (plan.cancelled, "cancelled")):
        if moment:
            yield moment, [f"plan {plan.plan} was {change}"]
    for a in plan.attempts:
        place = f"job {a.job} on {a.host}" if a.job else a.host
        slurm = f", Slurm says {a.slurm_state}" if a.slurm_state else ""
        yield a.began, [f"attempt {a.attempt} (number {a.number} at its page) began: {place}"]
        if a.ended or slurm:
            ended = [f"attempt {a.attempt}: {a.state}{slurm}"]
            yield a.ended or a.began, ended + ([a.message] if a.message else [])


def _of_end(end: RecordedEnd) -> list[str]:
    """Return the lines about a failure or a row without a result; the traceback comes last."""
    origin = f"plan {end.plan}, attempt {end.attempt}" if end.plan else _who(end.attempt)
    if end.exception is None:
        return [f"{end.what} ({origin})"]
    times = f", {end.times} times" if end.times and end.times > 1 else ""
    text = f"{end.what} ({origin}{times}): {end.exception}: {hide(end.message or '')}"
    return [text, hide(end.traceback)] if end.traceback else [text]


def tried(row: Tried) -> None:
    """Print what a task yielded or raised for one row."""
    if row.traceback:
        show.line(f"{row.key}: {row.exception}: {row.message}")
        show.line(row.traceback.rstrip())
        return
    why = f", refused: {row.exception}: {row.message}" if row.exception else ""
    show.line(
        f"{row.key}: {count(len(row.results), 'result') if row.results else 'no result'}{why}"
    )
    for result in row.results:
        for name, value in result.items():
            show.line(
                f"  {name} = {value:.6g}" if isinstance(value, float) else f"  {name} = {value}"
            )
