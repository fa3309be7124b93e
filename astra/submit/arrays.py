"""Divide the pages of a plan among Slurm arrays, within the limits of the site."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from astra.config.profiles import Profile


@dataclass(frozen=True)
class Slice:
    """The part of a submission that one array serves."""

    pages: list[int]  # their numbers
    elements: list[int]
    offset: int

    def indices(self) -> list[int]:
        return [element - self.offset for element in self.elements]

    def with_elements(self, chosen: Profile) -> "Slice":
        """Return the slice with no more elements than a profile has for pages that all may take."""
        return replace(self, elements=self.elements[: chosen.max_elements]) if chosen.pull else self


def _in_lane(chosen: Profile, lanes: list[int], n: int) -> Profile:
    """The profile of the n-th array, with its share of the throttle."""
    return replace(chosen, throttle=lanes[n % len(lanes)]) if lanes else chosen


def shares(total: int | None, weights: Sequence[int]) -> list[int]:
    """A throttle divided by weight, at least 1 each; fewer shares than weights if it is small.

    >>> shares(10, [600, 300, 100]), shares(2, [5, 5, 5]), shares(None, [7])
    ([6, 3, 1], [1, 1], [])
    """
    if total is None or not weights:
        return []
    taken = list(weights[:total])
    exact = [total * weight / sum(taken) for weight in taken]
    found = [max(int(part), 1) for part in exact]
    while (over := sum(found) - total) != 0:
        wrong = [n - part for n, part in zip(found, exact, strict=True)]
        if over > 0:
            found[max((i for i, n in enumerate(found) if n > 1), key=lambda i: wrong[i])] -= 1
        else:
            found[min(range(len(found)), key=lambda i: wrong[i])] += 1
    return found


def slices(pages: Iterable[int], each: int, most: int) -> Iterator[Slice]:
    """Cut pages by the array that their elements belong to: indices 1 to `most`, and an offset."""
    numbers, of_array = sorted(pages), each * most
    begin = 0
    while begin < len(numbers):
        group = (numbers[begin] - 1) // of_array
        end = bisect_right(numbers, (group + 1) * of_array, begin)
        members = numbers[begin:end]
        yield Slice(members, _elements(members, each), group * most)
        begin = end


def _elements(pages: list[int], each: int) -> list[int]:
    return pages if each == 1 else list(dict.fromkeys([(page - 1) // each + 1 for page in pages]))


def halves(piece: Slice, each: int) -> list[Slice]:
    second = piece.elements[len(piece.elements) // 2]
    cut = bisect_left(piece.pages, (second - 1) * each + 1)
    return [
        Slice(pages, _elements(pages, each), piece.offset)
        for pages in (piece.pages[:cut], piece.pages[cut:])
    ]
