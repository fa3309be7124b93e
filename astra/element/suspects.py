"""Suspects: rows that a task had in hand when its process crashed.

A process that dies says nothing, so the rows that it had in hand are remembered, kept apart from
the others of their page, and handed over last. A group in which a process dies again is halved,
until one row stands alone; a row that was alone in hand at ``max_deaths`` deaths is recorded as a
failure. A bad row among n costs about log2(n) + max_deaths processes, and nothing but itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from astra.models.attempts import Suspect
from astra.models.plans import Page


@dataclass(frozen=True)
class Death:
    """What ended a process, in the words of the failure that a row may become of it."""

    exception: str
    cause: str  # "killed its process (signal 11, SIGSEGV)"
    certain: bool = False  # a row that is alone in hand is to blame, at the first time


def record_death(page_pk: int, places: Sequence[int], death: Death) -> None:
    """Remember the rows that a process had in hand as it died, in the order they were handed.

    Inside a transaction. Without places nothing is known, and nothing is remembered.
    """
    if not places:
        return
    known = {s.place: s for s in Suspect.select().where(Suspect.page == page_pk)}
    free = 1 + max((s.group for s in known.values()), default=0)
    groups = {known[place].group if place in known else 0 for place in places}
    if len(places) == 1:
        parts = [places]
    elif groups == {0}:
        parts = [places]  # a row among many: first apart from those that are beyond doubt
    else:
        middle = len(places) // 2
        parts = [places[:middle], places[middle:]]
    alone = len(places) == 1
    for number, part in enumerate(parts, free):
        for place in part:
            deaths = known[place].deaths if place in known else 0
            _upsert(page_pk, place, number, deaths + alone, death)
    if alone and death.certain:
        Suspect.update(deaths=CERTAIN).where(
            (Suspect.page == page_pk) & (Suspect.place == places[0])
        ).execute()


#: Deaths of a row that needs no second one.
CERTAIN = 1_000_000


def _upsert(page_pk: int, place: int, group: int, deaths: int, death: Death) -> None:
    values = {
        "group": group, "deaths": deaths, "exception": death.exception, "cause": death.cause
    }  # fmt: skip
    Suspect.insert(page=page_pk, place=place, **values).on_conflict(
        conflict_target=[Suspect.page, Suspect.place], update=values
    ).execute()


def suspects_of(page_pk: int) -> list[Suspect]:
    """The suspects of a page, smallest groups first: what is likely to go well goes first."""
    found = list(Suspect.select().where(Suspect.page == page_pk).order_by(Suspect.place))
    size: dict[int, int] = {}
    for suspect in found:
        size[suspect.group] = size.get(suspect.group, 0) + 1
    return sorted(found, key=lambda s: (s.deaths, -size[s.group], s.group, s.place))


def forgive(pages: Iterable[Page]) -> None:
    """Rows of these pages are to be tried again: their deaths count no more."""
    pks = [page.pk for page in pages]
    Suspect.update(deaths=0).where(Suspect.page.in_(pks)).execute()
