"""The report of a night, compared with the nights before it."""

from collections.abc import Sequence

from astra.database.connection import connection
from astra.models.nights import Night
from astra.night.history import NightStatus, night_of
from astra.night.totals import plan_pks
from astra.report.earlier import N_EARLIER, Earlier, earlier_of
from astra.report.report import Report, report_of
from astra.status.headline import Headline, Kind, headline_of
from astra.status.status import PlanStatus

_KINDS = {"whole": Kind.WHOLE, "failed rows": Kind.FAILED_ROWS, "running": Kind.RUNNING}


def report_of_night(name: str, date: str | None = None) -> tuple[int, Report]:
    """Return the number of a night and the report of its plans; by default, of the last night.

    Raises
    ------
    UsageError
        If there is no such night.
    """
    night = night_of(name, date)
    plans = [p.plan for p in night.plans if p.plan is not None and p.kept]
    title = f"night {name} of {night.date}"

    def headline(statuses: Sequence[PlanStatus]) -> Headline:
        return night_headline(night, statuses)

    return night.night, report_of(plans, title, _earlier_nights(night), headline)


def night_headline(night: NightStatus, plans: Sequence[PlanStatus] = ()) -> Headline:
    """Return the headline of a night, which may accept failures, and needs a finalizer."""
    of_plans = headline_of(plans)
    kind = _KINDS.get(night.state, Kind.ATTENTION)
    if kind is Kind.RUNNING and of_plans.kind is Kind.NOT_BEGUN:
        kind = Kind.NOT_BEGUN
    return Headline(kind, _text(night, kind), tuple(_commands(night, kind, of_plans)))


def _text(night: NightStatus, kind: Kind) -> str:
    ended = night.rows - night.pending
    text = f"{ended:,} of {night.rows:,} rows have ended"
    if night.failures:
        text += f", {night.failures:,} of them as failures"
        text += ", which the night accepts" if kind is Kind.WHOLE else ""
    if not night.rows:
        text = "Nothing was pending" if night.ended else "Nothing is planned yet"
    if night.state == "without a finalizer":
        text += "; it has no finalizer"
    if not night.message:
        return f"{text}."
    return f"{text}. {'When the night ended: ' if night.ended else ''}{night.message}"


def _commands(night: NightStatus, kind: Kind, of_plans: Headline) -> list[str]:
    which = f"astra nights {night.name} {night.night}"
    if night.state == "without a finalizer":
        first = [f"astra nights {night.name} --heal   gives the night a new finalizer"]
    elif kind in (Kind.RUNNING, Kind.NOT_BEGUN):
        first = [f"{which}   shows its progress"]
    elif kind is Kind.WHOLE or not of_plans.commands:
        first = [f"{which}   shows its details"]
    else:
        first = []
    if kind is Kind.NOT_BEGUN or (kind is Kind.WHOLE and not night.failures):
        return first  # a night that runs submits its plans itself
    return [*first, *of_plans.commands]


def _earlier_nights(night: NightStatus) -> list[Earlier]:
    """Return the nights before one of the same name whose plans remain, the latest first."""
    before = (Night.name == night.name) & (Night.pk < night.night)
    with connection():
        nights = list(Night.select().where(before).order_by(Night.pk.desc()).limit(N_EARLIER))
    lines = (earlier_of(plan_pks(earlier), earlier.date) for earlier in nights)
    return [line for line in lines if line is not None]
