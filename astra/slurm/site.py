"""Parse the partitions, reservations and configuration of a site, which limits.py queries."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from astra.config.units import size_mb, time_limit_s
from astra.errors import SlurmUnknown


@dataclass(frozen=True)
class Cluster:
    """The cluster that this machine's commands query, and whether users see each other's jobs."""

    name: str
    is_private: bool  # users see only their own jobs


def parse_cluster(text: str) -> Cluster:
    """Parse the cluster in ``scontrol show config``."""
    values = dict(re.findall(r"^(ClusterName|PrivateData)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    if "ClusterName" not in values:
        raise SlurmUnknown("scontrol show config names no ClusterName")
    return Cluster(values["ClusterName"], "jobs" in values.get("PrivateData", "").split(","))


def parse_max_array_size(text: str) -> int:
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    if match is None:
        raise SlurmUnknown("scontrol show config names no MaxArraySize")
    tasks = re.search(r"\bmax_array_tasks=(\d+)", text)
    return min(int(match[1]), int(tasks[1]) + 1) if tasks else int(match[1])


def _records(text: str) -> Iterator[dict[str, str]]:
    """Yield the words ``Name=Value`` of each line."""
    for line in text.splitlines():
        yield dict(word.split("=", 1) for word in line.split() if "=" in word)


@dataclass(frozen=True)
class PartitionLimits:
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
