"""Render a report as one HTML file: no network, light and dark, for phones and for print.

Its template, style and script are in the same folder. Every value is escaped, and
passwords are hidden, as it is written; the page allows no script or style but its own.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from astra import __version__
from astra.records import dataclass
from astra.report import format as formats
from astra.report.attempts import N_BINS, Histogram, TimeSeries
from astra.report.report import Report
from astra.report.tables import tables

#: Its template, style and script.
FOLDER = Path(__file__).resolve().parent

#: States by the colour that stands for them, in the order in which bars show them.
_KINDS = {
    "done": "done", "rows per second": "done", "failed": "failed", "no result": "none",
    "running": "running", "waiting": "waiting", "not begun": "waiting", "unsubmitted": "waiting",
    "cancelled": "waiting", "unknown": "unknown", "interrupted": "interrupted",
    "stopped": "stopped", "lost": "stopped", "incomplete": "stopped", "broken": "stopped",
}  # fmt: skip


def html(report: Report, mark: str = "") -> str:
    """Return the page of a report; `mark` says what it shows, in a folder of such pages."""
    return render(
        "report.html.j2", r=report, mark=mark, tables=tables(report),
        n_bins=N_BINS, kind=_kind, parts=_parts, columns=_columns, stacked=_stacked,
        over_time=report.over_time if _changes(report.over_time) and report.n_pages > 1 else None,
        rate=report.rate if _changes(report.rate) and report.n_attempts > 1 else None,
        histograms=_histograms(report),
    )  # fmt: skip


def render(template: str, **values: object) -> str:
    """Return a page made from a template of this folder, with the style and script of all pages."""
    style, script = (_text(name) for name in ("report.css", "report.js"))
    page = _environment().get_template(template).render(
        version=__version__, style=Markup(style), script=Markup(script),  # noqa: S704
        style_hash=_sha256(style), script_hash=_sha256(script), **values,
    )  # fmt: skip
    return page.encode(errors="backslashreplace").decode()  # paths may hold any bytes


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        advice=formats.advice, amount=formats.amount, by_state=_by_state, count=formats.count,
        cpu_time=formats.cpu_time, divided=_divided, duration=formats.unbroken,
        file_url=formats.file_url, first_line=formats.first_line, percent=formats.percent,
        short=formats.short, time=formats.in_both_zones,
    )  # fmt: skip
    return environment


def _text(name: str) -> str:
    return (FOLDER / name).read_text()


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finalize(value: object) -> object:
    """Shorten a plain text; leave numbers and this module's own markup as they are."""
    return formats.clipped(value) if type(value) is str else value


@dataclass(frozen=True)
class Bar:
    """A rectangle in the units of its drawing; `y` counts from the top, of 100."""

    kind: str
    x: float
    y: float
    width: float
    height: float


def _kind(state: str) -> str:
    return _KINDS.get(state, "unknown")


def _changes(values: TimeSeries | None) -> bool:
    """Return whether something changes over time in more than one step."""
    if values is None:
        return False
    bins = zip(*values.series.values(), strict=True)
    return len({tuple(round(value, 3) for value in heights) for heights in bins}) > 3


def _histograms(report: Report) -> list[tuple[str, Histogram, str]]:
    """Return the histograms that show more than the numbers below them."""
    histograms = (
        ("Run time of a row", report.row_times, "results"),
        ("Run time of a page", report.page_times, "whole pages"),
    )
    return [(title, h, of) for title, h, of in histograms if h and sum(map(bool, h.counts)) > 2]


def _stacked(values: TimeSeries, order: Sequence[str]) -> Iterable[Bar]:
    """Yield stacked bars over time; the highest stack fills the drawing.

    Adjacent bars of the same height are one rectangle.
    """
    series = [values.series[name] for name in order]
    highest = max(map(sum, zip(*series, strict=True))) or 1
    below = [0.0] * N_BINS
    for name, heights in zip(order, series, strict=True):
        tops = [base + value for base, value in zip(below, heights, strict=True)]
        start = 0
        for place in range(1, N_BINS + 1):
            if place < N_BINS and (below[place], tops[place]) == (below[start], tops[start]):
                continue
            if (height := round((tops[start] - below[start]) / highest * 100, 2)) > 0:
                y = round(100 - tops[start] / highest * 100, 2)
                yield Bar(_kind(name), start, y, place - start, height)
            start = place
        below = tops


def _columns(counts: Sequence[int]) -> Iterable[Bar]:
    """Yield the bars of a histogram; every count above zero is high enough to be seen."""
    highest = max(counts) or 1
    for place, n in enumerate(counts):
        height = max(round(n / highest * 100, 2), 1.5) if n else 0
        yield Bar("done", place + 0.06, 100 - height, 0.88, height)


def _parts(counts: Mapping[str, int], total: int) -> Iterable[Bar]:
    """Divide a bar of 1,000 units by state; make every state wide enough to be seen."""
    left = 0.0
    shown = [(state, max(n / max(total, 1) * 1000, 4)) for state, n in _by_state(counts)]
    scale = 1000 / max(sum(width for _, width in shown), 1)
    for state, width in shown:
        yield Bar(_kind(state), round(left, 2), 0, round(width * scale, 2), 10)
        left += width * scale


def _divided(counts: Mapping[str, int]) -> bool:
    return len(_by_state(counts)) > 1


def _by_state(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    order = list(_KINDS)
    present = [(state, n) for state, n in counts.items() if n]
    return sorted(present, key=lambda item: order.index(item[0]) if item[0] in order else 99)
