"""The right of an attempt to write a page, and what it knows of the page."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import peewee

from astra.database.connection import database, dialect
from astra.errors import DatabaseError, Superseded
from astra.models.attempts import Attempt, Suspect
from astra.models.keys import RowKey
from astra.models.plans import Page, Plan
from astra.states import Outcome


@dataclass
class Claim:
    """The right to write a page: held while the page names this attempt."""

    page: Page
    attempt: Attempt
    positions: dict[object, int]  # key -> place in the page
    outcomes: bytearray
    n_found: int = 0  # rows whose result others had written
    mutex: threading.Lock = field(default_factory=threading.Lock)  # guards the two above
    cancelled: bool = False  # the plan, as the last checkpoint found: the attempt is to end
    measures: Callable[[], dict[str, object]] = dict  # columns of the attempt, as of now
    suspects: Sequence[Suspect] = ()  # of the page, as it was claimed

    @cached_property
    def standing(self) -> tuple[str, list[object]]:
        """The query, and its parameters, for who holds the page, whether the plan was cancelled,
        and how many checkpoints of the attempt are there; it locks the page."""
        query = (
            Page.select(Page.attempt_pk, Plan.cancelled, Attempt.n_checkpoints)
            .join(Plan, on=Plan.pk == Page.plan)
            .join(Attempt, peewee.JOIN.LEFT_OUTER, on=Attempt.pk == self.attempt.pk)
            .where(Page.pk == self.page.pk)
        )
        if dialect().name == "postgresql":
            query = query.for_update(of=Page)
        return query.sql()

    def find(self, keys: Iterable[RowKey]) -> None:
        """Rows that turn out to have a result already: the next checkpoint says so."""
        with self.mutex:
            for key in keys:
                place = self.positions[key]
                if self.outcomes[place] == Outcome.PENDING:
                    self.outcomes[place] = Outcome.RESULT
                    self.n_found += 1

    def seen(self) -> "Seen":
        with self.mutex:
            return Seen(bytes(self.outcomes), self.n_found)

    def advance(self, seen: "Seen", progress: "Progress") -> None:
        """A checkpoint was committed. What was found while it was written stays found."""
        with self.mutex:
            ends = zip(seen.outcomes, progress.outcomes, strict=True)
            for place, (before, after) in enumerate(ends):
                if before != after:
                    self.outcomes[place] = after
        for name, value in progress.counts.items():
            setattr(self.attempt, name, value)


@dataclass(frozen=True)
class Seen:
    """A page as a checkpoint of it begins."""

    outcomes: bytes
    n_found: int


@dataclass(frozen=True)
class Progress:
    """A page as a checkpoint of it leaves it, and what its attempt has ended up to then."""

    outcomes: bytes
    counts: dict[str, int]


def _hold(claim: Claim) -> None:
    """Make sure that the page is still ours, and stays so until the transaction ends."""
    sql, parameters = claim.standing
    found = database.execute_sql(sql, parameters).fetchone()
    holder, cancelled, n_checkpoints = found or (None, None, None)
    claim.cancelled = cancelled is not None
    if holder is None:
        raise Superseded(
            f"page {claim.page.number} of plan {claim.page.plan_pk} was taken back: the plan was "
            "cancelled; nothing more is written"
        )
    if holder != claim.attempt.pk:
        raise Superseded(
            f"page {claim.page.number} of plan {claim.page.plan_pk} was taken over by attempt "
            f"{holder}; this one (attempt {claim.attempt.pk}) writes nothing more"
        )
    _check_memory(claim, n_checkpoints)


def check_memory(claim: Claim) -> None:
    """Make sure that every checkpoint that was acknowledged is there.

    A standby that became the primary, or a backup that was restored, may stand at an earlier
    moment: what this process knows of the page is not true there, and must not be written.

    Raises
    ------
    DatabaseError
        If a checkpoint is missing.
    """
    query = Attempt.select(Attempt.n_checkpoints).where(Attempt.pk == claim.attempt.pk)
    _check_memory(claim, query.scalar())


def _check_memory(claim: Claim, n_checkpoints: int | None) -> None:
    missing = claim.attempt.n_checkpoints - (n_checkpoints or 0)
    if missing > 0:
        raise DatabaseError(
            f"the database has lost {missing} checkpoints that it had acknowledged, as after a "
            "failover or a restored backup; their rows are pending again"
        )


def claim_of(page: Page, attempt: Attempt) -> Claim:
    """The right of an attempt to write its page."""
    outcomes = bytearray(page.outcomes)
    places: dict[object, int] = {key: place for place, key in enumerate(page.row_keys)}
    return Claim(page, attempt, places, outcomes, attempt.n_found)
