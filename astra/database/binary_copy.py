"""Columns of values as PostgreSQL's binary COPY takes them, with no text between.

A column of a type that is not known here, or with a value that is not plainly of it, is not packed:
its batch travels as texts, which the server reads as it reads every text.

The form is that of PostgreSQL's manual, COPY, "Binary Format"; of values, that of the types' own
functions (float4recv and so on): big-endian numbers, microseconds since 2000. Python's own struct
packs a column at once; numpy would take longer to import than an element has to write.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)

_TAIL = struct.pack(">h", -1)

_NULL = struct.pack(">i", -1)

_NONE = type(None)


@dataclass(frozen=True)
class Packed:
    """The values of one column.

    Where all have one length, it stands before each, as `length`, and the bytes of all together are
    `data`. Else `cells` has those of each, its length first.
    """

    length: bytes = _NULL
    width: int = 0
    data: bytes = b""
    cells: Sequence[bytes] | None = None


Packer = Callable[[Sequence[Any]], Packed | None]


def pack(kind: str, values: Sequence[Any]) -> Packed | None:
    """A column in binary form; None where it has none here.

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


def _cells(column: Packed) -> Sequence[bytes]:
    """Each value of a column of which some are not NULL, its length first."""
    if column.cells is not None:
        return column.cells
    length, width, data = column.length, column.width, column.data
    return [length + data[at : at + width] for at in range(0, len(data), width)]


def rows(columns: dict[str, Packed], order: Sequence[int]) -> tuple[list[str], bytes]:
    """Packed columns as the rows of a binary COPY, in an order; and the names in their order."""
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
    parts = [bytes(table[row * width : (row + 1) * width]) for row in order]
    if others:
        cells = list(zip(*others.values(), strict=True))
        parts = [b"".join((part, *cells[row])) for part, row in zip(parts, order, strict=True)]
    return [*fixed, *others], b"".join([_HEAD, *parts, _TAIL])


def _numbers(form: str) -> Packer:
    """Values that struct packs by a letter; None where one is out of range."""
    width = struct.calcsize(f">{form}")

    def pack_numbers(values: Sequence[Any]) -> Packed | None:
        try:
            data = struct.pack(f">{len(values)}{form}", *values)
        except (OverflowError, struct.error):
            return None
        return Packed(struct.pack(">i", width), width, data)

    return pack_numbers


#: The greatest number that becomes zero with 32 bits.
_VANISHES = 2.0**-150


def _floats(values: Sequence[Any]) -> Packed | None:
    packed = _numbers("f")(values)
    # Out of range: the server says so, of the text. Zero ends in three bytes of nothing.
    may_vanish = packed is not None and b"\0\0\0" in packed.data
    if may_vanish and any(value and -_VANISHES <= value <= _VANISHES for value in values):
        return None
    return packed


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def _moments(values: Sequence[Any]) -> Packed | None:
    found = []
    for value in values:
        if value.tzinfo is None:
            return None
        passed = value - _EPOCH
        found.append((passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds)
    return _numbers("q")(found)


def _texts(values: Sequence[Any]) -> Packed | None:
    """Texts in UTF-8; those that the server would refuse as texts are left to it to refuse."""
    try:
        found = [value.encode() for value in values]
    except UnicodeEncodeError:
        return None
    return None if any(b"\0" in value for value in found) else _bytes(found)


def _bytes(values: Sequence[Any]) -> Packed:
    return Packed(cells=[struct.pack(">i", len(value)) + value for value in map(bytes, values)])


_PACKERS: dict[str, tuple[frozenset[type], Packer]] = {
    "float4": (frozenset({float}), _floats), "float8": (frozenset({float}), _numbers("d")),
    "int2": (frozenset({int}), _numbers("h")), "int4": (frozenset({int}), _numbers("i")),
    "int8": (frozenset({int}), _numbers("q")), "bool": (frozenset({bool}), _numbers("?")),
    "timestamptz": (frozenset({datetime}), _moments),
    "text": (frozenset({str}), _texts), "varchar": (frozenset({str}), _texts),
    "bytea": (frozenset({bytes, bytearray, memoryview}), _bytes),
}  # fmt: skip
