"""Compare the CPU, memory and time that elements used with what they requested.

From Slurm's accounting, with the shares that ``reportseff`` gives of the same jobs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from astra.config import settings
from astra.errors import SlurmError
from astra.models.plans import Submission
from astra.records import dataclass
from astra.slurm import client, command
from astra.slurm.parse import Usage
from astra.status.page_states import slurm_jobs

N_LISTED = 100  # elements in a table, at most


@dataclass(frozen=True)
class Gauge:
    """The use of one resource, over all elements for which it is known."""

    name: str  # "CPU", "memory", "time"
    unit: str  # of used and requested: "CPU s", "MB", "s"
    share: float  # CPU: of all elements together; memory and time: the highest
    median: float
    maximum: float
    n: int  # elements
    counts: tuple[int, ...]  # by share: 20 steps of 5 %, and one for 100 % and more
    used: float  # CPU: by all; memory and time: by the element nearest to its limit
    requested: float


@dataclass(frozen=True)
class Efficiency:
    """How much of the requested resources was used, by Slurm's accounting."""

    gauges: tuple[Gauge, ...]
    cpu_hours: float  # that elements had for themselves
    elements: tuple[Usage, ...] = ()  # those nearest to a limit


def efficiency(submissions: Sequence[Submission]) -> tuple[Efficiency | None, tuple[str, ...]]:
    """Return how resources were used, and notes on what is unknown."""
    jobs = slurm_jobs(submissions)
    if not jobs:
        return None, ()
    why = "there is no Slurm on this machine"
    if command.available():
        try:
            if usage := client.usage(jobs, recent_s=settings.current().slurm.recent_s):
                return _accounted(usage), ()
            why = "the accounting does not know these jobs"
        except SlurmError as error:
            why = str(error)
    return None, (f"it is unknown how much CPU, memory and time was used: {why}",)


def _accounted(usage: list[Usage]) -> Efficiency:
    ended = [u for u in usage if not u.state.alive]
    had_s = sum(u.elapsed_s * u.cpus for u in ended)
    used_s = sum(u.cpu_s or 0 for u in ended)
    gauges = [
        _gauge("memory", "MB", [(u.mem_used_mb, u.mem_requested_mb) for u in ended]),
        _gauge("time", "s", [(u.elapsed_s, u.time_limit_s) for u in ended]),
    ]
    if cpu := _gauge("CPU", "CPU s", [(u.cpu_s, u.elapsed_s * u.cpus) for u in ended]):
        gauges.insert(0, replace(cpu, share=used_s / had_s, used=used_s, requested=had_s))
    nearest = sorted(ended, key=lambda u: -max(u.mem_share or 0, u.time_share or 0))
    cpu_hours = sum(u.elapsed_s * u.cpus for u in usage) / 3600
    return Efficiency(tuple(g for g in gauges if g), cpu_hours, tuple(nearest[:N_LISTED]))


def _gauge(
    name: str, unit: str, pairs: Iterable[tuple[float | None, float | None]]
) -> Gauge | None:
    measured = np.array(
        [(used, requested) for used, requested in pairs if used is not None and requested]
    )
    if not len(measured):
        return None
    shares = measured[:, 0] / measured[:, 1]
    # 100 % and more share the last step.
    counts = np.bincount(np.clip((shares * 20).astype(int), 0, 20), minlength=21)
    top = float(shares.max())
    used, requested = measured[int(shares.argmax())]
    return Gauge(
        name, unit, top, float(np.median(shares)), top, len(measured), tuple(counts.tolist()),
        float(used), float(requested),
    )  # fmt: skip
