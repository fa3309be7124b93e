"""Failures: which rows failed, why, where and how often."""

from collections.abc import Callable, Iterable

from astra.database.connection import connection, dialect
from astra.models.failures import Failure
from astra.models.keys import RowKey
from astra.models.plans import Page, Plan
from astra.plan.lookup import get_plan
from astra.plan.pages import key_reader
from astra.records import dataclass
from astra.states import Outcome


@dataclass(frozen=True)
class FailedRow:
    """One row of a plan that ended as a failure: :func:`astra.api.failures` returns these.

    Examples
    --------
    >>> from astra.api import failures
    >>> [failed.key for failed in failures(1)]
    []
    """

    key: int | str  #: of the input row
    page: int | None  #: number of the page
    exception: str  #: class of the exception
    message: str  #: its first line
    place: str | None  #: file, line and function that raised it
    times: int  #: how often the row failed
    refused: bool  #: a further result of a row that has one: the row is done
    traceback: str | None  #: of the last failure
    since: str | None = None  #: what happened to the row after this plan


@dataclass(frozen=True)
class FailureKind:
    """Failures of one exception and place."""

    exception: str
    place: str | None
    message: str  # of the first
    rows: int
    keys: tuple[int | str, ...]


def failures(plan: int) -> list[FailedRow]:
    """Return the failures of a plan, by key: as many as its status counts, and refused results.

    A row has one record. If a later plan processed the row again, the record belongs to that plan;
    if the row has ended otherwise since, there is none.

    Parameters
    ----------
    plan : int
        Number of the plan.

    Returns
    -------
    list of FailedRow
        With keys, exceptions and tracebacks.

    Raises
    ------
    UsageError
        If there is no such plan.

    Examples
    --------
    >>> from astra.api import failures
    >>> for failed in failures(1):
    ...     print(failed.key, failed.exception, failed.message)
    """
    frozen = get_plan(plan)
    with connection():
        of_plan = list(Failure.select().where(Failure.plan_pk == frozen.pk))
        recorded = {f.key for f in of_plan}
        missing = [key for key in _failed_keys(frozen) if str(key) not in recorded]
        later = Failure.select().where(
            (Failure.task == frozen.task)
            & (Failure.input_table == frozen.input_table)
            & dialect().among(Failure.key, missing, "text")
        )
        repeated = {f.key: f for f in later} if missing else {}
        as_key = key_reader(frozen.pk)
    rows = [_failed_row(f, as_key) for f in of_plan]
    rows += [_failed_row(f, as_key, f"failed again in plan {f.plan_pk}") for f in repeated.values()]
    since = "has ended differently since: it has a result now, or none"
    rows += [
        FailedRow(key, None, "(no record)", "", None, 1, False, None, since)
        for key in missing
        if str(key) not in repeated
    ]
    # Numbers come first, then texts: a refused result may have a key of any type.
    return sorted(rows, key=lambda row: (isinstance(row.key, str), row.key))


def _failed_row(f: Failure, as_key: Callable[[str], RowKey], since: str | None = None) -> FailedRow:
    return FailedRow(
        as_key(f.key), f.page, f.exception, f.message, f.place, f.times, f.refused, f.traceback,
        since,
    )  # fmt: skip


def _failed_keys(plan: Plan) -> list[RowKey]:
    """Return the keys of the rows that count as failed in the pages of a plan."""
    pages = Page.select(Page.keys, Page.key_texts, Page.outcomes).where(
        (Page.plan == plan.pk) & (Page.n_failed > 0)
    )
    return [
        key
        for page in pages
        for key, outcome in zip(page.row_keys, bytes(page.outcomes), strict=True)
        if outcome == Outcome.FAILURE
    ]


def kinds(rows: Iterable[FailedRow]) -> list[FailureKind]:
    """Group failures by exception and place, the most frequent first."""
    groups: dict[tuple[str, str | None], list[FailedRow]] = {}
    for row in rows:
        groups.setdefault((row.exception, row.place), []).append(row)
    grouped = [
        FailureKind(
            exception, place, members[0].message, len(members), tuple(m.key for m in members)
        )
        for (exception, place), members in groups.items()
    ]
    return sorted(grouped, key=lambda kind: -kind.rows)
