"""Submit jobs to Slurm, query their states, and cancel them.

What reads the answers is pure: text in, value out. An unanswered query is never treated as an
answer: :class:`~astra.errors.SlurmUnknown` where it is not known whether a job exists, a state of
None where it is not known whether an element lives.
"""

import math
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from astra.config import settings as config
from astra.errors import SlurmError, SlurmUnknown
from astra.processes import user_name
from astra.slurm.command import Failed, run
from astra.slurm.limits import here
from astra.slurm.parse import (
    SACCT,
    SQUEUE,
    USAGE,
    Answer,
    Execution,
    JobId,
    Key,
    Names,
    Usage,
    parse_sacct,
    parse_squeue,
    parse_submission,
    parse_usage,
    settle,
)
from astra.slurm.refusals import refusal
from astra.slurm.script import array_spec

#: Runs one of Slurm's commands.
Asks = Callable[[Sequence[str]], str]

_LONGEST_ARGUMENT = 100_000  # characters; Linux takes 131,072 in one argument


def submit(script: Path, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> JobId:
    """Submit a batch script.

    Raises
    ------
    SlurmRefused
        If Slurm said no; the message has its words and what to change.
    SlurmUnknown
        If it is not known whether the job exists: look for it with :func:`find`.
    """
    try:
        words = ["sbatch", "--parsable", *args, str(script)]
        output = _pace.call(script.parent, lambda: run(words, env=env))
    except Failed as failed:
        if made := parse_submission(failed.output):
            return made  # it complained, and made the job all the same
        raise refusal(failed.words) from None
    if made := parse_submission(output):
        return made
    raise SlurmUnknown(f"sbatch succeeded, but printed {output.strip()[:200]!r} and no job id")


def try_options(options: Iterable[tuple[str, str | None]]) -> None:
    """Have Slurm check the options of a job, without submitting one.

    Raises
    ------
    SlurmRefused
        If it would refuse the job; the message has its words and what to change.
    SlurmUnknown
        If there is no answer.
    """
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options]
    try:
        run(["sbatch", "--test-only", *words, "--wrap", "true"])
    except Failed as failed:
        raise refusal(failed.words) from None


class _Pace:
    """sbatch is called with pauses, which slurmctld uses for others.

    The arrays of one plan, whose scripts lie in one folder, follow one another closely where it
    answers at once; a call that takes a second is followed by a pause of one, and a call that
    takes two by one of four.
    """

    next_s = -math.inf  # by the monotonic clock: the next call is not to begin sooner
    floor_s = -math.inf  # the same for a script of another folder
    folder: Path | None = None

    def call(self, folder: Path, work: Callable[[], str]) -> str:
        next_s = self.next_s if folder == self.folder else max(self.next_s, self.floor_s)
        time.sleep(max(next_s - time.monotonic(), 0.0))
        began = time.monotonic()
        try:
            return work()
        finally:
            ended = time.monotonic()
            took_s, jitter = ended - began, random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            self.folder = folder
            self.next_s = ended + min(took_s * max(took_s, 0.1), 30.0) * jitter
            self.floor_s = ended + config.current().slurm.pause_s * jitter


_pace = _Pace()


def find(
    job_name: str,
    clusters: str | None = None,
    env: Mapping[str, str] | None = None,
    home: str | None = None,
    user: str | None = None,
) -> list[JobId]:
    """The jobs of exactly that name which a `user` submitted, ended ones included.

    `clusters` is as sbatch's ``--clusters`` has it: one of these took the job. Without it the job
    went to the cluster `home`, or to this machine's. Without `user` it is the caller.

    Raises
    ------
    SlurmUnknown
        If squeue gives no answer, or would not show the jobs of that user.
    """
    clusters = clusters or _if_elsewhere(home, env)
    is_mine = user in (None, user_name())
    mine = ["-u", str(os.getuid()) if is_mine else str(user), *_on(clusters)]
    try:
        columns = "ArrayJobID:|,Name:|,Cluster:|"
        text = run(["squeue", "-h", "-t", "all", "-n", job_name, "-O", columns, *mine], env=env)
    except Failed as failed:
        raise SlurmUnknown(f"squeue: {failed.words}") from None
    if not (found := _named(text, job_name)):
        period = ["-S", "now-30days", "--name", job_name, "-o", "JobID,JobName,Cluster"]
        try:
            text = run(["sacct", "-n", "-X", "-P", *period, *mine], env=env)
        except SlurmError:
            return []  # no accounting: squeue has answered, and knows of none
        found = _named(text, job_name)
    if not found and not is_mine and os.geteuid() != 0 and here(env).is_private:
        raise SlurmUnknown(f"Slurm shows no jobs of others (PrivateData): have {user} ask")
    return [
        JobId(job_id, cluster if clusters else None, job_name, user=user)
        for job_id, cluster in sorted(found)
    ]


def _named(text: str, job_name: str) -> set[tuple[int, str]]:
    """Jobs of a name, each with its cluster."""
    lines = (line.split("|") for line in text.splitlines() if line.count("|") >= 2)
    return {
        (int(re.split(r"[_+]", job_id)[0]), cluster.strip())
        for job_id, name, cluster, *_ in lines
        if name == job_name
    }


def elements(
    jobs: Iterable[int | JobId],
    env: Mapping[str, str] | None = None,
    again: bool = True,
    recent_s: float = 0.0,
) -> Answer:
    """What Slurm says of all elements of some jobs: one squeue, one sacct for each cluster.

    squeue decides what lives. What has left its memory is taken from sacct, which may lag: an
    element that sacct calls alive and squeue, asked `again`, does not know is unknown.

    Those who only look take answers that are `recent_s` seconds old; who acts upon them does not.
    """
    parts = _by_cluster(jobs)
    asks = partial(run, env=env, recent_s=recent_s)
    found = []
    for cluster, part in parts:
        answer = _elements(part, cluster, asks, again)
        found += _asked_elsewhere(part, answer, asks, env, again) if cluster is None else [answer]
    return Answer(
        executions=_merged(answer.executions for answer in found),
        queue=all(answer.queue for answer in found),
        accounting=all(answer.accounting for answer in found),
        unsettled=frozenset().union(*(answer.unsettled for answer in found)),
        notes=tuple(note for answer in found for note in answer.notes),
        jobs=frozenset(job.key for _, part in parts for job in part),
        queued=frozenset().union(*(answer.queued for answer in found)),
    )


def _merged(parts: Iterable[Mapping[Key, Execution]]) -> Mapping[Key, Execution]:
    """Of several arrays' elements one mapping: there may be 100,000, and mostly one part."""
    found: Mapping[Key, Execution] = {}
    for part in parts:
        found = {**found, **part} if found else part
    return found


def _by_cluster(jobs: Iterable[int | JobId]) -> list[tuple[str | None, list[JobId]]]:
    found: dict[str | None, dict[int | str, JobId]] = {}
    for job in jobs:
        job = job if isinstance(job, JobId) else JobId(job)
        found.setdefault(job.cluster, {})[job.key] = job
    return [(cluster, sorted(part.values())) for cluster, part in found.items()]


#: Numbers of jobs lie below. Slurm's commands refuse a whole list for one that does not.
_JOB_IDS_BELOW = 2**32


def _ids(jobs: Iterable[JobId]) -> list[int]:
    """The numbers of jobs; those that Slurm cannot have given are left out."""
    return sorted({job.job_id for job in jobs if 0 < job.job_id < _JOB_IDS_BELOW})


def _names(jobs: Iterable[JobId]) -> Names:
    found: dict[int, set[str]] = {}
    for job in jobs:
        if job.name is not None:
            found.setdefault(job.job_id, set()).add(job.name)
    return found


def _asked_elsewhere(
    jobs: Sequence[JobId], answer: Answer, asks: Asks, env: Mapping[str, str] | None, again: bool
) -> list[Answer]:
    """The answer, and those of other clusters about jobs that this one did not take.

    That a job is absent counts only where it would be seen: on the cluster that took it, by a
    user who may see it.
    """
    seen = {job for job, _ in answer.executions}
    silent = [job for job in jobs if job.key not in seen and answer.queue]
    if not any(job.home or job.user for job in silent):
        return [answer]
    try:
        this = here(env)
    except SlurmError as error:
        note = f"the cluster of this machine is unknown, so no job is treated as gone: {error}"
        return [_doubted(answer, silent, note)]
    elsewhere: dict[str, list[JobId]] = {}
    for job in silent:
        if job.home is not None and job.home != this.name:
            elsewhere.setdefault(job.home, []).append(job)
    hidden = [
        job
        for job in silent
        if this.is_private
        and os.geteuid() != 0
        and job.user not in (None, user_name())
        and job.home in (None, this.name)
    ]
    if hidden:
        users = ", ".join(sorted({str(job.user) for job in hidden}))
        note = (
            f"Slurm shows {user_name()} no jobs of others (PrivateData), so that jobs of {users} "
            f"are unknown here: ask {users} to run the command"
        )
        answer = _doubted(answer, hidden, note)
    parts = []
    for home, some in elsewhere.items():
        other = _elements(some, home, asks, again)
        if not other.queue:
            note = (
                f"the cluster {home} took {_list(_ids(some))}, and this machine belongs to "
                f"{this.name} and cannot ask it: run the command on a login node of {home}"
            )
            other = Answer(notes=(note,), unsettled=frozenset(job.key for job in some))
        parts.append(other)
    if elsewhere:
        gone = {job.key for some in elsewhere.values() for job in some}
        answer = replace(answer, unsettled=answer.unsettled - gone)
    return [answer, *parts]


def _doubted(answer: Answer, jobs: Iterable[JobId], note: str) -> Answer:
    unsettled = answer.unsettled | {job.key for job in jobs}
    return replace(answer, unsettled=unsettled, notes=(*answer.notes, note))


def _elements(jobs: Sequence[JobId], cluster: str | None, asks: Asks, again: bool) -> Answer:
    ids, names = _ids(jobs), _names(jobs)

    def queue(some: Sequence[int]) -> Mapping[Key, Execution]:
        return _merged(_squeue(part, names, cluster, asks) for part in _chunks(some))

    try:
        queued = queue(ids)
    except SlurmError as error:
        return Answer(
            queue=False, notes=(f"squeue gave no answer, so nothing is known of the jobs: {error}",)
        )
    try:
        booked = _merged([_sacct(part, names, cluster, asks) for part in _chunks(ids)])
    except SlurmError as error:
        note = f"sacct gave no answer, ended elements that squeue forgot are unknown: {error}"
        shown = frozenset(job for job, _ in queued)
        silent = [job for job in jobs if job.key not in shown and _ids([job])]
        # A squeue that says nothing is no proof by itself. Of one of them Slurm is asked for its
        # word, which then stands for all: never one call for each.
        gone = not silent or _is_gone(max(silent), cluster, asks)
        unsure = frozenset() if gone else frozenset(job.key for job in silent)
        return Answer(queued, accounting=False, unsettled=unsure, notes=(note,), queued=shown)
    known = {job for job, _ in queued}
    lagging = {
        job
        for job, index in booked.keys() - queued.keys()
        if (state := booked[job, index].state)
        and state.alive
        # An entry without index is the array as a whole, before its elements have theirs.
        and (index is not None or job not in known)
    }
    if lagging and again:
        try:
            some = _ids(job for job in jobs if job.key in lagging)
            queued = {**queue(some), **queued}
        except SlurmError as error:
            return Answer(queued, queue=False, notes=(f"squeue gave no second answer: {error}",))
    return settle(queued, booked)


def _is_gone(job: JobId, cluster: str | None, asks: Asks) -> bool:
    """Whether Slurm itself says that it has no such job, or another one of its number."""
    try:
        text = asks(["scontrol", *_on(cluster), "show", "job", str(job.job_id)])
        return job.name is not None and f"JobName={job.name}\n" not in text
    except Failed as failed:
        return "Invalid job id specified" in failed.words
    except SlurmError:
        pass
    return False


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    size = _LONGEST_ARGUMENT // 11  # ten digits and a comma
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _on(cluster: str | None) -> list[str]:
    return ["-M", cluster] if cluster else []


def _list(ids: Iterable[int]) -> str:
    return ",".join(map(str, ids))


def _squeue(
    ids: Sequence[int], names: Names, cluster: str | None, asks: Asks
) -> dict[Key, Execution]:
    columns = ",".join(f"{name}:|" for name in SQUEUE)
    # Without -r: elements of an array that wait are one line, "17_[2-1000%50]".
    args = ["squeue", "-h", "-t", "all", "-j", _list(ids), "-O", columns, *_on(cluster)]
    try:
        return parse_squeue(asks(args), names)
    except Failed as failed:
        # Said of a single id that has left squeue's memory; of several, unknown ones are skipped.
        if "Invalid job id specified" in failed.words:
            return {}
        raise


def _sacct(
    ids: Sequence[int], names: Names, cluster: str | None, asks: Asks
) -> dict[Key, Execution]:
    # -D: also the earlier executions of a requeued element; -S: sacct looks at today only.
    args = ["sacct", "-n", "-X", "-P", "-D", "-S", "2000-01-01", "-j", _list(ids)]
    return parse_sacct(asks([*args, "-o", ",".join(SACCT), *_on(cluster)]), names)


def usage(jobs: Iterable[int | JobId], recent_s: float = 0.0) -> list[Usage]:
    """What the elements of some jobs used of what they had asked for: one sacct for each cluster.

    Raises
    ------
    SlurmError
        If there is no accounting, or it gives no answer.
    """
    found: list[Usage] = []
    for cluster, some in _by_cluster(jobs):
        for part in _chunks(_ids(some)):
            args = ["sacct", "-n", "-P", "-S", "2000-01-01", "-j", _list(part)]
            args += ["-o", ",".join(USAGE), *_on(cluster)]
            found += parse_usage(run(args, recent_s=recent_s), _names(some))
    return found


def cancel(
    job: JobId,
    indices: Iterable[int] = (),
    waiting_only: bool = False,
    env: Mapping[str, str] | None = None,
) -> None:
    """End a job, or some elements of it. Ended ones are no error.

    Where its name is known, it has to agree: a stranger that has the job's number by now is left
    alone.

    Parameters
    ----------
    indices : of the elements to end; without them, all.
    waiting_only : end those only that have not begun.

    Raises
    ------
    SlurmError
        If Slurm refuses.
    SlurmUnknown
        If it gives no answer.
    """
    if not _ids([job]):
        return
    cluster = job.cluster or _if_elsewhere(job.home, env)
    args = _on(cluster)
    if indices := list(indices):
        # With --name, scancel ends all waiting elements instead of those that it is given (22.05).
        if job.name is None or _squeue([job.job_id], _names([job]), cluster, partial(run, env=env)):
            _scancel([*args, f"{job.job_id}_[{array_spec(indices)}]"], env)
        return
    args += ["--name", job.name] if job.name else []
    args += ["--state=PENDING"] if waiting_only else []
    _scancel([*args, str(job.job_id)], env)


def _if_elsewhere(home: str | None, env: Mapping[str, str] | None) -> str | None:
    """The cluster that took a job, where that is another than this machine's."""
    return home if home is not None and home != here(env).name else None


_GONE = re.compile(r"Invalid job id specified|already completing or completed")


def _scancel(args: list[str], env: Mapping[str, str] | None) -> None:
    try:
        run(["scancel", *args], env=env)
    except Failed as failed:
        said = [w for w in failed.words.split("; ") if not _GONE.search(w)]
        if said:
            raise SlurmError(f"scancel: {'; '.join(said)}") from None
