"""Divide the pages of a plan among Slurm arrays, within the limits of the site."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from astra.config.profiles import Profile


@dataclass(frozen=True)
class Slice:
    """The part of a submission that one array serves."""

    pages: list[int]  # page numbers
    elements: list[int]
    offset: int
    n_parts: int = 1  # into which a limit cut its array; they share the elements of the profile

    def indices(self) -> list[int]:
        return [element - self.offset for element in self.elements]

    def with_elements(self, profile: Profile) -> "Slice":
        """Return the slice with at most the number of elements that a profile allows for a pool."""
        if not profile.pull:
            return self
        return replace(self, elements=self.elements[: self.max_elements(profile)])

    def max_elements(self, profile: Profile) -> int:
        """Return how many elements a pool of the slice may have."""
        return -(-profile.max_elements // self.n_parts)


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


def slices(pages: Iterable[int], pages_per_element: int, max_indices: int) -> Iterator[Slice]:
    """Cut pages into arrays, each with the indices 1 to `max_indices` and an offset."""
    numbers, of_array = sorted(pages), pages_per_element * max_indices
    begin = 0
    while begin < len(numbers):
        group = (numbers[begin] - 1) // of_array
        end = bisect_right(numbers, (group + 1) * of_array, begin)
        members = numbers[begin:end]
        yield Slice(members, _elements(members, pages_per_element), group * max_indices)
        begin = end


def _elements(pages: list[int], pages_per_element: int) -> list[int]:
    """Return the elements of pages: without a pool, each element has consecutive pages."""
    if pages_per_element == 1:
        return pages
    return list(dict.fromkeys([(page - 1) // pages_per_element + 1 for page in pages]))


#: The smallest share of the wanted elements with which a pool serves all of its pages.
_MIN_SHARE = 1 / 8


def reduced(piece: Slice, profile: Profile) -> list[Slice]:
    """Return what to submit instead of a slice with more elements than a limit of Slurm allows.

    Half of the elements of a pool can serve the same pages, unless they would be too few for them.
    Else the slice is cut into two, each with half of its pages and elements.
    """
    elements = piece.with_elements(profile).elements
    half = len(elements) // 2
    wanted = min(len(piece.pages), piece.max_elements(profile))
    if profile.pull and half >= _MIN_SHARE * wanted:
        return [replace(piece, elements=elements[:half])]
    each = profile.pages_per_element
    middle = len(piece.pages) // 2
    second = piece.pages[middle] if profile.pull else (elements[half] - 1) * each + 1
    cut = bisect_left(piece.pages, second)
    most = max(half, 1) if profile.pull else None
    return [
        Slice(pages, _elements(pages, each)[:most], piece.offset, piece.n_parts * 2)
        for pages in (piece.pages[:cut], piece.pages[cut:])
    ]
