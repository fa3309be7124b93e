"""A report as one HTML file: no network, light and dark, readable on a telephone, printable.

Its template, style and script stand beside it. Every value is escaped, and
passwords are hidden, as it is written; the page allows no script or style but its own.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from astra import __version__
from astra.config.secrets import hide
from astra.report.attempts import N_BINS, Over
from astra.report.report import Report

#: Its template, style and script.
FOLDER = Path(__file__).resolve().parent

_WORDS = {
    "whole": "Whole",
    "failed rows": "Whole, with failures",
    "running": "Running",
    "attention": "Not whole: needs attention",
    "cancelled": "Cancelled",
}

#: States by the colour that stands for them, in the order in which bars show them.
_KINDS = {
    "done": "done", "rows per second": "done", "failed": "failed", "no result": "none",
    "running": "running", "waiting": "waiting", "not begun": "waiting", "unsubmitted": "waiting",
    "cancelled": "waiting", "unknown": "unknown", "interrupted": "told", "stopped": "stopped",
    "lost": "stopped", "incomplete": "stopped", "broken": "stopped",
}  # fmt: skip


def html(report: Report) -> str:
    """The page of a report."""
    style, script = (_text(name) for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        advice=_advice, amount=_amount, by_state=_by_state, count=_count, cpu_time=_cpu_time,
        duration=_duration, first_line=_first_line, megabytes=_megabytes, percent=_percent,
        short=_short,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        r=report, version=__version__, words=_WORDS, n_bins=N_BINS, kind=_kind, parts=_parts,
        columns=_columns, stacked=_stacked, style=Markup(style), script=Markup(script),  # noqa: S704
        style_hash=_sha256(style), script_hash=_sha256(script),
    )  # fmt: skip


def _text(name: str) -> str:
    return (FOLDER / name).read_text()


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finalize(value: Any) -> Any:
    """What a value is written as: numbers and this module's own markup as they are."""
    return hide(value) if type(value) is str else value


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


def _stacked(over: Over, order: Sequence[str]) -> Iterable[Bar]:
    """Bars over time, one upon the other, the highest of them filling the drawing.

    Bars of one height beside each other are one rectangle.
    """
    series = [over.series[name] for name in order]
    highest = max(map(sum, zip(*series, strict=True))) or 1
    below = [0.0] * N_BINS
    for name, values in zip(order, series, strict=True):
        tops = [base + value for base, value in zip(below, values, strict=True)]
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
    """The bars of a histogram; what is there at all is seen."""
    highest = max(counts) or 1
    for place, n in enumerate(counts):
        height = max(round(n / highest * 100, 2), 1.5) if n else 0
        yield Bar("done", place + 0.06, 100 - height, 0.88, height)


def _parts(counts: Mapping[str, int], total: int) -> Iterable[Bar]:
    """A bar of 1,000 units, divided by state; no state is thinner than can be seen."""
    at = 0.0
    shown = [(state, max(n / max(total, 1) * 1000, 4)) for state, n in _by_state(counts)]
    scale = 1000 / max(sum(width for _, width in shown), 1)
    for state, width in shown:
        yield Bar(_kind(state), round(at, 2), 0, round(width * scale, 2), 10)
        at += width * scale


_NO_BREAK = "\N{NO-BREAK SPACE}"


def _by_state(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    order = list(_KINDS)
    known = [(state, n) for state, n in counts.items() if n]
    return sorted(known, key=lambda item: order.index(item[0]) if item[0] in order else 99)


def _advice(line: str) -> tuple[str, str]:
    """A line of advice as the command to type, and why."""
    command, _, why = line.partition("   ")
    return command.strip(), why.strip()


def _first_line(text: str) -> str:
    return text.splitlines()[0][:300] if text else ""


def _amount(value: float, unit: str) -> str:
    return {"MB": _megabytes, "s": _duration, "CPU s": _cpu_time}[unit](value)


def _cpu_time(seconds: float) -> str:
    hours = f"{seconds / 3600:,.1f}{_NO_BREAK}h" if seconds >= 3600 else _duration(seconds)
    return f"{hours} of CPU"


def _duration(seconds: float) -> str:
    return duration(seconds).replace(" ", _NO_BREAK)


def _count(n: float) -> str:
    return f"{n:,.0f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.1f}{_NO_BREAK}%"


def _megabytes(size: float | None) -> str:
    if size is None:
        return ""
    words = f"{size / 1024:,.2f} GB" if size >= 1024 else f"{size:,.0f} MB"
    return words.replace(" ", _NO_BREAK)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.01 or not value else f"{value:.1e}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.0042), duration(75), duration(7265), duration(200000)
    ('4.2 ms', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if not seconds:
        return "0 s"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("min", 60, "s", 1), ("h", 3600, "min", 60)):
        if whole < size * (60 if unit == "min" else 24):
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
