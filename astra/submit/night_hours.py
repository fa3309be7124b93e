"""The hours of a night: when elements may begin, and when they must have ended.

They are fixed as moments when the night begins, so that no node's time zone matters, and compared
with the clock of the database, so that no node's clock does. ``astra/element/late_start.py`` is
what an element does that starts too late. One that runs at the end is asked to stop, and uses up no
retry.
"""

from datetime import datetime

from astra.database.connection import connection, dialect
from astra.records import dataclass

#: Elements are asked to stop at most this long before the end, to store their rows, in s.
LEAD_S = 60


@dataclass(frozen=True)
class Hours:
    """Moments by the clock of the database, in seconds since the epoch; None for no bound."""

    start_until: int | None = None
    drain_by: int | None = None

    def open(self) -> bool:
        """Return whether elements may begin now."""
        return self.start_until is None or _now() < self.start_until

    @property
    def stop_at(self) -> int | None:
        """Return when running elements are asked to stop."""
        if self.drain_by is None:
            return None
        between = self.drain_by - (self.start_until or 0)
        return self.drain_by - (LEAD_S if between >= LEAD_S else between // 4)


ALWAYS = Hours()


def _now() -> float:
    with connection():
        return dialect().now().timestamp()


def hours_from_now(start_until: str | None, drain_by: str | None) -> Hours:
    """Return the hours of a night that begins now, by this machine's clock and time zone."""
    now = datetime.now()
    hours = next_hours(start_until, drain_by, now)
    ahead_s = round(_now() - now.timestamp())
    return Hours(*(at and at + ahead_s for at in (hours.start_until, hours.drain_by)))


def next_hours(start_until: str | None, drain_by: str | None, now: datetime) -> Hours:
    """Return the hours of a night that begins now, from times of day of this machine's clock.

    >>> from datetime import datetime as moment
    >>> hours = next_hours("06:30", "07:00", moment(2026, 11, 24, 20, 0))
    >>> moment.fromtimestamp(hours.start_until), moment.fromtimestamp(hours.drain_by)
    (datetime.datetime(2026, 11, 25, 6, 30), datetime.datetime(2026, 11, 25, 7, 0))
    """
    first = start_until or drain_by
    if first is None:
        return ALWAYS
    start = _next(first, int(now.timestamp()) + 1)
    if drain_by is None:
        return Hours(start)
    if start_until is None:  # an element that began later could not be asked to stop before
        return Hours(start - LEAD_S, start)
    return Hours(start, start if drain_by == first else _next(drain_by, start))


def _next(clock: str, since: int) -> int:
    """Return the first moment from `since` on at which this machine's clock shows or skips `clock`.

    The search goes minute by minute, as the clock may be put forward or back in between.
    """
    hour, minute = map(int, clock.split(":"))
    moment = -(-since // 60) * 60
    while True:
        before, now = datetime.fromtimestamp(moment - 60), datetime.fromtimestamp(moment)
        wanted = [day.replace(hour=hour, minute=minute) for day in (before, now)]
        if now in wanted or any(before < time < now for time in wanted):
            return moment
        moment += 60
