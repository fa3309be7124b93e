"""The finalizer of a night: a small job that waits for its arrays and checks what happened to them.

This module submits the job and finds it again; the job itself calls `nightly.proceed`. Where a node
cannot run it, since its set-up fails there, the script submits itself again for other nodes.

A night has one finalizer at a time. Its token is committed with the night before sbatch is called,
and is part of the job's name. If the answer of sbatch is lost, the job is looked up by that name. A
job with an earlier token does nothing.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

from astra.config.nights import NightSettings
from astra.config.profiles import Profile, Value, choose_profile
from astra.config.run_folder import check_folder, run_folder, write_whole
from astra.config.units import time_limit_s, written_time
from astra.database.connection import connection
from astra.errors import (
    AstraError,
    SlurmError,
    SlurmRefused,
    SlurmUnknown,
    Superseded,
    UsageError,
)
from astra.models.nights import Night
from astra.plan.lookup import is_trusted
from astra.processes import user_name
from astra.slurm import client, limits
from astra.slurm.parse import UNKNOWN, Answer, JobId, is_held
from astra.submit.intent import submit_once
from astra.submit.render import render_job
from astra.submit.submit import nodes_to_exclude

#: The options that the finalizer takes from a profile: where the job may run, and who pays for it.
#: The finalizer has a size of its own.
_PLACEMENT = {
    "account", "clusters", "constraint", "exclude", "nodelist", "partition", "prefer", "qos",
    "reservation", "wckey",
}  # fmt: skip

_SIZE: dict[str, Value] = {"ntasks": 1, "cpus_per_task": 1, "mem": "1G"}


#: What the script of the finalizer writes where it cannot run.
_UNABLE = re.compile(r"^astra: (\S+) cannot run this job", re.MULTILINE)


def job_name(night: Night) -> str:
    return f"astra-night-{night.pk}-{night.finalizer}"


def folder_of(night: Night) -> str:
    """Return the folder in which a night's finalizer runs, where it finds modules of tasks.

    It is the night's own, or the current one if another role made the night in a folder that is
    not trusted: code in that folder would run with the privileges of the user who submits the
    finalizer.
    """
    return night.cwd if is_trusted(night.role, night.token, night.cwd) else str(Path.cwd())


def job_of(night: Night) -> JobId:
    """Return the job of a night's finalizer, identified by number, name and cluster."""
    number, name = night.finalizer_job or 0, job_name(night)
    return JobId(number, night.finalizer_cluster, name, night.finalizer_home, night.finalizer_user)


def queue(night: Night, settings: NightSettings, after: Iterable[JobId], wait_s: int = 0) -> None:
    """Submit the next finalizer of a night; the night's lock is held.

    Parameters
    ----------
    after : arrays that have to end before it begins.
    wait_s : it begins no earlier than after this many seconds.

    Raises
    ------
    Superseded
        If another process gave the night a finalizer meanwhile.
    SlurmRefused, SlurmUnknown
        If Slurm refused the job, or did not answer: the night keeps its earlier finalizer. If the
        job exists after all, it does nothing, because its token is not that of the night.
    """
    profile = _profile(settings)
    profile = profile.with_more(exclude=nodes_to_exclude(profile))
    cluster = profile.clusters
    before, earlier = night.finalizer, _identity(night)
    night.finalizer, night.finalizer_job = secrets.token_hex(6), None
    night.finalizer_cluster, night.finalizer_home = cluster, cluster or limits.this_cluster()
    night.finalizer_user = user_name()
    token, folder = str(night.finalizer), run_folder(night.folder)
    arguments = ["nightly", night.name, "--continue", str(night.pk), "--job", token]
    about = f"the finalizer of the night {night.pk} of {night.name}"
    path = folder / f"{job_name(night)}.sh"
    remedy = f"the night stays open; to continue it: astra nights {night.name} --heal"
    try:
        check_folder(folder / "logs")
        text = render_job(
            profile, job_name(night), folder_of(night), folder / "logs", about, arguments, path
        )
        if not _store(night, before):
            message = f"the night {night.pk} was given another finalizer, or closed, meanwhile"
            raise Superseded(message)
        write_whole(path, text, 0o700)
        options = _waiting_options(after, night.finalizer_home, wait_s)
        job = submit_once(path, job_of(night), remedy, min, options)
    except (SlurmError, UsageError) as error:
        # The earlier finalizer may be the caller: it can then try again.
        night.__data__.update(earlier)
        _store(night, token)
        if isinstance(error, (SlurmRefused, UsageError)):
            error.args = (f"{error}; {remedy}",)
        raise
    _adopt(night, job)


def _identity(night: Night) -> dict[str, object]:
    """Return the columns that identify the night's finalizer."""
    names = ("", "_job", "_cluster", "_home", "_user")
    return {f"finalizer{name}": getattr(night, f"finalizer{name}") for name in names}


def _store(night: Night, before: str | None) -> bool:
    """Store the night's finalizer, if it is still open and has the one with the token `before`."""
    unchanged = (Night.pk == night.pk) & (Night.finalizer == before) & Night.ended.is_null()
    with connection():
        return bool(Night.update(_identity(night)).where(unchanged).execute())


def _waiting_options(after: Iterable[JobId], home: str, wait_s: int) -> list[str]:
    """Return options of sbatch that make the finalizer wait for jobs; it runs on cluster `home`."""
    jobs = list(after)
    near = {job.job_id for job in jobs if (job.cluster or job.home or home) == home}
    if any((job.cluster or job.home or home) != home for job in jobs):
        wait_s = max(wait_s, 300)  # a job cannot depend on jobs of another cluster
    options = [f"--dependency=afterany:{':'.join(map(str, sorted(near)))}"] if near else []
    return [*options, *([f"--begin=now+{wait_s}"] if wait_s else [])]


def _adopt(night: Night, job: JobId) -> None:
    """Store this job as the night's finalizer."""
    night.finalizer_job, night.finalizer_cluster = job.job_id, job.cluster
    night.finalizer_home = job.cluster or night.finalizer_home
    _store(night, night.finalizer)


def is_alive(night: Night, answer: Answer | None = None, adopts: bool = True) -> bool:
    """Return whether a night has a finalizer that waits or runs, and is not held.

    If sbatch's answer was lost, or the job's script submitted it again for other nodes, it is found
    by its name.

    Parameters
    ----------
    answer : Slurm's answer about its stored job; by default, Slurm is asked.
    adopts : whether to store the job that is found by its name.

    Raises
    ------
    SlurmUnknown
        If Slurm does not say.
    """
    if night.finalizer is None:
        return False
    job = job_of(night)
    if night.finalizer_job is not None and _lives(night, job, answer):
        return True
    last = max(client.find(job), default=job)
    if last.job_id <= job.job_id:
        return False
    if adopts:
        _adopt(night, last)
    return _lives(night, last)


def problems_of(night: Night) -> list[str]:
    """Return a message if no node could run the finalizer, according to the logs of its jobs."""
    name, folder = job_name(night), run_folder(night.folder) / "logs"
    try:
        logs = sorted(folder.glob(f"{name}-*.log"), key=lambda log: log.stat().st_mtime)
        found = [_UNABLE.findall(log.read_text(errors="replace")) for log in logs]
    except OSError:  # another user's
        return []
    if not found or not found[-1]:  # the last one runs, or has run
        return []
    nodes = ", ".join(dict.fromkeys(chain.from_iterable(found)))
    return [
        f"its finalizer could not run on {nodes}, and is submitted again: {logs[-1]} says why. To "
        f"continue once its profile is correct: astra nightly {night.name} --continue {night.pk}"
    ]


def _lives(night: Night, job: JobId, answer: Answer | None = None) -> bool:
    """Return whether a finalizer's job waits or runs; one held after a failed prolog does not."""
    answer = answer or client.elements([job])
    execution = answer.of(job.key, None)
    if execution.state is not None:
        return execution.state.alive and not is_held(execution.reason)
    if execution is UNKNOWN and not answer.accounting and answer.queue_covers(job.key):
        return False  # without accounting only squeue can say
    raise SlurmUnknown(
        f"it is unknown whether the finalizer of the night {night.pk} (job {job.job_id}) "
        f"is alive: {'; '.join(answer.notes) or 'Slurm does not say'}"
    )


def _profile(settings: NightSettings) -> Profile:
    """Return the finalizer's profile: its own, or that of the tasks."""
    own_profile = settings.finalizer_profile
    profile = choose_profile(own_profile or settings.profile, None)
    options = {k: v for k, v in profile.options.items() if own_profile or k in _PLACEMENT}
    limit_s = time_limit_s(settings.finalizer_time)
    try:
        max_s = limits.partition_limits(profile.partition, profile.clusters).max_time_s
    except AstraError:
        max_s = None  # sbatch will refuse a time limit that is too long
    if limit_s and max_s:
        limit_s = min(limit_s, max_s)
    options = _SIZE | options | {"time": written_time(limit_s or 3600)}
    options.pop("signal", None)
    return replace(profile, options=options)
