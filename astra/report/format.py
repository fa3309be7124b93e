"""Format numbers and times for people."""

from datetime import UTC, datetime
from pathlib import Path

from astra.config.secrets import hide
from astra.config.startup import printable
from astra.config.units import local_moment

_NO_BREAK = "\N{NO-BREAK SPACE}"


def advice(line: str) -> tuple[str, str]:
    """Split a line of advice into the command to type and its reason."""
    command, _, why = line.partition("   ")
    return command.strip(), why.strip()


def clipped(text: str, limit: int = 8000) -> str:
    """Return a text without secrets and control characters, shortened if it is long."""
    text = printable(hide(text))
    if len(text) <= limit:
        return text
    return (
        f"{text[: limit // 2]} … {len(text) - limit:,} characters left out … {text[-limit // 2 :]}"
    )


def first_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return clipped(lines[0], 300) if lines else ""


def file_url(path: str) -> str | None:
    """Return the URL of a file on this machine, None if its path is not absolute."""
    return Path(hide(path)).as_uri() if path.startswith("/") else None


def amount(value: float, unit: str) -> str:
    return {"MB": megabytes, "s": unbroken, "CPU s": cpu_time}[unit](value)


def cpu_time(seconds: float) -> str:
    hours = f"{seconds / 3600:,.1f}{_NO_BREAK}h" if seconds >= 3600 else unbroken(seconds)
    return f"{hours} of CPU"


def unbroken(seconds: float) -> str:
    """Format a duration so that no line break divides it."""
    return duration(seconds).replace(" ", _NO_BREAK)


def count(n: float) -> str:
    return f"{n:,.0f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.1f}{_NO_BREAK}%"


def megabytes(size: float) -> str:
    text = f"{size / 1024:,.2f} GB" if size >= 1024 else f"{size:,.0f} MB"
    return text.replace(" ", _NO_BREAK)


def short(value: float) -> str:
    """Format a number with three digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.01 or not value else f"{value:.1e}"


def duration(seconds: float) -> str:
    """Format a duration in readable units.

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


def in_utc(value: datetime | None) -> str:
    """Format a time in UTC, to the second.

    >>> in_utc(datetime(2026, 11, 24, 20, 30, 5, tzinfo=UTC))
    '2026-11-24 20:30:05'
    """
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if value else ""


def in_both_zones(value: datetime | None) -> str:
    """Format a time in UTC and in the zone of this machine, where that is another.

    A line is broken before a time, and not before the name of its zone.
    """
    if value is None:
        return ""
    local = local_moment(value)
    utc = f"{in_utc(value)}{_NO_BREAK}UTC"
    if not local.utcoffset():
        return utc
    day = "" if local.date() == value.astimezone(UTC).date() else "%Y-%m-%d "
    return f"{utc} ({local.strftime(f'{day}%H:%M:%S{_NO_BREAK}%Z')})"
