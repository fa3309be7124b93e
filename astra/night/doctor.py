"""The checks of ``astra doctor``: this machine, and whether each night could begin.

``astra doctor`` checks every night; ``astra nightly NAME --check`` checks one, and ``astra cron
NAME --check`` checks it in cron's environment.
"""

import netrc
import shutil
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

from astra.config import settings as config
from astra.config.nights import NightSettings, NightTask, Notify
from astra.config.profiles import Profile, choose_profile
from astra.config.settings import settings_of
from astra.database.connection import connection, dialect
from astra.doctor.database import database, table_findings
from astra.doctor.environment import configuration, python, run_directory
from astra.doctor.finding import FAILED, Finding, failed, findings, ok, warning
from astra.doctor.job import from_a_node
from astra.doctor.slurm import slurm
from astra.errors import AstraError, UsageError
from astra.night.cron import has_entry
from astra.night.nightly import check_finalizer, check_task
from astra.night.notify import TOTAL_TIMEOUT_S, find_sendmail, mail_server, within
from astra.night.plans import profile_of
from astra.tasks.signature import choose_model, find_task, output_model

#: Longest wait for a mail server or a webhook.
_TIMEOUT_S = 10


def examine(
    night: str | None = None, job: bool = False, wait_s: float = 300.0, profile: str | None = None
) -> Iterator[Finding]:
    """Check this machine, and all nights of the configuration or one of them.

    Parameters
    ----------
    night : str, optional
        Name of a night, ``[nights.NAME]``; only this night and its profiles are checked.
    job : bool
        Check also from a node, by a job of one minute.
    wait_s : float
        The longest time to wait for this job [s].
    profile : str, optional
        The profile with which this job is submitted.

    Yields
    ------
    Finding
        One check: whether it passed, and what to type if it did not.

    Raises
    ------
    ConfigError
        If there is no such night.

    Examples
    --------
    >>> from astra.api import examine
    >>> next(examine()).state
    'ok'
    """
    settings = settings_of(night) if night is not None else None
    yield from python()
    of_configuration = list(configuration())
    yield from of_configuration
    try:
        nights = [settings] if settings else list(config.current().nights.values())
    except AstraError:
        return  # nothing else can be found without the configuration
    yield from findings("database", database)
    yield from findings("slurm", lambda: slurm(_profiles(nights, of_all=settings is None)))
    yield from findings("run directory", run_directory)
    for each in nights:
        yield from findings(f"night {each.name}", partial(_night, each))
    if job:
        yield from findings("node", lambda: from_a_node(choose_profile(profile, None), wait_s))


def on_a_node() -> Iterator[Finding]:
    """Check what an element needs: the configuration, the run directory, the database."""
    yield from configuration()
    yield from findings("run directory", run_directory)
    yield from findings("database", database)


def _profiles(nights: list[NightSettings], of_all: bool) -> list[Profile]:
    """Return the usable profiles; the others are reported elsewhere."""
    profiles: dict[str, Profile] = {}
    of_configuration = (
        [(name, None) for name in (None, *config.current().profiles)] if of_all else []
    )
    tasks = [profile_of(task, night) for night in nights for task in night.tasks]
    others = [(night.finalizer_profile or night.profile, None) for night in nights]
    for name, options in (*of_configuration, *tasks, *others):
        try:
            profile = choose_profile(name, options)
        except AstraError:
            continue
        profiles.setdefault(profile.name, profile)
    return list(profiles.values())


def _night(settings: NightSettings) -> Iterator[Finding]:
    """Check a night's tasks and their tables, its notifications, and how it is begun."""
    part = f"night {settings.name}"
    problems = list(findings(part, partial(check_finalizer, settings)))
    for task in settings.tasks:
        problems += findings(part, partial(_task, part, task, settings))
    yield from dict.fromkeys(problems)  # tasks may share a table
    if not problems:
        yield ok(part, f"tasks that can be planned: {len(settings.tasks)}")
    yield from findings(part, partial(_connections, part, settings))
    yield from _notified(part, settings)
    yield from _begun(part, settings.name)


def _task(part: str, task: NightTask, settings: NightSettings) -> Iterator[Finding]:
    """Check a task of a night, and its tables."""
    check_task(task, settings)
    function = find_task(task.task)
    models = [*choose_model(function, task.input_model), output_model(function)]
    with connection():
        for model in models:
            yield from table_findings(part, model)


def _connections(part: str, settings: NightSettings) -> Iterator[Finding]:
    """Check for how many elements the server has connections; each needs two."""
    if dialect().name == "sqlite":
        return
    with connection():
        room = settings.connections or dialect().connections_for(settings.headroom)
    summary = f"connections for {room // 2} elements at once (headroom = {settings.headroom})"
    if room < 2:
        remedy = f"lower headroom in [nights.{settings.name}], or raise max_connections"
        yield failed(part, summary, remedy)
    else:
        yield ok(part, summary)


# -- who is notified --------------------------------------------------------------------


def _notified(part: str, settings: NightSettings) -> Iterator[Finding]:
    """Check whether each channel of notification would work, without sending anything."""
    notify, section = settings.notify, f"[nights.{settings.name}.notify]"
    tries = [
        ("mail", notify.mail, lambda: _mail(notify), f"correct mail and smtp in {section}"),
        ("webhook", notify.webhook, lambda: _webhook(notify), f"correct webhook in {section}"),
        ("command", notify.command, lambda: _command(notify), f"correct command in {section}"),
    ]
    if not any(setting for _, setting, _, _ in tries):
        yield warning(
            part, "nobody is notified when it ends", f"set mail, webhook or command in {section}"
        )
    for channel, setting, attempt, remedy in tries:
        if not setting:
            continue
        try:
            yield ok(part, f"{channel}: {within(TOTAL_TIMEOUT_S, attempt)}")
        except (OSError, LookupError, smtplib.SMTPException, netrc.NetrcParseError) as error:
            yield warning(part, f"{channel}: {error}", remedy)  # the night runs without it


def _mail(notify: Notify) -> str:
    if notify.smtp is None:
        return f"{find_sendmail()} is there"
    parts = urlsplit(notify.smtp)
    try:
        with mail_server(notify.smtp, _TIMEOUT_S) as server:
            server.noop()
    except ConnectionError as error:
        place = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        raise OSError(f"{place} cannot be reached: {error.strerror or error}") from None
    return f"{parts.hostname} answers"


def _webhook(notify: Notify) -> str:
    """Connect to its host only: a request would be a notification."""
    parts = urlsplit(notify.webhook or "")
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be reached: {error.strerror or error}") from None
    return f"{host}:{port} answers"


def _command(notify: Notify) -> str:
    if shutil.which(notify.command[0]) is None:
        raise LookupError(f"{notify.command[0]} is not on PATH, or cannot be run")
    return f"{notify.command[0]} is there"


def _begun(part: str, name: str) -> Iterator[Finding]:
    """Check whether this user's crontab or scrontab begins the night."""
    remedy = f'astra cron {name} --at "0 20 * * *" --install'
    try:
        if has_entry(name):
            yield ok(part, "its entry is in the crontab")
        else:
            yield warning(part, "no entry in the crontab starts it", remedy)
    except (UsageError, OSError, subprocess.SubprocessError) as error:
        yield warning(part, f"it is unknown whether cron starts it: {error}", remedy)


def is_ready(checked: list[Finding]) -> bool:
    """Return whether no finding failed; warnings are allowed."""
    return all(finding.state != FAILED for finding in checked)
