"""Everything that astra says to Slurm, and how it reads the answers.

:func:`run` runs one command. What reads its output is pure: text in, value out. No answer is
never taken for an answer: :class:`~astra.errors.SlurmUnknown` where it is not known whether a job
exists, a state of None where it is not known whether an element lives.
"""

import math
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from astra.config import settings as config
from astra.config.run_folder import umask_without_write
from astra.config.units import size_mb
from astra.errors import SlurmError, SlurmUnknown
from astra.slurm import query_cache
from astra.slurm.parse import (
    SACCT,
    SQUEUE,
    USAGE,
    Answer,
    Execution,
    JobId,
    Key,
    Reservation,
    Room,
    SlurmRefused,
    Usage,
    parse_maintenance,
    parse_max_array_size,
    parse_partitions,
    parse_sacct,
    parse_squeue,
    parse_submission,
    parse_usage,
    refusal,
    settle,
)
from astra.slurm.script import array_spec

__all__ = [
    "Answer",
    "Execution",
    "JobId",
    "Key",
    "SlurmRefused",
    "Usage",
    "available",
    "cancel",
    "elements",
    "find",
    "max_array_size",
    "room",
    "run",
    "submit",
    "usage",
]


class _Failed(SlurmError):
    """A command ended with a status other than 0, and said why."""

    def __init__(self, command: str, words: str, output: str) -> None:
        super().__init__(f"{command}: {words}")
        self.words, self.output = words, output


# A surrounding job's variables would become options of ours (SBATCH_PARTITION, SQUEUE_FORMAT).
# SLURM_CLUSTERS goes too: the cluster of a job is written down by the profile, not by a shell.
_INHERITED = re.compile(r"(SLURM|SLURMD|SBATCH|SQUEUE|SACCT|SCANCEL|SCONTROL|SINFO)_")

_KEPT = re.compile(r"SLURM_(CONF|CONF_SERVER|JWT|SACK_\w+)")

_READ_ONLY = {"squeue", "sacct", "scontrol", "sinfo"}

_NO_ANSWER = re.compile(
    r"timed out|Unable to contact slurm|Connection (refused|reset)|Zero Bytes|"
    r"Message (send|receive) failure|Communication \w+ failure|Broken pipe|"
    r"try again|currently in backup|in standby mode",
    re.IGNORECASE,
)

_LONGEST_ARGUMENT = 100_000  # characters; Linux takes 131,072 in one argument


def run(
    args: Sequence[str],
    *,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    recent_s: float = 0.0,
) -> str:
    """Run one of Slurm's commands and give what it prints.

    A query that is not answered is repeated, ``[slurm] retries`` times.

    Parameters
    ----------
    args : the command and its arguments.
    input : text for its standard input.
    env : environment, in place of that of the process; variables of a surrounding job are left
        out of either.
    recent_s : an answer that this user had to the same query within so many seconds will do.

    Raises
    ------
    SlurmError
        If the command is missing, or fails with words of its own.
    SlurmUnknown
        If there was no answer: nothing is known about what it did.
    """
    if args[0] not in _READ_ONLY:
        query_cache.forget_all()
    where = str((os.environ if env is None else env).get("SLURM_CONF"))
    return query_cache.kept(args, where, recent_s, lambda: _run_patiently(args, input, env))


def _run_patiently(args: Sequence[str], input: str | None, env: Mapping[str, str] | None) -> str:
    settings = config.current().slurm
    tries = 1 + (settings.retries if args[0] in _READ_ONLY else 0)
    for left in reversed(range(tries)):
        try:
            return _run_once(args, input, env, settings.timeout_s)
        except SlurmUnknown:
            if not left:
                raise
            pause_s = 0.5 * 2.0 ** (tries - 1 - left)
            time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
    raise AssertionError("unreachable")


def _run_once(
    args: Sequence[str], text: str | None, env: Mapping[str, str] | None, timeout_s: float
) -> str:
    command = args[0]
    environment = _environment(command, os.environ if env is None else env)
    path = shutil.which(command, path=environment.get("PATH"))
    if path is None:
        raise SlurmError(
            f"{command} is not on PATH: load the module of Slurm (module load slurm), or work on "
            "a login node"
        )
    try:
        done = subprocess.run(
            [path, *args[1:]],
            input=text if text is not None else "",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=timeout_s,
            umask=umask_without_write(),  # sbatch hands it on to the element and its log
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        # Where the controller is full, sbatch says so and tries again for two minutes.
        said = _words((late.stderr or b"").decode("utf-8", "replace"))
        raise SlurmUnknown(
            f"{command} gave no answer within {timeout_s:g} s ([slurm] timeout_s); "
            + (f"it said: {said}" if said else "is the controller well? scontrol ping tells")
        ) from None
    except OSError as error:
        raise SlurmError(f"{path} cannot be run: {error.strerror}") from error
    if done.returncode == 0:
        return done.stdout
    words = _words(done.stderr)
    if done.returncode < 0:
        raise SlurmUnknown(f"{command} was killed by signal {-done.returncode}. {words}".strip())
    if _NO_ANSWER.search(words) or not words:
        raise SlurmUnknown(f"{command}: {words or f'status {done.returncode} without a word'}")
    raise _Failed(command, words, done.stdout)


def _environment(command: str, env: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in env.items() if not _INHERITED.match(k) or _KEPT.fullmatch(k)}
    if command != "sbatch":  # which hands its environment on to the job
        # 0: "17_[1,3,5...]" is written out in full, not cut after 64 characters.
        kept.update(LC_ALL="C", SLURM_BITSTR_LEN="0", SLURM_TIME_FORMAT="standard")
    return kept


def _words(stderr: str) -> str:
    """Slurm's own words on one line, without the name of the command before each."""
    lines = [
        re.sub(r"^[\w/.-]+: ((error|fatal): )?", "", line).strip() for line in stderr.splitlines()
    ]
    return "; ".join(line for line in lines if line)


def available(env: Mapping[str, str] | None = None) -> bool:
    """Whether this machine has Slurm's commands and a configuration for them."""
    env = os.environ if env is None else env
    sbatch = shutil.which("sbatch", path=env.get("PATH"))
    if sbatch is None:
        return False
    if env.get("SLURM_CONF"):  # without the file, a command would wait for it for a minute
        return Path(env["SLURM_CONF"]).is_file()
    usual = [Path(sbatch).resolve().parents[1] / "etc", Path("/run/slurm/conf")]
    usual += [Path("/etc/slurm"), Path("/etc/slurm-llnl"), Path("/usr/local/etc")]
    return "SLURM_CONF_SERVER" in env or any((p / "slurm.conf").is_file() for p in usual)


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
    except _Failed as failed:
        if made := parse_submission(failed.output):
            return made  # it complained, and made the job all the same
        raise refusal(failed.words) from None
    if made := parse_submission(output):
        return made
    raise SlurmUnknown(f"sbatch ended well, but printed {output.strip()[:200]!r} and no job id")


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


@cache
def max_array_size() -> int:
    """Every array index must stay below this number; asked once in a process.

    ``MaxArraySize``, or less where the site bounds the elements of one array
    (``max_array_tasks``): an array that begins with index 1 keeps both.
    """
    return parse_max_array_size(run(["scontrol", "show", "config"]))


_site: dict[tuple[str, ...], str] | None = None


@contextmanager
def one_site() -> Iterator[None]:
    """Within it, what Slurm says of partitions, nodes and reservations is asked once."""
    global _site
    before, _site = _site, {} if _site is None else _site
    try:
        yield
    finally:
        _site = before


def _of_site(args: Sequence[str], env: Mapping[str, str] | None) -> str:
    if _site is None:
        return run(args, env=env)
    if tuple(args) not in _site:
        _site[tuple(args)] = run(args, env=env)
    return _site[tuple(args)]


def room(partition: str | None, env: Mapping[str, str] | None = None) -> Room:
    """What a job may ask for in a partition, in the widest of several, or in the default one.

    Raises
    ------
    SlurmError
        If Slurm does not say.
    """
    asked = partial(_of_site, env=env)
    known = parse_partitions(asked(["scontrol", "-o", "show", "partition"]))
    names = set((partition or "").split(",")) - {""} or {p.name for p in known if p.is_default}
    mine = [p for p in known if p.name in names]
    lines = asked(["sinfo", "-h", "-N", "-o", "%R|%N|%m"]).splitlines()
    of = [line.split("|") for line in lines if line.split("|")[0] in names]
    memory = [size for _, _, text in of if (size := size_mb(text.rstrip("+")))]
    most_mb = _widest([p.max_mem_mb for p in mine])
    return Room(
        _widest([p.max_time_s for p in mine]),
        min((mb for mb in (most_mb, max(memory, default=None)) if mb), default=None),
        min((p.default_mem_mb for p in mine if p.default_mem_mb), default=None),
        tuple(sorted({node for _, node, _ in of})),
    )


def maintenance(env: Mapping[str, str] | None = None) -> list[Reservation]:
    """Reservations for maintenance that are ahead, or have begun.

    Raises
    ------
    SlurmError
        If Slurm does not say.
    """
    asked = partial(_of_site, env=env)
    text = asked(["scontrol", "-o", "show", "reservation"])
    found = []
    for name, begins, ends, nodes in parse_maintenance(text):
        names = asked(["scontrol", "show", "hostnames", nodes]).split() if nodes else []
        found.append(Reservation(name, begins, ends, tuple(names)))
    return found


def _widest(limits: list[int | None]) -> int | None:
    return None if not limits or None in limits else max(n for n in limits if n is not None)


def find(
    job_name: str, clusters: str | None = None, env: Mapping[str, str] | None = None
) -> list[JobId]:
    """The caller's jobs of exactly that name, ended ones included.

    `clusters` is as sbatch's ``--clusters`` has it: one of these took the job.

    Raises
    ------
    SlurmUnknown
        If squeue gives no answer.
    """
    mine = ["-u", str(os.getuid()), *_on(clusters)]
    try:
        columns = "ArrayJobID:|,Name:|,Cluster:|"
        text = run(["squeue", "-h", "-t", "all", "-n", job_name, "-O", columns, *mine], env=env)
    except _Failed as failed:
        raise SlurmUnknown(f"squeue: {failed.words}") from None
    if not (found := _named(text, job_name)):
        period = ["-S", "now-30days", "--name", job_name, "-o", "JobID,JobName,Cluster"]
        try:
            text = run(["sacct", "-n", "-X", "-P", *period, *mine], env=env)
        except SlurmError:
            return []  # no accounting: squeue has answered, and knows of none
        found = _named(text, job_name)
    return [JobId(job_id, cluster if clusters else None) for job_id, cluster in sorted(found)]


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
    found = [_elements(ids, cluster, asks, again) for cluster, ids in parts]
    return Answer(
        executions=_merged(answer.executions for answer in found),
        queue=all(answer.queue for answer in found),
        accounting=all(answer.accounting for answer in found),
        unsettled=frozenset().union(*(answer.unsettled for answer in found)),
        notes=tuple(note for answer in found for note in answer.notes),
        jobs=frozenset(job_id for _, ids in parts for job_id in ids),
    )


def _merged(parts: Iterable[Mapping[Key, Execution]]) -> Mapping[Key, Execution]:
    """Of several arrays' elements one mapping: there may be 100,000, and mostly one part."""
    found: Mapping[Key, Execution] = {}
    for part in parts:
        found = {**found, **part} if found else part
    return found


def _by_cluster(jobs: Iterable[int | JobId]) -> list[tuple[str | None, list[int]]]:
    found: dict[str | None, set[int]] = {}
    for job in jobs:
        job = job if isinstance(job, JobId) else JobId(job)
        found.setdefault(job.cluster, set()).add(job.job_id)
    return [(cluster, sorted(ids)) for cluster, ids in found.items()]


#: Runs one of Slurm's commands.
Asks = Callable[[Sequence[str]], str]


def _elements(ids: Sequence[int], cluster: str | None, asks: Asks, again: bool) -> Answer:
    def queue(some: Sequence[int]) -> Mapping[Key, Execution]:
        return _merged(_squeue(part, cluster, asks) for part in _chunks(some))

    try:
        queued = queue(ids)
    except SlurmError as error:
        return Answer(queue=False, notes=(f"squeue gave no answer, nothing is known: {error}",))
    try:
        booked = _merged([_sacct(part, cluster, asks) for part in _chunks(ids)])
    except SlurmError as error:
        note = f"sacct gave no answer, ended elements that squeue forgot are unknown: {error}"
        silent = frozenset(ids) - {job_id for job_id, _ in queued}
        # A squeue that says nothing is no proof by itself. Of one of them Slurm is asked for its
        # word, which then stands for all: never one call for each.
        gone = not silent or _is_gone(max(silent), cluster, asks)
        unsure = frozenset() if gone else silent
        return Answer(queued, accounting=False, unsettled=unsure, notes=(note,))
    known = {job_id for job_id, _ in queued}
    lagging = {
        job_id
        for job_id, index in booked.keys() - queued.keys()
        if (state := booked[job_id, index].state)
        and state.alive
        # An entry without index is the array as a whole, before its elements have theirs.
        and (index is not None or job_id not in known)
    }
    if lagging and again:
        try:
            queued = {**queue(sorted(lagging)), **queued}
        except SlurmError as error:
            return Answer(queued, queue=False, notes=(f"squeue gave no second answer: {error}",))
    return settle(queued, booked)


def _is_gone(job_id: int, cluster: str | None, asks: Asks) -> bool:
    """Whether Slurm itself says that it has no such job."""
    try:
        asks(["scontrol", *_on(cluster), "show", "job", str(job_id)])
    except _Failed as failed:
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


def _squeue(ids: Sequence[int], cluster: str | None, asks: Asks) -> dict[Key, Execution]:
    columns = ",".join(f"{name}:|" for name in SQUEUE)
    # Without -r: elements of an array that wait are one line, "17_[2-1000%50]".
    args = ["squeue", "-h", "-t", "all", "-j", _list(ids), "-O", columns, *_on(cluster)]
    try:
        return parse_squeue(asks(args))
    except _Failed as failed:
        # Said of a single id that has left squeue's memory; of several, unknown ones are skipped.
        if "Invalid job id specified" in failed.words:
            return {}
        raise


def _sacct(ids: Sequence[int], cluster: str | None, asks: Asks) -> dict[Key, Execution]:
    # -D: also the earlier executions of a requeued element; -S: sacct looks at today only.
    args = ["sacct", "-n", "-P", "-D", "-S", "2000-01-01", "-j", _list(ids), "-o", ",".join(SACCT)]
    return parse_sacct(asks([*args, *_on(cluster)]))


def usage(
    jobs: Iterable[int | JobId], env: Mapping[str, str] | None = None, recent_s: float = 0.0
) -> list[Usage]:
    """What the elements of some jobs used of what they had asked for: one sacct for each cluster.

    Raises
    ------
    SlurmError
        If there is no accounting, or it gives no answer.
    """
    found: list[Usage] = []
    for cluster, ids in _by_cluster(jobs):
        for part in _chunks(ids):
            args = ["sacct", "-n", "-P", "-S", "2000-01-01", "-j", _list(part)]
            args += ["-o", ",".join(USAGE), *_on(cluster)]
            text = run(args, env=env, recent_s=recent_s)
            found += parse_usage(text)
    return found


def cancel(
    targets: Iterable[int | JobId | Key],
    cluster: str | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """End jobs, or single elements given as ``(job_id, index)``. Ended ones are no error.

    Raises
    ------
    SlurmError
        If Slurm refuses.
    SlurmUnknown
        If it gives no answer.
    """
    whole: dict[JobId, None] = {}
    single: dict[int, list[int]] = {}
    for target in targets:
        if isinstance(target, tuple) and target[1] is not None:
            single.setdefault(target[0], []).append(target[1])
        elif isinstance(target, JobId):
            whole[target] = None
        else:
            whole[JobId(target[0] if isinstance(target, tuple) else target, cluster)] = None
    words: dict[str | None, list[str]] = {}
    for job in whole:
        words.setdefault(job.cluster, []).append(str(job.job_id))
    for job_id, indices in single.items():
        words.setdefault(cluster, []).append(f"{job_id}_[{array_spec(indices)}]")
    for where, names in words.items():
        for start in range(0, len(names), 500):
            _scancel([*_on(where), *names[start : start + 500]], env)


def cancel_waiting(job_id: int, env: Mapping[str, str] | None = None) -> None:
    """End those elements of an array that have not begun."""
    _scancel(["--state=PENDING", str(job_id)], env)


_GONE = re.compile(r"Invalid job id specified|already completing or completed")


def _scancel(args: list[str], env: Mapping[str, str] | None) -> None:
    try:
        run(["scancel", *args], env=env)
    except _Failed as failed:
        said = [w for w in failed.words.split("; ") if not _GONE.search(w)]
        if said:
            raise SlurmError(f"scancel: {'; '.join(said)}") from None
