"""Configuration: one TOML file, two environment variables, and where each value came from.

Only the first file that exists is read: ``--config``, ``ASTRA_CONFIG``, ``./astra.toml``,
``$XDG_CONFIG_HOME/astra/astra.toml`` (``~/.config``), ``/etc/astra/astra.toml``.
``ASTRA_DATABASE_URL`` and ``ASTRA_RUN_DIR`` override single values. Relative paths in a file start
from the file's own folder, all others from the current one.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from astra.config import retry_rules
from astra.config.secrets import _known, hide, hide_secret, know_url
from astra.config.value_checks import (
    MAX_ANSWER_S,
    MAX_DAYS,
    MAX_PAGE_ROWS,
    entry,
    matching,
    number,
    text,
    texts,
    whole,
)
from astra.errors import ConfigError, nearest
from astra.records import dataclass

if TYPE_CHECKING:
    from astra.config.nights import NightSettings


def _classes(value: object) -> tuple[str, ...]:
    for item in (classes := texts(value)):
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", item):
            raise ValueError(f"{item!r} should be a class by its dotted path")
    return classes


def _folders(value: object) -> tuple[str, ...]:
    for item in (folders := texts(value)):
        if not Path(item).is_absolute():
            raise ValueError(f"{item!r} should be an absolute path, starting with /")
    return folders


#: Exceptions whose cause is outside of a task: its rows stay pending.
OUTER = (
    "MemoryError",
    "ConnectionError",
    "peewee.OperationalError",
    "peewee.InterfaceError",
    "psycopg2.OperationalError",
    "psycopg2.InterfaceError",
)


def _name_of_schema(value: object) -> str:
    # peewee writes it into its statements, where a percent sign would mark a parameter.
    name = text(value)
    if not re.fullmatch(r"[^\W\d][\w$]*", name) or len(name.encode()) > 63:
        raise ValueError("should be a plain name: letters, digits and _, at most 63 bytes")
    return name


def _mode(value: object) -> str:
    written = f"{value:04o}" if isinstance(value, int) and not isinstance(value, bool) else value
    expected = '"0700", "0750" or "0755": others may never write'
    return matching(r"[02]?7[05][05]", expected)(written)


_PATH = {"check": text, "path": True}


@dataclass(frozen=True)
class Database:
    """Where the tables are, and how long their server may take."""

    url: str = entry("", text)  # by default, ./astra.db as an absolute path
    schema: str | None = entry(None, _name_of_schema)  # PostgreSQL schema that holds the tables
    connect_timeout_s: int = entry(10, whole(1))
    answer_timeout_s: float = entry(60.0, number(0, MAX_ANSWER_S, above=True))
    retry_for_s: float = entry(600.0, number(0))  # how long a checkpoint waits for the database


@dataclass(frozen=True)
class Run:
    """Where scripts and logs go."""

    dir: Path = field(default=Path("astra-runs"), metadata=_PATH)  # scripts and logs
    mode: str = entry("0700", _mode)  # of the folders in it
    templates: Path | None = field(default=None, metadata=_PATH)  # a site's own templates


@dataclass(frozen=True)
class Element:
    """How elements store results, and what they tolerate."""

    write_frequency: float = entry(300.0, number(0, above=True))  # longest wait of a result, in s
    batch_size: int = entry(1000, whole(1))  # results written at once
    lease_s: float = entry(300.0, number(0, above=True))  # overdue without a heartbeat for so long
    grace_s: float = entry(3.0, number(0))  # how long a row may continue after SIGTERM
    row_timeout_s: float = entry(0.0, number(0))  # longest time for a row; 0 for no limit
    max_deaths: int = entry(3, whole(1))  # of its process, after which a row is a failure
    max_failures: float = entry(0.5, number(0, 1))  # share of rows; with more the task is broken
    max_broken: int = entry(10, whole(1))  # pages without a whole one, after which the plan pauses
    max_failures_after: int = entry(20, whole(1))  # rows after which the share is checked
    outer_exceptions: tuple[str, ...] = entry(OUTER, _classes)  # that no row is to blame for


@dataclass(frozen=True)
class Plan:
    """How plans are cut."""

    limit: int = entry(1000, whole(1, MAX_PAGE_ROWS))  # rows per page
    trusted_roots: tuple[str, ...] = entry((), _folders)  # code in them is trusted for every role


@dataclass(frozen=True)
class Slurm:
    """How Slurm is queried."""

    timeout_s: float = entry(30.0, number(0, MAX_ANSWER_S, above=True))  # for one of its commands
    retries: int = entry(3, whole(0))  # of an unanswered query
    recent_s: float = entry(5.0, number(0))  # output up to this age is used again; 0: never
    pause_s: float = entry(0.2, number(0))  # between the calls of sbatch for two plans


@dataclass(frozen=True)
class Policy:
    """How bad nodes are avoided."""

    exclude_after: int = entry(3, whole(0))  # pages that failed on a node, and not elsewhere
    exclude_for_s: float = entry(21600.0, number(0, above=True))  # how long the node is excluded


@dataclass(frozen=True)
class Clean:
    """What `astra clean` keeps."""

    keep_days: float = entry(90.0, number(0, MAX_DAYS))  # inactive plans, their logs and scripts
    compress_days: float = entry(0.0, number(0, MAX_DAYS))  # until logs are packed; 0: never
    keep_nights_days: float = entry(1000.0, number(0, MAX_DAYS))  # rows of nights


@dataclass(frozen=True)
class Data:
    """Where files of spectra are."""

    root: Path | None = field(default=None, metadata=_PATH)  # base of relative paths of spectra


_ENVIRONMENT = {"ASTRA_DATABASE_URL": "database.url", "ASTRA_RUN_DIR": "run.dir"}

#: The environment variables that astra reads.
VARIABLES = ("ASTRA_CONFIG", *_ENVIRONMENT)


@dataclass(frozen=True)
class Config:
    """Every value of the configuration; ``source(key)`` says where one came from."""

    database: Database = Database()
    run: Run = Run()
    element: Element = Element()
    plan: Plan = Plan()
    slurm: Slurm = Slurm()
    policy: Policy = Policy()
    clean: Clean = Clean()
    data: Data = Data()
    profiles: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    rules: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # [policy.STATE]
    nights: Mapping[str, "NightSettings"] = field(default_factory=dict)  # [nights.NAME]
    path: Path | None = None  # the file that was read
    sources: Mapping[str, str] = field(default_factory=dict)  # "database.url": where it is from

    def source(self, key: str) -> str:
        """Return where a value such as ``database.url`` is from: a file, a variable, "default"."""
        if key not in _KEYS:
            return str(self.path or "default")
        return self.sources.get(key, "default")

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (key, value, source) of every value, with secrets hidden."""
        values = {key: getattr(getattr(self, key.split(".")[0]), _KEYS[key].name) for key in _KEYS}
        for name, options in self.profiles.items():
            values.update({f"profiles.{name}.{key}": value for key, value in options.items()})
        for state, rule in self.rules.items():
            values.update({f"policy.{state}.{key}": value for key, value in rule.items()})
        for name, plan in self.nights.items():
            values.update({f"nights.{name}.{key}": value for key, value in plan.rows()})
        return [(key, _shown(key, value), self.source(key)) for key, value in values.items()]


#: The sections of the file with their default values.
_SECTIONS: dict[str, Any] = {
    item.name: item.default for item in fields(Config) if is_dataclass(item.default)
}

_KEYS = {f"{name}.{item.name}": item for name, part in _SECTIONS.items() for item in fields(part)}


_current: Config | None = None


def current() -> Config:
    """Return the configuration of this process, which is loaded when it is first needed."""
    global _current
    if _current is None:
        _current = load()
    return _current


def use(configuration: Config) -> None:
    """Set the configuration of this process."""
    global _current
    _current = configuration


def reset() -> None:
    """Forget the configuration, so that it is loaded again when it is next needed."""
    global _current
    _current = None
    _known.clear()


def load(path: str | Path | None = None) -> Config:
    """Load the configuration.

    Parameters
    ----------
    path : the file to read; by default, the first that exists.

    Raises
    ------
    ConfigError
        If a named file does not exist, or a file holds an unknown key or an invalid value.
    """
    folder = Path.cwd()
    file = _find(path, folder)
    values, profiles, rules, nights = _read(file) if file else ({}, {}, {}, {})
    sources = dict.fromkeys(values, str(file))
    for variable, key in _ENVIRONMENT.items():
        if value := os.environ.get(variable):  # an empty variable counts as unset
            values[key], sources[key] = _checked(value, key, variable), variable
    for key, item in _KEYS.items():
        base = file.parent if file and sources.get(key) == str(file) else folder
        setting = values.get(key, item.default)
        if "path" in item.metadata and setting is not None:
            values[key] = Path(os.path.normpath(base / os.path.expanduser(str(setting))))
        elif key == "database.url":
            url = _absolute_sqlite(str(setting), base)
            # sqlite_path() undoes the quoting
            values[key] = url or _sqlite_url(str(folder / "astra.db"))
    know_url(str(values["database.url"]))
    parts = dict(_SECTIONS)
    for key, setting in values.items():
        section, _, name = key.partition(".")
        parts[section] = replace(parts[section], **{name: setting})
    return Config(
        profiles=profiles, rules=rules, nights=nights, path=file, sources=sources, **parts
    )


def _find(path: str | Path | None, cwd: Path) -> Path | None:
    for named, how in ((path, "--config"), (os.environ.get("ASTRA_CONFIG"), "ASTRA_CONFIG")):
        if named:
            file = cwd / os.path.expanduser(str(named))
            if not _exists(file):
                raise ConfigError(
                    f"{file}, named by {how}, does not exist; name one that does, or leave {how} "
                    "out to use the first of ./astra.toml, ~/.config/astra/astra.toml and "
                    "/etc/astra/astra.toml"
                )
            return file
    return next((file for file in usual_files(os.environ, cwd) if _exists(file)), None)


def usual_files(environ: Mapping[str, str], cwd: Path) -> tuple[Path, Path, Path]:
    """Return the files that are looked for, in order, if none is named."""
    user = Path(environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
    return cwd / "astra.toml", user / "astra" / "astra.toml", Path("/etc/astra/astra.toml")


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(file)!r} cannot be examined: {error}") from error


Tables = dict[str, Mapping[str, object]]


def _read(file: Path) -> tuple[dict[str, object], Tables, Tables, dict[str, "NightSettings"]]:
    """Read and check values, profiles, policy and nights of a file; paths stay as written."""
    values: dict[str, object] = {}
    tables = _parsed(file)
    nights, profiles = tables.pop("nights", {}), tables.pop("profiles", {})
    rules: dict[str, object] = {}
    if isinstance(policy := tables.get("policy"), dict):  # [policy.STATE] stands below [policy]
        rules = {k: value for k, value in policy.items() if isinstance(value, dict) or k.isupper()}
        tables["policy"] = {key: value for key, value in policy.items() if key not in rules}
    try:
        checked_rules = retry_rules.checked(rules)
        checked_nights = _checked_nights(nights) if nights != {} else {}
    except ValueError as error:
        raise ConfigError(f"{file}: {hide(str(error))}") from None
    for section, table in tables.items():
        if section not in _SECTIONS:
            elsewhere = [key for key in _KEYS if key.split(".")[1] == section]
            hint = " or ".join(f"[{key.split('.')[0]}] {section}" for key in elsewhere)
            hint = f"It belongs below its section: {hint}" if hint else ""
            hint = hint or nearest(section, [*_SECTIONS, "profiles", "nights"])
            raise ConfigError(f"{file}: [{section}] is not a section of the configuration. {hint}")
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {section} is a section: write [{section}], then its keys")
        for name, value in table.items():
            values[f"{section}.{name}"] = _checked(value, f"{section}.{name}", str(file))
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise ConfigError(
            f"{file}: a profile is a section: write [profiles.NAME], then its options"
        )
    return values, profiles, {**checked_rules}, checked_nights


def _checked_nights(tables: object) -> dict[str, "NightSettings"]:
    from astra.config.nights import checked  # here, as most files have none

    return checked(tables)


def _parsed(file: Path) -> dict[str, object]:
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; the configuration is one file, such as astra.toml")
    import tomllib  # here, as elements often have no file

    try:
        content = file.read_bytes()
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}, line {line}: not UTF-8; save the file as UTF-8") from error
    except ValueError as error:  # of its syntax, or a number of too many digits
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _checked(value: object, key: str, place: str) -> object:
    section, name = key.split(".", 1)
    if key not in _KEYS:
        names = [item.name for item in fields(_SECTIONS[section])]
        elsewhere = [k.split(".")[0] for k in _KEYS if k.split(".")[1] == name]
        hint = f"It belongs to [{elsewhere[0]}]" if elsewhere else nearest(name, names)
        raise ConfigError(f"{place}: no key {name!r} in [{section}]. {hint}")
    try:
        return _KEYS[key].metadata["check"](value)
    except ValueError as error:
        # A wrong value may be a misplaced secret: it is shown as rows() would show it.
        raise ConfigError(f"{place}: [{section}] {name} = {_shown(key, value)}: {error}") from error


def _absolute_sqlite(url: str, base: Path) -> str:
    """Return `url`, in which a ``sqlite:///relative`` path starts from `base`."""
    path, mark, query = url.removeprefix("sqlite:///").partition("?")
    if not url.startswith("sqlite:///") or path in ("", ":memory:"):
        return url
    place = os.path.normpath(base / os.path.expanduser(unquote(path)))
    return f"{_sqlite_url(place)}{mark}{query}"


def _sqlite_url(path: str) -> str:
    try:
        return f"sqlite:///{quote(path)}"
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the path of the database, {path!r}, is not UTF-8; rename the folder, work in "
            "another one, or set ASTRA_DATABASE_URL"
        ) from error


def _shown(key: str, value: object) -> str:
    return hide_secret(key.rpartition(".")[2], value)


def settings_of(name: str) -> "NightSettings":
    """Return the configuration of a night.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    nights = current().nights
    if name not in nights:
        place = current().path or "the configuration (no file was found)"
        raise ConfigError(
            f"{place} has no night {name!r}. {nearest(name, nights)} Write [nights.{name}], and "
            'tasks = ["module.task"] below it'
        )
    return nights[name]


def data_path(path: str) -> Path:
    """Return the path of an input row's file; relative paths start at ``[data] root``."""
    return Path(current().data.root or "") / os.path.expandvars(os.path.expanduser(path))
