"""The claim: the right of an attempt to write a page, and what it knows of the page."""

from collections.abc import Callable, Sequence

import peewee

from astra.database.connection import dialect
from astra.database.statements import statement
from astra.errors import DatabaseError, Superseded
from astra.models.attempts import Attempt, Suspect, is_same_attempt
from astra.models.plans import Page, Plan
from astra.records import dataclass
from astra.states import Outcome


@dataclass
class Claim:
    """The right to write a page, which lasts as long as the page refers to this attempt."""

    page: Page
    attempt: Attempt
    positions: dict[object, int]  # key -> place in the page
    outcomes: bytearray  # as the last acknowledged checkpoint has stored them
    cancelled: bool = False  # whether the last checkpoint found that the plan was cancelled
    read_meter: Callable[[], dict[str, object]] = dict  # returns current columns of the attempt
    suspects: Sequence[Suspect] = ()  # of the page, when it was claimed
    #: Records the end of the attempt, in the transaction of the checkpoint that ends the page.
    end: Callable[[], None] | None = None
    has_ended: bool = False  # such a checkpoint was committed

    def has_result(self, key: object) -> bool:
        place = self.positions.get(key)
        return place is not None and self.outcomes[place] == Outcome.RESULT

    def advance(self, progress: "Progress") -> None:
        """Apply a committed checkpoint."""
        self.outcomes = progress.outcomes
        for name, value in progress.counts.items():
            setattr(self.attempt, name, value)
        self.has_ended = progress.is_end


@dataclass(frozen=True)
class Progress:
    """What a checkpoint makes of the outcomes of a page, and of the counts of its attempt."""

    outcomes: bytearray
    counts: dict[str, int]
    is_end: bool = False  # it records the end of the attempt


def hold_page(claim: Claim) -> None:
    """Check that the attempt still holds the page, and lock it until the transaction ends."""
    attempt = claim.attempt
    rows = _locked(page=claim.page.pk, attempt=attempt.pk, token=attempt.token)
    holder, cancelled, n_checkpoints = rows[0] if rows else (None, None, None)
    claim.cancelled = cancelled is not None
    if holder is None:
        why = "the plan was cancelled" if claim.cancelled else "the database is in an earlier state"
        raise Superseded(
            f"page {claim.page.number} of plan {claim.page.plan_pk} was taken back: {why}; nothing "
            "more is written"
        )
    if holder != attempt.pk:
        raise Superseded(
            f"page {claim.page.number} of plan {claim.page.plan_pk} was taken over by attempt "
            f"{holder}; this one (attempt {attempt.pk}) writes nothing more"
        )
    _check_checkpoints(claim, n_checkpoints)


@statement
def _locked(page: peewee.Value, attempt: peewee.Value, token: peewee.Value) -> peewee.Query:
    """Lock a page; select the attempt that holds it, whether its plan was cancelled, and the number
    of an attempt's stored checkpoints, NULL if there is no such attempt."""
    is_same = (Attempt.pk == attempt) & (Attempt.token == token)
    query = (
        Page.select(Page.attempt_pk, Plan.cancelled, Attempt.n_checkpoints)
        .join(Plan, on=Plan.pk == Page.plan)
        .join(Attempt, peewee.JOIN.LEFT_OUTER, on=is_same)
        .where(Page.pk == page)
    )
    return query.for_update(of=Page) if dialect().name == "postgresql" else query


def check_nothing_lost(claim: Claim) -> None:
    """Check that the database still has the attempt, and every checkpoint that it acknowledged.

    A standby that became the primary, or a restored backup, may be in an earlier state, where
    another attempt may have got the number of this one. What this process knows of the page does
    not hold there, and must not be written.

    Raises
    ------
    DatabaseError
        If the attempt or a checkpoint is missing.
    """
    query = Attempt.select(Attempt.n_checkpoints).where(is_same_attempt(claim.attempt))
    _check_checkpoints(claim, query.scalar())


def _check_checkpoints(claim: Claim, n_checkpoints: int | None) -> None:
    if n_checkpoints is not None and n_checkpoints >= claim.attempt.n_checkpoints:
        return
    lost = (
        f"attempt {claim.attempt.pk}"
        if n_checkpoints is None
        else f"{claim.attempt.n_checkpoints - n_checkpoints} checkpoints"
    )
    raise DatabaseError(
        f"the database has lost {lost}, which it had acknowledged, as after a failover or a "
        "restored backup; rows stored since are pending again"
    )


def claim_of(page: Page, attempt: Attempt) -> Claim:
    """Make the claim of an attempt to its page."""
    outcomes = bytearray(page.outcomes)
    places: dict[object, int] = {key: place for place, key in enumerate(page.row_keys)}
    return Claim(page, attempt, places, outcomes)
