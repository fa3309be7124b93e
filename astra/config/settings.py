"""Configuration: one TOML file, two environment variables, and where each value came from.

Looked for in this order, and the first that exists is used, alone: ``--config``,
``ASTRA_CONFIG``, ``./astra.toml``, ``$XDG_CONFIG_HOME/astra/astra.toml`` (``~/.config``), and
``/etc/astra/astra.toml``. ``ASTRA_DATABASE_URL`` and ``ASTRA_RUN_DIR`` override single values.
Relative paths in a file start from the file's own folder, all others from the current one.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from astra.config import nights as night
from astra.config import retry_rules
from astra.config.checks import entry, matching, number, text, texts, whole
from astra.config.nights import NightSettings
from astra.config.secrets import _known, hide, hide_secret, know_url
from astra.errors import ConfigError, nearest


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


#: Exceptions of the world around a task: its rows stay pending.
OUTER = (
    "MemoryError",
    "ConnectionError",
    "peewee.OperationalError",
    "peewee.InterfaceError",
    "psycopg2.OperationalError",
    "psycopg2.InterfaceError",
)


def _name_of_schema(value: object) -> str:
    # peewee writes it into its statements, where a percent sign would stand for a parameter.
    name = text(value)
    if not re.fullmatch(r"[^\W\d][\w$]*", name) or len(name.encode()) > 63:
        raise ValueError("should be a plain name: letters, digits and _, at most 63 bytes")
    return name


def check_schema(schema: str | None) -> None:
    """Refuse a schema that was given by a program, as the configuration's is."""
    if schema is not None:
        _checked(schema, "database.schema", "schema")


def _mode(value: object) -> str:
    written = f"{value:04o}" if isinstance(value, int) and not isinstance(value, bool) else value
    expected = '"0700", "0750" or "0755": others may never write'
    return matching(r"[02]?7[05][05]", expected)(written)


_PATH = {"check": text, "path": True}


@dataclass(frozen=True)
class Database:
    url: str = entry("", text)  # the default is ./astra.db, made absolute when it is resolved
    schema: str | None = entry(None, _name_of_schema)  # PostgreSQL schema that holds the tables
    connect_timeout_s: int = entry(10, whole(1))
    answer_timeout_s: float = entry(60.0, number(0, above=True))  # longest wait for an answer
    retry_for_s: float = entry(600.0, number(0))  # how long a checkpoint waits for the database


@dataclass(frozen=True)
class Run:
    dir: Path = field(default=Path("astra-runs"), metadata=_PATH)  # scripts and logs
    mode: str = entry("0700", _mode)  # of the folders that are made in it
    templates: Path | None = field(default=None, metadata=_PATH)  # a site's own templates, first


@dataclass(frozen=True)
class Element:
    write_frequency: float = entry(300.0, number(0, above=True))  # longest wait of a result, in s
    batch_size: int = entry(1000, whole(1))  # results written at once
    lease_s: float = entry(300.0, number(0, above=True))  # no heartbeat for so long: overdue
    grace_s: float = entry(3.0, number(0))  # how long a row may go on after SIGTERM
    row_timeout_s: float = entry(0.0, number(0))  # longest time for a row; 0 for no limit
    max_deaths: int = entry(3, whole(1))  # of its process, until a row is a failure
    max_failures: float = entry(0.5, number(0, 1))  # share of rows; above it the task is broken
    max_broken: int = entry(10, whole(1))  # pages, none whole since, until the plan pauses
    max_failures_after: int = entry(20, whole(1))  # rows that an element has ended
    outer_exceptions: tuple[str, ...] = entry(OUTER, _classes)  # no row's fault


@dataclass(frozen=True)
class Plan:
    limit: int = entry(1000, whole(1))  # rows per page
    trusted_roots: tuple[str, ...] = entry((), _folders)  # whose code runs, whichever role planned


@dataclass(frozen=True)
class Slurm:
    timeout_s: float = entry(30.0, number(0, above=True))  # for one of Slurm's commands
    retries: int = entry(3, whole(0))  # of a query that had no answer
    recent_s: float = entry(5.0, number(0))  # answers up to this age are used again; 0: never
    pause_s: float = entry(0.2, number(0))  # between the calls of sbatch for two plans


@dataclass(frozen=True)
class Policy:
    exclude_after: int = entry(3, whole(0))  # pages that failed at a node, and not elsewhere
    exclude_for_s: float = entry(21600.0, number(0, above=True))  # how long it is left out


@dataclass(frozen=True)
class Clean:
    keep_days: float = entry(90.0, number(0))  # plans, logs and scripts that are inactive
    compress_days: float = entry(0.0, number(0))  # until scripts and logs are packed; 0: never
    keep_nights_days: float = entry(1000.0, number(0))  # the lines of nights


@dataclass(frozen=True)
class Data:
    root: Path | None = field(default=None, metadata=_PATH)  # where relative paths of spectra start


_SECTIONS: dict[str, Any] = {
    "database": Database,
    "run": Run,
    "element": Element,
    "plan": Plan,
    "slurm": Slurm,
    "policy": Policy,
    "clean": Clean,
    "data": Data,
}

_KEYS = {f"{name}.{item.name}": item for name, kind in _SECTIONS.items() for item in fields(kind)}

_ENVIRONMENT = {"ASTRA_DATABASE_URL": "database.url", "ASTRA_RUN_DIR": "run.dir"}

#: The variables of the environment that mean something to astra.
VARIABLES = ("ASTRA_CONFIG", *_ENVIRONMENT)


@dataclass(frozen=True)
class Config:
    """Every value, resolved; ``source(key)`` says where one came from."""

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
    nights: Mapping[str, NightSettings] = field(default_factory=dict)  # [nights.NAME]
    path: Path | None = None  # the file that was read
    sources: Mapping[str, str] = field(default_factory=dict)  # "database.url": where it is from

    def source(self, key: str) -> str:
        """Where a value such as ``database.url`` came from: a file, a variable or "default"."""
        if key.startswith(("profiles.", "nights.")) or key not in _KEYS:
            return str(self.path or "default")
        return self.sources.get(key, "default")

    def rows(self) -> list[tuple[str, str, str]]:
        """(key, value as it is shown, where it came from) of every value, secrets hidden."""
        values = {key: getattr(getattr(self, key.split(".")[0]), _KEYS[key].name) for key in _KEYS}
        for name, options in self.profiles.items():
            values.update({f"profiles.{name}.{key}": value for key, value in options.items()})
        for state, rule in self.rules.items():
            values.update({f"policy.{state}.{key}": value for key, value in rule.items()})
        for name, plan in self.nights.items():
            values.update({f"nights.{name}.{key}": value for key, value in plan.rows()})
        return [(key, _shown(key, value), self.source(key)) for key, value in values.items()]


_current: Config | None = None


def current() -> Config:
    """The configuration of this process, resolved when it is first asked for."""
    global _current
    if _current is None:
        _current = load()
    return _current


def use(configuration: Config) -> None:
    """Make `configuration` that of this process."""
    global _current
    _current = configuration


def reset() -> None:
    """Forget the configuration: it is resolved anew when it is next asked for."""
    global _current
    _current = None
    _known.clear()


def load(
    path: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> Config:
    """The configuration as it stands now.

    Parameters
    ----------
    path : the file to read; without one, the first that is found.
    environ, cwd : environment and current folder; those of the process where not given.

    Raises
    ------
    ConfigError
        If a named file does not exist, or a file holds what astra does not know.
    """
    environ = os.environ if environ is None else environ
    folder = Path(cwd or Path.cwd()).absolute()
    file = _find(path, environ, folder)
    values, profiles, rules, nights = _read(file) if file else ({}, {}, {}, {})
    sources = dict.fromkeys(values, str(file))
    for variable, key in _ENVIRONMENT.items():
        if environ.get(variable):  # a variable that is set to nothing counts as unset
            values[key], sources[key] = _checked(environ[variable], key, variable), variable
    for key, item in _KEYS.items():
        base = file.parent if file and sources.get(key) == str(file) else folder
        value = values.get(key, item.default)
        if "path" in item.metadata and value is not None:
            values[key] = Path(os.path.normpath(base / _expanded(str(value), environ)))
        elif key == "database.url":
            url = _absolute_sqlite(str(value), base, environ)
            values[key] = url or f"sqlite:///{_db(folder)}"
    sections: dict[str, dict[str, object]] = {name: {} for name in _SECTIONS}
    for key, value in values.items():
        sections[key.split(".")[0]][_KEYS[key].name] = value
    know_url(str(values["database.url"]))
    return Config(
        **{name: kind(**sections[name]) for name, kind in _SECTIONS.items()},
        profiles=profiles,
        rules=rules,
        nights=nights,
        path=file,
        sources=sources,
    )


def _find(path: str | Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    for named, how in ((path, "--config"), (environ.get("ASTRA_CONFIG"), "ASTRA_CONFIG")):
        if named:
            file = cwd / _expanded(str(named), environ)
            if not _exists(file):
                raise ConfigError(
                    f"{file}, named by {how}, does not exist; name one that does, or leave {how} "
                    "out to use the first of ./astra.toml, ~/.config/astra/astra.toml and "
                    "/etc/astra/astra.toml"
                )
            return file
    return next((file for file in usual_files(environ, cwd) if _exists(file)), None)


def usual_files(environ: Mapping[str, str], cwd: Path) -> tuple[Path, Path, Path]:
    """The files of which the first that exists is used, where none is named."""
    user = Path(environ.get("XDG_CONFIG_HOME") or _expanded("~/.config", environ))
    return cwd / "astra.toml", user / "astra" / "astra.toml", Path("/etc/astra/astra.toml")


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(file)!r} cannot be examined: {error}") from error


Tables = dict[str, Mapping[str, object]]


def _read(file: Path) -> tuple[dict[str, object], Tables, Tables, dict[str, NightSettings]]:
    """Values, profiles, policy and nights of a file, checked; paths as they are written."""
    values: dict[str, object] = {}
    tables = _parsed(file)
    try:
        nights = night.checked(tables.pop("nights", {}))
    except ValueError as error:
        raise ConfigError(f"{file}: [nights] {hide(str(error))}") from None
    profiles = tables.pop("profiles", {})
    rules = _rules(tables, file)
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
    return values, profiles, rules, nights


def _rules(tables: dict[str, object], file: Path) -> Tables:
    """The sections ``[policy.STATE]``, taken out of ``[policy]``."""
    table = tables.get("policy")
    if not isinstance(table, dict):
        return {}
    found = {key: value for key, value in table.items() if isinstance(value, dict)}
    tables["policy"] = {key: value for key, value in table.items() if key not in found}
    try:
        return {**retry_rules.checked(found)}
    except ValueError as error:
        raise ConfigError(f"{file}: [policy] {error}") from None


def _parsed(file: Path) -> dict[str, object]:
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; the configuration is one file, such as astra.toml")
    try:
        content = file.read_bytes()
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}, line {line}: not UTF-8; save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _checked(value: object, key: str, where: str) -> object:
    section, name = key.split(".", 1)
    if key not in _KEYS:
        known = [item.name for item in fields(_SECTIONS[section])]
        elsewhere = [k.split(".")[0] for k in _KEYS if k.split(".")[1] == name]
        hint = f"It belongs to [{elsewhere[0]}]" if elsewhere else nearest(name, known)
        raise ConfigError(f"{where}: no key {name!r} in [{section}]. {hint}")
    try:
        return _KEYS[key].metadata["check"](value)
    except ValueError as error:
        # A wrong value may be a secret in the wrong place: shown as rows() would show it.
        raise ConfigError(f"{where}: [{section}] {name} = {_shown(key, value)}: {error}") from error


def _expanded(path: str, environ: Mapping[str, str]) -> str:
    if path.split("/")[0] == "~" and environ.get("HOME"):
        return environ["HOME"] + path[1:]
    return os.path.expanduser(path)


def _db(path: Path) -> str:
    return quote(str(path / "astra.db"))  # the database's own reading undoes the quoting


def _absolute_sqlite(url: str, base: Path, environ: Mapping[str, str]) -> str:
    """`url`, where a ``sqlite:///relative`` path starts from `base`."""
    path, mark, query = url.removeprefix("sqlite:///").partition("?")
    if not url.startswith("sqlite:///") or path in ("", ":memory:"):
        return url
    place = os.path.normpath(base / _expanded(unquote(path), environ))
    return f"sqlite:///{quote(place)}{mark}{query}"


def _shown(key: str, value: object) -> str:
    return hide_secret(key.rpartition(".")[2], value)


def settings_of(name: str) -> NightSettings:
    """A night as it is configured.

    Raises
    ------
    ConfigError
        If it is not.
    """
    nights = current().nights
    if name not in nights:
        where = current().path or "the configuration (there is no file)"
        raise ConfigError(
            f"{where} has no night {name!r}. {nearest(name, nights)} Write [nights.{name}], and "
            'tasks = ["module.task"] below it'
        )
    return nights[name]


def data_path(path: str) -> Path:
    """Where the file of an input row is; relative paths start at ``[data] root``."""
    return Path(current().data.root or "") / os.path.expandvars(os.path.expanduser(path))
