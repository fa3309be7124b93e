"""Values as the text of a PostgreSQL array, which is read on any connection in one statement."""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg2.extensions import Binary
from psycopg2.extras import Json

_ARRAY_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"'})


def array_literal(values: Sequence[Any]) -> str:
    """Values as the text of a PostgreSQL array."""
    return "{" + ",".join(map(_array_element, values)) + "}"


BYTES = bytes | bytearray | memoryview

#: What has a text that the server reads as the same value.
_PLAIN = (str, int, float, Decimal, UUID, date, time, timedelta)


def _array_element(value: Any, inner: bool = False) -> str:
    """A value as it stands in the text of an array.

    A list among them is an array of its own, which travels as a text, and holds lists as they are.
    """
    if value is None:
        return "NULL"
    kind = type(value)
    if kind is float or kind is int or kind is bool:
        return repr(value)
    if kind is str:
        return _quoted(value)
    import numpy as np  # here, as few commands touch an array

    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        literal = "{" + ",".join(_array_element(item, inner=True) for item in value) + "}"
        return literal if inner else _quoted(literal)
    if isinstance(value, Json):
        return _quoted(value.dumps(value.adapted))
    if isinstance(value, Binary):
        value = value.adapted
    if isinstance(value, BYTES):
        return _quoted("\\x" + bytes(value).hex())
    if isinstance(value, datetime):
        return _quoted(value.isoformat())
    if isinstance(value, np.bool_):
        return repr(bool(value))
    if isinstance(value, (*_PLAIN, np.integer, np.floating)):
        return _quoted(str(value))
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} cannot be stored in the database")


def _quoted(text: str) -> str:
    return '"' + text.translate(_ARRAY_ESCAPES) + '"'
