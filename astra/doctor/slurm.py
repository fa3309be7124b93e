"""Check Slurm: its commands, the cluster, the profiles, limits on jobs, accounting."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator

from astra.config.profiles import Profile, directives
from astra.database.connection import dialect
from astra.doctor.finding import Finding, failed, of_error, ok, warning
from astra.errors import ConfigError, SlurmError
from astra.processes import user_name
from astra.slurm import client, limits
from astra.slurm.command import available, run

_PART = "slurm"

_COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel")

_LOAD = "module load slurm, or work on a login node"


def slurm(profiles: Iterable[Profile]) -> Iterator[Finding]:
    """Check Slurm, and whether it would accept a job of each profile."""
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing or not available():
        yield _absent(missing)
        return
    try:
        version = run(["sbatch", "--version"]).strip()
        cluster, max_array_size = limits.this_cluster(), limits.max_array_size()
    except SlurmError as error:
        yield of_error(_PART, error)
        return
    yield ok(_PART, f"{version}, cluster {cluster}, MaxArraySize {max_array_size}")
    for name in sorted(os.environ):
        if name.startswith("SBATCH_") or name == "SLURM_CLUSTERS":
            problem = f"{name} is set, and not passed to sbatch: profiles have all options of jobs"
            yield warning(_PART, problem, f"add its option to the profile, or unset {name}")
    for profile in profiles:
        yield from _profile(profile)
    yield from _accounting(cluster)


def _absent(missing: list[str]) -> Finding:
    """Report that there is no Slurm; a SQLite file is all that ``--local`` needs."""
    problem = "Slurm is not installed here: "
    if missing:
        problem += f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH"
    else:
        named = os.environ.get("SLURM_CONF")
        problem += (
            f"SLURM_CONF names {named}, which is no file"
            if named
            else "there is no slurm.conf in the usual places, and SLURM_CONF names none"
        )
    try:
        is_local = dialect().name == "sqlite"
    except ConfigError:
        is_local = False
    if is_local:
        return warning(_PART, problem, f"submit with --local, or {_LOAD}")
    return failed(_PART, problem, _LOAD)


def _profile(profile: Profile) -> Iterator[Finding]:
    """Check whether Slurm would accept a job with a profile's options, and ever start it."""
    name = f"profile {profile.name}"
    try:
        client.try_options(directives(profile))
    except SlurmError as error:
        refusal = of_error(_PART, error)
        yield failed(_PART, f"{name}: {refusal.message}", refusal.remedy or "change the profile")
        return
    late = limits.obstacles_to(profile)
    for line in late:
        problem, _, remedy = line.partition(": ")
        yield warning(_PART, f"{name}: {problem}", remedy)
    if not late:
        yield ok(_PART, f"{name}: {limits.partition_name(profile)} takes its jobs")


def _accounting(cluster: str) -> Iterator[Finding]:
    """Check whether accounting remembers ended elements, and limits this user's jobs here."""
    try:
        run(["sacct", "-n", "-X", "-P", "-S", "now-1minutes", "-o", "JobID"])
        yield ok(_PART, "accounting (sacct) answers")
    except SlurmError as error:
        remedy = "have the administrator set AccountingStorageType=accounting_storage/slurmdbd"
        problem = (
            "there is no accounting, so that elements are known only for minutes after they end: "
            f"{error}"
        )
        yield warning(_PART, problem, remedy)
        return
    columns = "Account,Partition,MaxJobs,MaxSubmit,GrpJobs,GrpSubmit,QOS"
    who = f"user={user_name()}", f"cluster={cluster}"
    try:
        text = run(["sacctmgr", "-n", "-P", "show", "assoc", *who, f"format={columns}"])
    except SlurmError:
        return  # a cluster may keep it from its users
    names = columns.split(",")
    for line in text.splitlines():
        values = dict(zip(names, line.split("|"), strict=False))
        bounds = [f"{key} {values[key]}" for key in names[2:6] if re.match(r"\d", values[key])]
        account = values["Account"] + (f" in {values['Partition']}" if values["Partition"] else "")
        yield ok(_PART, f"account {account}: {', '.join(bounds) or 'no limit of jobs'}")
