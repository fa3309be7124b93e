"""Public helpers that modules of the published package import."""

import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter

from astra import log
from astra.version import Version

__all__ = [
    "Timer",
    "dict_to_list",
    "executable",
    "expand_path",
    "flatten",
    "list_to_dict",
    "log",
    "version_integer_to_string",
    "version_string_to_integer",
]


def expand_path(path: str | os.PathLike[str]) -> str:
    """Expand ``~`` and environment variables in a path."""
    return os.path.expandvars(os.path.expanduser(os.fspath(path)))


def version_string_to_integer(version: str) -> int:
    """Return a version, such as ``0.8.1``, as the number that tables hold."""
    return Version.parse(version).number


def version_integer_to_string(number: int) -> str:
    """Return a number that tables hold as the version that it stands for."""
    return Version(number).text


def flatten(nested: object) -> list[object]:
    """List the items of nested containers, and the values of mappings, in order.

    >>> flatten({"a": 1, "b": [2, ("three", None)]})
    [1, 2, 'three', None]
    """
    if isinstance(nested, Mapping):
        nested = nested.values()
    elif isinstance(nested, str | bytes) or not isinstance(nested, Iterable):
        return [nested]
    return [item for part in nested for item in flatten(part)]


def list_to_dict(rows: Sequence[Mapping[object, object]]) -> dict[object, list[object]]:
    """Convert a list of mappings with the same keys to a mapping of lists.

    >>> list_to_dict([{"a": 1}, {"a": 2}])
    {'a': [1, 2]}
    """
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("the mappings of the list have different keys")
    return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}


def dict_to_list(columns: Mapping[object, Sequence[object]]) -> list[dict[object, object]]:
    """Convert a mapping of lists of the same length to a list of mappings.

    >>> dict_to_list({"a": [1, 2]})
    [{'a': 1}, {'a': 2}]
    """
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in rows]


def executable(name: str | Callable[..., object]) -> Callable[..., object]:
    """Import a callable by its dotted name, or return a callable unchanged."""
    value = pkgutil.resolve_name(name) if isinstance(name, str) else name
    if not callable(value):
        raise TypeError(f"{name!r} cannot be called")
    return value


class Timer:
    """Measure the time of a block, or of each item of an iterable, in s.

    ``elapsed`` is the time without pauses, ``interval`` that of the last item. The times are set as
    attributes of the items, with the given names.

    Examples
    --------
    >>> with Timer() as timer:
    ...     with timer.pause():
    ...         pass  # does not count
    >>> timer.elapsed >= 0
    True
    """

    def __init__(
        self,
        iterable: Iterable[object] = (),
        frequency: float | None = None,
        callback: Callable[[], object] | None = None,
        attr_t_elapsed: str | None = None,
        attr_t_overhead: str | None = None,
    ) -> None:
        self._items, self.frequency, self.callback = iterable, frequency, callback
        self.attr_t_elapsed, self.attr_t_overhead = attr_t_elapsed, attr_t_overhead
        self.interval = self._paused = 0.0
        self._end: float | None = None
        self._start = self._called = perf_counter()

    def __enter__(self) -> "Timer":
        self._start = self._called = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = perf_counter()

    @property
    def elapsed(self) -> float:
        """Return the time since the start, or of the whole block, without pauses."""
        return (perf_counter() if self._end is None else self._end) - self._start - self._paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time of a block."""
        begin = perf_counter()
        try:
            yield
        finally:
            self._paused += perf_counter() - begin

    def __iter__(self) -> Iterator[object]:
        """Yield each item with its times; call `callback` every `frequency` seconds."""
        items, overhead = iter(self._items), self.elapsed
        while True:
            before = self.elapsed
            try:
                item = next(items)
            except StopIteration:
                return
            self.interval = self.elapsed - before
            for name, time in (
                (self.attr_t_elapsed, self.interval),
                (self.attr_t_overhead, overhead),
            ):
                if name is not None:
                    setattr(item, name, time)
            if self.callback and self.frequency is not None:
                if perf_counter() - self._called >= self.frequency:
                    self.callback()
                    self._called = perf_counter()
            yield item
