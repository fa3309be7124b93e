"""What Slurm's words mean: text in, value out. The words are fetched in client.py.

The texts that were read to write this are those of Slurm 22.05; the tests hold samples.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from astra.config.units import size_mb, time_limit_s
from astra.errors import SlurmError, SlurmUnknown
from astra.states import SlurmState


class SlurmRefused(SlurmError):
    """Slurm said no, in words: no job was made. `limit` is true if it may say yes later."""

    def __init__(self, message: str, limit: bool = False) -> None:
        super().__init__(message)
        self.limit = limit


@dataclass(frozen=True, order=True)
class JobId:
    """An array job. The cluster is None for the one that slurm.conf names."""

    job_id: int
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """What Slurm says of the last execution of one element, or of several in one line."""

    state: SlurmState | None  # None: not known
    node: str | None = None
    exit_code: int | None = None  # sacct shows 128 and more less 128: 143 as 15
    signal: int | None = None  # that ended it
    reason: str | None = None  # why it waits, or why it failed
    restarts: int | None = None
    max_rss_mb: float | None = None
    elapsed_s: int | None = None
    time_limit_min: int | None = None  # None where there is none


_ABSENT, _UNKNOWN = Execution(SlurmState.ABSENT), Execution(None)

Key = tuple[int, int | None]  # of an array and an element; None for a job that is not an array


@dataclass(frozen=True)
class Answer:
    """What squeue and sacct said of some jobs; ask :meth:`of` about one element."""

    executions: Mapping[Key, Execution] = field(default_factory=dict)
    queue: bool = True  # squeue answered
    accounting: bool = True  # sacct answered
    unsettled: frozenset[int] = frozenset()  # jobs that accounting does not tell apart yet
    notes: tuple[str, ...] = ()  # for people: what was not answered, and why
    jobs: frozenset[int] | None = None  # that were asked about; None: whatever job

    def of(self, job_id: int, index: int | None) -> Execution:
        """One element: state ABSENT if both answered and neither knows it, None if unknown."""
        if self.jobs is not None and job_id not in self.jobs:
            return _UNKNOWN
        known = self.executions.get((job_id, index))
        if known is not None:
            return known
        whole = self.executions.get((job_id, None))
        if whole is not None and whole.state is not None and not whole.state.alive:
            # An array that ended before any element began has no elements in Slurm's words.
            return whole
        sure = self.queue and self.accounting and job_id not in self.unsettled
        return _ABSENT if sure else _UNKNOWN


@dataclass(frozen=True)
class Usage:
    """What the last execution of one element used of what it had asked for.

    The shares are those of `seff` and `reportseff`: None where the accounting does not know.
    """

    job_id: int
    index: int | None
    state: SlurmState
    elapsed_s: int
    time_limit_s: int | None  # None where there is none
    cpus: int
    cpu_s: float | None  # None while it runs
    mem_asked_mb: float | None
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
        if not self.mem_asked_mb or self.mem_used_mb is None:
            return None
        return self.mem_used_mb / self.mem_asked_mb

    @property
    def time_share(self) -> float | None:
        return self.elapsed_s / self.time_limit_s if self.time_limit_s else None


def parse_submission(output: str) -> JobId | None:
    """The job of ``JOBID`` or ``JOBID;CLUSTER``; a site's wrapper may print lines around it."""
    found = re.findall(r"^(\d+)(?:;(\S+))?\s*$", output, re.MULTILINE)
    return JobId(int(found[-1][0]), found[-1][1] or None) if found else None


_SUBMIT_LIMIT = re.compile(r"SubmitJob|MaxSubmit|MaxJobCount|Resource temporarily unavailable")

_POLICY = re.compile(r"violates accounting/QOS policy")

_OTHER_LIMIT = re.compile(r"\b(QOS|Assoc|Part)\w*(Limit|Min\w+|Max\w+)\b")

# What Slurm says (slurm_errno of 22.05, and tried), and what to do about it.
_ADVICE = [
    ("account", "choose an account that `sacctmgr show assoc user=$USER` lists for the partition"),
    ("partition", "choose a partition that `sinfo -s` lists and you may use"),
    ("qos", "choose a qos that `sacctmgr show assoc user=$USER format=account,qos` lists"),
    ("array", "an index may not reach MaxArraySize of `scontrol show config`"),
    ("time", 'choose a time within the limit that `sinfo -o "%P %l"` shows for the partition'),
    ("feature|constraint", "choose a constraint from the features of `sinfo -o %f`"),
    (
        "node configuration|memory|cpu count|node count|more processors",
        "ask for no more than one node has: `sinfo -Nel`",
    ),
    ("generic resource|gres", "choose a gres that `sinfo -o %G` lists"),
    ("reservation", "choose a reservation that `scontrol show reservation` lists"),
    ("license", "choose licenses that `scontrol show licenses` lists"),
    ("node name", "choose nodes that `sinfo -N` lists"),
    ("cluster", "choose a cluster that `sacctmgr list clusters` lists"),
    ("unrecognized option", "this version of Slurm does not have the option: take it out"),
    ("permission|not permitted", "choose a partition, account or reservation that you may use"),
    ("authentication", "Slurm does not accept this machine's credentials: munge may be down here"),
]


def refusal(words: str) -> SlurmRefused:
    """Slurm's refusal, with what to change."""
    limit = bool(_SUBMIT_LIMIT.search(words))
    other = _OTHER_LIMIT.search(words)
    if not limit and _POLICY.search(words):
        limit = not other  # old versions name no limit: the count of jobs is the usual one
    said = re.sub(r"Batch job submission failed: ", "", words)
    if limit:
        advice = "no more jobs are taken for now: submit again when some have ended"
    elif other:
        advice = "ask for less, or for another qos: `sacctmgr show qos` has the limits"
    elif option := re.search(r"Invalid --(\S+) specification", said):
        advice = f"change {option[1].replace('-', '_')} in the profile"
    else:
        found = (hint for key, hint in _ADVICE if re.search(key, said, re.IGNORECASE))
        advice = next(found, "change the profile or its template accordingly")
    return SlurmRefused(f"Slurm refused: {said}; {advice}", limit)


def parse_max_array_size(text: str) -> int:
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    if found is None:
        raise SlurmUnknown("scontrol show config names no MaxArraySize")
    tasks = re.search(r"\bmax_array_tasks=(\d+)", text)
    return min(int(found[1]), int(tasks[1]) + 1) if tasks else int(found[1])


#: The columns to ask for.
SQUEUE = "JobArrayID State exit_code RestartCnt NodeList TimeUsed TimeLimit Reason".split()

SACCT = "JobID State ExitCode NodeList ElapsedRaw TimelimitRaw MaxRSS Reason".split()


def parse_squeue(text: str) -> dict[Key, Execution]:
    """Elements in lines of ``squeue -h -O``, columns divided by ``|``."""
    found = {}
    for job, state, code, restarts, node, used, limit, reason in _lines(text, len(SQUEUE)):
        ended = slurm_state(state)
        exit_code, signal = (None, None) if ended.alive else _wait_status(code)
        execution = Execution(
            ended,
            node=node or None,
            exit_code=exit_code,
            signal=signal,
            reason=_said(reason),
            restarts=int(restarts) if restarts.isdigit() else None,
            elapsed_s=_seconds(used),
            time_limit_min=None if (s := _seconds(limit)) is None else s // 60,
        )
        found.update(dict.fromkeys(expand(job), execution))
    return found


def parse_sacct(text: str) -> dict[Key, Execution]:
    """Elements in lines of ``sacct -n -P -D``: the last execution of each, with its steps' peak.

    An entry with indices in brackets stands for elements that never began; one that began has
    an entry of its own, which counts.
    """
    own: dict[Key, Execution] = {}
    folded: dict[Key, Execution] = {}
    for job, state, code, node, elapsed, limit, rss, reason in _lines(text, len(SACCT)):
        if "." in job:
            key = expand(job.split(".")[0])[0]
            peak = max(own[key].max_rss_mb or 0, _megabytes(rss) or 0) if key in own else 0
            if peak:
                own[key] = replace(own[key], max_rss_mb=peak)
            continue
        ended = slurm_state(state)
        exit_code, signal = (None, None) if ended.alive else _exit_code(code)
        execution = Execution(
            ended,
            node=node if node != "None assigned" else None,
            exit_code=exit_code,
            signal=signal,
            reason=_said(reason) if ended.alive else None,  # why it waited, long ago
            max_rss_mb=_megabytes(rss),
            elapsed_s=int(elapsed) if elapsed.isdigit() else None,
            time_limit_min=int(limit) if limit.isdigit() else None,
        )
        (folded if "[" in job else own).update(dict.fromkeys(expand(job), execution))
    return folded | own if folded else own


#: The columns to ask for, for :func:`parse_usage`.
USAGE = "JobID State ElapsedRaw TimelimitRaw AllocCPUS NNodes NTasks ReqMem TotalCPU MaxRSS".split()


def parse_usage(text: str) -> list[Usage]:
    """Elements that have begun, in lines of ``sacct -n -P``, with the peak of their steps.

    The memory of a step is its largest task's times the number of its tasks, as reportseff has it.
    """
    found: dict[Key, Usage] = {}
    for job, state, elapsed, limit, cpus, nodes, tasks, asked, cpu, rss in _lines(text, len(USAGE)):
        key = expand(job.split(".")[0])[0]
        if "." in job:
            if key in found and (peak := _megabytes(rss)) and not found[key].state.alive:
                peak *= int(tasks or 1)
                most = max(found[key].mem_used_mb or 0, peak)
                found[key] = replace(found[key], mem_used_mb=most)
            continue
        word = slurm_state(state)
        if "[" in job or word is SlurmState.PENDING or not int(elapsed or 0):
            continue
        n_cpus = int(cpus or 0)
        found[key] = Usage(
            *key,
            state=word,
            elapsed_s=int(elapsed),
            time_limit_s=int(limit) * 60 if limit.isdigit() else None,
            cpus=n_cpus,
            cpu_s=None if word.alive else _cpu_seconds(cpu),
            mem_asked_mb=_asked_mb(asked, int(nodes or 1), n_cpus),
            mem_used_mb=None,
        )
    return list(found.values())


def _asked_mb(text: str, nodes: int, cpus: int) -> float | None:
    """sacct's ReqMem: ``4G``, before 21.08 ``4Gn`` of a node or ``4Gc`` of a CPU."""
    asked = _megabytes(text.rstrip("nc"))
    return asked and asked * {"n": nodes, "c": cpus}.get(text[-1:], 1)


def _cpu_seconds(text: str) -> float | None:
    """Seconds of sacct's ``1-02:03:04``, ``02:03:04`` or ``03:04.567``."""
    whole, _, part = text.partition(".")
    seconds = _seconds(whole)
    return None if seconds is None else seconds + float(f"0.{part or 0}")


def expand(job: str) -> list[Key]:
    """The elements of Slurm's word for some: ``17``, ``17_3`` or ``17_[2-5,8%2]``.

    >>> expand("17_[2-3,8-12:2%2]")
    [(17, 2), (17, 3), (17, 8), (17, 10), (17, 12)]
    """
    found = re.fullmatch(r"(\d+)(?:\+\d+)?(?:_(?:(\d+)|\[([\d,:-]+)(?:%\d+)?\]))?", job)
    if found is None:
        raise SlurmUnknown(f"Slurm names a job {job!r}, which astra does not understand")
    job_id, index, several = int(found[1]), found[2], found[3]
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


def _lines(text: str, columns: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        if not line.strip() or line.startswith("CLUSTER:"):
            continue
        values = [value.strip() for value in line.split("|", columns - 1)]
        if len(values) != columns:
            raise SlurmUnknown(
                f"a line of Slurm's has {len(values)} columns, not {columns}: {line}"
            )
        yield values


def _said(reason: str) -> str | None:
    reason = reason.rstrip("|")
    return reason if reason not in ("", "None", "N/A") else None


def _exit_code(text: str) -> tuple[int | None, int | None]:
    """sacct's ``3:0`` (status 3) or ``0:9`` (signal 9)."""
    code, _, signal = text.partition(":")
    if not (code.isdigit() and signal.isdigit()):
        return None, None
    return int(code), int(signal) or None


def _wait_status(text: str) -> tuple[int | None, int | None]:
    """squeue's, which is the number that wait(2) gives: 768 is status 3, 9 is signal 9."""
    if ":" in text or not text.isdigit():
        return _exit_code(text)
    return int(text) >> 8, (int(text) & 127) or None


def _seconds(text: str) -> int | None:
    """Seconds of Slurm's ``1-02:03:04``, ``03:04`` or ``4``; None for words."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(?:(\d+):)?(\d+)", text)
    if found is None:
        return None
    days, first, second, last = found.groups()
    hours, minutes = (first, second) if second else (None, first)
    return ((int(days or 0) * 24 + int(hours or 0)) * 60 + int(minutes or 0)) * 60 + int(last)


def _megabytes(text: str) -> float | None:
    found = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    if found is None:
        return None
    factor = {"": 2.0**-20, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}[found[2]]
    return float(found[1]) * factor


def settle(queued: Mapping[Key, Execution], booked: Mapping[Key, Execution]) -> Answer:
    """One answer from what squeue and sacct say: the first decides, the second adds."""
    executions = dict(queued)
    unsettled: set[int] = set()
    # Of elements in one line, which may be thousands, both say the same.
    both: dict[tuple[int, int], Execution] = {}
    for key, past in booked.items():
        live = queued.get(key)
        if live is not None:
            pair = id(live), id(past)
            if (joined := both.get(pair)) is None:
                joined = both[pair] = _joined(live, past)
            executions[key] = joined
        elif past.state is None or past.state.alive:
            word = f"sacct calls it {past.state}" if past.state else "sacct is behind"
            executions[key] = replace(
                past, state=None, reason=f"{word}, squeue does not know it (any more)"
            )
            if key[1] is None:
                unsettled.add(key[0])
        else:
            executions[key] = past
    # An array as a whole: sacct's entry before its elements have theirs.
    if wholes := [key for key in executions if key[1] is None]:
        arrays = {job_id for job_id, index in executions if index is not None}
        for key in wholes:
            if key[0] in arrays:
                del executions[key]
    return Answer(executions, unsettled=frozenset(unsettled))


def _joined(live: Execution, past: Execution) -> Execution:
    """squeue's entry with what only accounting knows.

    The exit code stays squeue's: sacct shows a status of 128 or more less 128 (22.05).
    """
    if past.state is not live.state:
        return live
    elapsed_s = live.elapsed_s if live.elapsed_s is not None else past.elapsed_s
    if (past.max_rss_mb, elapsed_s) == (live.max_rss_mb, live.elapsed_s):
        return live
    return replace(live, max_rss_mb=past.max_rss_mb, elapsed_s=elapsed_s)


@dataclass(frozen=True)
class Room:
    """What the partitions of a job allow it, and their nodes."""

    max_time_s: int | None = None
    max_mem_mb: int | None = None  # of the largest node too
    default_mem_mb: int | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Partition:
    """What a partition allows; None for no limit."""

    name: str
    max_time_s: int | None
    max_mem_mb: int | None
    default_mem_mb: int | None  # for a job of one CPU that asks for none
    is_default: bool


def parse_partitions(text: str) -> list[Partition]:
    """The lines of ``scontrol -o show partition``."""
    found = []
    for line in text.splitlines():
        values = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in values:
            memory = values.get("DefMemPerNode") or values.get("DefMemPerCPU") or ""
            found.append(
                Partition(
                    values["PartitionName"],
                    time_limit_s(values.get("MaxTime", "")),
                    size_mb(values.get("MaxMemPerNode", "")),
                    size_mb(memory),
                    values.get("Default") == "YES",
                )
            )
    return found


@dataclass(frozen=True)
class Reservation:
    """A reservation of nodes for maintenance."""

    name: str
    begins: float  # seconds since the epoch
    ends: float
    nodes: tuple[str, ...]


def parse_maintenance(text: str) -> list[tuple[str, float, float, str]]:
    """Of ``scontrol -o show reservation``: (name, begin, end, nodes) of those for maintenance.

    Times are the machine's own, in seconds since the epoch; nodes as Slurm folds them.
    """
    found = []
    for line in text.splitlines():
        values = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "MAINT" in values.get("Flags", "").split(","):
            begins, ends = (
                datetime.fromisoformat(values[key]).timestamp() for key in ("StartTime", "EndTime")
            )
            found.append((values["ReservationName"], begins, ends, values.get("Nodes", "")))
    return found


# squeue(1), JOB STATE CODES, and sacct(1): the transient ones count as what they lead to.
_SLURM_WORDS = {
    **{state.value: state for state in SlurmState if state is not SlurmState.ABSENT},
    "CONFIGURING": SlurmState.RUNNING,
    "COMPLETING": SlurmState.RUNNING,
    "SUSPENDED": SlurmState.RUNNING,
    "STOPPED": SlurmState.RUNNING,
    "SIGNALING": SlurmState.RUNNING,
    "STAGE_OUT": SlurmState.RUNNING,
    "RESIZING": SlurmState.RUNNING,
    "REQUEUED": SlurmState.PENDING,
    "REQUEUE_FED": SlurmState.PENDING,
    "REQUEUE_HOLD": SlurmState.PENDING,
    "SPECIAL_EXIT": SlurmState.PENDING,
    "RESV_DEL_HOLD": SlurmState.PENDING,
    "REVOKED": SlurmState.CANCELLED,
}


def slurm_state(word: str) -> SlurmState:
    """Slurm's word for a state, with the text that sacct puts behind it.

    >>> slurm_state("CANCELLED by 0")
    <SlurmState.CANCELLED: 'CANCELLED'>

    Raises
    ------
    SlurmError
        If the word is not one of Slurm's: nothing is concluded from it.
    """
    first = word.split()[0].rstrip("+") if word.strip() else ""
    if first not in _SLURM_WORDS:
        raise SlurmError(f"Slurm state {word!r} is not known to astra; nothing follows from it")
    return _SLURM_WORDS[first]
