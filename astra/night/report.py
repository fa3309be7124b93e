"""The report of a night, beside the nights before it."""

from astra.errors import UsageError
from astra.night.history import NightStatus, night_of, nights
from astra.report.report import Earlier, Report, earlier_of, report_of


def report_of_night(name: str, date: str | None = None) -> tuple[int, "Report"]:
    """The number of a night, and the report of its plans; that of its last one without a date.

    Raises
    ------
    UsageError
        If there is no such night, or nothing of it is left.
    """
    night = night_of(name, date)
    plans = [p.plan for p in night.plans if p.plan is not None and p.kept]
    if not plans:
        raise UsageError(
            f"no plan of the night {name} of {night.date} is left: astra nights {name}"
        )
    title = f"night {name} of {night.date}"
    return night.night, report_of(plans, title, _earlier_nights(night))


def _earlier_nights(night: NightStatus) -> list[Earlier]:
    """The ones of its name before it, as far as their plans are there, the latest first."""
    found = []
    for other in nights(night.name, 8):
        if other.night >= night.night:
            continue
        all_of = night_of(other.name, str(other.night))
        plans = [p.plan for p in all_of.plans if p.plan is not None and p.kept]
        if plans and (earlier := earlier_of(plans, all_of.date)):
            found.append(earlier)
    return found
