"""A night: plan and submit pending rows, resume them until all have ended, and close the night.

Its state is only in the database. If a process dies in a step, the step is repeated. One process at
a time works on a night (lock.py):

============ ===================== ======================================= ==================
state        who calls             step                                    state afterwards
============ ===================== ======================================= ==================
none         astra nightly         ``_begin``: plan, submit                open; or none if
                                                                           nothing is pending
open         astra nightly         ``_join``: add what is new since        open
open         astra nightly, with   ``_join``: give it a finalizer if       open
             running = "leave"     none is alive, add nothing
open         its finalizer         ``_advance``: resume, begin tasks       open as long as
                                   that waited                             anything is alive
open         its finalizer         ``_close``: nothing is alive            closed: whole, failed
                                                                           rows or not whole
open         astra nights --heal   ``heal``: the same                      open
============ ===================== ======================================= ==================

A step that leaves a night open leaves it with a finalizer, a job that waits for the arrays
(finalizer.py). The part of a step that concerns plans is in plans.py.
"""

import logging
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from peewee import SQL

from astra.config import settings as config
from astra.config.nights import NightSettings, NightTask
from astra.config.profiles import choose_profile
from astra.config.run_folder import check_folder, write_whole
from astra.config.settings import settings_of
from astra.config.units import time_limit_s, written_moment
from astra.database.connection import connection, dialect
from astra.errors import (
    AstraError,
    BusyError,
    ConfigError,
    SlurmError,
    Superseded,
    UsageError,
    count,
)
from astra.models.nights import Night, NightPlan
from astra.models.table_checks import check_version, current_tables
from astra.night import finalizer as finalizer_module
from astra.night.lock import LONGEST_WAIT_S, call_when_released, night_lock
from astra.night.notify import NOTIFIED, notify
from astra.night.plans import (
    NightStep,
    assess_plans,
    begin_tasks,
    hours_of,
    live_state,
    next_check_s,
    profile_of,
    queue_finalizer,
    queue_first_finalizer,
    submit_due,
    take_leftovers,
)
from astra.night.totals import (
    entries_of,
    n_ended,
    n_left,
    plan_pks,
    refresh_totals,
    retries_of,
    totals_of,
)
from astra.processes import user_name
from astra.records import dataclass
from astra.slurm import client
from astra.submit.night_hours import hours_from_now
from astra.submit.submit import check_shared_database
from astra.tasks.arguments import parse_arguments
from astra.tasks.signature import choose_model, find_task

log = logging.getLogger(__name__)

#: The longest pause after pages were submitted again although no row had ended.
_LONGEST_PAUSE_S = 1800


@dataclass(frozen=True)
class Nightly:
    """The outcome of starting or continuing a night.

    Examples
    --------
    >>> from astra.api import heal
    >>> [night.finalizer for night in heal()]
    []
    """

    name: str  #: name of the night in the configuration
    #: nothing new, begun, joined, running, whole, failed rows, not whole, without a finalizer
    state: str
    night: int | None = None  #: number of the night
    plans: tuple[int, ...] = ()  #: plans that this call made, or took over from earlier nights
    rows: int = 0  #: pending rows of these plans
    finalizer: int | None = None  #: Slurm's job of its finalizer
    message: str | None = None  #: the reason for its state, if there is more to say
    problems: tuple[str, ...] = ()  #: what this call could not do


def nightly(name: str, max_wait_s: float = LONGEST_WAIT_S) -> Nightly:
    """Begin a night, or add new rows to the one that is running.

    Parameters
    ----------
    name : str
        Name of the night in the configuration, ``[nights.NAME]``.
    max_wait_s : float
        How long to wait for Slurm or a database that does not answer [s].

    Returns
    -------
    Nightly
        What was planned and submitted, and what could not be.

    Raises
    ------
    ConfigError
        If there is no such night, or it names something that does not exist; nothing is stored
        then.
    BusyError
        If another process is beginning this night; the message says which, and since when. If the
        night's finalizer is at work, the call waits until it has finished.

    Examples
    --------
    >>> from astra.api import nightly
    >>> nightly("science").state  # doctest: +SKIP
    'begun'
    """
    settings = settings_of(name)
    return call_when_released(lambda: _nightly(settings), max_wait_s, wait_for_all=False)


def _nightly(settings: NightSettings) -> Nightly:
    check_version()
    check_settings(settings)
    with night_lock(settings.name):
        _notify_of_earlier(settings)
        night = open_night(settings.name)
        if night is None:
            return _begin(settings)
        return _join(night, settings)


def _begin(settings: NightSettings) -> Nightly:
    """Create a night and submit its first tasks; delete it again if nothing is pending."""
    with connection():
        created = Night.create(
            name=settings.name,
            date=datetime.now().strftime("%Y-%m-%d"),  # in local time
            cwd=str(Path.cwd()),
            host=socket.gethostname(),
            created_by=user_name(),
        )
        night = Night.get_by_id(created.pk)
    step = NightStep()
    _take_new(night, settings, step)
    if not step.new:
        with connection():
            night.delete_instance(recursive=True)
        held = "; ".join(step.of_nights) or None
        return Nightly(settings.name, "nothing new", message=held, problems=tuple(step.problems))
    queue_first_finalizer(night, settings, step)
    return _outcome(night, "begun", step)


def _join(night: Night, settings: NightSettings) -> Nightly:
    """See that an open night has a finalizer, and unless it is left, add what is pending now."""
    step, leave = live_state(night), settings.running == "leave"
    if not leave:
        _take_new(night, settings, step)
    if not finalizer_module.is_alive(night):
        _replace_finalizer(night, settings, step)
    if leave:
        message = "nothing was added to the running night: running = 'leave'"
        return _outcome(night, "running", step, message)
    return _outcome(night, "joined", step)


def _take_new(night: Night, settings: NightSettings, step: NightStep) -> None:
    """Plan and submit new rows, and rows that earlier nights left."""
    _set_hours(night, settings)
    if settings.leftovers == "take":
        take_leftovers(night, settings, step)
    begin_tasks(night, settings, step, again=True)
    submit_due(night, settings, step)


def proceed(name: str, pk: int, token: str | None = None) -> Nightly:
    """Advance a night by one step, as its finalizer does: resume, start waiting tasks, or close.

    Parameters
    ----------
    token : the token of the calling finalizer; if the night has another finalizer, nothing is done.
        Without a token, a person calls, and the next finalizer replaces the queued one.
    """
    settings = _settings_of_begun(name)
    bound_s = float(time_limit_s(settings.finalizer_time) or LONGEST_WAIT_S)
    return call_when_released(
        lambda: _proceed(settings, pk, token), bound_s, wait_for_all=token is not None
    )


def _proceed(settings: NightSettings, pk: int, token: str | None) -> Nightly:
    """Check that the night is open and that the caller is its finalizer, and advance it."""
    check_version()
    with night_lock(settings.name, step=True):
        with connection():
            night = Night.get_or_none((Night.pk == pk) & (Night.name == settings.name))
        if night is None:
            raise UsageError(
                f"there is no night {pk} of the name {settings.name}; to list nights: astra nights"
            )
        if night.ended is not None:
            _notify_of_earlier(settings)  # a finalizer that closed it may have been requeued
            return _outcome(night, night.state, NightStep(), night.message)
        if token is not None and night.finalizer != token:
            raise Superseded(f"the night {pk} has a later finalizer; this one does nothing")
        return _advance(night, settings)


def _advance(night: Night, settings: NightSettings) -> Nightly:
    """Resume plans and begin tasks; then queue the next finalizer, or close the night."""
    before, step = retries_of(plan_pks(night)), NightStep()
    n_before = n_ended(totals_of(entries_of(night)))
    rounds_left, begins = night.round < settings.rounds, hours_of(night).open()
    assess_plans(entries_of(night), settings, step, begins, rounds_left)
    if begins:
        begin_tasks(night, settings, step)
    submit_due(night, settings, step)
    entries = refresh_totals(night)
    no_progress = n_ended(totals_of(entries)) <= n_before
    retried = retries_of(plan_pks(night)) > before
    # Pages whose elements begin none of them must not be submitted again without end. A limit of
    # Slurm or the throttle may leave pages for a later step of the same round.
    if (step.resubmitted_unbegun and no_progress) or (retried and not step.postponed):
        with connection():
            Night.update(round=Night.round + 1).where(Night.pk == night.pk).execute()
    if not step.open:
        return _close(night, settings, step, entries, rounds_left)
    wait_s = 0 if step.new or step.jobs else next_check_s(night)
    # What ends elements at once may pass, as where a file system is away.
    if no_progress and (retried or step.resubmitted_unbegun):
        wait_s = max(wait_s, min(settings.retry_pause_s * 2**night.round, _LONGEST_PAUSE_S))
    queue_finalizer(night, settings, step, wait_s)
    return _outcome(night, "running", step)


def heal(night: Night, settings: NightSettings) -> bool:
    """Give an open night a finalizer if it has none that is alive; return whether it got one."""
    if finalizer_module.is_alive(night):
        return False
    _replace_finalizer(night, settings, live_state(night))
    return True


def _replace_finalizer(night: Night, settings: NightSettings, step: NightStep) -> None:
    """Give a night a finalizer instead of one that is not alive; cancel that, if it is held."""
    earlier = finalizer_module.job_of(night)
    queue_first_finalizer(night, settings, step)
    with suppress(SlurmError):  # it would do nothing, if somebody released it
        client.cancel(earlier)


def heal_all(name: str | None = None) -> list[Nightly]:
    """Give a new finalizer to each open night whose finalizer ended too early.

    Parameters
    ----------
    name : str, optional
        Name of the night; by default, all open nights.

    Returns
    -------
    list of Nightly
        The nights that have a new finalizer, and those that could not be given one.

    Raises
    ------
    ConfigError
        If no night of the name has begun, and none is configured.
    DatabaseError
        If the database gives no answer.

    Examples
    --------
    >>> from astra.api import heal
    >>> heal()
    []
    """
    with current_tables():
        is_known = name is None or Night.select().where(Night.name == name).exists()
    if name is not None and not is_known:
        settings_of(name)
    healed = []
    for night in _open_nights(name):
        try:
            # If another process works on it, that one will queue a finalizer. If it does not, the
            # next call gives the night one.
            with suppress(BusyError), night_lock(night.name):
                fresh = open_night(night.name)
                if fresh is not None and heal(fresh, _settings_of_begun(night.name)):
                    healed.append(_outcome(fresh, "running", NightStep(), "it has a new finalizer"))
        except Exception as error:  # a night that cannot be healed must not stop the others
            if not isinstance(error, AstraError):  # its message does not say what it is about
                log.error("the night %s (%d) has no finalizer: %r", night.name, night.pk, error)
            healed.append(_outcome(night, "without a finalizer", NightStep(), str(error)))
    return healed


def _settings_of_begun(name: str) -> NightSettings:
    """Return the settings of an open night, which may have been removed from the configuration.

    In that case its plans are still completed, but nothing new begins and nobody is notified.
    """
    try:
        return settings_of(name)
    except ConfigError as error:
        log.warning("%s; the plans of the night are completed, but nobody is notified", error)
        return NightSettings(name, ())


def check_settings(settings: NightSettings) -> None:
    """Raise an error if a task could not be planned or submitted, before anything is stored."""
    check_finalizer(settings)
    for task in settings.tasks:
        check_task(task, settings)


def check_finalizer(settings: NightSettings) -> None:
    """Raise an error if the night could not continue on a node."""
    check_shared_database()
    choose_profile(settings.finalizer_profile or settings.profile, None)


def check_task(task: NightTask, settings: NightSettings) -> None:
    """Raise an error if a task of a night could not be planned or submitted."""
    try:
        function = find_task(task.task)
        choose_model(function, task.input_model)
        parse_arguments(function, task.set)
        choose_profile(*profile_of(task, settings))
    except UsageError as error:
        error.args = (f"[nights.{settings.name}] {task.task}: {error}",)
        raise


def _outcome(night: Night, state: str, step: NightStep, message: str | None = None) -> Nightly:
    return Nightly(
        night.name, state, night.pk, tuple(plan for plan, _ in step.new),
        sum(rows for _, rows in step.new), night.finalizer_job,
        message, tuple(step.problems),
    )  # fmt: skip


def open_night(name: str) -> Night | None:
    """Return the open night of a name, if there is one."""
    open_nights = _open_nights(name)
    return open_nights[-1] if open_nights else None


def _open_nights(name: str | None = None) -> list[Night]:
    query = Night.select().where(Night.ended.is_null())
    with connection():
        return list((query.where(Night.name == name) if name else query).order_by(Night.pk))


def _set_hours(night: Night, settings: NightSettings) -> None:
    """Set the hours of a night that begins, or of one that is joined on a later evening."""
    if night.start_until is not None and hours_of(night).open():
        return
    hours = hours_from_now(settings.start_until, settings.drain_by)
    night.start_until, night.drain_by = hours.start_until, hours.drain_by
    with connection():
        night.save(only=[Night.start_until, Night.drain_by])


def _close(
    night: Night,
    settings: NightSettings,
    step: NightStep,
    entries: list[NightPlan],
    rounds_left: bool,
) -> Nightly:
    """Close a night of which nothing is alive: store its state, write its report, notify people."""
    reason = "" if rounds_left else f" after the last round ({settings.rounds})"
    if night.start_until is not None and not hours_of(night).open():
        end = written_moment(datetime.fromtimestamp(night.start_until, UTC))
        reason = f" because nothing begins after {end}"
    missing = [*dict.fromkeys([*step.problems, *_missing(entries, settings, reason)])]
    failed = _failed(entries, settings)
    state = "not whole" if missing else "failed rows" if failed else "whole"
    message = "; ".join([*missing, *failed]) or None
    with connection():
        Night.update(ended=SQL(dialect().now_sql), state=state, message=message).where(
            (Night.pk == night.pk) & Night.ended.is_null()
        ).execute()
    _report(night)
    notify(night, settings)
    return _outcome(night, state, step, message)


def _failed(entries: list[NightPlan], settings: NightSettings) -> list[str]:
    """Return the commands about failed rows, if more failed than the night accepts."""
    totals = totals_of(entries)
    if totals.n_failed <= settings.accept_failures * totals.n_rows:
        return []
    limit = f"accept_failures = {settings.accept_failures:g}"
    failed = f"{totals.n_failed:,} of {totals.n_rows:,} rows failed"
    lines = [f"{failed}, more than the night accepts ({limit})"]
    for entry in entries:
        if entry.n_failed:
            commands = f"astra failures {entry.plan_pk}, astra retry {entry.plan_pk}"
            lines.append(f"{entry.n_failed:,} of {entry.task}: {commands}")
    return lines


def _report(night: Night) -> None:
    """Write the night's report into the run directory; an error does not affect the night."""
    from astra.night.report import report_of_night
    from astra.report.page import html

    folder = Path(config.current().run.dir).absolute() / "nights"
    try:
        check_folder(folder)
        _, report = report_of_night(night.name, str(night.pk))
        write_whole(folder / f"{night.name}-{night.pk}.html", html(report))
    except Exception as error:  # an error in the report must not prevent the notification
        log.warning("the report of the night %s could not be written: %r", night.pk, error)


def _notify_of_earlier(settings: NightSettings) -> None:
    """Notify people of nights whose finalizer died before it could."""
    with connection():
        closed = Night.select().where((Night.name == settings.name) & Night.ended.is_null(False))
        recent = list(closed.order_by(Night.pk.desc()).limit(3))
    for night in recent:
        results = night.notifications
        is_lost = not results and night.notified != "{}"  # not notified yet, or damaged
        if is_lost or any(entry["result"] != NOTIFIED for entry in results.values()):
            notify(night, settings)


def _missing(entries: list[NightPlan], settings: NightSettings, default_reason: str) -> list[str]:
    """Describe what is not whole and why, with the command to type next."""
    lines = []
    for entry in entries:
        if entry.is_elsewhere:
            lines.append(entry.message or "")
        elif entry.plan_pk is None and not entry.has_ended:
            lines.append(f"{entry.task} could not be planned: {entry.message}")
        elif not entry.has_ended:
            reason, command = default_reason, f"astra status {entry.plan_pk}"
            if entry.message:
                reason, command = f"{default_reason} (it was cancelled)", "astra plans"
            rows = f"{count(n_left(entry), 'row', 'are')} left{reason}"
            lines.append(f"plan {entry.plan_pk} of {entry.task}: {rows}: {command}")
    begun = {entry.key for entry in entries}
    for task in settings.tasks:
        if task.key not in begun:
            waits = f": it waits for {', '.join(task.after)} to be whole" if task.after else ""
            lines.append(f"{task.task} was not begun{waits or default_reason}")
    return lines
