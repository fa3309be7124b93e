"""Parse numbers, times and sizes as people, Slurm and astra.toml write them, and write these."""

import math
import re
from datetime import UTC, datetime


def is_number(text: str) -> bool:
    """Return whether a text is a number: digits, and few enough for any column."""
    return text.isascii() and text.isdecimal() and len(text) < 20


def time_limit_s(limit: object) -> int | None:
    """Parse a time limit as sbatch does, to seconds; None where there is none, as at 0.

    >>> time_limit_s(90), time_limit_s("1:30"), time_limit_s("02:00:00"), time_limit_s("1-0")
    (5400, 90, 7200, 86400)
    """
    days, dash, rest = str(limit).rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in [*parts, days if dash else "0"]):
        return None
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or None


#: How long before the time limit sbatch sends a ``--signal`` that names no time.
_USUAL_LEAD_S = 60


def warning_lead_s(signal: object) -> int:
    """Parse ``--signal`` as sbatch does, to the seconds from the warning to the time limit.

    >>> warning_lead_s("B:USR1@120"), warning_lead_s("B:TERM"), warning_lead_s(None)
    (120, 60, 0)
    """
    lead_s = str(signal or "").partition("@")[2]
    if lead_s.isdecimal():
        return int(lead_s)
    return _USUAL_LEAD_S if signal else 0


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?")


def duration_s(text: str) -> int | None:
    """Parse a time as people write it, ``2h`` or ``1d12h``, to seconds; None if it is not a time.

    >>> duration_s("2h"), duration_s("1h 30min"), duration_s("45s"), duration_s("two hours")
    (7200, 5400, 45, None)
    """
    text = text.replace(" ", "").lower()
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def written_time(seconds: float) -> str:
    """Write a time for sbatch, in whole minutes, rounded up.

    >>> written_time(7200), written_time(90061)
    ('02:00:00', '1-01:02:00')
    """
    minutes = math.ceil(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    return (f"{days}-" if days else "") + f"{hours:02}:{minutes:02}:00"


def written_moment(at: datetime) -> str:
    """Write a moment for people, in the time zone of this process (``TZ``) and with its name.

    A moment without a zone is in UTC, as in the database.
    """
    return f"{local_moment(at if at.tzinfo else at.replace(tzinfo=UTC)):%Y-%m-%d %H:%M:%S %Z}"


def local_moment(at: datetime) -> datetime:
    """Return a moment in the time zone of this process; if Python has no such date there, in UTC.

    Infinity in a database is read as the last moment that Python has.
    """
    try:
        return at.astimezone()
    except OverflowError:
        return at.astimezone(UTC)


def written_size(mb: int) -> str:
    """Write a size for sbatch.

    >>> written_size(2048), written_size(1500)
    ('2G', '1500M')
    """
    return f"{mb // 1024}G" if mb % 1024 == 0 else f"{mb}M"


def size_mb(text: str) -> int | None:
    """Parse a size as sbatch does, to MB; None if it is not a size, or is 0, the whole node.

    >>> size_mb("2G"), size_mb("512"), size_mb("1500K"), size_mb("0"), size_mb("UNLIMITED")
    (2048, 512, 2, None, None)
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        return None
    kilobytes = int(match[1]) * 1024 ** "KMGT".index(match[2].upper() or "M")
    return -(-kilobytes // 1024) or None
