"""Read JSON from the columns of astra's own tables.

JSON that was damaged by hand is logged and treated as empty, so that a command continues.
"""

import json
import logging
from collections.abc import Mapping
from typing import TypedDict, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class StoredProfile(TypedDict, total=False):
    """The profile that a submission was made with."""

    name: str
    options: dict[str, object]
    given: dict[str, object]
    throttle: int | None
    max_elements: int  # that serve its pages at once, if it pulls
    setup: list[str]
    default_time: str | None  # the time limit in `options`, if the profile requested none


def parsed(text: str, kind: type[T]) -> T | None:
    """Parse stored JSON; return None if it is damaged, or no value of this kind."""
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def stored(text: str | None, kind: type[T], place: str) -> T:
    """Parse JSON that is stored at a place; log damaged JSON, and return an empty value for it."""
    value = None if text is None else parsed(text, kind)
    if value is None and text is not None:
        log_damage(place, text)
    return kind() if value is None else value


def log_damage(place: str, text: str) -> None:
    log.warning("%s is damaged, and counts as empty: %.60r (astra verify)", place, text)


def options_of(profile: Mapping[str, object]) -> dict[str, str | float]:
    """Return sbatch's options from a stored profile."""
    options = profile.get("options")
    items = options.items() if isinstance(options, dict) else ()
    return {str(key): value for key, value in items if isinstance(value, str | float | int)}
