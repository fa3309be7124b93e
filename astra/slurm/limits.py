"""What a site lets an element have: time and memory of the partition, and maintenance ahead."""

import logging
import time
from dataclasses import dataclass

from astra.config.profiles import Profile
from astra.config.units import time_limit_s, written_time
from astra.errors import SlurmError
from astra.slurm import client

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """What elements of a profile may ask for; None where nothing is known to bound it."""

    partition: str | None = None
    max_time_s: int | None = None
    max_mem_mb: int | None = None
    maintenance: str | None = None  # the reservation that takes every node of the partition next
    maintenance_in_s: float | None = None
    note: str | None = None  # why nothing is known


def bounds(chosen: Profile) -> Bounds:
    """What Slurm says of the partition that a profile asks for: three questions to it."""
    partition = str(chosen.options.get("partition") or "") or None
    if not client.available():
        return Bounds(
            partition, note="there is no Slurm here: the partition's limits are not known"
        )
    try:
        room = client.room(partition)
        ahead = [r for r in client.maintenance() if set(room.nodes) <= set(r.nodes)]
    except SlurmError as error:
        return Bounds(partition, note=f"the partition's limits are not known: {error}")
    first = min(ahead, key=lambda r: r.begins, default=None)
    return Bounds(
        partition,
        room.max_time_s,
        room.max_mem_mb,
        first.name if first else None,
        max(first.begins - time.time(), 0.0) if first else None,
    )


def warnings(chosen: Profile, known: Bounds) -> list[str]:
    """What keeps elements of a profile from starting, in words."""
    limit_s = time_limit_s(chosen.options.get("time", ""))
    name = f"partition {known.partition}" if known.partition else "the default partition"
    found = []
    if limit_s and known.max_time_s and limit_s > known.max_time_s:
        found.append(
            f"time {written_time(limit_s)} is more than {name} allows "
            f"({written_time(known.max_time_s)}): elements would wait for ever; "
            f"give --time {written_time(known.max_time_s)} or another --partition"
        )
    if limit_s and known.maintenance_in_s is not None and limit_s > known.maintenance_in_s:
        found.append(
            f"maintenance ({known.maintenance}) begins in {written_time(known.maintenance_in_s)}: "
            f"elements with time {written_time(limit_s)} start after it, "
            "shorter ones that fit before it at once"
        )
    return found


def warn(chosen: Profile) -> None:
    """Say before a submission what keeps its elements from starting."""
    if "time" in chosen.options and "clusters" not in chosen.options:
        for words in warnings(chosen, bounds(chosen)):
            log.warning("%s", words)
