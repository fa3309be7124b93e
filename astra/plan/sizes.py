"""Choose sizes from earlier attempts: rows per page, memory and time limits.

An element takes some time to start, and some for each row. Rows per page are chosen by the mean, so
that an element takes about the requested time; limits by an upper quantile and a margin, so that
elements rarely reach them.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import replace

from peewee import Model

from astra.config import settings
from astra.config.profiles import Profile
from astra.config.units import time_limit_s, written_size, written_time
from astra.database.connection import connection
from astra.models.attempts import Attempt
from astra.models.importing import import_path
from astra.models.plans import Page, Plan
from astra.records import dataclass
from astra.results.histogram import RowTimes
from astra.slurm.limits import PartitionLimits, profile_limits
from astra.tasks.signature import task_name

#: The number of latest attempts that are read.
LATEST = 200

#: The ratio of a limit to the upper quantile.
MARGIN = 1.25

#: The upper quantile of pages; for fewer than 20 pages it is the largest.
UPPER = 0.95

#: The least time limit, and the step of memory.
MIN_TIME_S, STEP_MB = 300, 64

#: The memory of the process that supervises the task's process.
SUPERVISOR_MB = 64

#: The time for elements to be submitted and to start before a maintenance, in s.
TO_START_S = 300

#: The number of rows of a probe.
N_PROBE = 20

#: The most rows of a page.
MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class Experience:
    """Measurements of earlier attempts, in s and MB; `upper` is a quantile of pages."""

    attempts: int
    rows: int
    plans: tuple[int, ...]
    same_arguments: bool  # whether the attempts had the requested arguments
    row_s: float  # mean, including reading and writing
    row_s_upper: float
    row_s_p50: float  # without reading and writing
    row_s_p95: float
    row_s_p999: float
    row_s_deviation: float
    start_s: float
    start_s_upper: float
    read_s: float  # per row
    write_s: float  # per row
    mem_mb: float
    mem_mb_upper: float


@dataclass(frozen=True)
class Estimate:
    """Sizes for one task and input model, and the measurements that they were chosen by.

    :func:`astra.api.estimate` returns it.

    Examples
    --------
    >>> from astra.api import estimate
    >>> (sizes,) = estimate("slam.slam", "BossVisitSpectrum", target_s=600)
    >>> sizes.pending >= 0 and sizes.limit > 0
    True
    """

    task: str  #: name of the task
    input_model: str  #: name of the input model
    source: str  #: "history", "probe" or "defaults"
    target_s: float  #: how long an element should take [s]
    limit: int  #: rows per page
    pages_per_element: int  #: pages for which an element is submitted
    pending: int  #: pending rows
    pages: int  #: pages of these rows
    elements: int  #: elements of these pages
    element_s: float | None  #: expected time of an element [s]; None: unknown
    time: str | None  #: sbatch's --time; None: the profile's
    mem: str | None  #: sbatch's --mem; None: the profile's
    experience: Experience | None  #: measurements of earlier attempts; None: there are none
    notes: tuple[str, ...] = ()  #: what limited the choice


def bounds(profile: Profile | None) -> PartitionLimits:
    """Return the bounds of limits: those of the site, and a time limit that was given."""
    if profile is None:
        return PartitionLimits()
    site = profile_limits(profile)
    given_s = time_limit_s(profile.given.get("time", ""))
    limits = [limit_s for limit_s in (site.max_time_s, given_s) if limit_s]
    return replace(site, max_time_s=min(limits, default=None))


def experience(
    function: Callable[..., object], model: type[Model], arguments: str
) -> Experience | None:
    """Return measurements of the latest attempts at a task; None if there were none.

    If there are attempts with the same arguments, only they count.
    """
    with connection():
        for with_arguments in (True, False):
            attempts = _attempts(task_name(function), import_path(model), arguments, with_arguments)
            if attempts:
                return _experience(attempts, with_arguments)
    return None


def _attempts(task: str, model: str, arguments: str, with_arguments: bool) -> list[Attempt]:
    query = (
        Attempt.select(Attempt, Page.plan.alias("plan_pk"))
        .join(Page)
        .join(Plan)
        .where(
            (Plan.task == task)
            & (Plan.input_model == model)
            & (Attempt.n_done + Attempt.n_failed + Attempt.n_no_result > 0)
            & (Attempt.t_rows_s > 0)
        )
        .order_by(Attempt.pk.desc())
        .limit(LATEST)
    )
    return list(query.where(Plan.arguments == arguments) if with_arguments else query)


def _experience(attempts: list[Attempt], with_arguments: bool) -> Experience:
    """Summarize the measurements of attempts, each of which has ended at least one row."""
    rows = [a.n_done + a.n_failed + a.n_no_result for a in attempts]
    times = sum((RowTimes.parse(a.row_times) for a in attempts), RowTimes())
    starts = [a.t_start_s for a in attempts if a.t_start_s is not None]
    memory = [a.max_rss_mb for a in attempts if a.max_rss_mb is not None]
    spent = [a.t_rows_s or 0.0 for a in attempts]
    n_rows = sum(rows)
    return Experience(
        attempts=len(attempts),
        rows=n_rows,
        plans=tuple(sorted({a.page.plan_pk for a in attempts})),
        same_arguments=with_arguments,
        row_s=sum(spent) / n_rows,
        row_s_upper=upper_quantile([s / n for s, n in zip(spent, rows, strict=True)]),
        row_s_p50=times.quantile(0.5),
        row_s_p95=times.quantile(0.95),
        row_s_p999=times.quantile(0.999),
        row_s_deviation=times.deviation(),
        start_s=sum(starts) / max(len(starts), 1),
        start_s_upper=upper_quantile(starts),
        read_s=sum(a.t_read_s for a in attempts) / n_rows,
        write_s=sum(a.t_write_s for a in attempts) / n_rows,
        mem_mb=sum(memory) / max(len(memory), 1),
        mem_mb_upper=upper_quantile(memory),
    )


def upper_quantile(values: list[float]) -> float:
    """Return the upper quantile: for fewer than 20 values the largest, for none 0.

    >>> upper_quantile([1.0, 3.0, 2.0]), upper_quantile([float(i) for i in range(100)])
    (3.0, 95.0)
    """
    ordered = sorted(values)
    return ordered[min(int(UPPER * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def sizes(
    task: str,
    model: str,
    measured: Experience | None,
    source: str,
    target_s: float,
    pending: int,
    profile: Profile | None,
    site: PartitionLimits,
) -> Estimate:
    """Choose sizes from measurements, without queries."""
    pages_per_element = profile.pages_per_element if profile else 1
    notes = [site.note] if site.note else []
    limit, time, mem, element_s = settings.current().plan.limit, None, None, None
    if measured is None:
        notes.append(
            "there are no attempts of this task yet: these are the defaults; "
            f"--probe runs {N_PROBE} rows of it first"
        )
    else:
        if not measured.same_arguments:
            notes.append("no attempt had these arguments: attempts with others were used")
        limit, time_s, further_notes = _fitted(measured, target_s, pages_per_element, site)
        notes += further_notes
        n_rows = min(limit * pages_per_element, max(pending, 1))
        element_s = pages_per_element * measured.start_s + n_rows * measured.row_s
        time = written_time(time_s)
        mem_mb, further_notes = _memory(measured, site)
        mem, notes = written_size(mem_mb), notes + further_notes
    pages = math.ceil(pending / limit)
    return Estimate(
        task, model, source, target_s, limit, pages_per_element, pending, pages,
        math.ceil(pages / pages_per_element), element_s, time, mem, measured, tuple(notes),
    )  # fmt: skip


def _fitted(
    measured: Experience, target_s: float, n_pages: int, site: PartitionLimits
) -> tuple[int, int, list[str]]:
    """Choose the rows per page of elements that run `n_pages` pages each.

    Return them, the time limit [s], and notes on what reduced them.
    """
    notes = []
    rows = (target_s / n_pages - measured.start_s) / max(measured.row_s, 1e-9)
    limit = min(max(round(rows), 1), MAX_ROWS)
    row_s = n_pages * (measured.start_s + measured.row_s)
    if limit == 1 and row_s > 1.25 * target_s:
        notes.append(f"one row alone takes {written_time(row_s)}, with its start")
    ahead_s = site.maintenance_in_s
    if ahead_s is not None:
        begins = f"maintenance ({site.maintenance}) begins in {written_time(ahead_s)}"
        fits = _most_rows(measured, n_pages, ahead_s - TO_START_S, limit)
        if fits and fits < limit:
            notes.append(f"{begins}: {fits:,} rows per page instead of {limit:,}")
        notes.append(
            f"{begins}: elements that would not end before it start after it"
            if fits
            else f"{begins}: elements wait until it is over"
        )
        limit = fits or limit
    if site.max_time_s is not None and time_limit(measured, limit, n_pages) > site.max_time_s:
        bound = f"the time limit is {written_time(site.max_time_s)} at most"
        fits = _most_rows(measured, n_pages, site.max_time_s, limit)
        notes.append(
            f"{bound}: {fits:,} rows per page instead of {limit:,}"
            if fits
            else f"{bound}: not even one row fits, by the upper quantile and margin"
        )
        limit = fits or 1
    time_s = time_limit(measured, limit, n_pages)
    return limit, min(time_s, site.max_time_s or time_s), notes


def time_limit(measured: Experience, limit: int, n_pages: int) -> int:
    """Return the time limit [s] of an element that runs `n_pages` pages of `limit` rows.

    It is made of upper quantiles of the start and of a row's time, which differs between pages and
    by chance within them, the slowest of 1,000 rows, and the margin, in whole minutes.
    """
    n_rows = limit * n_pages
    by_chance_s = measured.row_s + 1.645 * measured.row_s_deviation / math.sqrt(n_rows)
    needed_s = n_pages * measured.start_s_upper + n_rows * max(measured.row_s_upper, by_chance_s)
    return max(math.ceil(MARGIN * (needed_s + measured.row_s_p999) / 60) * 60, MIN_TIME_S)


def _most_rows(measured: Experience, n_pages: int, bound_s: float, max_rows: int) -> int:
    """Return the largest page, up to `max_rows`, whose time limit is within the bound, or 0."""
    limits = range(1, max_rows + 1)
    return bisect_right(limits, bound_s, key=lambda limit: time_limit(measured, limit, n_pages))


def _memory(measured: Experience, site: PartitionLimits) -> tuple[int, list[str]]:
    needed_mb = MARGIN * measured.mem_mb_upper + SUPERVISOR_MB
    mem_mb = math.ceil(needed_mb / STEP_MB) * STEP_MB
    if site.max_mem_mb and mem_mb > site.max_mem_mb:
        available = written_size(site.max_mem_mb)
        return site.max_mem_mb, [
            f"mem {written_size(mem_mb)} is more than the {available} there is"
        ]
    return mem_mb, []


def options_of(estimated: Estimate, options: Mapping[str, object]) -> dict[str, object]:
    """Return sbatch's options: those given, and time and memory by an estimate otherwise."""
    merged = dict(options)
    if estimated.time and "time" not in merged:
        merged["time"] = estimated.time
    if estimated.mem and not {"mem", "mem_per_cpu", "mem_per_gpu"} & merged.keys():
        merged["mem"] = estimated.mem
    return merged
