"""Parse the output of Slurm's commands, which client.py runs: text in, values out.

The format is that of Slurm 22.05; the tests hold samples.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import field, replace
from functools import cache, lru_cache
from types import MappingProxyType

from astra.config.units import time_limit_s
from astra.errors import SlurmUnknown
from astra.records import dataclass
from astra.states import SlurmState


@dataclass(frozen=True, order=True)
class JobId:
    """A job and what identifies it: numbers are assigned again, and clusters share them.

    Where the name is known, output of Slurm about the number counts only under that name: it is the
    name of the job's script, too, which stays when a site or an operator renames the job.
    """

    job_id: int
    cluster: str | None = None  # as given to ``--clusters``; None for the one of slurm.conf
    name: str | None = field(default=None, compare=False)
    home: str | None = field(default=None, compare=False)  # the name of the cluster that took it
    user: str | None = field(default=None, compare=False)  # who submitted it

    @property
    def key(self) -> int | str:
        """The job's key in an :class:`Answer`: its name, which no other job has."""
        return self.name or self.job_id


#: The names that jobs of a number were submitted under; other jobs of the number are not ours.
Names = Mapping[int, Collection[str]]


@dataclass(frozen=True, slots=True)
class Execution:
    """The state of the last execution of one element, or of several in one line."""

    state: SlurmState | None  # None: not known
    node: str | None = None
    exit_code: int | None = None  # sacct subtracts 128 from 128 and more: it shows 143 as 15
    signal: int | None = None  # that ended it
    reason: str | None = None  # why it waits, is stopped, or failed
    is_completing: bool = False  # it still runs, but begins no page


ABSENT, UNKNOWN = Execution(SlurmState.ABSENT), Execution(None)

#: A job (:attr:`JobId.key`) and an array index, which is None for a job that is not an array.
Key = tuple[int | str, int | None]


@dataclass(frozen=True)
class Answer:
    """The states of some jobs from squeue and sacct; :meth:`of` returns that of one element."""

    executions: Mapping[Key, Execution] = field(default_factory=dict)
    queue: bool = True  # squeue answered
    accounting: bool = True  # sacct answered
    unsettled: frozenset[int | str] = frozenset()  # jobs whose absence proves nothing
    notes: tuple[str, ...] = ()  # for people: which query was not answered, and why
    jobs: frozenset[int | str] | None = None  # that were queried; None: any job
    queued: frozenset[int | str] = frozenset()  # jobs with at least one element in squeue

    def of(self, job: int | str, index: int | None) -> Execution:
        """Return the state of one element: ABSENT if both answered and neither lists it, None if
        it is unknown."""
        if self.jobs is not None and job not in self.jobs:
            return UNKNOWN
        execution = self.executions.get((job, index))
        if execution is not None:
            return execution
        array = self.executions.get((job, None))
        if array is not None and array.state is not None and not array.state.alive:
            # Slurm lists no elements of an array that ended before any of them began.
            return array
        return ABSENT if self.accounting and self.queue_covers(job) else UNKNOWN

    def queue_covers(self, job: int | str) -> bool:
        """Return whether squeue would have shown the elements of a job that are alive."""
        is_queried = self.jobs is None or job in self.jobs
        return self.queue and is_queried and job not in self.unsettled


@dataclass(frozen=True)
class Usage:
    """The resources that the last execution of one element requested and used.

    The shares are those of `seff` and `reportseff`: None where the accounting has no value.
    """

    job_id: int
    index: int | None
    state: SlurmState
    elapsed_s: int
    time_limit_s: int | None  # None where there is none
    cpus: int
    cpu_s: float | None  # None while it runs
    mem_requested_mb: float | None
    mem_used_mb: float | None

    @property
    def job(self) -> str:
        return f"{self.job_id}" if self.index is None else f"{self.job_id}_{self.index}"

    @property
    def cpu_share(self) -> float | None:
        had_s = self.elapsed_s * self.cpus
        return self.cpu_s / had_s if had_s and self.cpu_s is not None else None

    @property
    def mem_share(self) -> float | None:
        if not self.mem_requested_mb or self.mem_used_mb is None:
            return None
        return self.mem_used_mb / self.mem_requested_mb

    @property
    def time_share(self) -> float | None:
        return self.elapsed_s / self.time_limit_s if self.time_limit_s else None


def parse_submission(output: str) -> JobId | None:
    """Parse ``JOBID`` or ``JOBID;CLUSTER``; a site's wrapper may print lines around it.

    Return None if none is such a line, or several are.
    """
    matches = re.findall(r"^(\d+)(?:;(\S+))?\s*$", output, re.MULTILINE)
    return JobId(int(matches[0][0]), matches[0][1] or None) if len(matches) == 1 else None


#: The columns to request. The name and the command come last, since they may hold any character.
SQUEUE = "JobArrayID State exit_code NodeList Reason Name Command".split()

SACCT = "JobID State ExitCode NodeList Reason JobName SubmitLine".split()


def parse_squeue(text: str, names: Names = MappingProxyType({})) -> dict[Key, Execution]:
    """Parse the elements in lines of ``squeue -h -O``, whose columns are separated by ``|``.

    Jobs whose number is in `names`, and whose name is not there, are left out.
    """
    executions: dict[Key, Execution] = {}
    for _, keys, execution in _executions(text, names):
        executions.update(dict.fromkeys(keys, execution))
    return executions


def parse_sacct(text: str, names: Names = MappingProxyType({})) -> dict[Key, Execution]:
    """Parse the last execution of each element in lines of ``sacct -n -X -P -D``.

    An entry with indices in brackets stands for elements that never began; one that began has
    an entry of its own, which counts. Jobs whose number is in `names`, and whose name is not
    there, are left out.
    """
    separate: dict[Key, Execution] = {}
    folded: dict[Key, Execution] = {}
    for job, keys, execution in _executions(text, names):
        if execution.state is not None and not execution.state.alive:
            execution = replace(execution, reason=None)  # why it waited, long ago
        (folded if "[" in job else separate).update(dict.fromkeys(keys, execution))
    return folded | separate if folded else separate


def _executions(text: str, names: Names) -> Iterator[tuple[str, list[Key], Execution]]:
    """Yield of each line the elements as Slurm writes them, their keys, and their execution."""
    for job, state, code, node, reason, names_of_job in _lines(text, len(SQUEUE) - 1):
        if keys := _keys(job, names_of_job, names):
            parsed, why = _state(state, _reason(reason))
            exit_code, signal = (
                (None, None) if parsed is None or parsed.alive else _exit_and_signal(code)
            )
            host = node if node not in ("", "None assigned") else None
            is_completing = state.startswith("COMPLETING")
            yield job, keys, Execution(parsed, host, exit_code, signal, why, is_completing)


def _keys(job: str, names_of_job: str, names: Names) -> list[Key]:
    """Return the keys of a line's elements; none if the job only shares its number with ours.

    The last columns hold the name and the command, and the end of a reason that has a separator.
    """
    elements = expand(job)
    ours = names.get(elements[0][0]) if names else None
    if ours is None:
        return list(elements)
    for name in ours:
        if is_named(names_of_job, name):
            return [(name, index) for _, index in elements]
    return []


def is_named(names_of_job: str, name: str) -> bool:
    """Return whether the name of a job, or of the script in its command, is a given one.

    >>> is_named("renamed|/runs/astra-1-a.sh|", "astra-1-a"), is_named("astra-1-ab|", "astra-1-a")
    (True, False)
    """
    return _search_for(name)(names_of_job) is not None


@cache
def _search_for(name: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(rf"{re.escape(name)}(?![\w-])").search


def _state(word: str, reason: str | None) -> tuple[SlurmState | None, str | None]:
    """Parse a state, which sacct may follow with more text: ``CANCELLED by 0``.

    An unknown word leaves this one element unknown, and no other.
    """
    first = word.partition(" ")[0].rstrip("+")
    state = _SLURM_WORDS.get(first)
    if state is None:
        return None, f"Slurm calls it {word}, a state that astra does not know"
    if state is SlurmState.RUNNING:  # Slurm still shows what it waited for
        return state, word if first in _STOPPED_WORDS else None
    return state, word if first in _TELLING_WORDS and not never_starts(reason) else reason


#: The columns to request for :func:`parse_usage`.
USAGE = (
    "JobID State ElapsedRaw TimelimitRaw AllocCPUS NTasks ReqMem TotalCPU MaxRSS JobName SubmitLine"
).split()


def parse_usage(text: str, names: Names = MappingProxyType({})) -> list[Usage]:
    """Parse elements that have begun, and the peak of their steps, in lines of ``sacct -n -P``.

    The memory of a step is that of its largest task times the number of tasks, as in reportseff.
    """
    usages: dict[tuple[int, int | None], Usage] = {}
    is_strangers = False  # the last job, whose steps follow it, is not one of ours
    for line in _lines(text, len(USAGE) - 1):
        job, state, elapsed, limit, cpus, tasks, requested, cpu, rss, names_of_job = line
        key = expand(job.split(".")[0])[0]
        if "." not in job:
            is_strangers = not _keys(job, names_of_job, names)
        if is_strangers:
            continue
        if "." in job:
            if key in usages and (peak := _megabytes(rss)) and not usages[key].state.alive:
                peak *= int(tasks or 1)
                peak_mb = max(usages[key].mem_used_mb or 0, peak)
                usages[key] = replace(usages[key], mem_used_mb=peak_mb)
            continue
        word, _ = _state(state, None)
        if "[" in job or word in (None, SlurmState.PENDING) or not int(elapsed or 0):
            continue
        usages[key] = Usage(
            *key,
            state=word,
            elapsed_s=int(elapsed),
            time_limit_s=int(limit) * 60 if limit.isdigit() else None,
            cpus=int(cpus or 0),
            cpu_s=None if word.alive else _cpu_seconds(cpu),
            mem_requested_mb=_megabytes(requested),
            mem_used_mb=None,
        )
    return list(usages.values())


def _cpu_seconds(text: str) -> float | None:
    """Parse sacct's ``1-02:03:04``, ``02:03:04`` or ``03:04.567`` to seconds."""
    whole, _, fraction = text.partition(".")
    return (time_limit_s(whole) or 0) + float(f"0.{fraction or 0}") if text[:1].isdigit() else None


def expand(job: str) -> list[tuple[int, int | None]]:
    """Expand elements as Slurm writes them: ``17``, ``17_3`` or ``17_[2-5,8%2]``.

    >>> expand("17_[2-3,8-12:2%2]")
    [(17, 2), (17, 3), (17, 8), (17, 10), (17, 12)]
    """
    match = re.fullmatch(r"(\d+)(?:\+\d+)?(?:_(?:(\d+)|\[([\d,:-]+)(?:%\d+)?\]))?", job)
    if match is None:
        raise SlurmUnknown(f"Slurm names a job {job!r}, which astra does not understand")
    job_id, index, several = int(match[1]), match[2], match[3]
    if not several:
        return [(job_id, int(index) if index else None)]
    indices: list[int] = []
    try:
        for part in several.split(","):
            span, _, step = part.partition(":")
            first, _, last = span.partition("-")
            indices += range(int(first), int(last or first) + 1, int(step or 1))
    except ValueError as error:
        raise SlurmUnknown(f"Slurm names a job {job!r}, which astra does not understand") from error
    return [(job_id, i) for i in indices]


def first_node(nodes: str) -> str:
    """Return the first of an element's nodes, on which its script runs.

    >>> first_node("n[01-02,7]-ib,m3"), first_node("n1")
    ('n01-ib', 'n1')
    """
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0]


def _lines(text: str, columns: int) -> Iterator[list[str]]:
    """Split each line into columns; the last one, the name of somebody's job, may hold newlines."""
    any_before = False
    for line in text.split("\n"):
        if not line.strip() or line.startswith("CLUSTER:"):
            continue
        if any_before and not re.match(r"\s*\d[\w+.%:,\[\]-]*\s*\|", line):
            continue
        any_before = True
        values = [value.strip() for value in line.split("|", columns - 1)]
        if len(values) != columns:
            raise SlurmUnknown(
                f"a line of Slurm's has {len(values)} columns, not {columns}: {line}"
            )
        yield values


def _reason(reason: str) -> str | None:
    reason = reason.rstrip("|")
    return reason if reason not in ("", "None", "N/A") else None


def _exit_and_signal(text: str) -> tuple[int | None, int | None]:
    """Parse exit status and signal.

    sacct writes ``3:0`` (status 3) or ``0:9`` (signal 9); squeue the number that wait(2) returns:
    768 is status 3, 9 is signal 9.
    """
    if text.isdigit():
        return int(text) >> 8, (int(text) & 127) or None
    code, _, signal = text.partition(":")
    if not (code.isdigit() and signal.isdigit()):
        return None, None
    return int(code), int(signal) or None


def _megabytes(text: str) -> float | None:
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    if match is None:
        return None
    factor = {"": 2.0**-20, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}[match[2]]
    return float(match[1]) * factor


#: The end of the reason of an element that sacct calls alive, and squeue does not list.
CONTRADICTED = "squeue does not know it (any more)"


def merge_answers(queued: Mapping[Key, Execution], booked: Mapping[Key, Execution]) -> Answer:
    """Merge the executions from squeue and sacct: squeue decides, sacct adds ended elements.

    The exit code is squeue's, too: sacct subtracts 128 from a status of 128 or more (22.05).
    """
    executions = dict(queued)
    for key, past in booked.items():
        if key in queued:
            continue
        if past.state is not None and past.state.alive:
            # Its record may lag, or stay open forever: a runaway job (sacctmgr show runaway).
            reason = f"sacct calls it {past.state}, {CONTRADICTED}"
            past = replace(past, state=SlurmState.ABSENT, reason=reason)
        executions[key] = past
    # sacct has an entry for the whole array until its elements have their own.
    if wholes := [key for key in executions if key[1] is None]:
        arrays = {job_id for job_id, index in executions if index is not None}
        for key in wholes:
            if key[0] in arrays:
                del executions[key]
    queue = frozenset(job for job, _ in queued)
    return Answer(executions, queued=queue)


# squeue(1), JOB STATE CODES, and sacct(1): a transient state counts as the one that follows it.
_SLURM_WORDS = {
    **{state.value: state for state in SlurmState if state is not SlurmState.ABSENT},
    "COMPLETING": SlurmState.RUNNING,
    "SUSPENDED": SlurmState.RUNNING,
    "STOPPED": SlurmState.RUNNING,
    "SIGNALING": SlurmState.RUNNING,
    "STAGE_OUT": SlurmState.RUNNING,
    "RESIZING": SlurmState.RUNNING,
    "CONFIGURING": SlurmState.PENDING,
    "REQUEUED": SlurmState.PENDING,
    "REQUEUE_FED": SlurmState.PENDING,
    "REQUEUE_HOLD": SlurmState.PENDING,
    "SPECIAL_EXIT": SlurmState.PENDING,
    "RESV_DEL_HOLD": SlurmState.PENDING,
}


#: States that say why a job waits: somebody has to release it, or its node is switched on, which
#: takes minutes.
_TELLING_WORDS = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "CONFIGURING"})

#: States of jobs that have begun, and compute nothing.
_STOPPED_WORDS = frozenset({"SUSPENDED", "STOPPED"})

#: Reasons of jobs that are held until somebody releases them.
_HELD = r"Job(Held|Hold)\w* | \w*_held(_state)? | REQUEUE_HOLD | SPECIAL_EXIT | RESV_DEL_HOLD"

#: Reasons that never go away: somebody has to change the job, release it, or raise a limit. They
#: come in families (https://slurm.schedmd.com/job_reason_codes.html): a limit on what one job may
#: ask for, a budget of minutes that is used up, a job that is held, something that is not allowed.
#: Limits on what many jobs use together pass when others end, and are not among them.
_NEVER = re.compile(
    rf"""(?x)
    {_HELD} | (Assoc|QOS)Max\w*Per(Job|Node)(Limit)? | (Assoc|QOS)Max\w*WallDuration\w* | QOSMin\w*
    | Association(Time)Limit | QOSTimeLimit | QOSUsageThreshold | QOSNotAllowed
    | (Assoc|QOS)Grp(?!\w*RunMin)\w*(Minutes|Wall)(Limit)?
    | Max(Mem|CPU)\w*PerLimit | MaxMemPerLimit
    | \w*NotAllowed | Invalid(Account|QOS|Partition) | BadConstraints | Constraints
    | DependencyNeverSatisfied | Partition(Down|Inactive|NodeLimit|TimeLimit|Config)
    | Reservation(Deleted|Invalid) | DeadLine
    """
)


@lru_cache(maxsize=1000)  # there are many elements, but few different reasons
def never_starts(reason: str | None) -> bool:
    """Return whether a job that waits for this reason does not start by itself.

    >>> never_starts("JobHoldMaxRequeue"), never_starts("AssocGrpCpuLimit")
    (True, False)
    """
    return _is_one_of(_NEVER, reason)


def is_held(reason: str | None) -> bool:
    """Return whether a job that waits for this reason is held until somebody releases it."""
    return _is_one_of(re.compile(_HELD, re.VERBOSE), reason)


def _is_one_of(reasons: re.Pattern[str], reason: str | None) -> bool:
    """Return whether all reasons of a line, which squeue may write for many elements, match."""
    if reason is None:
        return False
    listed = reason.strip("()").replace(" ", "_").split(",")
    return all(reasons.fullmatch(each) for each in listed)
