"""Check the configuration of nights: the sections ``[nights.NAME]``.

A night is a list of tasks that cron starts: they are planned and submitted together, resumed within
limits, and closed when none of their elements is alive. Nothing here uses the database.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from urllib.parse import urlsplit

from astra.config.redo_option import split_redo
from astra.config.value_checks import (
    MAX_PAGE_ROWS,
    Check,
    command,
    entry,
    matching,
    number,
    one_of,
    section,
    text,
    texts,
    time_limit,
    values,
    whole,
)
from astra.errors import nearest
from astra.records import dataclass

_CLOCK = matching(r"([01]?\d|2[0-3]):[0-5]\d", 'a time of day, such as "06:30"')


def _redo(value: object) -> str:
    split_redo(text(value))
    return str(value)


def _mail(value: object) -> tuple[str, ...]:
    names = texts(value)
    if not all("@" in name and not any(c in name for c in " \r\n") for name in names):
        raise ValueError('should be addresses, such as ["me@example.org"]')
    return names


def _url(*schemes: str) -> Check[str]:
    def check(value: object) -> str:
        parts = urlsplit(text(value))
        if parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f"should be a URL that begins with {'://, '.join(schemes)}://")
        if parts.password:
            raise ValueError("should hold no password: put it into ~/.netrc")
        if parts.scheme == "smtp" and parts.username:
            raise ValueError(
                "should begin with starttls:// or smtps://, as smtp:// would send the password of "
                "its user without encryption"
            )
        return str(value)

    return check


def _arguments(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("should be arguments by their names: { name = value }")
    return dict(value)


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """The keys of each task of a night, and of a night for all tasks that do not set them."""

    profile: str | None = entry(None, text)
    limit: int | None = entry(None, whole(1, MAX_PAGE_ROWS))  # rows per page
    max_rows: int | None = entry(None, whole(1))  # of each table that a task reads
    where: str | None = entry(None, text)  # only these rows: a condition on their columns
    redo: str | None = entry(None, _redo)  # rows that have ended are processed again
    throttle: int | None = entry(None, whole(1))  # elements at once: of a task out of the night's


@dataclass(frozen=True)
class NightTask(_Planned):
    """One task of a night."""

    task: str = field(metadata={"check": text})
    input_model: str | None = entry(None, text)
    after: tuple[str, ...] = entry((), texts)  # tasks whose results it reads: it waits for them
    set: Mapping[str, object] = field(default_factory=dict, metadata={"check": _arguments})

    @property
    def key(self) -> tuple[str, str | None]:
        """What identifies a task within a night."""
        return self.task, self.input_model


@dataclass(frozen=True)
class Notify:
    """Who is notified of the end of a night, by each of these channels."""

    mail: tuple[str, ...] = entry((), _mail)
    sender: str | None = entry(None, text)
    smtp: str | None = entry(None, _url("smtp", "smtps", "starttls"))  # without it, sendmail
    webhook: str | None = entry(None, _url("http", "https"))  # of Slack, Mattermost or a site
    command: tuple[str, ...] = entry((), command('"notify --quiet"'))  # gets the night as JSON

    def rows(self) -> list[tuple[str, object]]:
        """Return (key, value) of all; the path of a webhook is hidden, as it is a password."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.webhook:
            given["webhook"] = "{0.scheme}://{0.netloc}/***".format(urlsplit(self.webhook))
        return [(f"notify.{key}", value) for key, value in given.items() if value]


@dataclass(frozen=True)
class NightSettings(_Planned):
    """The configuration of a night."""

    name: str
    tasks: tuple[NightTask, ...]
    priority: str = entry("new", one_of("new", "recent"))  # "new": rows without a result first
    connections: int | None = entry(None, whole(2))  # to the database, for all elements together
    headroom: int = entry(20, whole(0))  # connections that are left to others by default
    start_until: str | None = entry(None, _CLOCK)  # no element begins after this time of day
    drain_by: str | None = entry(None, _CLOCK)  # running elements have ended by then
    accept_failures: float = entry(
        0.0, number(0, 1)
    )  # share of rows; with more the night has "failed rows"
    rounds: int = entry(10, whole(0))  # in which pages are submitted again
    retry_pause_s: int = entry(120, whole(0))  # after one of them, if no row had ended
    leftovers: str = entry("take", one_of("take", "leave"))  # rows that earlier nights left
    running: str = entry("join", one_of("join", "leave"))  # an earlier night that is still open
    finalizer_profile: str | None = entry(None, text)
    finalizer_time: str = entry("12:00:00", time_limit)  # how long a finalizer waits for answers
    notify: Notify = Notify()

    def rows(self) -> list[tuple[str, object]]:
        """Return (key, value) of all that was configured."""
        rows: list[tuple[str, object]] = []
        for place, task in enumerate(self.tasks, 1):
            given = {f.name: getattr(task, f.name) for f in fields(task)}
            rows += [(f"tasks.{place}.{key}", v) for key, v in given.items() if v]
        keys = [f.name for f in fields(self) if f.name not in _PARTS]
        return [*rows, *((key, getattr(self, key)) for key in keys), *self.notify.rows()]


_PARTS = ("name", "tasks", "notify")


def checked(tables: object) -> dict[str, NightSettings]:
    """Return the nights of a ``nights`` table, by name.

    Raises
    ------
    ValueError
        If a key or a value is invalid; the message says where, and what to write instead.
    """
    return {name: _night(name, table) for name, table in section(tables, "[nights.NAME]").items()}


def _night(name: str, value: object) -> NightSettings:
    header = f"[nights.{name}]"
    table = section(value, header)
    if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 40:
        raise ValueError(f"{header} the name should be of letters, digits, - and _, at most 40")
    if "tasks" not in table:
        raise ValueError(f'{header} has no tasks: write tasks = ["module.task"]')
    given = table["tasks"]
    if not isinstance(given, list) or not given:
        raise ValueError(
            f'{header} tasks: should be a list of tasks, such as ["slam.slam"], or tables '
            f"[[nights.{name}.tasks]]"
        )
    tasks = tuple(_task(f"[[nights.{name}.tasks]]", given) for given in given)
    _check_order(header, tasks)
    of_notify = f"[nights.{name}.notify]"
    notify = section(table.get("notify", {}), of_notify)
    rest = {key: value for key, value in table.items() if key not in _PARTS[1:]}
    settings = [f for f in fields(NightSettings) if f.name not in _PARTS]
    return NightSettings(
        name, tasks, **values(header, rest, settings, _PARTS[1:]),
        notify=Notify(**values(of_notify, notify, fields(Notify))),
    )  # fmt: skip


def _task(header: str, value: object) -> NightTask:
    if isinstance(value, str):
        value = {"task": value}
    if not isinstance(value, dict):
        raise ValueError(f"{header} {value!r} should be a task's name, or a table with one")
    checked_values = values(header, value, fields(NightTask))
    if "task" not in checked_values:
        raise ValueError(f"{header} a task lacks 'task': write task = ...")
    return NightTask(**checked_values)


def _check_order(header: str, tasks: Sequence[NightTask]) -> None:
    """Check that `after` names only earlier tasks, which rules out circles."""
    seen: list[tuple[str, str | None]] = []
    for task in tasks:
        if task.key in seen:
            raise ValueError(f"{header} tasks: {task.task} is listed twice")
        before = [earlier for earlier, _ in seen]
        for wanted in task.after:
            if wanted not in before:
                raise ValueError(
                    f"{header} tasks: {task.task} is after {wanted!r}, which is not "
                    "listed before it. "
                    f"{nearest(wanted, before)}"
                )
        seen.append(task.key)
