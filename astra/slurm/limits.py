"""Query what a site allows an element: time, memory, nodes, and when maintenance begins.

Functions raise SlurmError if Slurm does not answer, unless they return why nothing is known.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import cache

from astra.config.profiles import Profile
from astra.config.units import size_mb, time_limit_s, written_time
from astra.errors import SlurmError, SlurmUnknown
from astra.records import dataclass
from astra.slurm.command import available, run

log = logging.getLogger(__name__)


def _records(text: str) -> Iterator[dict[str, str]]:
    """Yield the words ``Name=Value`` of each line."""
    for line in text.splitlines():
        yield dict(word.split("=", 1) for word in line.split() if "=" in word)


@dataclass(frozen=True)
class PartitionLimits:
    """What the partitions of a job allow it, and their nodes; None where no limit is known."""

    max_time_s: int | None = None
    max_mem_mb: int | None = None  # of the largest node too
    default_mem_mb: int | None = None
    nodes: tuple[str, ...] = ()
    maintenance: str | None = None  # the next reservation that takes all of these nodes
    maintenance_in_s: float | None = None
    note: str | None = None  # why no limits are known


@dataclass(frozen=True)
class Partition:
    """What a partition allows; None for no limit."""

    name: str
    max_time_s: int | None
    max_mem_mb: int | None
    default_time_s: int | None  # for a job that requests no time
    default_mem_mb: int | None  # for a job of one CPU that does not request memory
    is_default: bool


def parse_partitions(text: str) -> list[Partition]:
    """Parse the lines of ``scontrol -o show partition``."""
    partitions = []
    for values in _records(text):
        if "PartitionName" in values:
            memory = values.get("DefMemPerNode") or values.get("DefMemPerCPU") or ""
            max_time_s = time_limit_s(values.get("MaxTime", ""))
            partitions.append(
                Partition(
                    values["PartitionName"],
                    max_time_s,
                    size_mb(values.get("MaxMemPerNode", "")),
                    time_limit_s(values.get("DefaultTime", "")) or max_time_s,
                    size_mb(memory),
                    values.get("Default") == "YES",
                )
            )
    return partitions


@dataclass(frozen=True)
class Reservation:
    """A reservation of nodes for maintenance."""

    name: str
    begins: float  # seconds since the epoch
    nodes: str  # as Slurm writes them: "n[1-4]"


def parse_maintenance(text: str) -> list[Reservation]:
    """Parse the reservations for maintenance in ``scontrol -o show reservation``.

    Times are read in the machine's time zone.
    """
    return [
        Reservation(
            values["ReservationName"],
            datetime.fromisoformat(values["StartTime"]).timestamp(),
            values.get("Nodes", ""),
        )
        for values in _records(text)
        if "MAINT" in values.get("Flags", "").split(",")
    ]


def profile_limits(profile: Profile) -> PartitionLimits:
    """Query the limits and maintenance of the partition of a profile, with three commands."""
    if not available():
        return PartitionLimits(note="there is no Slurm here: the partition's limits are not known")
    try:
        allowed = partition_limits(profile.partition, profile.clusters)
        nodes, ahead = set(allowed.nodes), []
        if nodes:
            text = _of_site("scontrol", *on(profile.clusters), "-o", "show", "reservation")
            ahead = [r for r in parse_maintenance(text) if nodes <= hosts(r.nodes)]
    except SlurmError as error:
        return PartitionLimits(note=f"the partition's limits are not known: {error}")
    if not ahead:
        return allowed
    first = min(ahead, key=lambda r: r.begins)
    in_s = max(first.begins - time.time(), 0.0)
    return replace(allowed, maintenance=first.name, maintenance_in_s=in_s)


def partition_name(profile: Profile) -> str:
    """Name the partition of a profile in a message."""
    return f"partition {profile.partition}" if profile.partition else "the default partition"


def obstacles(profile: Profile, site: PartitionLimits) -> list[str]:
    """Describe what keeps elements of a profile from starting."""
    limit_s = time_limit_s(profile.options.get("time", ""))
    name = partition_name(profile)
    problems: list[str] = []
    if limit_s and site.max_time_s and limit_s > site.max_time_s:
        problems.append(
            f"time {written_time(limit_s)} is more than {name} allows "
            f"({written_time(site.max_time_s)}): elements would wait forever; "
            f"give --time {written_time(site.max_time_s)} or another --partition"
        )
    if limit_s and site.maintenance_in_s is not None and limit_s > site.maintenance_in_s:
        problems.append(
            f"maintenance ({site.maintenance}) begins in {written_time(site.maintenance_in_s)}: "
            f"elements with time {written_time(limit_s)} start after it, "
            "shorter ones that fit before it at once"
        )
    return problems


def obstacles_to(profile: Profile) -> list[str]:
    """Query what keeps elements of a profile from starting, and Slurm's configuration."""
    if available():
        with suppress(SlurmError):  # whoever needs it queries it again, and gets the error
            configuration(None)
    if "time" not in profile.options:
        return []
    return obstacles(profile, profile_limits(profile))


@cache
def configuration(cluster: str | None) -> str:
    """Return the configuration of a cluster, which is queried once in a process."""
    return run(("scontrol", *on(cluster), "show", "config"))


def _configured(name: str, cluster: str | None = None) -> str:
    """Return one value of the configuration of a cluster."""
    match = re.search(rf"^{name}\s*=[ \t]*(.*?)\s*$", configuration(cluster), re.MULTILINE)
    if match is None:
        raise SlurmUnknown(f"scontrol show config names no {name}")
    return match[1]


def max_array_size(cluster: str | None = None) -> int:
    """Return the number that every array index must be below on a cluster.

    It is ``MaxArraySize``, or less where the site limits the elements of one array
    (``max_array_tasks``): an array that begins with index 1 meets both limits.
    """
    size = _configured("MaxArraySize", cluster)
    if not size.isdigit() or int(size) < 2:
        raise SlurmError(f"Slurm allows no array of jobs: MaxArraySize is {size} here")
    tasks = re.search(r"\bmax_array_tasks=(\d+)", configuration(cluster))
    return min(int(size), max(int(tasks[1]), 1) + 1) if tasks else int(size)


def this_cluster() -> str:
    """Return the name of the cluster that Slurm's commands query on this machine."""
    return _configured("ClusterName")


def shows_all_jobs(cluster: str | None) -> bool:
    """Return whether a cluster, or that of this machine, shows users the jobs of others."""
    return "jobs" not in _configured("PrivateData", cluster).split(",")


def on(cluster: str | None) -> list[str]:
    """Return the option by which one of Slurm's commands asks a cluster."""
    return ["-M", cluster] if cluster else []


_site: dict[tuple[str, ...], str] | None = None


@contextmanager
def site_queried_once() -> Iterator[None]:
    """Query partitions, nodes and reservations only once within a block."""
    global _site
    before, _site = _site, {} if _site is None else _site
    try:
        yield
    finally:
        _site = before


def _of_site(*args: str) -> str:
    site = _site  # another thread may end the block meanwhile
    if site is None:
        return run(args)
    if args not in site:
        site[args] = run(args)
    return site[args]


def partition_limits(partition: str | None, cluster: str | None = None) -> PartitionLimits:
    """Return what a job may request in a partition: the default one, or the largest of several."""
    requested = _requested(cluster, partition)
    names = {p.name for p in requested}
    lines = _of_site("sinfo", *on(cluster), "-a", "-h", "-N", "-o", "%R|%N|%m").splitlines()
    nodes = [line.split("|") for line in lines if line.split("|")[0] in names]
    memory = [size for _, _, text in nodes if (size := size_mb(text.rstrip("+")))]
    max_mb = _widest([p.max_mem_mb for p in requested])
    return PartitionLimits(
        _widest([p.max_time_s for p in requested]),
        min((mb for mb in (max_mb, max(memory, default=None)) if mb), default=None),
        min((p.default_mem_mb for p in requested if p.default_mem_mb), default=None),
        tuple(sorted({node for _, node, _ in nodes})),
    )


def _requested(cluster: str | None, partition: str | None) -> list[Partition]:
    """Return the partitions of a list of names, or the default one."""
    # -a: hidden partitions, too.
    text = _of_site("scontrol", *on(cluster), "-a", "-o", "show", "partition")
    names = set((partition or "").split(",")) - {""}
    found = parse_partitions(text)
    return [p for p in found if (p.name in names if names else p.is_default)]


def default_time(profile: Profile) -> str | None:
    """Return the time limit that Slurm gives to elements whose profile requests none.

    Return None if the profile requests one, if there is none, and if it is not known: several
    partitions may have several.
    """
    if "time" in profile.options or not available():
        return None
    try:
        defaults = {
            partition.default_time_s
            for partition in _requested(profile.clusters, profile.partition)
        }
    except SlurmError as error:
        log.warning("the time limit of elements without --time is not known: %s", error)
        return None
    limit_s = defaults.pop() if len(defaults) == 1 else None
    return written_time(limit_s) if limit_s else None


def hosts(nodes: str) -> set[str]:
    """Return the names of nodes that Slurm writes as ``n[1-4]``."""
    return set(_of_site("scontrol", "show", "hostnames", nodes).split()) if nodes else set()


def _widest(limits: list[int | None]) -> int | None:
    return None if not limits or None in limits else max(n for n in limits if n is not None)
