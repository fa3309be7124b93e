"""The tables of a report; columns in which every cell is empty are omitted."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from astra.plan.pages import PageStatus
from astra.records import dataclass
from astra.report.format import (
    count,
    file_url,
    first_line,
    in_both_zones,
    megabytes,
    percent,
    short,
    unbroken,
)
from astra.report.report import Report
from astra.status.status import PlanStatus


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the number it is sorted by, its link, and the name of its colour."""

    text: str
    value: float | None = None
    href: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Column:
    """The head of a column, and how its cells are shown."""

    head: str
    style: str  # n: numbers, w: long texts, t: times


@dataclass(frozen=True)
class Table:
    """A table whose rows have a cell for each of its columns; `more` lines are omitted."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: int = 0


Item = TypeVar("Item")
Number = TypeVar("Number", int, float)

#: Headings of columns, each with the function that makes a cell of an item.
Columns = Mapping[str, Callable[[Item], "Cell | str | None"]]

_LONG = frozenset({"last message", "example", "log"})
_TIMES = frozenset({"began", "last seen", "created"})

N_SLOWEST = 6  # rows and pages that are shown


def number(value: Number | None, as_text: Callable[[Number], str]) -> Cell:
    """Return a cell that is sorted by a number."""
    return Cell("", -1) if value is None else Cell(as_text(value), value)


def moment(value: datetime | None) -> Cell:
    return Cell(in_both_zones(value), value.timestamp() if value else -1)


def file(path: str | None) -> Cell:
    return Cell(path or "", href=file_url(path) if path else None)


def table(items: Iterable[Item], columns: Columns[Item], more: int = 0) -> Table | None:
    lines = [[_cell(make(item)) for make in columns.values()] for item in items]
    filled = [at for at in range(len(columns)) if any(line[at].text for line in lines)]
    if not filled:
        return None
    heads = list(columns)
    numeric = {at for at in filled if any(line[at].value is not None for line in lines)}
    return Table(
        tuple(Column(heads[at], _style(heads[at], at in numeric)) for at in filled),
        tuple(tuple(line[at] for at in filled) for line in lines),
        more,
    )


def _style(head: str, numeric: bool) -> str:
    if head in _TIMES:
        return "t"
    return "w" if head in _LONG else "n" if numeric else ""


def _cell(content: Cell | str | None) -> Cell:
    return content if isinstance(content, Cell) else Cell(content or "")


def tables(report: Report) -> dict[str, Table | None]:
    """Return the tables of a report by name; None where there is nothing to show."""
    makers = (
        _plans, _attention, _elements, _endings, _nodes, _slow_rows, _slow_pages, _earlier
    )  # fmt: skip
    return {make.__name__.strip("_"): make(report) for make in makers}


def _plan(report: Report, plan_of: Callable[[Item], int]) -> Columns[Item]:
    """Return the column of the plan, if there are several plans."""
    return {"plan": lambda item: number(plan_of(item), str)} if len(report.plans) > 1 else {}


def _plans(report: Report) -> Table | None:
    several: Sequence[PlanStatus] = report.plans if len(report.plans) > 1 else ()
    return table(several, {
        **_plan(report, lambda p: p.plan),
        "task": lambda p: p.task,
        "input": lambda p: p.input_model,
        "state": lambda p: p.state.value,
        "rows": lambda p: number(p.n_rows, count),
        "results": lambda p: number(p.rows.get("done", 0), count),
        "failures": lambda p: number(p.rows.get("failed", 0), count),
        "no result": lambda p: number(p.rows.get("no result", 0), count),
        "not ended": lambda p: number(p.n_rows - p.n_ended, count),
    })  # fmt: skip


def _attention(report: Report) -> Table | None:
    logs = {(plan, page): path for plan, page, path in report.logs}

    def slurm(page: PageStatus) -> str:
        code = f"{page.exit_code}:{page.signal or 0}" if page.exit_code else ""
        why = f"({page.reason})" if page.reason else ""
        return " ".join(filter(None, (page.slurm_state, code, why)))

    return table(report.attention, {
        **_plan(report, lambda item: item[0]),
        "page": lambda item: number(item[1].page, str),
        "state": lambda item: item[1].state.value,
        "rows left": lambda item: number(
            item[1].pending, lambda n: f"{n:,} of {item[1].rows:,}"
        ),
        "element": lambda item: item[1].job,
        "node": lambda item: item[1].node,
        "Slurm": lambda item: slurm(item[1]),
        "attempts": lambda item: number(item[1].attempts, count),
        "last seen": lambda item: moment(item[1].seen),
        "last message": lambda item: first_line(item[1].message),
        "log": lambda item: file(logs.get((item[0], item[1].page))),
    }, report.n_attention - len(report.attention))  # fmt: skip


def _elements(report: Report) -> Table | None:
    return table(report.efficiency.elements if report.efficiency else (), {
        "element": lambda u: u.job,
        "ended": lambda u: u.state.value,
        "time": lambda u: number(u.elapsed_s, unbroken),
        "of limit": lambda u: number(u.time_share, percent),
        "memory": lambda u: number(u.mem_used_mb, megabytes),
        "of requested": lambda u: number(u.mem_share, percent),
        "CPU": lambda u: number(u.cpu_share, percent),
    })  # fmt: skip


def _endings(report: Report) -> Table | None:
    all_well = {e.state for e in report.endings} <= {"done", "running"}
    return table(() if all_well else report.endings, {
        "state": lambda e: e.state,
        "Slurm": lambda e: e.slurm_state,
        "attempts": lambda e: number(e.attempts, count),
        "example": lambda e: first_line(e.message),
    })  # fmt: skip


def _nodes(report: Report) -> Table | None:
    return table(report.nodes if report.n_nodes > 1 else (), {
        "node": lambda n: n.node,
        "attempts": lambda n: number(n.attempts, count),
        "unsuccessful": lambda n: number(n.unsuccessful, count),
        "rows": lambda n: number(n.rows, count),
        "failed": lambda n: number(n.failed, count),
        "busy": lambda n: number(n.busy_s, unbroken),
        "rows/s": lambda n: number(n.rows_per_s, short),
        "memory of a task": lambda n: number(n.max_rss_mb, megabytes),
    }, report.n_nodes - len(report.nodes))  # fmt: skip


def _slow_rows(report: Report) -> Table | None:
    return table(report.slow_rows[:N_SLOWEST] if len(report.slow_rows) > 1 else (), {
        **_plan(report, lambda row: row.plan),
        "key": lambda row: number(row.key, str) if isinstance(row.key, int) else row.key,
        "page": lambda row: number(row.page, str),
        "run time": lambda row: number(row.seconds, unbroken),
    })  # fmt: skip


def _slow_pages(report: Report) -> Table | None:
    return table(report.slow_pages[:N_SLOWEST] if len(report.slow_pages) > 1 else (), {
        **_plan(report, lambda page: page.plan),
        "page": lambda page: number(page.page, str),
        "rows": lambda page: number(page.rows, count),
        "attempts": lambda page: number(page.attempts, count),
        "run time": lambda page: number(page.seconds, unbroken),
        "last node": lambda page: page.node,
    })  # fmt: skip


def _earlier(report: Report) -> Table | None:
    lines = [*([report.this] if report.this else []), *report.earlier] if report.earlier else []
    return table(lines, {
        "which": lambda e: e.title,
        "began": lambda e: moment(e.began),
        "lasted": lambda e: number(e.wall_s, unbroken),
        "rows": lambda e: number(e.rows, count),
        "failed": lambda e: number(e.failed, count),
        "attempts per page": lambda e: number(e.attempts / (e.pages or 1), lambda n: f"{n:.2f}"),
        "rows/s": lambda e: number(e.rows_per_s, short),
        "time of a row": lambda e: number(e.row_s, unbroken),
        "whole": lambda e: (
            "yes" if e.whole else f"{e.pending:,} left" if e.pending else "failed rows"
        ),
    })  # fmt: skip
