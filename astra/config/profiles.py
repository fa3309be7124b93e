"""Profiles: named sets of Slurm options and set-up commands for one site or kind of job.

``[profiles.NAME]`` of the configuration holds long options of sbatch in snake case, and astra's
own keys: ``setup``, ``python``, ``throttle``, ``pages_per_element``, ``pull``, ``row_timeout``,
``template``, ``policy`` and ``extends``. Profiles of the configuration take precedence over those
that ship with astra.
"""

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from astra.config import retry_rules, settings, shipped_files
from astra.config.settings import Config
from astra.config.units import time_limit_s, warning_lead_s
from astra.config.value_checks import command, entry, flag, matching, number, whole
from astra.errors import ConfigError, nearest
from astra.records import dataclass

Value = str | int | float | bool

# The options in sbatch(1) of Slurm 22.05, and those added up to 25.11.
_WITH_VALUE = frozenset(
    """
    account acctg_freq batch bb bbf begin cluster_constraint clusters comment constraint container
    container_id core_spec cores_per_socket cpu_freq cpus_per_gpu cpus_per_task deadline delay_boot
    dependency distribution exclude export export_file extra extra_node_info gpu_bind gpu_freq gpus
    gpus_per_node gpus_per_socket gpus_per_task gres gres_flags hint kill_on_invalid_dep licenses
    mail_type mail_user mcs_label mem mem_bind mem_per_cpu mem_per_gpu mincpus network nodefile
    nodelist nodes ntasks ntasks_per_core ntasks_per_gpu ntasks_per_node ntasks_per_socket open_mode
    partition power prefer priority profile qos reservation segment signal sockets_per_node switches
    thread_spec threads_per_core time time_min tmp tres_bind tres_per_task wait_all_nodes wckey
    """.split()
)

_FLAGS = frozenset(
    """
    consolidate_segments contiguous hold ignore_pbs no_requeue overcommit oversubscribe reboot
    requeue spread_job spread_segments stepmgr use_min_nodes
    """.split()
)

_FLAG_OR_VALUE = frozenset(
    "exclusive get_user_env nice no_kill oom_kill_step propagate resv_ports".split()
)

OPTIONS = _WITH_VALUE | _FLAGS | _FLAG_OR_VALUE

_THROTTLE = "astra writes the array itself; set throttle to limit the elements that run at once"

_LOGS = "astra gives every element a log of its own below the run directory, [run] dir"

_ANSWER = "astra reads the output of sbatch"

REFUSED: Mapping[str, str] = {
    "array": _THROTTLE,
    "job_name": "astra finds lost submissions by the name it gives",
    "output": _LOGS,
    "error": _LOGS,
    "input": "an element reads no input",
    "chdir": "astra runs elements in the run directory, [run] dir",
    "wrap": "astra writes the script; put commands that come first into setup",
    "parsable": _ANSWER,
    "quiet": _ANSWER,
    "verbose": _ANSWER,
    "help": _ANSWER,
    "usage": _ANSWER,
    "version": _ANSWER,
    "test_only": "nothing would run; --dry-run shows a script without submitting it",
    "wait": "astra does not wait for its elements; see astra status",
    "uid": "elements run as the user who submits them",
    "gid": "elements run as the user who submits them",
}

_TIMES = {"time", "time_min"}

_SIZES = {"mem", "mem_per_cpu", "mem_per_gpu", "tmp"}

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)

_SIZE = re.compile(r"\d+([KMGT]B?)?", re.IGNORECASE)

_SIGNAL = re.compile(r"([RB]+:)?(\w+)(@\d+)?", re.IGNORECASE)


def _setup(value: object) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
        raise ValueError('should be a list of shell lines, such as ["module load python"]')
    if any("\0" in line for line in lines):
        raise ValueError("a line contains a NUL character")
    return tuple(lines)


def _throttle(value: object) -> int | None:
    return None if value is False or value is None else whole(1)(value)


_PYTHON = command('"python3" or "apptainer exec astra.sif python3"')

_TEMPLATE = matching(r"(?s).+", 'the name of a template, such as "element.sh.j2"')


@dataclass(frozen=True)
class Profile:
    """One profile, merged with those that it extends."""

    name: str
    options: Mapping[str, Value] = field(default_factory=dict)  # in snake case, none is False
    setup: tuple[str, ...] = entry((), _setup)  # lines of shell, run before the element
    #: The command that runs Python on a node.
    python: tuple[str, ...] = entry((sys.executable,), _PYTHON)
    throttle: int | None = entry(None, _throttle)  # how many elements may run at once
    max_elements: int = entry(1000, whole(1))  # of a submission whose elements pull
    pages_per_element: int = entry(1, whole(1))
    pull: bool = entry(True, flag)  # elements take pages while any is free; else fixed ones
    row_timeout: float | None = entry(None, number(0))  # in s; or that of [element]
    template: str = entry("element.sh.j2", _TEMPLATE)
    policy: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # overrides [policy]
    given: Mapping[str, object] = field(default_factory=dict)  # overrides for one submission

    @property
    def partition(self) -> str | None:
        return str(self.options.get("partition") or "") or None

    @property
    def clusters(self) -> str | None:
        return str(self.options.get("clusters") or "") or None

    def with_options(self, **changes: object) -> "Profile":
        """Return this profile with some keys changed; ``False`` or None removes an option.

        Raises
        ------
        ConfigError
            If a key or its value would be refused in a file.
        """
        profile = _applied(
            self, changes, self.name, f"profile {self.name!r} with the given options:"
        )
        return replace(profile, given={**self.given, **changes})

    def with_more(self, **values: Sequence[str]) -> "Profile":
        """Return this profile with further values of options that are lists."""
        lists = {
            key: ",".join(filter(None, [str(self.options.get(key) or ""), *more]))
            for key, more in values.items()
            if more
        }
        return self.with_options(**lists) if lists else self


#: astra's own keys of a profile, except ``policy`` and ``extends``, which are read elsewhere.
_OWN = {item.name: item.metadata["check"] for item in fields(Profile) if "check" in item.metadata}


def names(config: Config) -> list[str]:
    """Return the names of the profiles of the configuration, and of the shipped ones."""
    return sorted({*config.profiles, *_shipped()})


def get(name: str | None, config: Config) -> Profile:
    """Return the profile of a name; without one, ``default`` or the shipped ``general``.

    Raises
    ------
    ConfigError
        If there is no such profile, or one of its keys is refused.
    """
    if name is None:
        name = "default" if "default" in config.profiles else "general"
    return replace(_merged(name, config), name=name)


def directives(profile: Profile) -> list[tuple[str, str | None]]:
    """Return (long option, value) of every option of a profile; None for a bare flag."""
    return [
        (key.replace("_", "-"), None if value is True else str(value))
        for key, value in profile.options.items()
    ]


def _merged(name: str, config: Config, above: tuple[tuple[str, str], ...] = ()) -> Profile:
    """Return a profile on top of those that it extends.

    Those `above` extend it, the nearest last, each with its file.
    """
    # A profile that extends its own name extends the shipped profile of that name.
    is_shipped = name not in config.profiles or (above and above[-1][0] == name)
    tables = _shipped() if is_shipped else config.profiles
    file = str(_shipped_file() if is_shipped else config.path or "configuration")
    if name not in tables:
        whose = f"{above[-1][1]}: [profiles.{above[-1][0]}] extends {name!r}: " if above else ""
        raise ConfigError(f"{whose}no profile {name!r}. {nearest(name, names(config))}")
    if (name, file) in above:
        circle = " -> ".join([*(n for n, _ in above), name])
        raise ConfigError(f"{file}: profiles extend each other in a circle: {circle}")
    place, keys = f"{file}: [profiles.{name}]", dict(tables[name])
    extended = keys.pop("extends", None)
    if not isinstance(extended, str | None):
        raise ConfigError(
            f'{place} extends = {extended!r}: should be the name of one profile, such as "general"'
        )
    base = Profile(name)
    if extended is not None:
        base = _merged(extended, config, (*above, (name, file)))
    return _applied(base, keys, name, place)


def _shipped_file() -> Path:
    return shipped_files.config_dir() / "profiles.toml"


@cache
def _shipped() -> Mapping[str, Mapping[str, object]]:
    file = _shipped_file()
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; install astra again") from error
    return MappingProxyType(tables["profiles"])


def _applied(profile: Profile, keys: Mapping[str, object], layer: str, place: str) -> Profile:
    options: dict[str, Value] = dict(profile.options)
    changes: dict[str, Any] = {}
    rules_of = partial(retry_rules.checked, place=f"profiles.{layer}.policy")
    for key, value in keys.items():
        try:
            if key == "policy":
                changes[key] = _on_top(profile.policy, rules_of(value))
            elif key == "extends":
                raise ValueError("belongs in a profile of the configuration; choose that profile")
            elif key in _OWN:
                changes[key] = _OWN[key](value)
            elif (checked := _option(key, value)) is False:
                options.pop(key, None)
            else:
                options[key] = checked
        except ValueError as error:
            raise ConfigError(f"{place} {key}: {error}") from None
    if "pages_per_element" in changes:  # a number of pages for each element implies fixed pages
        changes.setdefault("pull", False)
    elif changes.get("pull"):
        changes["pages_per_element"] = 1
    return replace(profile, **changes, options=MappingProxyType(options))


def _on_top(
    below: Mapping[str, Mapping[str, object]], rules: Mapping[str, Mapping[str, object]]
) -> Mapping[str, Mapping[str, object]]:
    return {state: {**below.get(state, {}), **rules.get(state, {})} for state in {*below, *rules}}


def _option(key: str, value: object) -> Value:
    """Return the checked value of an sbatch option; False for one that is left out."""
    if key in REFUSED:
        raise ValueError(f"cannot be set in a profile: {REFUSED[key]}")
    if key not in OPTIONS:
        if key.replace("-", "_") in OPTIONS:
            raise ValueError(f"options are written in snake case: {key.replace('-', '_')}")
        raise ValueError(
            f"no such option of sbatch. {nearest(key, {*OPTIONS, *_OWN, 'extends', 'policy'})}"
        )
    if value is False or value is None:
        return False
    if value is True:
        if key in _WITH_VALUE:
            raise ValueError("true stands for a bare flag, but sbatch requires a value here")
        return True
    if key in _FLAGS:
        raise ValueError(f"{value!r} should be true or false: sbatch takes no value here")
    if not isinstance(value, str | int | float):
        raise ValueError(f'{value!s} should be a text, as sbatch takes it: {key} = "..."')
    text = str(value)
    if not text or any(c in text for c in "\0\n\r"):
        raise ValueError(f"{value!r} should be one line of text, not empty")
    return _well_formed(key, value)


def _well_formed(key: str, value: Value) -> Value:
    """Return `value` if sbatch can read it; the message of a common mistake explains it."""
    text = str(value)
    if key in _TIMES and not _TIME.fullmatch(text):
        raise ValueError(
            f'{value!r} is not a time that Slurm accepts; write minutes as 120, "02:00:00", or '
            '"1-12:00:00" for a day and 12 hours'
        )
    if key == "clusters" and ("," in text or text.lower() == "all"):
        raise ValueError("name one cluster: Slurm would choose among several for each array")
    if key in _SIZES and not _SIZE.fullmatch(text):
        raise ValueError(f'{value!r} is not a size of Slurm\'s; write "8G", "512M", or MB as 8000')
    if key == "signal" and not (
        (match := _SIGNAL.fullmatch(text)) and "B" in (match[1] or "").upper()
    ):
        raise ValueError(
            f'{value!r} would not reach the element, which runs in the batch shell; write "B:'
            f'{text.rpartition(":")[2]}"'
        )
    return value


def choose_profile(name: str | None, options: Mapping[str, object] | None) -> Profile:
    """Return the profile of a name, with options that override its own."""
    profile = get(name, settings.current())
    overrides = {key: value for key, value in (options or {}).items() if value is not None}
    return without_early_signal(profile.with_options(**overrides) if overrides else profile)


def keys_for_slurm(profile: Profile) -> list[str]:
    """Return the keys of a profile that have an effect only on Slurm."""
    plain = Profile(profile.name)
    own_keys = ("throttle", "pages_per_element", "python", "template")
    return [*profile.options, *(k for k in own_keys if getattr(profile, k) != getattr(plain, k))]


def without_early_signal(profile: Profile, default_time: str | None = None) -> Profile:
    """Return the profile without its warning signal if that would arrive as the element begins.

    Slurm may send it up to a minute early (sbatch(1), --signal). The SIGTERM at the time limit,
    KillWait before SIGKILL, still leaves time to store what was yielded. A profile without a time
    limit has the `default_time` of its partition.
    """
    signal = profile.options.get("signal")
    limit_s = time_limit_s(profile.options.get("time", default_time or ""))
    if signal and limit_s and limit_s < 2 * warning_lead_s(signal) + 60:
        return replace(profile.with_options(signal=False), given=profile.given)
    return profile
