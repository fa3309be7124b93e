"""Earlier nights, with which the report of a night compares its own numbers."""

from collections.abc import Sequence
from datetime import datetime

from peewee import fn

from astra.database.connection import connection, tuples
from astra.models.attempts import Attempt
from astra.models.plans import Page
from astra.records import dataclass

N_EARLIER = 8


@dataclass(frozen=True)
class Earlier:
    """The numbers of a night: a line of the comparison."""

    title: str
    began: datetime
    wall_s: float
    rows: int
    failed: int
    pending: int
    attempts: int
    pages: int
    task_s: float  # that attempts spent in the task

    @property
    def whole(self) -> bool:
        return not (self.pending or self.failed)

    @property
    def rows_per_s(self) -> float:
        return (self.rows - self.pending) / self.wall_s if self.wall_s else 0.0

    @property
    def row_s(self) -> float:
        ended = self.rows - self.pending
        return self.task_s / ended if ended else 0.0


def earlier_of(plans: Sequence[int], title: str) -> Earlier | None:
    """Summarize some plans, to compare others with; None if nothing ran."""
    last_seen = fn.MAX(fn.COALESCE(Attempt.ended, Attempt.seen))
    with connection():
        of_pages = (
            Page.select(
                fn.COUNT(Page.pk), fn.SUM(Page.n_rows), fn.SUM(Page.n_failed),
                fn.SUM(Page.n_done + Page.n_failed + Page.n_no_result),
            )
            .where(Page.plan << list(plans))
        )  # fmt: skip
        of_attempts = (
            Attempt.select(
                fn.COUNT(Attempt.pk), fn.MIN(Attempt.began),
                last_seen.python_value(Attempt.seen.python_value), fn.SUM(Attempt.t_task_s),
            )
            .join(Page)
            .where(Page.plan << list(plans))
        )  # fmt: skip
        pages, rows, failed, ended = (int(value or 0) for value in next(tuples(of_pages)))
        attempts, began, until, task_s = next(tuples(of_attempts))
    if not attempts:
        return None
    return Earlier(
        title, began, (until - began).total_seconds(), rows, failed, rows - ended,
        attempts, pages, task_s or 0.0,
    )  # fmt: skip
