"""Results: what a task has stored, row by row."""

import math
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time
from typing import cast

from peewee import Model

from astra.database.connection import connection
from astra.errors import UsageError
from astra.models.key_parsing import given_keys, run_keys
from astra.models.keys import RowKey
from astra.models.pipeline import OutputModel, link_of
from astra.models.table_checks import check_tables, current_tables
from astra.tasks.signature import choose_model, find_task, output_model, task_name
from astra.version import CURRENT

#: Results that are read at a time.
CHUNK = 1000


class StoredResults:
    """The results of a task at the current major.minor version, in the order of ``task_pk``.

    Parameters
    ----------
    task : callable or str
        A task, or its name.
    keys : iterable, optional
        Only the results of these input rows; default all.
    input_model : class or str, optional
        The one of the task's input models that `keys` are of.
    limit : int, optional
        At most this many.

    Raises
    ------
    UsageError
        If the task, the model or a key cannot be used.

    Examples
    --------
    >>> from astra.api import StoredResults
    >>> for row in StoredResults("slam.slam", limit=1):
    ...     print(row["task_pk"])
    1
    """

    def __init__(
        self,
        task: Callable[..., object] | str,
        keys: Iterable[object] | None = None,
        input_model: type[Model] | str | None = None,
        limit: int | None = None,
    ) -> None:
        function = find_task(task)
        self.task, self.limit = task_name(function), limit
        self.output = output_model(function)
        with current_tables():
            check_tables(self.output)
        links = dict.fromkeys(link_of(self.output, m) for m in choose_model(function, input_model))
        if keys is not None and len(links) > 1:
            raise UsageError(
                f"{self.task} reads tables with different keys: name the table of these keys with "
                "--input-model"
            )
        self.link = next(iter(links))
        self.key = self.link.key(self.output)
        self.given = None if keys is None else given_keys(self.key, keys)
        self._found: set[RowKey] = set()

    @property
    def unknown(self) -> list[RowKey]:
        """The given keys for which no result was read."""
        return [key for key in self.given or () if key not in self._found]

    @property
    def columns(self) -> list[str]:
        """The names of the columns, those of the key first."""
        fields = self.output._meta.sorted_fields
        first = [field.column_name for field in self.key.fields]
        return first + [f.column_name for f in fields if f.column_name not in first]

    @property
    def own_columns(self) -> list[str]:
        """The columns of the key, and those that the task itself sets."""
        of_astra = set(OutputModel._meta.columns)
        return [name for name in self.columns if name not in of_astra]

    def __iter__(self) -> Iterator[dict[str, object]]:
        n_left = math.inf if self.limit is None else self.limit
        for chunk in self._chunks():
            last = 0
            while n_left > 0:
                rows = self._read(chunk, last, int(min(n_left, CHUNK)))
                n_left -= len(rows)
                yield from rows
                if len(rows) < CHUNK:
                    break
                last = cast("int", rows[-1]["task_pk"])

    def _chunks(self) -> Iterator[list[RowKey] | None]:
        """Yield the keys that one query asks for."""
        if self.given is None:
            yield None
            return
        for begin in range(0, len(self.given), CHUNK):
            yield self.given[begin : begin + CHUNK]

    def _read(self, keys: list[RowKey] | None, last: int, limit: int) -> list[dict[str, object]]:
        output = self.output
        query = output.select().where(
            (output.v_astra_major_minor == CURRENT.major_minor) & (output.task_pk > last)
        )
        fields = output._meta.sorted_fields
        if keys is not None:
            query = self.key.narrowed(query, keys).select(*fields, self.key.given)
        with connection():
            records = run_keys(query.order_by(output.task_pk).limit(limit))
        if keys is not None:
            self._found.update(cast("RowKey", row[-1]) for row in records)
        order = self.columns
        rows = [
            {f.column_name: f.python_value(v) for f, v in zip(fields, row, strict=False)}
            for row in records
        ]
        return [{name: row[name] for name in order} for row in rows]


def json_value(value: object) -> object:
    """Convert a value for JSON: times to text, arrays to lists, bytes to hexadecimal digits."""
    if hasattr(value, "tolist"):  # an array, or a number, of numpy's
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {str(name): json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return str(value)
