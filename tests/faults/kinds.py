"""The kinds of faults: each is a function, registered here, that injects one into a world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.nemesis import Nemesis

#: Injects a fault; returns what was done to which process, or None if there was none.
Doing = Callable[["Nemesis", "Fault"], str | None]


@dataclass(frozen=True)
class Fault:
    """One fault of a scenario."""

    kind: str
    after: float  # share of the rows that have been computed when it happens
    inside: str | None = None  # "results" or "progress": a checkpoint that has just written these
    lasts_s: float = 0.0
    number: int = 0  # of the signal


@dataclass(frozen=True)
class Kind:
    """A kind of fault, and how often it is drawn here and on Slurm."""

    do: Doing
    weight: int
    slurm_weight: int
    inside: bool  # whether it can happen inside a checkpoint, which is held open for it
    kills: bool  # whether rows in progress may be blamed for it
    repeats: bool  # whether it costs what was not stored yet, or changes what is to be computed


KINDS: dict[str, Kind] = {}


def kind(
    weight: int = 0,
    on_slurm: int | None = None,
    inside: bool = False,
    kills: bool = False,
    repeats: bool = False,
    name: str | None = None,
) -> Callable[[Doing], Doing]:
    """Register a function as a kind of fault, by its name. Without weight, it is never drawn."""

    def register(do: Doing) -> Doing:
        called = name or do.__name__.replace("_", " ")
        slurm_weight = weight if on_slurm is None else on_slurm
        KINDS[called] = Kind(do, weight, slurm_weight, inside, kills, kills or repeats)
        return do

    return register
