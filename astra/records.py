"""Dataclasses that are made in a quarter of the time.

Python compiles each method of a dataclass from a text of its own, six of a frozen one, and a
command has dozens of such classes. Here all methods but the constructor are functions that the
classes share.
"""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers know Python's
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, eq=True, kw_only=False, **others):
        """Make a class a dataclass, as Python's does; with other options, it is Python's."""
        options = {"frozen": frozen, "eq": eq, "kw_only": kw_only, **others}
        if cls is None:
            return partial(dataclass, **options)
        if others:
            return dataclasses.dataclass(cls, **options)
        methods = {"__repr__": _repr}
        if eq:
            methods |= {"__eq__": _equals, "__hash__": _hash if frozen else None}
        if frozen:
            methods |= {"__setattr__": _set_once, "__delattr__": _keep}
        for name, method in methods.items():
            if name not in vars(cls):
                setattr(cls, name, method)
        return dataclasses.dataclass(cls, repr=False, eq=False, kw_only=kw_only)


def _compared(record: object) -> list[object]:
    return [getattr(record, f.name) for f in dataclasses.fields(record) if f.compare]  # type: ignore[arg-type]


def _repr(self: object) -> str:
    shown = [f.name for f in dataclasses.fields(self) if f.repr]  # type: ignore[arg-type]
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
    return f"{type(self).__qualname__}({values})"


def _equals(self: object, other: object) -> bool:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: object) -> int:
    return hash(tuple(_compared(self)))


def _set_once(self: object, name: str, value: object) -> None:
    """Set a field, which only the constructor can: later it has a value."""
    if name in vars(self) or name not in self.__dataclass_fields__:  # type: ignore[attr-defined]
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _keep(self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
