"""What a night is: ``[nights.NAME]`` of the configuration, checked.

A night is a list of tasks, planned and submitted together as often as cron says, resumed within
bounds, and closed when nothing of it lives any more. Texts alone: nothing here asks the database.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from astra.config.redo import split_redo
from astra.config.units import time_limit_s
from astra.errors import nearest


def _line(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or any(c in value for c in "\0\n\r"):
        raise ValueError("should be a text in quotes, of one line")
    return value


def _whole(least: int) -> Any:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            raise ValueError(f"should be a whole number of at least {least}, without quotes")
        return value

    return check


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("should be a share from 0 to 1, such as 0.01, without quotes")
    return float(value)


def _one_of(*words: str) -> Any:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"should be {' or '.join(map(repr, words))}")
        return str(value)

    return check


def _redo(value: Any) -> str:
    split_redo(_line(value))
    return str(value)


def _names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) and n for n in names):
        raise ValueError('should be a list of texts, such as ["one", "two"]')
    return tuple(names)


def _time(value: Any) -> str:
    if not isinstance(value, str) or not time_limit_s(value):
        raise ValueError('should be a time limit, such as "12:00:00"')
    return value


def _clock(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", value):
        raise ValueError('should be a time of day, such as "06:30"')
    return value


def _mail(value: Any) -> tuple[str, ...]:
    names = _names(value)
    if not all("@" in name and not any(c in name for c in " \r\n") for name in names):
        raise ValueError('should be addresses, such as ["me@example.org"]')
    return names


def _url(*schemes: str) -> Any:
    def check(value: Any) -> str:
        parts = urlsplit(_line(value))
        if parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f"should be a URL that begins with {'://, '.join(schemes)}://")
        if parts.password:
            raise ValueError("should hold no password: put it into ~/.netrc")
        return str(value)

    return check


def _command(value: Any) -> tuple[str, ...]:
    words = tuple(shlex.split(value)) if isinstance(value, str) else _names(value)
    if not words:
        raise ValueError('should be a command, such as "notify --quiet"')
    return words


def _arguments(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("should be arguments by their names: { name = value }")
    return dict(value)


def _key(default: Any, check: Any) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True)
class NightTask:
    """One task of a night. What is not said here is as the night has it."""

    task: str = field(metadata={"check": _line})
    input_model: str | None = _key(None, _line)
    after: tuple[str, ...] = _key((), _names)  # tasks whose results it reads: whole before it
    profile: str | None = _key(None, _line)
    limit: int | None = _key(None, _whole(1))  # rows per page
    max_rows: int | None = _key(None, _whole(1))
    where: str | None = _key(None, _line)  # only these rows: a condition on their columns
    redo: str | None = _key(None, _redo)  # rows that have ended, too
    throttle: int | None = _key(None, _whole(1))  # at most, of the night's
    set: Mapping[str, Any] = field(default_factory=dict, metadata={"check": _arguments})


@dataclass(frozen=True)
class Notify:
    """Who is notified of how a night ended: by each of these ways."""

    mail: tuple[str, ...] = _key((), _mail)
    sender: str | None = _key(None, _line)
    smtp: str | None = _key(None, _url("smtp", "smtps", "starttls"))  # without it, sendmail
    webhook: str | None = _key(None, _url("http", "https"))  # that of Slack, Mattermost or a site
    command: tuple[str, ...] = _key((), _command)  # gets the night as JSON

    def rows(self) -> list[tuple[str, Any]]:
        """(key, value) of all; a webhook's path is as good as a password."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.webhook:
            given["webhook"] = "{0.scheme}://{0.netloc}/***".format(urlsplit(self.webhook))
        return [(f"notify.{key}", value) for key, value in given.items() if value]


@dataclass(frozen=True)
class NightSettings:
    """A night as it is configured."""

    name: str
    tasks: tuple[NightTask, ...]
    profile: str | None = _key(None, _line)
    limit: int | None = _key(None, _whole(1))
    max_rows: int | None = _key(None, _whole(1))  # of each task
    where: str | None = _key(None, _line)
    redo: str | None = _key(None, _redo)
    priority: str = _key("new", _one_of("new", "recent"))  # rows without a result first, or not
    throttle: int | None = _key(None, _whole(1))  # elements at once, of all arrays together
    connections: int | None = _key(None, _whole(2))  # to the database, of all elements together
    headroom: int = _key(20, _whole(0))  # connections left to others where that is not set
    start_until: str | None = _key(None, _clock)  # no element begins after this time of day
    drain_by: str | None = _key(None, _clock)  # those that run have ended by then
    accept_failures: float = _key(0.0, _share)  # of its rows; with more it is not whole
    rounds: int = _key(10, _whole(0))  # in which pages are submitted again
    leftovers: str = _key("take", _one_of("take", "leave"))  # rows that earlier nights left
    running: str = _key("join", _one_of("join", "leave"))  # the night before, if it still runs
    finalizer_profile: str | None = _key(None, _line)
    finalizer_time: str = _key("12:00:00", _time)  # how long a finalizer may wait for answers
    notify: Notify = Notify()

    def rows(self) -> list[tuple[str, Any]]:
        """(key, value) of all that was configured."""
        rows: list[tuple[str, Any]] = []
        for number, task in enumerate(self.tasks, 1):
            given = {f.name: getattr(task, f.name) for f in fields(task)}
            rows += [(f"tasks.{number}.{key}", v) for key, v in given.items() if v]
        keys = [f.name for f in fields(self) if f.name not in _PARTS]
        return [*rows, *((key, getattr(self, key)) for key in keys), *self.notify.rows()]


_PARTS = ("name", "tasks", "notify")


def checked(tables: Any) -> dict[str, NightSettings]:
    """The nights of a ``nights`` table, by name.

    Raises
    ------
    ValueError
        If a key or a value is none of a night's; it says where and what instead.
    """
    if not isinstance(tables, dict):
        raise ValueError("a night is a section: write [nights.NAME], then its keys")
    return {name: _night(name, table) for name, table in tables.items()}


def _night(name: str, table: Any) -> NightSettings:
    if not isinstance(table, dict):
        raise ValueError(f"{name}: should be a section: write [nights.{name}], then its keys")
    if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 40:
        raise ValueError(f"{name!r}: the name should be of letters, digits, - and _, at most 40")
    if "tasks" not in table:
        raise ValueError(f'{name}: has no tasks: write tasks = ["module.task"]')
    given = table["tasks"]
    if not isinstance(given, list) or not given:
        raise ValueError(
            f'{name}.tasks: should be a list of tasks, such as ["slam.slam"], or tables '
            f"[[nights.{name}.tasks]]"
        )
    tasks = [_task(f"{name}.tasks", entry) for entry in given]
    _check_order(name, tasks)
    given = table.get("notify", {})
    if not isinstance(given, dict):
        raise ValueError(f"{name}.notify: should be a section: write [nights.{name}.notify]")
    notify = Notify(**_values(f"{name}.notify", given, fields(Notify)))
    rest = {key: value for key, value in table.items() if key not in ("tasks", "notify")}
    known = [f for f in fields(NightSettings) if f.name not in _PARTS]
    values = _values(name, rest, known, ["tasks", "notify"])
    return NightSettings(name=name, tasks=tuple(tasks), notify=notify, **values)


def _task(where: str, entry: Any) -> NightTask:
    if isinstance(entry, str):
        entry = {"task": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: {entry!r} should be a task's name, or a table with one")
    values = _values(where, entry, fields(NightTask))
    if missing := [f.name for f in fields(NightTask) if _needed(f) and f.name not in values]:
        raise ValueError(f"{where}: a task lacks {missing[0]!r}: write {missing[0]} = ...")
    return NightTask(**values)


def _needed(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _values(
    where: str, table: Mapping[str, Any], items: Iterable[Any], others: Iterable[str] = ()
) -> dict[str, Any]:
    checks = {item.name: item.metadata["check"] for item in items}
    values = {}
    for key, value in table.items():
        if key not in checks:
            raise ValueError(f"{where}.{key}: no such key. {nearest(key, [*checks, *others])}")
        try:
            values[key] = checks[key](value)
        except ValueError as error:
            raise ValueError(f"{where}.{key} = {value!r}: {error}") from None
    return values


def _check_order(name: str, tasks: list[NightTask]) -> None:
    """`after` names tasks that stand before: so there is no circle, and the list reads in order."""
    seen: list[tuple[str, str | None]] = []
    for task in tasks:
        if (task.task, task.input_model) in seen:
            raise ValueError(f"{name}.tasks: {task.task} stands there twice")
        before = [known for known, _ in seen]
        for wanted in task.after:
            if wanted not in before:
                raise ValueError(
                    f"{name}.tasks: {task.task} is after {wanted!r}, which is no task before it. "
                    f"{nearest(wanted, before)}"
                )
        seen.append((task.task, task.input_model))
