"""Choose sizes from earlier attempts: rows per page, memory and time limits.

An element's time is what it takes to start, and so much for each row. Rows per page are chosen by
the mean, so that an element takes about the time asked for; limits by an upper quantile and a
margin, so that hardly any element meets them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from peewee import Model

from astra.config import settings
from astra.config.profiles import Profile
from astra.config.units import time_limit_s, written_size, written_time
from astra.database.connection import connection
from astra.models.importing import import_path
from astra.models.plans import Attempt, Page, Plan
from astra.models.schema import check_tables, check_version
from astra.plan.pending import pending_rows
from astra.plan.plan import create_plan
from astra.results.timing import RowTimes
from astra.slurm.limits import Bounds, bounds
from astra.tasks.arguments import as_stored, parse_arguments
from astra.tasks.declared import declared_by
from astra.tasks.signature import choose_model, find_task, output_model, task_name

#: Of the attempts that are looked at, so many of the latest.
LATEST = 200

#: Limits are so many times the upper quantile.
MARGIN = 1.25

#: The upper quantile of pages; of fewer than 20 pages it is the largest.
UPPER = 0.95

#: No time limit is chosen below this, and memory in steps of this.
LEAST_TIME_S, STEP_MB = 300, 64

#: What the process that watches the task's takes beside it.
BESIDE_MB = 64

#: Time for elements to be submitted and to start before a maintenance, in s.
TO_START_S = 300

#: Rows of a probe.
N_PROBE = 20

#: No page is made longer than this.
MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class Experience:
    """What attempts at a task took. Times in s, memory in MB; `upper` is a quantile of pages."""

    attempts: int
    rows: int
    plans: tuple[int, ...]
    same_arguments: bool  # as asked for; else of any arguments
    row_s: float  # mean, reading and writing included
    row_s_upper: float
    row_s_p50: float  # of the task alone
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
    """Sizes for one task and input model, and what they were chosen from.

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
    pages_per_element: int  #: pages that an element is submitted for
    pending: int  #: pending rows
    pages: int  #: pages that they make
    elements: int  #: elements that they make
    element_s: float | None  #: expected time of an element [s]; None: unknown
    time: str | None  #: sbatch's --time; None: the profile's
    mem: str | None  #: sbatch's --mem; None: the profile's
    experience: Experience | None  #: what earlier attempts took; None: nothing is known
    notes: tuple[str, ...] = ()  #: what bounded the choice


def estimate(
    task: Callable[..., object] | str,
    input_model: type[Model] | str | None = None,
    target_s: float = 3600.0,
    arguments: Mapping[str, object] | None = None,
    chosen: Profile | None = None,
    run_probe: Callable[[int], object] | None = None,
) -> list[Estimate]:
    """Choose sizes such that an element takes about `target_s`; for each input model of the task.

    Parameters
    ----------
    task, input_model, arguments : as for :func:`astra.plan.plan.create_plan`.
    target_s : how long an element should take, in s.
    chosen : the profile that is to be used: its partition bounds the limits, and its
        ``pages_per_element`` divide the rows. Without one nothing bounds them.
    run_probe : runs a plan, by its number, here and now. Where nothing is known of the task,
        :data:`N_PROBE` rows of it are run so first, and their results stored as any other.

    Raises
    ------
    TaskError
        If the task or an argument cannot be used.
    """
    function = find_task(task)
    check_version()
    models, output = choose_model(function, input_model), output_model(function)
    with connection():
        check_tables(*models, output)
    stored = as_stored(parse_arguments(function, arguments or {}))
    known = _known(chosen)
    found = []
    for model in models:
        had, source = experience(function, model, stored), "history"
        if had is None and run_probe is not None:
            _probe(function, model, arguments, run_probe)
            had, source = experience(function, model, stored), "probe"
        with connection():
            group_by = declared_by(function).group_by
            pending = pending_rows(model, output, group_by, None).count()
        found.append(
            sizes(
                task_name(function), model.__name__, had, source if had else "defaults",
                target_s, pending, chosen, known,
            )
        )  # fmt: skip
    return found


def _known(chosen: Profile | None) -> Bounds:
    """What bounds the limits: the site, and a time limit that was asked for by name."""
    if chosen is None:
        return Bounds()
    known = bounds(chosen)
    given_s = time_limit_s(chosen.given.get("time", ""))
    limits = [limit_s for limit_s in (known.max_time_s, given_s) if limit_s]
    return replace(known, max_time_s=min(limits, default=None))


def _probe(
    function: Callable[..., object],
    model: type[Model],
    arguments: Mapping[str, object] | None,
    run_probe: Callable[[int], object],
) -> None:
    (planned,) = create_plan(function, model, max_rows=N_PROBE, limit=N_PROBE, arguments=arguments)
    if planned.plan is not None:
        run_probe(planned.plan)


def experience(
    function: Callable[..., object], model: type[Model], arguments: str | None = None
) -> Experience | None:
    """What the latest attempts at a task took; None if there were none.

    Those with the same arguments count alone, where there are any.
    """
    with connection():
        for same in (True, False) if arguments is not None else (False,):
            attempts = _attempts(task_name(function), import_path(model), arguments, same)
            if attempts:
                return _experience(attempts, same)
    return None


def _attempts(task: str, model: str, arguments: str | None, same: bool) -> list[Attempt]:
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
    return list(query.where(Plan.arguments == arguments) if same else query)


def _experience(attempts: list[Attempt], same: bool) -> Experience:
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
        same_arguments=same,
        row_s=sum(spent) / n_rows,
        row_s_upper=upper([s / n for s, n in zip(spent, rows, strict=True)]),
        row_s_p50=times.quantile(0.5),
        row_s_p95=times.quantile(0.95),
        row_s_p999=times.quantile(0.999),
        row_s_deviation=times.deviation(),
        start_s=sum(starts) / max(len(starts), 1),
        start_s_upper=upper(starts),
        read_s=sum(a.t_read_s for a in attempts) / n_rows,
        write_s=sum(a.t_write_s for a in attempts) / n_rows,
        mem_mb=sum(memory) / max(len(memory), 1),
        mem_mb_upper=upper(memory),
    )


def upper(values: list[float]) -> float:
    """The upper quantile; of fewer than 20 values it is the largest, of none 0.

    >>> upper([1.0, 3.0, 2.0]), upper([float(i) for i in range(100)])
    (3.0, 95.0)
    """
    ordered = sorted(values)
    return ordered[min(int(UPPER * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def sizes(
    task: str,
    model: str,
    had: Experience | None,
    source: str,
    target_s: float,
    pending: int,
    chosen: Profile | None,
    known: Bounds,
) -> Estimate:
    """Choose by what attempts took: numbers alone."""
    each = chosen.pages_per_element if chosen else 1
    notes = [known.note] if known.note else []
    limit, time, mem, element_s = settings.current().plan.limit, None, None, None
    if had is None:
        notes.append(
            "there are no attempts of this task yet: these are the defaults; "
            f"--probe runs {N_PROBE} rows of it first"
        )
    else:
        if not had.same_arguments:
            notes.append("no attempt had these arguments: attempts with others were used")
        limit, time_s, said = _fitted(had, target_s, each, known)
        notes += said
        n_rows = min(limit * each, max(pending, 1))
        element_s = each * had.start_s + n_rows * had.row_s
        time = written_time(time_s)
        mem_mb, said = _memory(had, known)
        mem, notes = written_size(mem_mb), notes + said
    pages = math.ceil(pending / limit)
    return Estimate(
        task, model, source, target_s, limit, each, pending, pages, math.ceil(pages / each),
        element_s, time, mem, had, tuple(notes),
    )  # fmt: skip


def _fitted(
    had: Experience, target_s: float, each: int, known: Bounds
) -> tuple[int, int, list[str]]:
    """Rows per page, the time limit in s, and what cut them."""
    limit, notes = _rows(had, target_s, each), []
    if limit == 1 and each * (had.start_s + had.row_s) > 1.25 * target_s:
        notes.append(
            f"one row alone takes {written_time(each * (had.start_s + had.row_s))}, with its start"
        )
    ahead_s = known.maintenance_in_s
    if ahead_s is not None:
        begins = f"maintenance ({known.maintenance}) begins in {written_time(ahead_s)}"
        fits = _most_rows(had, each, ahead_s - TO_START_S, limit)
        if fits and fits < limit:
            notes.append(f"{begins}: {fits:,} rows per page instead of {limit:,}")
        notes.append(
            f"{begins}: elements that would not end before it start after it"
            if fits
            else f"{begins}: elements wait until it is over"
        )
        limit = fits or limit
    if known.max_time_s is not None and time_limit(had, limit, each) > known.max_time_s:
        most = f"the time limit is {written_time(known.max_time_s)} at most"
        fits = _most_rows(had, each, known.max_time_s, limit)
        notes.append(
            f"{most}: {fits:,} rows per page instead of {limit:,}"
            if fits
            else f"{most}: not even one row fits, by the upper quantile and margin"
        )
        limit = fits or 1
    time_s = time_limit(had, limit, each)
    return limit, min(time_s, known.max_time_s or time_s), notes


def _rows(had: Experience, target_s: float, each: int) -> int:
    rows = (target_s / each - had.start_s) / max(had.row_s, 1e-9)
    return min(max(round(rows), 1), MOST_ROWS)


def time_limit(had: Experience, limit: int, each: int) -> int:
    """The time limit in s of an element with so many rows in each of its pages.

    Upper quantiles of the start and of a row's time, as it differs between pages and by chance
    within them, the slowest of 1,000 rows, and the margin; whole minutes.
    """
    n_rows = limit * each
    by_chance_s = had.row_s + 1.645 * had.row_s_deviation / math.sqrt(n_rows)
    needed_s = each * had.start_s_upper + n_rows * max(had.row_s_upper, by_chance_s)
    return max(math.ceil(MARGIN * (needed_s + had.row_s_p999) / 60) * 60, LEAST_TIME_S)


def _most_rows(had: Experience, each: int, bound_s: float, most: int) -> int:
    """The longest page, up to `most` rows, whose time limit is within the bound; 0 for none."""
    least, most = 0, most
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (
            (middle, most) if time_limit(had, middle, each) <= bound_s else (least, middle - 1)
        )
    return least


def _memory(had: Experience, known: Bounds) -> tuple[int, list[str]]:
    needed_mb = MARGIN * had.mem_mb_upper + BESIDE_MB
    mem_mb = math.ceil(needed_mb / STEP_MB) * STEP_MB
    if known.max_mem_mb and mem_mb > known.max_mem_mb:
        most = written_size(known.max_mem_mb)
        return known.max_mem_mb, [f"mem {written_size(mem_mb)} is more than the {most} there is"]
    return mem_mb, []


def options_of(found: Estimate, given: Mapping[str, object]) -> dict[str, object]:
    """Options of sbatch by an estimate, where none were given."""
    chosen = dict(given)
    if found.time and "time" not in chosen:
        chosen["time"] = found.time
    if found.mem and not {"mem", "mem_per_cpu", "mem_per_gpu"} & chosen.keys():
        chosen["mem"] = found.mem
    return chosen
