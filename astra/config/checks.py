"""Check values of the configuration: each check returns the value, or says what it should be."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, field
from typing import Any

from astra.config.units import size_mb, time_limit_s
from astra.errors import nearest

Check = Callable[[Any], Any]  # returns the value, or raises ValueError("should be ...")


def entry(default: Any, check: Check) -> Any:
    """Declare a key of the configuration as a field of a dataclass."""
    return field(default=default, metadata={"check": check})


def section(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"should be a section: write [{name}], then its keys")
    return value


def values(
    where: str, table: Mapping[str, Any], keys: Iterable[Field[Any]], others: Iterable[str] = ()
) -> dict[str, Any]:
    """Check the keys and values of a section.

    Parameters
    ----------
    keys : the fields that were declared by :func:`entry`.
    others : what else may stand there, and is checked elsewhere.
    """
    checks = {item.name: item.metadata["check"] for item in keys}
    found = {}
    for name, value in table.items():
        if name not in checks:
            raise ValueError(f"{where}.{name}: no such key. {nearest(name, [*checks, *others])}")
        try:
            found[name] = checks[name](value)
        except ValueError as error:
            raise ValueError(f"{where}.{name} = {value!r}: {error}") from None
    return found


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("should be a text in quotes")
    if any(c in value for c in "\0\n\r") or re.search(r"[\ud800-\udfff]", value):
        raise ValueError("should be one line of UTF-8 without control characters")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """Check a list of texts; one text is a list of one."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(t, str) and t for t in listed):
        raise ValueError('should be a list of texts, such as ["one", "two"]')
    return tuple(listed)


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("should be true or false")
    return value


def number(least: float, most: float = math.inf, above: bool = False) -> Check:
    said = f"{'above' if above else 'at least'} {least:g}, and finite"
    said = f"from {least:g} to {most:g}" if math.isfinite(most) else said

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("should be a number, without quotes")
        if not (math.isfinite(value) and least <= value <= most) or (above and value == least):
            raise ValueError(f"should be {said}")
        return float(value)

    return check


def whole(least: int, most: int | None = None) -> Check:
    said = f"of at least {least} and below {2**31}" if most is None else f"from {least} to {most}"

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("should be a whole number, without quotes")
        if not least <= value <= (2**31 - 1 if most is None else most):
            raise ValueError(f"should be a whole number {said}")
        return value

    return check


def one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"should be {' or '.join(map(repr, words))}")
        return str(value)

    return check


def matching(pattern: str, said: str) -> Check:
    """Check that a value is a text of a pattern."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"should be {said}")
        return value

    return check


def time_limit(value: Any) -> str:
    if not isinstance(value, str) or not time_limit_s(value):
        raise ValueError('should be a time limit, such as "1-12:00:00"')
    return value


def size(value: Any) -> str:
    if not isinstance(value, str) or not size_mb(value):
        raise ValueError('should be a size, such as "64G"')
    return value
