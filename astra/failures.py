"""Failures: which rows raised, why, where and how often."""

from collections.abc import Iterable
from dataclasses import dataclass

from astra.database import connection
from astra.models.orchestration import Failure
from astra.plan import get_plan


@dataclass(frozen=True)
class FailedRow:
    """One row of a plan that ended as a failure."""

    key: int
    page: int | None
    exception: str
    message: str
    place: str | None
    times: int
    refused: bool  # a further result of a row that has one: the row is done
    traceback: str | None


@dataclass(frozen=True)
class Kind:
    """Failures of one exception and place."""

    exception: str
    place: str | None
    message: str  # of the first
    rows: int
    keys: tuple[int, ...]


def failures(plan: int) -> list[FailedRow]:
    """The failures of a plan, by key."""
    frozen = get_plan(plan)
    with connection():
        query = Failure.select().where(Failure.plan_pk == frozen.pk).order_by(Failure.key)
        return [
            FailedRow(
                f.key, f.page, f.exception, f.message, f.place, f.times, f.refused, f.traceback
            )
            for f in query
        ]


def kinds(rows: Iterable[FailedRow]) -> list[Kind]:
    """Failures grouped by exception and place, the most frequent first."""
    groups: dict[tuple[str, str | None], list[FailedRow]] = {}
    for row in rows:
        groups.setdefault((row.exception, row.place), []).append(row)
    found = [
        Kind(exception, place, members[0].message, len(members), tuple(m.key for m in members))
        for (exception, place), members in groups.items()
    ]
    return sorted(found, key=lambda kind: -kind.rows)
