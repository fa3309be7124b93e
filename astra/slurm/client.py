"""Submit jobs to Slurm, query their states, and cancel them.

An unanswered query is never treated as an answer: :class:`~astra.errors.SlurmUnknown` is raised
where it is unknown whether a job exists, and an element's state is None where it is unknown whether
the element is alive.
"""

import math
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from astra.config import settings as config
from astra.errors import SlurmError, SlurmUnknown
from astra.processes import user_name
from astra.slurm.command import Failed, run
from astra.slurm.limits import on, shows_all_jobs, this_cluster
from astra.slurm.parse import (
    CONTRADICTED,
    SACCT,
    SQUEUE,
    USAGE,
    Answer,
    Execution,
    JobId,
    Key,
    Names,
    Usage,
    is_named,
    merge_answers,
    parse_sacct,
    parse_squeue,
    parse_submission,
    parse_usage,
)
from astra.slurm.refusals import refusal
from astra.slurm.script import array_spec

#: By default, sacct covers today until now by the clock of this machine. That clock may be behind
#: slurmctld's: what began since would be missing.
_END = ("-E", "now+365days")
_EVER = ("-S", "2000-01-01", *_END)

_LONGEST_ARGUMENT = 100_000  # characters; Linux takes 131,072 in one argument


def submit(script: Path, args: Sequence[str] = ()) -> JobId:
    """Submit a batch script.

    Raises
    ------
    SlurmRefused
        If Slurm refused the job; the message quotes it, and says what to change.
    SlurmUnknown
        If it is not known whether the job exists: look for it with :func:`find`.
    """
    try:
        command = ["sbatch", "--parsable", *args, str(script)]
        output = _pace.call(script.parent, lambda: run(command))
    except Failed as failed:
        if job := parse_submission(failed.output):
            return job  # sbatch failed, but had created the job
        raise refusal(failed.message) from None
    if job := parse_submission(output):
        return job
    shown = output.strip()[:200]
    raise SlurmUnknown(f"sbatch succeeded, but printed {shown!r}: no job id, or several")


def try_options(options: Iterable[tuple[str, str | None]]) -> None:
    """Let Slurm check the options of a job, without submitting one.

    Raises
    ------
    SlurmRefused
        If it would refuse the job; the message quotes it, and says what to change.
    SlurmUnknown
        If there is no answer.
    """
    given = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options]
    try:
        run(["sbatch", "--test-only", *given, "--wrap", "true"])
    except Failed as failed:
        raise refusal(failed.message) from None


class _Pace:
    """Pauses between calls of sbatch, in which slurmctld can serve others.

    The arrays of one plan, whose scripts are in one folder, are submitted without pauses while
    slurmctld answers at once; a call that takes one second is followed by a pause of one second,
    and a call that takes two by one of four.
    """

    next_s = -math.inf  # on the monotonic clock: the earliest start of the next call
    floor_s = -math.inf  # the same for a script in another folder
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


def find(job: JobId) -> list[JobId]:
    """Return all jobs with the name of a job whose number is not known, ended ones included.

    It is on its cluster; if it names none, on its cluster `home`, or else on that of this machine.
    By default, its user is the caller.

    Raises
    ------
    SlurmUnknown
        If squeue does not answer, or would not show the jobs of that user.
    """
    name, cluster = str(job.name), job.cluster or _if_elsewhere(job.home)
    is_mine = job.user in (None, user_name())
    user = ["-u", str(os.getuid()) if is_mine else str(job.user)]
    # -a: jobs in hidden partitions, too, which squeue otherwise shows only by their numbers.
    # Not -n: a site may have renamed the job.
    columns = "ArrayJobID:|,Name:|,Command:|"
    try:
        text = run(["squeue", "-a", "-h", "-t", "all", "-O", columns, *user, *on(cluster)])
    except Failed as failed:
        raise SlurmUnknown(f"squeue: {failed.message}") from None
    if not (jobs := _jobs_named(text, name)):
        period = ["-S", "now-30days", *_END, "--name", name, "-o", "JobID,JobName"]
        accounts = ["sacct", "-n", "-X", "-P", *period, *user, *on(cluster)]
        try:
            jobs = _jobs_named(run(accounts), name)
        except SlurmError:
            pass  # without accounting: squeue has answered, and lists none
    if not jobs and _may_be_hidden(job, cluster):
        raise SlurmUnknown(f"Slurm shows no jobs of others (PrivateData): have {job.user} ask")
    return [JobId(job_id, cluster, name, user=job.user) for job_id in sorted(jobs)]


def _jobs_named(text: str, job_name: str) -> set[int]:
    """Return the numbers of jobs of a name."""
    lines = (line for line in text.splitlines() if is_named(line, job_name))
    jobs = (re.match(r"\s*(\d+)[^|]*\|", line) for line in lines)
    return {int(job[1]) for job in jobs if job}


def elements(jobs: Iterable[int | JobId], recent_s: float = 0.0) -> Answer:
    """Query the states of all elements of some jobs: one squeue and one sacct for each cluster.

    squeue decides which elements are alive. Those that have left its memory are taken from sacct,
    which may lag: an element that sacct calls alive and squeue, queried again, does not list is
    absent.

    Commands that only show states accept output that is `recent_s` seconds old; those that act on
    them do not.
    """
    parts = _by_cluster(jobs)
    answers = []
    for cluster, part in parts:
        answer = _elements(part, cluster, recent_s)
        if cluster is None:
            answers += _answers_of_clusters(part, answer, recent_s)
        else:
            answers.append(_without_hidden(part, answer, cluster))
    return Answer(
        executions=_merged(answer.executions for answer in answers),
        queue=all(answer.queue for answer in answers),
        accounting=all(answer.accounting for answer in answers),
        unsettled=frozenset().union(*(answer.unsettled for answer in answers)),
        notes=tuple(note for answer in answers for note in answer.notes),
        jobs=frozenset(job.key for _, part in parts for job in part),
        queued=frozenset().union(*(answer.queued for answer in answers)),
    )


def _merged(parts: Iterable[Mapping[Key, Execution]]) -> Mapping[Key, Execution]:
    """Merge the elements of several arrays; most often there is one part, of up to 100,000."""
    merged: Mapping[Key, Execution] = {}
    for part in parts:
        merged = {**merged, **part} if merged else part
    return merged


def _by_cluster(jobs: Iterable[int | JobId]) -> list[tuple[str | None, list[JobId]]]:
    by_cluster: dict[str | None, dict[int | str, JobId]] = {}
    for job in jobs:
        job = job if isinstance(job, JobId) else JobId(job)
        by_cluster.setdefault(job.cluster, {})[job.key] = job
    return [(cluster, sorted(part.values())) for cluster, part in by_cluster.items()]


#: Job ids are below this. Slurm's commands refuse a whole list if one of them is not.
_JOB_IDS_BELOW = 2**32


def _ids(jobs: Iterable[JobId]) -> list[int]:
    """Return the ids of jobs, without those that Slurm cannot have assigned."""
    return sorted({job.job_id for job in jobs if 0 < job.job_id < _JOB_IDS_BELOW})


def _names(jobs: Iterable[JobId]) -> Names:
    names: dict[int, set[str]] = {}
    for job in jobs:
        if job.name is not None:
            names.setdefault(job.job_id, set()).add(job.name)
    return names


def _answers_of_clusters(jobs: Sequence[JobId], answer: Answer, recent_s: float) -> list[Answer]:
    """Return the answer, and those of other clusters about jobs that this one did not take.

    A job counts as absent only if it would have been listed: on the cluster that took it, to a
    user who may see it.
    """
    listed = {job for job, _ in answer.executions}
    silent = [job for job in jobs if job.key not in listed and answer.queue]
    try:
        here = this_cluster() if any(job.home for job in silent) else None
    except SlurmError as error:
        note = (
            f"the cluster of this machine is unknown, so no job is assumed to have ended: {error}"
        )
        return [_with_unsettled(answer, silent, note)]
    elsewhere = {job.key: job for job in silent if job.home not in (None, here)}
    near = [job for job in jobs if job.key not in elsewhere]
    answer = _without_hidden(near, answer, None)
    answers = [replace(answer, unsettled=answer.unsettled - elsewhere.keys())]
    for home, some in _by_cluster(replace(job, cluster=job.home) for job in elsewhere.values()):
        other = _elements(some, home, recent_s)
        if not other.queue:
            note = (
                f"the cluster {home} took {_list(_ids(some))}, and this machine belongs to "
                f"{here} and cannot ask it: run the command on a login node of {home}"
            )
            other = Answer(notes=(note,), unsettled=frozenset(job.key for job in some))
        answers.append(_without_hidden(some, other, home))
    return answers


def _may_be_hidden(job: JobId, cluster: str | None) -> bool:
    """Return whether squeue may leave out a job because another user submitted it."""
    is_of_other = job.user not in (None, user_name()) and os.geteuid() != 0
    return is_of_other and not shows_all_jobs(cluster)


def _without_hidden(jobs: Sequence[JobId], answer: Answer, cluster: str | None) -> Answer:
    """Return an answer of a cluster, which proves nothing about jobs that squeue does not show.

    sacct may show them nevertheless, but it lags behind.
    """
    hidden = [job for job in jobs if job.key not in answer.queued and answer.queue]
    try:
        hidden = [job for job in hidden if _may_be_hidden(job, cluster)]
        if not hidden:
            return answer
        reason = f"Slurm shows {user_name()} no jobs of others (PrivateData)"
    except SlurmError as error:
        reason = f"it is unknown whether Slurm shows {user_name()} jobs of others ({error})"
    keys = {job.key for job in hidden}
    executions = {
        key: replace(execution, state=None, reason=reason_of.removesuffix(f", {CONTRADICTED}"))
        if key[0] in keys and (reason_of := execution.reason or "").endswith(CONTRADICTED)
        else execution
        for key, execution in answer.executions.items()
    }
    answer = replace(answer, executions=executions)
    users = ", ".join(sorted({str(job.user) for job in hidden}))
    note = f"{reason}, so that jobs of {users} are unknown here: ask {users} to run the command"
    return _with_unsettled(answer, hidden, note)


def _with_unsettled(answer: Answer, jobs: Iterable[JobId], note: str) -> Answer:
    unsettled = answer.unsettled | {job.key for job in jobs}
    return replace(answer, unsettled=unsettled, notes=(*answer.notes, note))


def _elements(jobs: Sequence[JobId], cluster: str | None, recent_s: float) -> Answer:
    ids, names = _ids(jobs), _names(jobs)

    def queue(some: Sequence[int]) -> str:
        return "".join(_squeue(part, cluster, recent_s) for part in _chunks(some))

    try:
        queued = parse_squeue(queue(ids), names)
    except SlurmError as error:
        return Answer(
            queue=False, notes=(f"squeue gave no answer, so nothing is known of the jobs: {error}",)
        )
    try:
        booked = _merged([_sacct(part, names, cluster, recent_s) for part in _chunks(ids)])
    except SlurmError as error:
        note = f"sacct gave no answer, ended elements that squeue forgot are unknown: {error}"
        shown = frozenset(job for job, _ in queued)
        silent = [job for job in jobs if job.key not in shown and _ids([job])]
        # An empty list from squeue is no proof. Slurm is queried about one of the jobs, and the
        # answer is used for all: astra never makes one call for each job.
        gone = not silent or _is_gone(max(silent), cluster, recent_s)
        unsure = frozenset() if gone else frozenset(job.key for job in silent)
        return Answer(queued, accounting=False, unsettled=unsure, notes=(note,), queued=shown)
    queued_jobs = {job for job, _ in queued}
    lagging = {
        job
        for job, index in booked.keys() - queued.keys()
        if (state := booked[job, index].state)
        and state.alive
        # An entry without an index is the whole array, until its elements have their own.
        and (index is not None or job not in queued_jobs)
    }
    if lagging:
        try:
            listed = queue(_ids(job for job in jobs if job.key in lagging))
            queued = {**parse_squeue(listed, names), **queued}
            shown = frozenset(job for job, _ in queued)
            silent = [job for job in jobs if job.key in lagging - shown]
            if silent and not _is_gone(max(silent), cluster, recent_s):
                raise SlurmUnknown(f"it lists no job {max(silent).job_id}")
        except SlurmError as error:
            return Answer(queued, queue=False, notes=(f"squeue gave no second answer: {error}",))
    return merge_answers(queued, booked)


def _is_gone(job: JobId, cluster: str | None, recent_s: float) -> bool:
    """Return whether Slurm reports that no such job exists, or another one with its number."""
    try:
        text = run(["scontrol", *on(cluster), "show", "job", str(job.job_id)], recent_s)
        return job.name is not None and job.name not in text
    except Failed as failed:
        return "Invalid job id specified" in failed.message
    except SlurmError:
        return False


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    size = _LONGEST_ARGUMENT // 11  # ten digits and a comma
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _list(ids: Iterable[int]) -> str:
    return ",".join(map(str, ids))


def _squeue(ids: Sequence[int], cluster: str | None, recent_s: float = 0.0) -> str:
    columns = ",".join(f"{name}:|" for name in SQUEUE)
    # Without -r, the waiting elements of an array are one line, "17_[2-1000%50]".
    args = ["squeue", "-a", "-h", "-t", "all", "-j", _list(ids), "-O", columns, *on(cluster)]
    try:
        return run(args, recent_s)
    except Failed as failed:
        # Only a single id that has left squeue's memory is an error; in a list it is skipped.
        if "Invalid job id specified" in failed.message:
            return ""
        raise


def _sacct(
    ids: Sequence[int], names: Names, cluster: str | None, recent_s: float
) -> dict[Key, Execution]:
    # -D: earlier executions of a requeued element too.
    args = ["sacct", "-n", "-X", "-P", "-D", *_EVER, "-j", _list(ids)]
    return parse_sacct(run([*args, "-o", ",".join(SACCT), *on(cluster)], recent_s), names)


def usage(jobs: Iterable[int | JobId], recent_s: float = 0.0) -> list[Usage]:
    """Query what the elements of some jobs requested and used: one sacct for each cluster.

    Raises
    ------
    SlurmError
        If there is no accounting, or it does not answer.
    """
    usages: list[Usage] = []
    # One accounting answers for several clusters, on each of them.
    given = (job if isinstance(job, JobId) else JobId(job) for job in jobs)
    placed = (replace(job, cluster=job.cluster or job.home) for job in given)
    for cluster, some in _by_cluster(placed):
        for part in _chunks(_ids(some)):
            # -D: also of jobs whose number is another job's by now.
            args = ["sacct", "-n", "-P", "-D", *_EVER, "-j", _list(part)]
            args += ["-o", ",".join(USAGE), *on(cluster)]
            usages += parse_usage(run(args, recent_s), _names(some))
    return usages


def cancel(job: JobId, indices: Iterable[int] = (), waiting_only: bool = False) -> None:
    """Cancel a job, or some of its elements; those that have ended are no error.

    Where the name of the job is known, another job that has its number by now is left alone.

    Parameters
    ----------
    indices : of the elements to cancel; by default, all.
    waiting_only : cancel only elements that have not begun.

    Raises
    ------
    SlurmError
        If Slurm refuses.
    SlurmUnknown
        If it does not answer.
    """
    if not _ids([job]):
        return
    indices, cluster = list(indices), job.cluster or _if_elsewhere(job.home)
    # scancel --name would leave out a job that was renamed, and take all waiting elements instead
    # of the given ones (22.05).
    if job.name is not None and not parse_squeue(_squeue([job.job_id], cluster), _names([job])):
        if _may_be_hidden(job, cluster):  # scancel would say that there is none
            raise SlurmError(
                f"Slurm shows {user_name()} no jobs of others (PrivateData): only {job.user} can "
                f"cancel job {job.job_id}"
            )
        return
    args = [*on(cluster), *(["--state=PENDING"] if waiting_only else [])]
    _scancel([*args, f"{job.job_id}_[{array_spec(indices)}]" if indices else str(job.job_id)])


def _if_elsewhere(home: str | None) -> str | None:
    """Return the cluster that took a job, if it is not that of this machine."""
    return home if home is not None and home != this_cluster() else None


_GONE = re.compile(r"Invalid job id specified|already completing or completed")


def _scancel(args: list[str]) -> None:
    try:
        run(["scancel", *args])
    except Failed as failed:
        errors = [line for line in failed.message.split("; ") if not _GONE.search(line)]
        if errors:
            raise SlurmError(f"scancel: {'; '.join(errors)}") from None
