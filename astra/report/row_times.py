"""Run times of rows, from their results."""

import logging
from collections.abc import Iterable

import numpy as np

from astra.database.connection import dialect, tuples
from astra.errors import AstraError
from astra.models.attempts import Attempt
from astra.models.importing import load
from astra.models.keys import RowKey
from astra.models.pipeline import link_of
from astra.models.plans import Page, Plan
from astra.models.table_checks import check_tables
from astra.plan.lookup import find_modules
from astra.records import dataclass
from astra.report.attempts import Attempts, Histogram, histogram

log = logging.getLogger(__name__)

N_SLOWEST = 15

#: The most rows whose results are read for their run times.
ROWS_LOOKED_AT = 200_000


@dataclass(frozen=True)
class SlowRow:
    """A row that took long."""

    plan: int
    page: int
    key: RowKey
    seconds: float


def row_times(plans: list[Plan], attempts: Attempts) -> tuple[Histogram | None, list[SlowRow]]:
    """Return run times of rows, from the results of all pages, or of some if there are many."""
    times: list[float] = []
    slowest: list[SlowRow] = []
    n_read = 0
    for plan in plans:
        numbers = _pages_to_look_at(plan, attempts, ROWS_LOOKED_AT // len(plans))
        n_read += len(numbers)
        try:
            elapsed = list(_elapsed(plan, numbers))
        except AstraError as error:
            log.warning("the run times of rows are left out: %s", error)
            continue
        for page, key, seconds in elapsed:
            times.append(seconds)
            slowest.append(SlowRow(plan.pk, page, key, seconds))
        slowest = sorted(slowest, key=lambda row: -row.seconds)[:N_SLOWEST]
    if not times:
        return None, []
    n_pages = sum(plan.n_pages for plan in plans)
    extent = f"{n_read:,} of {n_pages:,} pages, the slowest among them"
    return histogram(np.array(times), extent if n_read < n_pages else None), slowest


def _pages_to_look_at(plan: Plan, attempts: Attempts, n_rows: int) -> list[int]:
    """Choose pages of about `n_rows` rows: all, or the slowest and some spread over the plan."""
    n_pages = max(2, n_rows // plan.limit)
    if plan.n_pages <= n_pages:
        return list(range(1, plan.n_pages + 1))
    of_plan = [a for a in attempts.records if a.plan == plan.pk and a.rows]
    slowest = sorted(of_plan, key=lambda a: -a.task_s / a.rows)[: n_pages // 2]
    spread = np.linspace(1, plan.n_pages, n_pages // 2).astype(int).tolist()
    return sorted({a.page for a in slowest} | set(spread))


def _elapsed(plan: Plan, numbers: list[int]) -> Iterable[tuple[int, RowKey, float]]:
    """Return page, key and seconds of the results of some pages that the plan's attempts wrote."""
    find_modules(plan)
    output = load(plan.output_model)
    check_tables(output)
    key = link_of(output, load(plan.input_model)).key(output)
    pages = Page.select(Page.number, getattr(Page, key.page_column)).where(
        (Page.plan == plan.pk) & dialect().among(Page.number, numbers)
    )
    of_key = {k: number for number, keys in tuples(pages) for k in keys}
    query = (
        key.narrowed(output.select(), list(of_key))
        .select(key.given, output.t_elapsed)
        .join(Attempt, on=(Attempt.pk == output.attempt_pk))
        .join(Page)
        .where(
            (output.v_astra_major_minor == plan.version.major_minor)
            & (Page.plan == plan.pk)
            & output.t_elapsed.is_null(False)
        )
    )
    return ((of_key[k], k, seconds) for k, seconds in tuples(query))
