"""Refuse values for SQLite that PostgreSQL would refuse.

A task that is tested with SQLite then fails on the same rows as with PostgreSQL.
"""

import json
import math
import struct
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from peewee import Field

_BITS = {"SMALLINT": 16, "INT": 32, "AUTO": 32, "BIGINT": 64, "BIGAUTO": 64}


def check(field: Field, value: Any) -> None:
    """Refuse a value, in database form, that is not of its column's type.

    Raises
    ------
    ValueError, TypeError, OverflowError
        If it is not.
    """
    kind = field.field_type
    if kind in _BITS:
        _whole(value, kind)
    elif (checked := _CHECKS.get(kind)) is not None:
        checked(field, value)


def are_in_range(field: Field, values: Sequence[Any], types: set[type]) -> bool:
    """Return whether all values of a column, which are None or of its type, pass :func:`check`.

    False means that each has to be checked.
    """
    if types == {type(None)}:
        return True
    kind, present = field.field_type, values
    if type(None) in types:
        present = [value for value in values if value is not None]
    if kind in _BITS:
        half = 1 << (_BITS[kind] - 1)
        return -half <= min(present) and max(present) < half
    if kind in ("FLOAT", "DOUBLE"):
        import numpy as np

        # In less than half the time of np.array(present).
        sizes = np.abs(np.frombuffer(struct.pack(f"{len(present)}d", *present)))
        if sizes.min() >= _MIN_FLOAT and sizes.max() <= _MAX_FLOAT:
            return True
        if np.isnan(sizes).any():
            return False
        inside = (sizes >= _MIN_FLOAT) & (sizes <= _MAX_FLOAT) | (sizes == 0)
        return kind == "DOUBLE" or bool((inside | np.isinf(sizes)).all())
    if kind == "TEXT":
        text = "".join(present)
        return "\0" not in text and text.isascii()
    return kind == "BOOL"


#: The least and the greatest normal number of 32 bits, after IEEE 754.
_MIN_FLOAT, _MAX_FLOAT = 2.0**-126, 2.0**128 - 2.0**104


def _whole(value: Any, kind: str) -> None:
    import numpy as np

    if not isinstance(value, int | np.integer):
        raise ValueError(f"{value!r} is not a whole number")
    half = 1 << (_BITS[kind] - 1)
    if not -half <= value < half:
        raise ValueError(f"{value} is out of range of {_BITS[kind]} bits")


def _real(field: Field, value: Any) -> None:
    import numpy as np

    if not isinstance(value, int | float | np.number):
        raise ValueError(f"{value!r} is not a number")
    if math.isnan(value):
        raise ValueError("SQLite has no NaN, and would store NULL; yield None, or use PostgreSQL")
    if field.field_type == "FLOAT" and math.isfinite(value):
        packed = struct.unpack("<f", struct.pack("<f", value))[0]  # OverflowError where it is large
        if value and not packed:
            raise ValueError(f"{value!r} is out of range of 32 bits")


def _text(field: Field, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    if "\0" in value:
        raise ValueError("a text with a NUL character")
    value.encode()
    limit = getattr(field, "max_length", None)
    if limit and len(value.rstrip(" ")) > limit:
        raise ValueError(f"the text has {len(value)} characters, of at most {limit}")


def _bytes(field: Field, value: Any) -> None:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{type(value).__name__} is not bytes")


def _moment(kind: Any) -> Callable[[Field, Any], None]:
    def checked(field: Field, value: Any) -> None:
        if isinstance(value, str):
            value = kind.fromisoformat(value)
        elif not isinstance(value, kind):
            raise ValueError(f"{value!r} is no {kind.__name__}")
        if field.field_type in ("DATETIME", "TIME") and value.utcoffset():
            raise ValueError(
                f"{value} has a time zone, which the column would drop; give it in UTC"
            )

    return checked


def _uuid(field: Field, value: Any) -> None:
    UUID(value) if isinstance(value, str) else _bytes(field, value)


def _decimal(field: Any, value: Any) -> None:
    number = value if isinstance(value, Decimal) else Decimal(str(value))
    if not isinstance(value, Decimal | int | float | str) or number.is_nan():
        raise ValueError(f"SQLite would not store {value!r} as a number; yield a Decimal")
    if number.is_finite() and abs(number) >= Decimal(10) ** (
        field.max_digits - field.decimal_places
    ):
        raise ValueError(f"{value} is out of range of {field.max_digits} digits")


def _json(field: Field, value: Any) -> None:
    def refuse(word: str) -> None:
        raise ValueError(f"JSON has no {word}")

    if isinstance(value, str):
        json.loads(value, parse_constant=refuse)


#: Types of moments: PostgreSQL accepts "now" or "3/4/2001" for some, and drops others' time zone.
MOMENTS = frozenset({"DATE", "TIME", "DATETIME", "MOMENT"})

#: Types that SQLite stores as texts of any form.
FORMED = MOMENTS | {"UUID"}

_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "FLOAT": _real, "DOUBLE": _real, "DECIMAL": _decimal,
    "TEXT": _text, "VARCHAR": _text, "CHAR": _text,
    "BLOB": _bytes, "UUID": _uuid, "UUIDB": _uuid, "JSON": _json,
    "DATE": _moment(date), "TIME": _moment(time), "DATETIME": _moment(datetime),
    "MOMENT": _moment(datetime),
}  # fmt: skip
