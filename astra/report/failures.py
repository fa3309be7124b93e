"""Failures in a report: by exception and place, with the traceback of one row of each."""

from collections.abc import Sequence

from peewee import fn

from astra.database.connection import tuples
from astra.models.failures import Failure
from astra.models.keys import RowKey
from astra.plan.pages import key_reader
from astra.records import dataclass
from astra.status.logs import log_paths

N_KINDS = 60  # that are listed

N_KEYS = 12  # of rows that are named for a kind


@dataclass(frozen=True)
class FailureKind:
    """Failures of one exception and place, with one of them as an example."""

    plan: int
    exception: str
    place: str | None
    message: str
    traceback: str | None
    rows: int
    keys: tuple[RowKey, ...]
    page: int | None = None  # of the example
    log: str | None = None  # file that the example's attempt printed to


def failures_of(plans: Sequence[int]) -> tuple[tuple[FailureKind, ...], int, int]:
    """Return the failures of some plans by exception and place, each with its first as example.

    Those with the most rows come first; the numbers of all kinds and rows follow.
    """
    groups = (
        Failure.select(Failure.plan_pk, Failure.exception, Failure.place, fn.COUNT(Failure.pk))
        .where((Failure.plan_pk << list(plans)) & ~Failure.refused)
        .group_by(Failure.plan_pk, Failure.exception, Failure.place)
    )
    ordered = sorted(
        tuples(groups), key=lambda group: (-group[3], group[0], group[1], group[2] or "")
    )
    kinds = tuple(_kind(*group) for group in ordered[:N_KINDS])
    return kinds, len(ordered), sum(group[3] for group in ordered)


def _kind(plan: int, exception: str, place: str | None, n_rows: int) -> FailureKind:
    same_place = Failure.place.is_null() if place is None else Failure.place == place
    alike = (Failure.plan_pk == plan) & (Failure.exception == exception) & same_place
    query = Failure.select().where(alike & ~Failure.refused)
    # Keys are texts; numbers among them are in their order.
    first = query.order_by(fn.LENGTH(Failure.key), Failure.key).limit(N_KEYS)
    rows, as_key = list(first), key_reader(plan)
    example = rows[0]
    attempt = example.attempt_pk or 0
    return FailureKind(
        plan, exception, place, example.message, example.traceback, n_rows,
        tuple(as_key(row.key) for row in rows), example.page, log_paths([attempt]).get(attempt),
    )  # fmt: skip
