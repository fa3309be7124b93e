"""Results: one row for an input row and a major.minor version."""

from functools import cache
from inspect import getattr_static
from typing import Any

from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    FieldAccessor,
    FloatField,
    IntegerField,
    Model,
    TextField,
)

from astra import __version__
from astra.database.connection import dialect
from astra.errors import UsageError, nearest
from astra.models.base import BaseModel, TimeField


@cache
def version_number(version: str = __version__) -> int:
    """A version as an integer: major * 10**6 + minor * 10**3 + patch.

    >>> version_number("0.8.1")
    8001
    """
    major, minor, patch = map(int, version.split("."))
    return major * 10**6 + minor * 10**3 + patch


#: The unique constraint of results, by what the task is on: columns, and the part of the table.
SPECTRUM_KEY = ("spectrum_pk", "v_astra_major_minor"), ""

SOURCE_KEY = ("source_pk", "v_astra_major_minor"), "WHERE spectrum_pk IS NULL"


@cache
def _plainly_set(model: Any) -> frozenset[str]:
    """The columns of a model for which setting one only stores the value."""
    if model.__init__ is not Model.__init__ or model.__setattr__ is not object.__setattr__:
        return frozenset()
    names = model._meta.fields
    return frozenset(n for n in names if type(getattr_static(model, n)) is FieldAccessor)


class PipelineOutputModel(BaseModel):
    """The columns of every result. Subclass it, add your own columns, and yield instances.

    ``input_read`` is the database's time at which the input row was read, ``input_modified`` the
    ``modified`` that it had then: the result is up to date while the input still has it. The
    database allows one row for each ``spectrum_pk`` (``source_pk`` for tasks on sources) and
    major.minor version.
    """

    task_pk = BigAutoField()
    source_pk = BigIntegerField(null=True, index=True)
    spectrum_pk = BigIntegerField(null=True)
    v_astra = IntegerField(default=version_number())
    v_astra_major_minor = IntegerField(
        null=True, constraints=[SQL("GENERATED ALWAYS AS (v_astra / 1000) STORED")]
    )
    created = TimeField(now=True, null=False)
    modified = TimeField(now=True, null=False)
    input_read = TimeField(now=True, null=False)
    input_modified = TimeField(null=True)
    attempt_pk = BigIntegerField(null=True, help_text="the attempt that wrote it, of a plan's page")
    t_elapsed = FloatField(null=True, help_text="time that the task spent on this row [s]")
    t_overhead = FloatField(null=True, help_text="share of the time before and after all rows [s]")
    tag = TextField(default="")

    class Meta:
        # A generated column cannot be written back.
        only_save_dirty = True

    @classmethod
    def complete_table(cls) -> None:
        """One result for a row and major.minor version, by unique indexes of the database."""
        for (columns, where), suffix in ((SPECTRUM_KEY, "spectrum"), (SOURCE_KEY, "source")):
            name = dialect().quote(f"{cls._meta.table_name}_one_per_{suffix}")
            dialect().run(
                f"CREATE UNIQUE INDEX IF NOT EXISTS {name} ON {dialect().table(cls)} "
                f"({', '.join(columns)}) {where}"
            )

    @classmethod
    def from_spectrum(cls, spectrum: Any, **values: Any) -> Any:
        """A result for `spectrum`, not saved yet, with your columns set from `values`.

        Raises
        ------
        UsageError
            If a name in `values` is no column of this table.
        """
        own = {
            "source_pk": spectrum.source_pk,
            "spectrum_pk": spectrum.spectrum_pk,
            "input_modified": spectrum.modified,
        }
        return cls._of(own, values)

    @classmethod
    def from_source(cls, source: Any, **values: Any) -> Any:
        """A result for a source as a whole, not saved yet: as :meth:`from_spectrum`."""
        return cls._of({"source_pk": source.pk, "input_modified": source.modified}, values)

    @classmethod
    def _of(cls, own: dict[str, Any], values: dict[str, Any]) -> Any:
        """A row of these values, as ``cls(**own, **values)``; where no column is set in a way of
        its own, all at once, which takes a third of the time."""
        own |= values
        if not own.keys() <= _plainly_set(cls):
            cls._check(values)
            return cls(**own)
        result = cls.__new__(cls)
        result.__data__ = data = cls._meta.get_default_dict()
        data |= own
        result._dirty, result.__rel__ = set(data), {}
        return result

    @classmethod
    def _check(cls, values: dict[str, Any]) -> None:
        for name in values:
            if not hasattr(cls, name):
                raise UsageError(
                    f"{cls.__name__} has no column {name!r}. {nearest(name, cls._meta.fields)}"
                )

    @property
    def source(self) -> Any:
        """The source of this result, looked up now; None where it is not known."""
        from astra.models.source import Source

        return None if self.source_pk is None else Source.get_or_none(Source.pk == self.source_pk)
