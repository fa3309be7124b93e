"""Columns of values as PostgreSQL's binary COPY takes them: packed by numpy, no text between.

A column of a type that is not known here, or with a value that is not plainly of it, is not packed:
its batch travels as texts, which the server reads as it reads every text.

The form is that of PostgreSQL's manual, COPY, "Binary Format"; of values, that of the types' own
functions (float4recv and so on): big-endian numbers, microseconds since 2000.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)

_TAIL = struct.pack(">h", -1)

_NONE = type(None)


@dataclass(frozen=True)
class Packed:
    """The values of one column: `cells` holds the bytes of each, those after its length unused."""

    cells: np.ndarray  # uint8, shape (rows, width)
    lengths: np.ndarray | None  # bytes of each, -1 for NULL; None: all have the whole width


def pack(kind: str, values: Sequence[Any]) -> Packed | None:
    """A column in binary form; None where it has none here.

    Parameters
    ----------
    kind : the name of the type, such as ``float4``.
    values : in database form.
    """
    packer = _PACKERS.get(kind)
    return packer(values, set(map(type, values))) if packer else None


def rows(columns: Sequence[Packed], order: np.ndarray) -> bytes:
    """Packed columns as the rows of a binary COPY, in an order: indices, shape (rows,)."""
    n_rows = len(columns[0].cells)
    parts, masks = [_constant(n_rows, struct.pack(">h", len(columns)))], []
    exact = all(column.lengths is None for column in columns)
    for column in columns:
        width = column.cells.shape[1]
        if column.lengths is None:
            parts.append(_constant(n_rows, struct.pack(">i", width)))
        else:
            parts.append(column.lengths.astype(">i4").view(np.uint8).reshape(n_rows, 4))
        parts.append(column.cells)
        if not exact:
            used = (
                np.ones((n_rows, width), bool)
                if column.lengths is None
                else np.arange(width) < column.lengths[:, None]
            )
            masks += [np.ones((n_rows, 4), bool), used]
    table = np.concatenate(parts, axis=1)[order]
    if not exact:
        table = table[np.concatenate([np.ones((n_rows, 2), bool), *masks], axis=1)[order]]
    return _HEAD + table.tobytes() + _TAIL


def _constant(n_rows: int, value: bytes) -> np.ndarray:
    return np.broadcast_to(np.frombuffer(value, np.uint8), (n_rows, len(value)))


def _numbers(array: np.ndarray, is_null: np.ndarray | None) -> Packed:
    cells = array.view(np.uint8).reshape(len(array), array.itemsize)
    if is_null is None:
        return Packed(cells, None)
    return Packed(cells, np.where(is_null, -1, array.itemsize).astype(np.int32))


def _nulls(values: Sequence[Any], types: set[type]) -> np.ndarray | None:
    return np.array([value is None for value in values]) if _NONE in types else None


def _floats(form: str) -> Callable[[Sequence[Any], set[type]], Packed | None]:
    def pack_floats(values: Sequence[Any], types: set[type]) -> Packed | None:
        if not types <= {float, _NONE}:
            return None
        exact = np.array(values, float)  # None becomes NaN
        with np.errstate(over="ignore", under="ignore"):
            array = exact.astype(form)
        # Out of range: the server says so, of the text.
        if form == ">f4" and not (
            np.array_equal(np.isinf(array), np.isinf(exact))
            and np.array_equal(array == 0, exact == 0)
        ):
            return None
        return _numbers(array, _nulls(values, types))

    return pack_floats


def _wholes(form: str) -> Callable[[Sequence[Any], set[type]], Packed | None]:
    limits = np.iinfo(form)

    def pack_wholes(values: Sequence[Any], types: set[type]) -> Packed | None:
        if not types <= {int, _NONE}:
            return None
        is_null = _nulls(values, types)
        try:
            array = np.array(
                values if is_null is None else [value or 0 for value in values], np.int64
            )
        except OverflowError:
            return None
        if array.min() < limits.min or array.max() > limits.max:
            return None
        return _numbers(array.astype(form), is_null)

    return pack_wholes


def _truths(values: Sequence[Any], types: set[type]) -> Packed | None:
    if not types <= {bool, _NONE}:
        return None
    return _numbers(np.array([bool(value) for value in values], np.uint8), _nulls(values, types))


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def _moments(values: Sequence[Any], types: set[type]) -> Packed | None:
    if not types <= {datetime, _NONE}:
        return None
    found = []
    for value in values:
        if value is None:
            found.append(0)
        elif value.tzinfo is None:
            return None
        else:
            passed = value - _EPOCH
            found.append((passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds)
    return _numbers(np.array(found, ">i8"), _nulls(values, types))


def _texts(values: Sequence[Any], types: set[type]) -> Packed | None:
    if not types <= {str, _NONE}:
        return None
    return _bytes_of([None if value is None else _encoded(value) for value in values])


def _encoded(text: str) -> bytes | None:
    """A text in UTF-8; one that the server would refuse as a text is left to it to refuse."""
    try:
        found = text.encode()
    except UnicodeEncodeError:
        return _UNFIT
    return _UNFIT if b"\0" in found else found


_UNFIT = b"\0"


def _byteas(values: Sequence[Any], types: set[type]) -> Packed | None:
    if not types <= {bytes, bytearray, memoryview, _NONE}:
        return None
    return _bytes_of([None if value is None else bytes(value) for value in values], True)


#: Bytes that the widest value may make the table of all larger than they are together.
_MOST_PADDING = 1 << 24


def _bytes_of(values: Sequence[bytes | None], any_byte: bool = False) -> Packed | None:
    if not any_byte and _UNFIT in values:
        return None
    lengths = np.array([-1 if value is None else len(value) for value in values], np.int32)
    width = max(int(lengths.max()), 0)
    if len(values) * width - int(lengths.clip(0).sum()) > _MOST_PADDING:
        return None
    padded = b"".join((value or b"").ljust(width, b"\0") for value in values)
    cells = np.frombuffer(padded, np.uint8).reshape(len(values), width)
    return Packed(cells, lengths)


_PACKERS: dict[str, Callable[[Sequence[Any], set[type]], Packed | None]] = {
    "float4": _floats(">f4"), "float8": _floats(">f8"),
    "int2": _wholes(">i2"), "int4": _wholes(">i4"), "int8": _wholes(">i8"),
    "bool": _truths, "timestamptz": _moments,
    "text": _texts, "varchar": _texts, "bytea": _byteas,
}  # fmt: skip
