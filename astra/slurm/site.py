"""Query Slurm for the partitions, reservations and configuration of a site.

Text in, value out: the words are fetched in limits.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from astra.config.units import size_mb, time_limit_s
from astra.errors import SlurmUnknown


@dataclass(frozen=True)
class Here:
    """The cluster that this machine's commands speak to, and what they show to whom."""

    name: str
    is_private: bool  # users see their own jobs only


def parse_here(text: str) -> Here:
    """The cluster of ``scontrol show config``."""
    values = dict(re.findall(r"^(ClusterName|PrivateData)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    if "ClusterName" not in values:
        raise SlurmUnknown("scontrol show config names no ClusterName")
    return Here(values["ClusterName"], "jobs" in values.get("PrivateData", "").split(","))


def parse_max_array_size(text: str) -> int:
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    if found is None:
        raise SlurmUnknown("scontrol show config names no MaxArraySize")
    tasks = re.search(r"\bmax_array_tasks=(\d+)", text)
    return min(int(found[1]), int(tasks[1]) + 1) if tasks else int(found[1])


def _records(text: str) -> Iterator[dict[str, str]]:
    """The words ``Name=Value`` of each line."""
    for line in text.splitlines():
        yield dict(word.split("=", 1) for word in line.split() if "=" in word)


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
    for values in _records(text):
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
    for values in _records(text):
        if "MAINT" in values.get("Flags", "").split(","):
            begins, ends = (
                datetime.fromisoformat(values[key]).timestamp() for key in ("StartTime", "EndTime")
            )
            found.append((values["ReservationName"], begins, ends, values.get("Nodes", "")))
    return found
