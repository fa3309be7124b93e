"""Entries for cron and scrontab, which start a night in an almost empty environment.

The entry itself contains all that the command needs: absolute paths, PATH, the configuration of
Slurm and astra, and the log. Standard output goes only to the log; error output goes to the log and
into cron's mail.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from astra.config import secrets
from astra.config import settings as config
from astra.config.run_folder import check_folder
from astra.config.settings import settings_of
from astra.database.connection import url
from astra.errors import AstraError, ConfigError, UsageError
from astra.processes import user_name
from astra.slurm.script import quote
from astra.submit.render import environment

#: Variables of Slurm's commands, which a shell may have set and cron has not.
_PASSED_ON = ("SLURM_CONF", "SLURM_CONF_SERVER")

#: The environment that cron gives to a command (crontab(5)).
_CRON_ENVIRONMENT = {"SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}

_MAX_CHARACTERS = 998  # of a command, in Debian's cron


def entry(name: str, at: str, mailto: str | None = None, scron: bool = False) -> str:
    """Return the crontab entry that begins the night `name` at the times `at`.

    Two marks, by which it is found again, enclose its lines.

    Raises
    ------
    UsageError
        If `at` does not have the fields of a schedule, or the entry would be too long for cron.
    """
    at = " ".join(at.split())
    if len(at.split()) != 5 and not at.startswith("@"):
        raise UsageError(
            f"--at {at!r}: write five fields (minute hour day month weekday), such as "
            '"0 20 * * *" for every day at 20:00, or @daily'
        )
    settings = settings_of(name)
    command = command_of(name)
    if scron:
        return _marked(name, *_scron_lines(name, settings.profile), f"{at} {command}")
    escaped = command.replace("%", "\\%")
    if len(escaped) > _MAX_CHARACTERS:
        raise UsageError(
            f"the entry would have {len(escaped)} characters, and cron accepts {_MAX_CHARACTERS}: "
            f"shorten the longest of its words, {max(shlex.split(command), key=len)[:60]}..."
        )
    to = mailto if mailto is not None else user_name()
    if not re.fullmatch(r"[\w.@+,-]*", to):
        raise UsageError(f"--mailto {to!r}: should be one address or several, with commas")
    return _marked(name, f"MAILTO={to}", f"{at} {escaped}")


def _marked(name: str, *lines: str) -> str:
    begin, end = _marks(name)
    return "\n".join([begin, *lines, end, ""])


def command_of(name: str, *options: str) -> str:
    """Return the shell command that begins a night in an empty environment, and its log."""
    variables = {**environment(), "PATH": _path()}
    variables |= {key: os.environ[key] for key in _PASSED_ON if os.environ.get(key)}
    if config.current().source("database.url") == "ASTRA_DATABASE_URL":
        if secrets.has_password(url()):
            raise ConfigError(
                "ASTRA_DATABASE_URL contains a password, which must not be written to a crontab: "
                "put the URL without it into [database] url, and the password into ~/.pgpass "
                "(mode 600)"
            )
    pairs = " ".join(f"{key}={quote(value)}" for key, value in sorted(variables.items()))
    log = Path(config.current().run.dir).absolute() / "cron" / f"{name}.log"
    check_folder(log.parent)
    program = " ".join(map(quote, [sys.executable, "-P", "-m", "astra", "nightly", name, *options]))
    begin = f"cd {quote(str(Path.cwd()))} && env {pairs} {program}"
    return f"{{ {{ {begin}; }} 2>&1 >&3 | tee -a {quote(str(log))} >&2; }} 3>>{quote(str(log))}"


def _path() -> str:
    """Return the PATH with Python, Slurm's commands, and those of the system."""
    folders = [Path(sys.executable).parent]
    folders += [Path(p).parent for p in (shutil.which("sbatch"), shutil.which("sendmail")) if p]
    return ":".join(dict.fromkeys([*map(str, folders), "/usr/local/bin", "/usr/bin", "/bin"]))


def _scron_lines(name: str, profile_name: str | None) -> list[str]:
    """Return the options that let the job which begins the night run where its tasks run."""
    from astra.config.profiles import choose_profile

    options = choose_profile(profile_name, None).options
    placement = [(k, options[k]) for k in ("partition", "account", "qos") if k in options]
    fixed = [("job-name", f"astra-cron-{name}"), ("time", "00:30:00"), ("mem", "1G")]
    return [f"#SCRON --{key}={value}" for key, value in [*fixed, *placement]]


def _marks(name: str) -> tuple[str, str]:
    return (
        f"# astra night {name}: begin (astra cron {name} --remove)",
        f"# astra night {name}: end",
    )


def install(name: str, new: str, scron: bool = False) -> None:
    """Add an entry to the user's table; it replaces an earlier one of the same night."""
    program = _program(scron)
    table = without_entry(_read_table(program), name)
    newline = "" if not table or table.endswith("\n") else "\n"
    # The entry is added at the end, as variables that it sets apply to all later lines.
    _write_table(program, f"{table}{newline}{new}")


def remove(name: str, scron: bool = False) -> bool:
    """Remove a night's entry, and leave all other lines; return whether there was one."""
    program = _program(scron)
    table = _read_table(program)
    remaining = without_entry(table, name)
    if remaining == table:
        return False
    _write_table(program, remaining)
    return True


def has_entry(name: str) -> bool:
    """Return whether the user's crontab or scrontab begins a night.

    Raises
    ------
    UsageError
        If there is neither of the two, or one cannot be read and the other does not begin it.
    """
    programs = [path for word in ("crontab", "scrontab") if (path := shutil.which(word))]
    tables = map(_read_table, programs or [_program(False)])
    return any(without_entry(table, name) != table for table in tables)


def without_entry(table: str, name: str) -> str:
    """Return a crontab without the entry of a night."""
    begin, end = map(re.escape, _marks(name))
    return re.sub(rf"^{begin}\n.*?^{end}\n?", "", table, flags=re.MULTILINE | re.DOTALL)


def _program(scron: bool) -> str:
    name = "scrontab" if scron else "crontab"
    path = shutil.which(name)
    if path is None:
        other = "" if scron else "; where the cluster has scrontab: --scron"
        raise UsageError(
            f"this machine has no {name} command{other}; without --install, the entry is printed"
        )
    return path


def _run(command: Iterable[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(command), input=text, capture_output=True, encoding="utf-8",
        errors="surrogateescape",  # other lines may be in any encoding, and stay as they are
        check=False,
    )  # fmt: skip


#: What crontab and scrontab print if there is no table to read.
_NO_TABLE = re.compile("no crontab|scrontab is disabled on this cluster", re.IGNORECASE)


def _read_table(program: str) -> str:
    process = _run([program, "-l"])
    if process.returncode and not _NO_TABLE.search(process.stdout + process.stderr):
        raise UsageError(f"{program} -l: {(process.stderr or process.stdout).strip()}")
    return "" if process.returncode else process.stdout


def _write_table(program: str, table: str) -> None:
    process = _run([program, "-"], table) if table.strip() else _run([program, "-r"])
    if process.returncode:
        raise UsageError(
            f"{program} refused the entry, and nothing was changed: {process.stderr.strip()}"
        )


def check(name: str) -> str:
    """Check everything that a night needs, in an environment as bare as cron's; start nothing.

    Raises
    ------
    AstraError
        If the check fails; the message says what is missing.
    """
    settings_of(name)
    user = {"HOME": os.environ.get("HOME", "/"), "LOGNAME": user_name()}
    command = command_of(name, "--check").partition("2>&1 >&3")[0].strip().removeprefix("{ ")
    process = subprocess.run(
        ["/bin/sh", "-c", command], env={**_CRON_ENVIRONMENT, **user}, cwd=user["HOME"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if process.returncode:
        output = (process.stdout + process.stderr).strip().removeprefix("astra:").strip()
        error = AstraError(f"the check failed in cron's environment:\n{output}")
        error.exit_status = process.returncode  # that of astra nightly NAME --check
        raise error
    return process.stdout.strip()
