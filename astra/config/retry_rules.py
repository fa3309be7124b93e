"""How an element that ended in a state is retried, and how configuration changes the rules."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from astra.config.units import size_mb, time_limit_s
from astra.errors import nearest


@dataclass(frozen=True)
class Rule:
    """What is done after one way to end."""

    retries: int = 3  # elements that may end so without a row to show for it
    mem_growth: float = 1.0  # the next has so many times the memory
    time_growth: float = 1.0  # and the time limit
    max_mem: str | None = None  # bounds of growth; the partition's own hold too
    max_time: str | None = None


#: The states that have a rule. COMPLETED with rows missing counts as FAILED.
RULES: Mapping[str, Rule] = {
    "TIMEOUT": Rule(time_growth=2.0),
    "OUT_OF_MEMORY": Rule(mem_growth=1.5),
    "NODE_FAIL": Rule(retries=5),
    "PREEMPTED": Rule(),
    "BOOT_FAIL": Rule(retries=5),
    "DEADLINE": Rule(retries=1),
    "CANCELLED": Rule(),
    "FAILED": Rule(),
}


def checked(table: Any) -> dict[str, dict[str, Any]]:
    """The rules of a ``policy`` table, by state.

    Raises
    ------
    ValueError
        If a state, a key or a value is none of a policy's.
    """
    if not isinstance(table, dict):
        raise ValueError("should hold states: write [policy.TIMEOUT], then its keys")
    return {state: _checked_rule(state, values) for state, values in table.items()}


def _checked_rule(state: str, values: Any) -> dict[str, Any]:
    if state not in RULES:
        raise ValueError(f"{state}: no state that has a policy. {nearest(state, RULES)}")
    if not isinstance(values, dict):
        raise ValueError(f"{state}: should be a section: write [policy.{state}], then its keys")
    known = [f.name for f in fields(Rule)]
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{state}.{key}: no such key. {nearest(key, known)}")
        if said := _wrong(key, value):
            raise ValueError(f"{state}.{key} = {value!r}: should be {said}")
    return dict(values)


def _wrong(key: str, value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "retries":
        return None if number and isinstance(value, int) and 0 <= value < 1000 else (
            "a whole number from 0 to 999"
        )  # fmt: skip
    if key in ("mem_growth", "time_growth"):
        return None if number and 1 <= value <= 100 else "a number from 1 to 100"
    if key == "max_mem":
        return None if isinstance(value, str) and size_mb(value) else 'a size, such as "64G"'
    ok = isinstance(value, str) and time_limit_s(value)
    return None if ok else 'a time limit, such as "1-12:00:00"'


def rules(*tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Rule]:
    """The rule of every state: astra's own, changed by each table in turn."""
    found = dict(RULES)
    for table in tables:
        for state, values in table.items():
            found[state] = replace(found[state], **values)
    return found
