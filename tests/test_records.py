"""Dataclasses of astra behave as Python's, and share their methods."""

import dataclasses
import re

import pytest

from astra import records
from tests.conftest import ROOT


def _made(dataclass, **options):
    @dataclass(**options)
    class Point:
        """A point, and a note that is not compared."""

        x: int
        y: list[int] = dataclasses.field(default_factory=list, repr=False)
        note: str = dataclasses.field(default="", compare=False)

    return Point


@pytest.mark.parametrize(
    "options",
    [{}, {"frozen": True}, {"frozen": True, "eq": False}, {"frozen": True, "order": True}],
)
def test_they_behave_as_those_of_python(options):
    def looked_at(dataclass):
        kind = _made(dataclass, **options)
        point, other = kind(1, note="a"), kind(1, note="b")
        seen = [repr(point), point == other, point == kind(2), point == (1, []), kind(1) != other]
        seen += [dataclasses.asdict(dataclasses.replace(point, x=3)), kind.__hash__ is None]
        changes = (
            lambda: setattr(point, "x", 2), lambda: setattr(point, "new", 2),
            lambda: delattr(point, "x"), lambda: hash(point) and 0, lambda: hash(kind(1, ())) and 0,
        )  # fmt: skip
        for change in changes:
            try:
                seen.append(change())
            except (AttributeError, TypeError) as error:
                seen.append(f"{type(error).__name__}: {error}")
        return seen

    assert looked_at(records.dataclass) == looked_at(dataclasses.dataclass)


def test_astra_makes_them_in_the_quick_way():
    first, second = (_made(records.dataclass, frozen=True) for _ in range(2))
    for name in ("__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"):
        assert getattr(first, name) is getattr(second, name)
    slow = re.compile(r"^from dataclasses import .*\bdataclass\b", re.MULTILINE)
    found = {p.name for p in (ROOT / "astra").rglob("*.py") if slow.search(p.read_text())}
    assert found == {"version.py"}  # whose only one has an order
