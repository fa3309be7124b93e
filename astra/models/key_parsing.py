"""Read keys as people write them: in a file with one on each line, or in a list."""

import csv
import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, date, datetime
from io import StringIO
from pathlib import Path
from typing import cast
from uuid import UUID

import peewee
from peewee import Field, Model

from astra.database.connection import database, dialect
from astra.errors import TaskError, UsageError, count, shown
from astra.models.keys import Key, RowKey, as_key, key_of


def keys_of(text: str, option: str = "--keys") -> list[str]:
    """Read keys from a file with one on each line, or from a list that is separated by commas.

    A key of several columns is a line of their values, separated by commas, or a JSON array; in a
    list it can only be a JSON array. Blank lines are skipped; in a list, a key may be quoted, also
    if it is blank.

    Raises
    ------
    UsageError
        If the file cannot be read.
    """
    path = Path(text)
    try:
        is_file = path.exists() and not path.is_dir()  # also a pipe, such as /dev/stdin
    except (OSError, ValueError):  # a list may be longer than a file name can be
        is_file = False
    if is_file:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{option} {text}: the file cannot be read as text: {error}") from None
        return [line.removesuffix("\r") for line in lines if line.strip()]
    if text.lstrip().startswith("["):
        return [text]
    words = [word for row in csv.reader(StringIO(text, newline="")) for word in row]
    return [word for word in words if word.strip() or '"' in text]


def given_keys(key: Key, values: Iterable[object]) -> list[RowKey]:
    """Return keys in the form that a query takes, each once.

    Raises
    ------
    TaskError
        If a value cannot be a key of these columns; the message names it.
    """
    keys: dict[RowKey, None] = {}
    for number, value in enumerate(listed("keys", values), 1):
        try:
            keys[_given(key, value)] = None
        except (ValueError, TypeError) as error:
            names = ", ".join(field.name for field in key.fields)
            place = f"key {number}: " if number > 1 else ""
            raise TaskError(
                f"{place}{_text(value)[:100]!r} is not a key ({names}): {error}"
            ) from None
    return list(keys)


def listed(name: str, values: Iterable[object]) -> list[object]:
    """Return the values of an iterable that is not a text; `name` is that of the parameter."""
    try:
        members = None if isinstance(values, str | bytes) else iter(values)
    except TypeError:  # an array without dimensions claims that it can be iterated over
        members = None
    if members is None:
        raise TaskError(f"{name}={shown(values)}: give an iterable, such as a list")
    return list(members)


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:
        return shown(value)


def _given(key: Key, value: object) -> RowKey:
    if len(key.fields) == 1:
        part = _part(key.fields[0], value)
        return part if isinstance(part, int) and key.is_whole else str(part)
    if isinstance(value, str):
        is_json = value.lstrip().startswith("[")
        value = json.loads(value) if is_json else next(csv.reader([value]), [])
    parts = list(value) if isinstance(value, Iterable) else [value]
    if len(parts) != len(key.fields):
        raise ValueError(
            f"the key has {len(key.fields)} columns, and this has {count(len(parts), 'value')}; "
            'write one value for each column as a JSON array, such as ["a", 1]'
        )
    return json.dumps([_part(f, v) for f, v in zip(key.fields, parts, strict=True)], default=str)


def _part(field: Field, value: object) -> object:
    """Return a value of one column of a key in a form that the database can read."""
    field = getattr(field, "rel_field", field)
    if Key((field,)).is_whole:
        try:
            number = int(value.strip()) if isinstance(value, str) else as_key(value)
        except ValueError:
            number = None
        if number is None or as_key(number) is None:
            raise ValueError("it is neither a whole number of 64 bits nor a readable file")
        return number
    if field.field_type == "UUID":
        return field.db_value(value if isinstance(value, UUID) else UUID(str(value).strip()))
    if field.field_type == "DATE":
        with suppress(ValueError):  # the database knows dates that Python does not
            return date.fromisoformat(str(value).strip()).isoformat()
    if field.field_type in _MOMENTS:
        value = _in_utc(value)
    if value is None or "\0" in (text := str(value)):
        raise ValueError("it is empty, or contains a NUL character")
    text.encode()  # no database stores a lone surrogate
    return text


_MOMENTS = frozenset({"DATETIME", "TIMESTAMPTZ", "MOMENT"})


def _in_utc(value: object) -> object:
    """Return a moment with a time zone as keys hold it, in UTC; anything else as it is."""
    try:
        at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
        return at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else value
    except (ValueError, OverflowError):
        return value


def find_keys(model: type[Model], values: Iterable[object]) -> tuple[list[RowKey], list[RowKey]]:
    """Return the keys of a table's rows, as pages hold them, and the `values` without a row."""
    typed = given_keys(key_of(model), values)
    by_given = _keys_by_given(model, typed)
    return list(dict.fromkeys(by_given.values())), [k for k in typed if k not in by_given]


def keys_by_value(model: type[Model], values: Iterable[object]) -> dict[object, RowKey]:
    """Return the keys of a table's rows, as pages hold them, by the values that Python has.

    Values that are of no row are left out.
    """
    key = key_of(model)
    given: dict[object, RowKey] = {}
    for value in values:
        with suppress(ValueError, TypeError):
            given[value] = _given(key, value)
    try:
        with database.atomic():
            by_given = _keys_by_given(model, list(given.values()))
    except TaskError:  # one of them cannot be a key: it costs none of the others
        if len(given) == 1:
            return {}
        listed, half = list(given), len(given) // 2
        return keys_by_value(model, listed[:half]) | keys_by_value(model, listed[half:])
    return {value: by_given[text] for value, text in given.items() if text in by_given}


def _keys_by_given(model: type[Model], typed: list[RowKey]) -> dict[RowKey, RowKey]:
    if not typed:
        return {}
    key = key_of(model)
    query = key.narrowed(model.select().bind(database), typed).select(key.given, key.column)
    return dict(cast("list[tuple[RowKey, RowKey]]", run_keys(query)))


def run_keys(query: peewee.BaseQuery) -> list[tuple[object, ...]]:
    """Run a query for keys that a person gave; one of another type is that person's mistake."""
    try:
        return list(database.execute(query).fetchall())
    except (peewee.DataError, peewee.ProgrammingError) as error:
        if not dialect().is_rows_fault(error):
            raise
        raise TaskError(
            f"a value is not of the type of the key's column: {dialect().message(error)}"
        ) from error


def keys_as_text(keys: Iterable[RowKey], n_shown: int = 5) -> str:
    """Write out some keys, for a message."""
    keys = list(keys)
    shown = ", ".join(str(key)[:60] for key in keys[:n_shown])
    return f"{shown} and {len(keys) - n_shown:,} more" if len(keys) > n_shown else shown
