"""Run Slurm's commands, and distinguish an answer from a failure to answer."""

import logging
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from astra.config import settings as config
from astra.config.run_folder import umask_without_write
from astra.errors import SlurmError, SlurmUnknown
from astra.slurm import query_cache

log = logging.getLogger(__name__)


class Failed(SlurmError):
    """A command that ended with a status other than 0 and an error message."""

    def __init__(self, command: str, message: str, output: str) -> None:
        super().__init__(f"{command}: {message}")
        self.message, self.output = message, output


# The variables of a surrounding job would become options of these commands (SBATCH_PARTITION,
# SQUEUE_FORMAT). SLURM_CLUSTERS is removed too: the profile chooses the cluster, not a shell.
_INHERITED = re.compile(r"(SLURM|SLURMD|SBATCH|SQUEUE|SACCT|SCANCEL|SCONTROL|SINFO)_")

_KEPT = re.compile(r"SLURM_(CONF|CONF_SERVER|JWT|SACK_\w+)")

_READ_ONLY = {"squeue", "sacct", "scontrol", "sinfo"}

_NO_CONFIGURATION = re.compile(r"Could not establish a configuration source")

#: The answer to a job; lines before it are messages of the site's plugins, in any words.
_NOT_SUBMITTED = re.compile(r"Batch job submission failed: (.*)")

_NO_ANSWER = re.compile(
    r"timed out|Unable to contact slurm|Connection (refused|reset)|Zero Bytes|"
    r"Message (send|receive) failure|Communication \w+ failure|Broken pipe|"
    r"try again|currently in backup|in standby mode",
    re.IGNORECASE,
)


def run(args: Sequence[str], recent_s: float = 0.0) -> str:
    """Run one of Slurm's commands and return its output.

    A query that is not answered is repeated ``[slurm] retries`` times.

    Parameters
    ----------
    args : the command and its arguments.
    recent_s : accept cached output of the same query that is at most this old [s].

    Raises
    ------
    SlurmError
        If the command is missing, or fails with a message.
    SlurmUnknown
        If there was no answer: it is not known whether the command had an effect.
    """
    if args[0] not in _READ_ONLY:
        query_cache.forget_all()
    # Machines of different clusters may share the home folder, and with it the cache.
    source = f"{socket.gethostname()} {os.environ.get('SLURM_CONF')}"
    return query_cache.cached_output(args, source, recent_s, lambda: _run_with_retries(args))


def _run_with_retries(args: Sequence[str]) -> str:
    settings = config.current().slurm
    retries = settings.retries if args[0] in _READ_ONLY else 0
    for retry in range(1, retries + 1):
        try:
            return _run_once(args, settings.timeout_s)
        except SlurmUnknown as error:
            log.warning("%s; trying again, %d of %d", error, retry, retries)
            time.sleep(0.25 * 2.0**retry * random.uniform(0.5, 1.5))  # noqa: S311
    return _run_once(args, settings.timeout_s)


def _run_once(args: Sequence[str], timeout_s: float) -> str:
    command = args[0]
    path = shutil.which(command)
    if path is None:
        raise SlurmError(
            f"{command} is not on PATH: load the module of Slurm (module load slurm), or work on "
            "a login node"
        )
    try:
        process = subprocess.run(
            [path, *args[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=_environment(command),
            timeout=timeout_s,
            umask=umask_without_write(),  # sbatch passes it on to the element and its log
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        # If the controller has too many jobs, sbatch says so and tries again for two minutes.
        message = _messages((late.stderr or b"").decode("utf-8", "replace"))
        raise SlurmUnknown(
            f"{command} gave no answer within {timeout_s:g} s ([slurm] timeout_s); "
            + (
                f"its message: {message}"
                if message
                else "scontrol ping says whether the controller is well"
            )
        ) from None
    except OSError as error:
        raise SlurmError(f"{path} cannot be run: {error.strerror}") from error
    if process.returncode == 0:
        return process.stdout
    message = _messages(process.stderr)
    if process.returncode < 0:
        raise SlurmUnknown(
            f"{command} was killed by signal {-process.returncode}. {message}".strip()
        )
    failed = _NOT_SUBMITTED.search(message)
    if _NO_ANSWER.search(failed[1] if failed else message) or not message:
        reason = message or f"exit status {process.returncode} without a message"
        raise SlurmUnknown(f"{command}: {reason}")
    if _NO_CONFIGURATION.search(message):
        message += "; work on a login node, or set SLURM_CONF (astra submit --local needs no Slurm)"
    raise Failed(command, message, process.stdout)


def _environment(command: str) -> dict[str, str]:
    """Return the environment of a command, without the variables of a surrounding job."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not _INHERITED.match(name) or _KEPT.fullmatch(name)
    }
    if command != "sbatch":  # which passes its environment on to the job
        # 0: "17_[1,3,5...]" is written out in full, not truncated after 64 characters.
        variables.update(LC_ALL="C", SLURM_BITSTR_LEN="0", SLURM_TIME_FORMAT="standard")
    return variables


def _messages(stderr: str) -> str:
    """Return Slurm's messages on one line, without the name of the command before each."""
    lines = [
        re.sub(r"^[\w/.-]+: ((error|fatal): )?", "", line).strip() for line in stderr.splitlines()
    ]
    return "; ".join(line for line in lines if line)


def available() -> bool:
    """Return whether this machine has Slurm's commands and a configuration for them."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        return False
    if file := os.environ.get("SLURM_CONF"):  # a command would wait for a missing file for a minute
        return Path(file).is_file()
    usual = [Path(sbatch).resolve().parents[1] / "etc", Path("/run/slurm/conf")]
    usual += [Path("/etc/slurm"), Path("/etc/slurm-llnl"), Path("/usr/local/etc")]
    return "SLURM_CONF_SERVER" in os.environ or any((p / "slurm.conf").is_file() for p in usual)
