"""Divide the pages of a plan among Slurm arrays, within the limits of the site."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from astra.config.profiles import Profile
from astra.records import dataclass


@dataclass(frozen=True)
class Slice:
    """The part of a submission that one array serves."""

    pages: list[int]  # page numbers
    elements: list[int]
    offset: int
    max_elements: int  # that a pool of these pages may have

    def indices(self) -> list[int]:
        return [element - self.offset for element in self.elements]


def shares(total: int | None, weights: Sequence[int]) -> list[int]:
    """Divide a throttle by weight, at least 1 each; a small one gives fewer shares than weights.

    >>> shares(10, [600, 300, 100]), shares(2, [5, 5, 5]), shares(None, [7])
    ([6, 3, 1], [1, 1], [])
    """
    if total is None or not weights:
        return []
    taken = list(weights[:total])
    exact = [total * weight / sum(taken) for weight in taken]
    parts = [max(int(part), 1) for part in exact]
    while (excess := sum(parts) - total) != 0:
        errors = [n - part for n, part in zip(parts, exact, strict=True)]
        if excess > 0:
            parts[max((i for i, n in enumerate(parts) if n > 1), key=lambda i: errors[i])] -= 1
        else:
            parts[min(range(len(parts)), key=lambda i: errors[i])] += 1
    return parts


def slices(pages: Iterable[int], profile: Profile, max_indices: int) -> list[Slice]:
    """Cut pages into arrays, each with the indices 1 to `max_indices` and an offset.

    Pools share the elements that the profile allows.
    """
    of_array = profile.pages_per_element * max_indices
    groups = groupby(sorted(pages), key=lambda page: (page - 1) // of_array)
    arrays = [(group * max_indices, list(members)) for group, members in groups]
    share = -(-profile.max_elements // max(len(arrays), 1))
    return [_slice(members, offset, share, profile) for offset, members in arrays]


def _slice(pages: list[int], offset: int, max_elements: int, profile: Profile) -> Slice:
    """Return a slice with its elements: without a pool, each has consecutive pages."""
    each, elements = profile.pages_per_element, pages
    if each > 1:
        elements = list(dict.fromkeys([(page - 1) // each + 1 for page in pages]))
    if profile.pull:
        elements = elements[:max_elements]
    return Slice(pages, elements, offset, max_elements)


#: The smallest share of the wanted elements with which a pool serves all of its pages.
_MIN_SHARE = 1 / 8


def reduced(piece: Slice, profile: Profile) -> list[Slice]:
    """Return what to submit instead of a slice with more elements than a limit of Slurm allows.

    Half of the elements of a pool can serve the same pages, unless they would be too few for them.
    Otherwise the slice is cut into two, each with half of its pages and elements.
    """
    half, cut = len(piece.elements) // 2, len(piece.pages) // 2
    if profile.pull and half >= _MIN_SHARE * min(len(piece.pages), piece.max_elements):
        return [replace(piece, elements=piece.elements[:half])]
    if not profile.pull:
        first_of_second = (piece.elements[half] - 1) * profile.pages_per_element + 1
        cut = bisect_left(piece.pages, first_of_second)
    share = -(-piece.max_elements // 2)
    parts = [
        _slice(pages, piece.offset, share, profile)
        for pages in (piece.pages[:cut], piece.pages[cut:])
    ]
    if not profile.pull:
        return parts
    return [replace(part, elements=part.elements[: max(half, 1)]) for part in parts]
