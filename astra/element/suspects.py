"""Suspects: rows that were in progress when their process crashed.

A process that dies cannot say which row was to blame. So all of its rows in progress are recorded,
separated from the others of their page, and given to the task last. A group in which a process dies
again is halved, until one row is alone; a row that was alone in progress at ``max_deaths`` deaths
is recorded as a failure. A bad row among n costs about log2(n) + max_deaths processes, and no other
row.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from peewee import fn

from astra.models.attempts import Attempt, Suspect
from astra.models.failures import Failure
from astra.models.plans import Page
from astra.records import dataclass
from astra.results.claim import Claim
from astra.results.stopping import Tally


@dataclass(frozen=True)
class Death:
    """How a process ended, as the failure of a row to blame describes it."""

    exception: str
    cause: str  # "killed its process (signal 11, SIGSEGV)"
    certain: bool = False  # a row that was alone in progress is to blame, at its first death
    on_request: bool = False  # the process was asked to stop: no row is to blame


def record_death(page_pk: int, places: Sequence[int], death: Death) -> None:
    """Record the rows in progress when a process died, in the order in which it was given them.

    Inside a transaction. Without `places`, nothing is known and nothing recorded.
    """
    if not places:
        return
    earlier = {s.place: s for s in Suspect.select().where(Suspect.page == page_pk)}
    next_group = 1 + max((s.group for s in earlier.values()), default=0)
    alone = len(places) == 1
    parts = [places]  # a first death only separates them from the rows beyond suspicion
    if not alone and not earlier.keys().isdisjoint(places):
        middle = len(places) // 2
        parts = [places[:middle], places[middle:]]
    rows = []
    for number, part in enumerate(parts, next_group):
        for place in part:
            deaths = earlier[place].deaths if place in earlier else 0
            rows.append({
                "page": page_pk, "place": place, "group": number,
                "deaths": CERTAIN if alone and death.certain else deaths + alone,
                "exception": death.exception, "cause": death.cause,
            })  # fmt: skip
    changed = [Suspect.group, Suspect.deaths, Suspect.exception, Suspect.cause]
    # A task that collects its rows has a whole page in progress.
    for start in range(0, len(rows), _AT_ONCE):
        Suspect.insert_many(rows[start : start + _AT_ONCE]).on_conflict(
            conflict_target=[Suspect.page, Suspect.place], preserve=changed
        ).execute()


#: The number of deaths that is recorded for a row which is certainly to blame.
CERTAIN = 1_000_000

#: How many suspects one statement records.
_AT_ONCE = 1000


def suspects_of(page_pk: int) -> list[Suspect]:
    """Return the suspects of a page, those with the fewest deaths and in the largest groups first:
    they are the most likely to end well."""
    suspects = list(Suspect.select().where(Suspect.page == page_pk).order_by(Suspect.place))
    size = Counter(suspect.group for suspect in suspects)
    return sorted(suspects, key=lambda s: (s.deaths, -size[s.group], s.group, s.place))


def reset_deaths(pages: Iterable[Page]) -> None:
    """Reset the deaths of all suspects of these pages, whose rows are to be tried again."""
    pks = [page.pk for page in pages]
    Suspect.update(deaths=0).where(Suspect.page.in_(pks)).execute()


def count_earlier(claim: Claim, tally: Tally) -> None:
    """Count how rows ended in the earlier processes of an element, which have crashed.

    As in :class:`Tally`, rows that had failed before and failed again are not counted as failed.
    """
    attempt, n_stored = claim.attempt, Attempt.n_done + Attempt.n_no_result
    of_element = (Attempt.submission_pk == attempt.submission_pk) & (
        Attempt.element == attempt.element
    )
    ended = Attempt.select(fn.SUM(n_stored), fn.SUM(Attempt.n_failed)).where(of_element)
    again = Failure.select().where(
        (Failure.plan_pk == claim.page.plan_pk)
        & Failure.attempt_pk.in_(Attempt.select(Attempt.pk).where(of_element))
        & ~Failure.refused
        & (Failure.times > 1)
    )
    tally.n_stored, n_failed = ended.scalar(as_tuple=True)
    tally.n_ended, tally.n_failed = tally.n_stored + n_failed, n_failed - again.count()
