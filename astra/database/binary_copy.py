"""Pack columns of values into the binary format of PostgreSQL's COPY.

A column is not packed if its type is not known here, or a value is not exactly of that type: its
batch is sent as texts, which the server parses.

PostgreSQL's manual describes the format under COPY, "Binary Format"; values have the format of the
types' own functions (float4recv and so on): big-endian numbers, microseconds since 2000. Python's
own struct packs a column at once; importing numpy would take longer than an element's writing does.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

from astra.records import dataclass

_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)

_TAIL = struct.pack(">h", -1)

_NULL = struct.pack(">i", -1)

_NONE = type(None)


@dataclass(frozen=True)
class Packed:
    """The values of one column.

    If all have the same length, `length` holds it in packed form, and `data` the bytes of all
    values. Otherwise `cells` has the bytes of each value, with its length before them.
    """

    length: bytes = _NULL
    width: int = 0
    data: bytes = b""
    cells: Sequence[bytes] | None = None


Packer = Callable[[Sequence[Any]], Packed | None]


def pack(kind: str, values: Sequence[Any]) -> Packed | None:
    """Pack a column; return None if its type or a value cannot be packed.

    Parameters
    ----------
    kind : the name of the type, such as ``float4``.
    values : in database form.
    """
    types = set(map(type, values))
    if kind not in _PACKERS or not types <= _PACKERS[kind][0] | {_NONE}:
        return None
    if types == {_NONE}:
        return Packed()
    packer = _PACKERS[kind][1]
    if _NONE not in types:
        return packer(values)
    present = packer([value for value in values if value is not None])
    if present is None:
        return None
    following = iter(_cells(present))
    return Packed(cells=[_NULL if value is None else next(following) for value in values])


def _cells(column: Packed) -> Iterable[bytes]:
    """Return the bytes of each value, with its length before them."""
    if column.cells is not None:
        return column.cells
    length, width, data = column.length, column.width, column.data
    if not width:
        return repeat(length)
    return [length + data[at : at + width] for at in range(0, len(data), width)]


def rows(columns: dict[str, Packed], order: Sequence[int]) -> tuple[list[str], bytes]:
    """Join packed columns to the rows of a COPY, in an order; return names and data."""
    fixed = {name: column for name, column in columns.items() if column.cells is None}
    others = {name: column.cells for name, column in columns.items() if column.cells is not None}
    head = struct.pack(">h", len(columns))
    template = head + b"".join(c.length + bytes(c.width) for c in fixed.values())
    table, width, at = bytearray(template * len(order)), len(template), len(head)
    for column in fixed.values():
        at += len(column.length)
        for place in range(column.width):
            table[at + place :: width] = column.data[place :: column.width]
        at += column.width
    if not others and order == list(range(len(order))):
        return list(fixed), b"".join((_HEAD, table, _TAIL))
    parts = [bytes(table[row * width : (row + 1) * width]) for row in order]
    if others:
        cells = list(zip(*others.values(), strict=True))
        parts = [b"".join((part, *cells[row])) for part, row in zip(parts, order, strict=True)]
    return [*fixed, *others], b"".join([_HEAD, *parts, _TAIL])


def _numbers(form: str) -> Packer:
    """Return a packer for a format of struct; it returns None if a value is out of range."""
    width = struct.calcsize(f">{form}")

    def pack_numbers(values: Sequence[Any]) -> Packed | None:
        try:
            data = struct.pack(f">{len(values)}{form}", *values)
        except (OverflowError, struct.error):
            return None
        return Packed(struct.pack(">i", width), width, data)

    return pack_numbers


#: The greatest number that 32 bits round to zero.
_VANISHES = 2.0**-150


def _floats(values: Sequence[Any]) -> Packed | None:
    packed = _numbers("f")(values)
    # A value that is out of range is sent as a text, which the server refuses. The packed bytes of
    # zero end in three zeros.
    may_vanish = packed is not None and b"\0\0\0" in packed.data
    if may_vanish and any(value and -_VANISHES <= value <= _VANISHES for value in values):
        return None
    return packed


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def _moments(values: Sequence[Any]) -> Packed | None:
    microseconds, last, number = [], None, 0
    for value in values:
        if value is not last:  # rows that were read together share their moment
            if value.tzinfo is None:
                return None
            passed, last = value - _EPOCH, value
            number = (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds
        microseconds.append(number)
    return _numbers("q")(microseconds)


def _texts(values: Sequence[Any]) -> Packed | None:
    """Pack texts in UTF-8; those that the server would refuse are sent as texts."""
    try:
        encoded = {value: value.encode() for value in set(values)}  # usually few, such as tags
    except UnicodeEncodeError:
        return None
    if any(b"\0" in value for value in encoded.values()):
        return None
    return _bytes([encoded[value] for value in values])


#: The most bytes of values that are joined to rows as numbers are: byte by byte for all rows.
_MAX_WIDTH = 16


def _bytes(values: Sequence[Any]) -> Packed:
    contents = list(map(bytes, values))
    width = len(contents[0])
    # Such as an empty tag, which is the default.
    if width <= _MAX_WIDTH and set(map(len, contents)) == {width}:
        return Packed(struct.pack(">i", width), width, b"".join(contents))
    return Packed(cells=[struct.pack(">i", len(content)) + content for content in contents])


_PACKERS: dict[str, tuple[frozenset[type], Packer]] = {
    "float4": (frozenset({float}), _floats), "float8": (frozenset({float}), _numbers("d")),
    "int2": (frozenset({int}), _numbers("h")), "int4": (frozenset({int}), _numbers("i")),
    "int8": (frozenset({int}), _numbers("q")), "bool": (frozenset({bool}), _numbers("?")),
    "timestamptz": (frozenset({datetime}), _moments),
    "text": (frozenset({str}), _texts), "varchar": (frozenset({str}), _texts),
    "bytea": (frozenset({bytes, bytearray, memoryview}), _bytes),
}  # fmt: skip
