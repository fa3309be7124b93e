"""The history of nights: a list of the last ones, and one of them in detail."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from itertools import chain
from typing import Any

from peewee import fn

from astra.config import settings
from astra.config.units import is_number
from astra.database.connection import connection, tuples
from astra.errors import SlurmError, UsageError, nearest
from astra.models.nights import Night, NightPlan
from astra.models.plans import Plan
from astra.models.table_checks import check_version
from astra.night.finalizer import is_alive, job_of
from astra.night.lock import is_at_work
from astra.night.totals import entries_of, n_left, totals_of, with_current_totals
from astra.records import dataclass
from astra.slurm import client


@dataclass(frozen=True)
class PlanOfNight:
    """One plan of a night, or a task that had nothing to plan."""

    task: str
    input_model: str | None
    plan: int | None
    leftover: bool  # planned by an earlier night
    rows: int
    results: int
    failures: int
    no_result: int
    pending: int
    retries: int
    task_h: float
    cpu_h: float
    whole: bool  # every row has a result, or rightly none
    began: datetime
    kept: bool  # the plan is still in the database
    message: str | None = None


@dataclass(frozen=True)
class NightStatus:
    """A night: `rows` is the sum of results, failures, no_result and pending.

    Examples
    --------
    >>> from astra.api import nights
    >>> [night.pending for night in nights() if night.state == "running"]
    []
    """

    night: int  #: number of the night
    name: str  #: its name in the configuration
    date: str  #: on which it began
    #: whole, failed rows, not whole, running; "without a finalizer": it needs astra nights --heal
    state: str
    began: datetime  #: when it began
    ended: datetime | None  #: when it was closed; None while it is open
    rows: int  #: rows of its plans
    results: int  #: rows with a result
    failures: int  #: rows that ended as failures
    no_result: int  #: rows that ended without a result
    pending: int  #: rows that have not ended
    retries: int  #: elements that ended early, and were followed by another
    rounds: int  #: rounds in which pages were submitted again
    task_h: float  #: time spent in tasks, over all attempts [h]
    cpu_h: float  #: processor time that was allocated to these attempts [h]
    host: str  #: the machine that began it
    by: str  #: the user who began it
    finalizer: int | None = None  #: Slurm's job of its last finalizer
    message: str | None = None  #: the reason for its state, if there is more to say
    notified: Mapping[str, str] = field(default_factory=dict)  #: how the notification went, by way
    plans: tuple[PlanOfNight, ...] = ()  #: its plans; empty in a list of nights

    @property
    def exit_status(self) -> int:
        """The exit status as in ``astra status``: 0 whole, 3 running, 8 failed rows, 4 others."""
        return {"whole": 0, "running": 3, "failed rows": 8}.get(self.state, 4)


def nights(name: str | None = None, last: int = 20) -> list[NightStatus]:
    """List the last nights, all or those of one name, the latest first, without their plans.

    Parameters
    ----------
    name : str, optional
        Name of the night in the configuration; by default, all nights.
    last : int
        The largest number of nights to return.

    Returns
    -------
    list of NightStatus
        One for each night.

    Raises
    ------
    UsageError
        If no night of this name has begun yet.

    Examples
    --------
    >>> from astra.api import nights
    >>> [night.state for night in nights()]
    []
    """
    check_version()
    query = Night.select().order_by(Night.pk.desc()).limit(last)
    with connection():
        listed = list(query.where(Night.name == name) if name else query)
    if name and not listed:
        raise _unknown(name)
    return _listed(listed)


def last_nights() -> list[NightStatus]:
    """Return the last night of each name, as :func:`nights` does."""
    check_version()
    last = Night.select(fn.MAX(Night.pk)).group_by(Night.name)
    with connection():
        listed = list(Night.select().where(Night.pk.in_(last)).order_by(Night.name))
    return _listed(listed)


def _listed(listed: list[Night]) -> list[NightStatus]:
    states, entries = _states(listed), {night.pk: list[NightPlan]() for night in listed}
    for entry in entries_of(*listed):
        entries[entry.night_pk].append(entry)
    open_nights = {night.pk for night in listed if night.ended is None}
    # Once a night is closed, nothing changes where all rows of a plan have a result or none.
    changing = [e for e in chain(*entries.values()) if e.night_pk in open_nights or not e.is_whole]
    with connection():
        with_current_totals(changing)
    return [_status(night, states[night.pk], entries[night.pk]) for night in listed]


def night_of(name: str, date: object = None) -> NightStatus:
    """Return one night with its plans: the last of a name, or the last that began on a date.

    Parameters
    ----------
    name : str
        Name of the night in the configuration.
    date : date, int or str, optional
        The date on which it began (``YYYY-MM-DD``), or the number of the night.

    Returns
    -------
    NightStatus
        The night, with the present state of its plans.

    Raises
    ------
    UsageError
        If there is no such night; the message lists those that exist.

    Examples
    --------
    >>> from astra.api import night_of
    >>> night_of("science", "2026-11-24").exit_status  # doctest: +SKIP
    0
    """
    check_version()
    of_name = Night.name == name
    text = str(date)
    with connection():
        query = Night.select().where(of_name).order_by(Night.pk.desc())
        if date is not None:
            is_pk = is_number(text) and int(text) < 2**63
            of_pk = (Night.pk == int(text)) if is_pk else (Night.date == text)
            query = query.where(of_pk)
        night = query.first()
        column = Night.pk if is_number(text) else Night.date
        known = [str(n) for (n,) in tuples(Night.select(column).where(of_name).distinct())]
    if night is None:
        if not known:
            raise _unknown(name)
        which = "has the number" if is_number(text) else "began on"
        raise UsageError(f"no night {name} {which} {text}. {nearest(text, known)}")
    entries = with_current_totals(entries_of(night))
    shown = _status(night, _states([night])[night.pk], entries)
    if night.ended is None:
        from astra.night.plans import live_state  # here, as few commands need it

        shown = replace(shown, message="; ".join(live_state(night).problems) or None)
    return replace(shown, plans=_plans(entries))


def _unknown(name: str) -> UsageError:
    with connection():
        names = [n for (n,) in tuples(Night.select(Night.name).distinct())]
    if name in (configured := settings.current().nights):
        then = f"; to begin it: astra nightly {name}. {nearest(name, names)}"
    else:
        known = nearest(name, {*names, *configured})
        then = f", and none of this name is configured. {known}"
    return UsageError(f"no night {name!r} has begun yet{then}")


def _states(listed: list[Night]) -> dict[int, str]:
    """Return the states of nights; Slurm is asked once about all open ones."""
    states = {night.pk: night.state for night in listed}
    open_nights = [n for n in listed if n.ended is None]
    jobs = [job_of(n) for n in open_nights if n.finalizer_job]
    answer = client.elements(jobs, recent_s=settings.current().slurm.recent_s) if jobs else None
    for night in open_nights:
        try:
            # A process at work may be submitting it.
            lives = night.finalizer_job is None and is_at_work(night.name)
            lives = lives or is_alive(night, answer, adopts=False)
        except SlurmError:
            lives = True
        if not lives:
            states[night.pk] = "without a finalizer"
    return states


def _plans(entries: Sequence[NightPlan]) -> tuple[PlanOfNight, ...]:
    pks = [entry.plan_pk for entry in entries if entry.plan_pk is not None]
    with connection():
        kept = {pk for (pk,) in tuples(Plan.select(Plan.pk).where(Plan.pk.in_(pks or [0])))}
    return tuple(
        PlanOfNight(
            entry.task, entry.input_model, entry.plan_pk, entry.leftover,
            whole=entry.is_whole,
            began=entry.began, kept=entry.plan_pk in kept, message=entry.message, **_numbers(entry),
        )
        for entry in entries
    )  # fmt: skip


def _status(night: Night, state: str, entries: Sequence[NightPlan]) -> NightStatus:
    notified = {
        channel: f"{entry['result']} ({entry['at']})"
        for channel, entry in night.notifications.items()
    }
    return NightStatus(
        night.pk, night.name, night.date, state, night.began, night.ended, rounds=night.round,
        host=night.host, by=night.created_by, finalizer=night.finalizer_job,
        message=night.message, notified=notified, **_numbers(totals_of(entries)),
    )  # fmt: skip


def _numbers(of: NightPlan) -> dict[str, Any]:
    """Return the numbers that a night and each of its plans show."""
    return dict(
        rows=of.n_rows, results=of.n_done, failures=of.n_failed, no_result=of.n_no_result,
        pending=n_left(of), retries=of.n_retries, task_h=round(of.task_s / 3600, 4),
        cpu_h=round(of.cpu_s / 3600, 4),
    )  # fmt: skip
