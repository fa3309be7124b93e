"""Check values of the configuration: each check returns the value, or says what it should be."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, field
from typing import Any, TypeVar

from astra.config.units import size_mb, time_limit_s
from astra.errors import nearest

T = TypeVar("T")

Check = Callable[[object], T]  # returns the value, or raises ValueError("should be ...")


def entry(default: T, check: Check[object]) -> T:
    """Declare a key of the configuration as a field of a dataclass."""
    return field(default=default, metadata={"check": check})


def section(value: object, header: str) -> dict[str, object]:
    """Check that a value is a section of the file."""
    if not isinstance(value, dict):
        raise ValueError(f"{header} should be a section, with its keys below it")
    return value


def values(
    header: str,
    table: Mapping[str, object],
    keys: Iterable[Field[object]],
    others: Iterable[str] = (),
) -> dict[str, Any]:
    """Check the keys and values of a section.

    Parameters
    ----------
    header : of the section, as the file has it: ``[nights.survey]``.
    keys : the fields that were declared by :func:`entry`.
    others : what else may stand there, and is checked elsewhere.
    """
    checks = {item.name: item.metadata["check"] for item in keys}
    checked: dict[str, object] = {}
    for name, value in table.items():
        if name not in checks:
            raise ValueError(f"{header} {name}: no such key. {nearest(name, [*checks, *others])}")
        try:
            checked[name] = checks[name](value)
        except ValueError as error:
            raise ValueError(f"{header} {name} = {value!r}: {error}") from None
    return checked


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("should be a text in quotes")
    if any(c in value for c in "\0\n\r") or not is_utf8(value):
        raise ValueError("should be one line of UTF-8 without control characters")
    return value


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it holds no lone surrogate."""
    return not re.search(r"[\ud800-\udfff]", text)


def texts(value: object) -> tuple[str, ...]:
    """Check a list of texts; one text is a list of one."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(t, str) and t for t in listed):
        raise ValueError('should be a list of texts, such as ["one", "two"]')
    return tuple(listed)


def command(example: str) -> Check[tuple[str, ...]]:
    """Return a check for a command: a text that a shell would split into words, or the words."""

    def check(value: object) -> tuple[str, ...]:
        try:
            parts = shlex.split(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"cannot be read as a command: {error}") from None
        if not isinstance(parts, list | tuple) or not parts or not all(map(_is_word, parts)):
            raise ValueError(f"should be a command, such as {example}")
        return tuple(parts)

    return check


def _is_word(word: object) -> bool:
    return isinstance(word, str) and bool(word) and not any(c in word for c in "\0\n\r")


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("should be true or false")
    return value


#: The most seconds and days that can be waited for, or added to a date: about 30 and 100 years.
MAX_S, MAX_DAYS = 1_000_000_000, 36_500

#: The longest wait for an answer, which servers and commands are given in milliseconds.
MAX_ANSWER_S = 86_400


def number(least: float, greatest: float = MAX_S, above: bool = False) -> Check[float]:
    """Return a check for a number between two others."""
    expected = f"{'above' if above else 'from'} {least:,g} {'and at most' if above else 'to'} "
    expected += f"{greatest:,.10g}"

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("should be a number, without quotes")
        if not least <= value <= greatest or (above and value == least):
            raise ValueError(f"should be {expected}")
        return float(value)

    return check


#: The most rows of a page: an element has a place in shared memory for each of them.
MAX_PAGE_ROWS = 2**24 - 1


def whole(least: int, greatest: int | None = None) -> Check[int]:
    """Return a check for a whole number between two others."""
    expected = f"of at least {least} and below {2**31}"
    if greatest is not None:
        expected = f"from {least} to {greatest}"

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("should be a whole number, without quotes")
        if not least <= value <= (2**31 - 1 if greatest is None else greatest):
            raise ValueError(f"should be a whole number {expected}")
        return value

    return check


def one_of(*choices: str) -> Check[str]:
    """Return a check for one of several words."""

    def check(value: object) -> str:
        if value not in choices:
            raise ValueError(f"should be {' or '.join(map(repr, choices))}")
        return str(value)

    return check


def matching(pattern: str, expected: str) -> Check[str]:
    """Return a check for a text of a pattern; `expected` describes it in the message."""

    def check(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"should be {expected}")
        return value

    return check


def time_limit(value: object) -> str:
    if not isinstance(value, str) or not time_limit_s(value):
        raise ValueError('should be a time limit, such as "1-12:00:00"')
    return value


def size(value: object) -> str:
    if not isinstance(value, str) or not size_mb(value):
        raise ValueError('should be a size, such as "64G"')
    return value
