"""Rules for retries after each state in which an element may end, and their configuration."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from astra.config.value_checks import entry, number, section, size, time_limit, values, whole
from astra.errors import nearest
from astra.records import dataclass


@dataclass(frozen=True)
class Rule:
    """What is done after an element ends in one state."""

    retries: int = entry(3, whole(0, 999))  # elements that may end so without ending a row
    mem_growth: float = entry(1.0, number(1, 100))  # factor for the next element's memory
    time_growth: float = entry(1.0, number(1, 100))  # factor for its time limit
    max_mem: str | None = entry(None, size)  # limits of growth, in addition to the partition's
    max_time: str | None = entry(None, time_limit)


#: The rule of each state. COMPLETED with rows missing counts as FAILED.
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


def checked(table: object, place: str = "policy") -> dict[str, dict[str, object]]:
    """Check the rules of the ``policy`` table at a place of the file, by state.

    Raises
    ------
    ValueError
        If a state, a key or a value is invalid.
    """
    by_state: dict[str, dict[str, object]] = {}
    for state, rule in section(table, f"[{place}.TIMEOUT]").items():
        header = f"[{place}.{state}]"
        if state not in RULES:
            raise ValueError(f"{header}: there is no rule for this state. {nearest(state, RULES)}")
        if not isinstance(rule, dict):
            raise ValueError(
                f"[{place}] {state} = {rule!r}: the rule of a state is a section: {header}, and "
                "below it keys such as retries = 3"
            )
        by_state[state] = values(header, rule, fields(Rule))
    return by_state


def rules(*tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Rule]:
    """Return the rule of every state: astra's own, changed by each table in turn."""
    current = dict(RULES)
    for table in tables:
        for state, rule in table.items():
            current[state] = replace(current[state], **rule)
    return current
