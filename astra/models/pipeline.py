"""Tables of results: one row for each input row and major.minor version."""

import hashlib
from collections.abc import Callable, Iterator
from copy import copy
from functools import cache
from inspect import getattr_static
from typing import Any, Self, cast

import peewee
from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    Field,
    FieldAccessor,
    FloatField,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)

from astra.database.connection import connection, dialect
from astra.errors import TaskError, UsageError, nearest
from astra.models.base import BaseModel, ModelMeta, TimeField, columns_of
from astra.models.keys import Link, bound_to_database, key_of
from astra.models.source import Source
from astra.models.spectrum import SpectrumMixin
from astra.version import CURRENT


def _plainly_set(model: type[Model]) -> frozenset[str]:
    """Return the columns of a model for which setting one only stores the value."""
    if model.__init__ is not Model.__init__ or model.__setattr__ is not object.__setattr__:
        return frozenset()
    names = model._meta.fields
    return frozenset(n for n in names if type(getattr_static(model, n)) is FieldAccessor)


#: Columns that the database numbers, and those that hold such numbers.
_COUNTED: dict[type, type[Field]] = {
    peewee.AutoField: peewee.IntegerField,
    peewee.BigAutoField: peewee.BigIntegerField,
}


class ResultOf:
    """A declaration of an output model: its results are of the rows of an input model."""

    def __init__(self, model: type[Model], null: bool = False) -> None:
        self.model, self.null = bound_to_database(model), null

    def fields(self, name: str) -> dict[str, Field]:
        """Return the columns that hold the key, by their names in the output model."""
        keys = key_of(self.model).fields
        if len(keys) == 1:
            # Without a constraint in the database: the table may belong to others, or be a view.
            pointer = ForeignKeyField(  # type: ignore[call-overload]
                self.model, field=keys[0], null=self.null, index=False, backref="+", _deferred=True
            )
            return {name: pointer}
        return {f"{name}_{field.name}": self._copy(field) for field in keys}

    def _copy(self, field: Field) -> Field:
        field = getattr(field, "rel_field", field)
        if type(field) in _COUNTED:
            return _COUNTED[type(field)](null=self.null)
        column = copy(field)
        column.primary_key = column.unique = column.index = False
        column.null, column.default, column.column_name = self.null, None, None
        column.constraints = None
        return column


def result_of(model: type[Model], null: bool = False) -> Any:
    """Declare that the results of an output model are of the rows of `model`.

    The output model gets a column of the key's own type, or one for each column of the key, and
    the database allows one result for each row and major.minor version. The attribute gives the
    row itself, which is looked up when it is accessed. A key of several columns gives an attribute
    for each: ``exposure_night`` and ``exposure_fiber``.

    Parameters
    ----------
    model : class
        A peewee ``Model`` with a primary key.
    null : bool
        True where some results are of rows of another table.

    Returns
    -------
    ResultOf
        A declaration, from which the output model makes its columns.

    Raises
    ------
    UsageError
        If the model has no primary key.

    Examples
    --------
    >>> import peewee
    >>> from astra.models import OutputModel, result_of
    >>> class LightCurve(peewee.Model):
    ...     obj_id = peewee.TextField(primary_key=True)
    >>> class Period(OutputModel):
    ...     light_curve = result_of(LightCurve)
    ...     period = peewee.FloatField(help_text="[d]")
    >>> Period.light_curve_id.column_name
    'light_curve_id'
    """
    return ResultOf(model, null)


class OutputMeta(ModelMeta):
    """Makes the columns that ``result_of`` declares."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], attrs: dict[str, object], **kw: object
    ) -> ModelMeta:
        links: dict[object, Link] = {}
        for base in reversed(bases):
            links |= getattr(base, "declared_links", {})
        links |= cast("dict[object, Link]", attrs.get("declared_links", {}))
        for key, declared in list(attrs.items()):
            if isinstance(declared, ResultOf):
                del attrs[key]
                fields = declared.fields(key)
                attrs.update(fields)
                rows = key_of(declared.model)
                names = tuple(field.name for field in rows.fields)
                links[declared.model] = Link(names, tuple(fields), rows.is_whole)
        attrs["declared_links"] = links
        # In `class Result(BaseModel, PipelineOutputMixin)` the second base includes the first.
        bases = tuple(b for b in bases if not any(o is not b and issubclass(o, b) for o in bases))
        for base in bases:
            _keep_own_columns(base, attrs)
        model: Any = super().__new__(cls, name, bases, attrs, **kw)
        # Their tables are created first: keys are compared here as there.
        model._meta.depends_on = [*(model._meta.depends_on or ()), *links]
        return cast("ModelMeta", model)


def _keep_own_columns(base: object, attrs: dict[str, object]) -> None:
    """Leave out columns of astra's own that a model declares again with another type."""
    for name, field in getattr(getattr(base, "_meta", None), "fields", {}).items():
        declared = attrs.get(name)
        if isinstance(declared, peewee.Field) and not isinstance(declared, type(field)):
            del attrs[name]


#: Bytes of a name in PostgreSQL, which truncates longer ones: two names may become one.
_LONGEST_NAME = 63


def fitting_name(name: str) -> str:
    """Return a name for an index or a view; one that is too long gets a digest at its end."""
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return name.encode()[: _LONGEST_NAME - 13].decode(errors="ignore") + "_" + digest


class OutputModel(BaseModel, metaclass=OutputMeta):
    """The columns of every result. Subclass it, add ``result_of`` and your own columns.

    ``input_read`` is the database's time at which the input row was read, ``input_modified`` the
    ``modified`` that it had then: the result is up to date until that of the input changes. The
    database allows one result for each input row and major.minor version.

    Examples
    --------
    >>> import peewee
    >>> from astra.models import BossVisitSpectrum, OutputModel, result_of
    >>> class Sharpness(OutputModel):
    ...     spectrum = result_of(BossVisitSpectrum)
    ...     sharpness = peewee.FloatField()
    """

    task_pk = BigAutoField()
    v_astra = IntegerField(default=CURRENT.number)
    v_astra_major_minor = IntegerField(
        null=True, constraints=[SQL("GENERATED ALWAYS AS (v_astra / 1000) STORED")]
    )
    result_number = IntegerField(
        default=0,
        constraints=[SQL("DEFAULT 0")],
        help_text="number of this result among those of its row, from 0",
    )
    results_of_row = IntegerField(
        null=True, help_text="number of results of this row, if the task is declared with many=True"
    )
    created = TimeField(now=True, null=False)
    modified = TimeField(now=True, null=False)
    input_read = TimeField(now=True, null=False)
    input_modified = TimeField(null=True)
    made_by = IntegerField(null=True, help_text="arguments, files and code that made it (MadeBy)")
    attempt_pk = BigIntegerField(
        null=True, help_text="the attempt at a page of a plan that wrote it"
    )
    t_elapsed = FloatField(null=True, help_text="time that the task spent on this row [s]")
    t_overhead = FloatField(null=True, help_text="share of the time before the first row [s]")
    tag = TextField(default="")

    class Meta:
        # A generated column cannot be written back.
        only_save_dirty = True

    #: How results point to rows, by input model or a base of input models.
    declared_links: dict[type, Link] = {}

    @classmethod
    def link_to(cls, model: type[Model]) -> Link | None:
        """Return how results point to the rows of an input model; None where they do not."""
        for declared, link in cls.declared_links.items():
            if model is declared or issubclass(model, declared):
                return link
        return None

    @classmethod
    def gathers(cls, model: type[Model]) -> bool:
        """Return whether a row of an input model may have results with the key of another table."""
        return False

    def index_of(self, link: Link) -> Link:
        """Return the link whose unique index this result falls under."""
        return link

    @classmethod
    def create_table(cls, safe: bool = True, **options: object) -> None:
        """Create or complete the table; keys in it are equal where those of the rows are."""
        with connection():
            for declared, link in cls.declared_links.items():
                if link.is_whole:
                    continue
                rows = cast("type[Model]", declared)._meta.fields
                for name, pointer in zip(link.row, link.result, strict=True):
                    collation = dialect().collation(rows[name])
                    constraints = [SQL(f"COLLATE {collation}")] if collation else None
                    cls._meta.fields[pointer].constraints = constraints
            super().create_table(safe, **options)

    @classmethod
    def own_indexes(cls) -> Iterator[peewee.Index]:
        yield from super().own_indexes()
        yield from cls.lacking_indexes()

    @classmethod
    def lacking_indexes(cls) -> Iterator[peewee.Index]:
        """Yield the unique indexes that allow one result for a row, where the table lacks them."""
        for link in cls.declared_links.values():
            name = fitting_name(f"{cls._meta.table_name}_one_per_{'_'.join(link.result)}")
            columns = [*link.key(cls).fields, cls.v_astra_major_minor, cls.result_number]
            where = SQL(link.condition) if link.condition else None
            index = peewee.Index(name, cls._meta.table, columns, unique=True, where=where)
            if not dialect().has_unique(cls, columns_of(index), link.condition):
                yield index

    @classmethod
    def from_row(cls, row: Model, **values: object) -> Self:
        """Make a result for an input row, not saved yet, with your columns set from `values`.

        Raises
        ------
        UsageError
            If a name in `values` is not a column of this table, or `row` is not a row.
        TaskError
            If the results of this table do not point to such rows.
        """
        return _maker(cls, type(row))(row, values)  # type: ignore[no-any-return]

    @classmethod
    def copied_from(cls, model: type[Model]) -> tuple[Link, dict[str, str]]:
        """Return the link to the rows of a model, and the fields of a row that its result repeats,
        by the names of the result's columns."""
        link = link_of(cls, model)
        return link, dict(zip(link.result, link.row, strict=True))

    @classmethod
    def _check(cls, key: dict[str, object], values: dict[str, object]) -> None:
        for name in values:
            if name in key and values[name] != key[name]:
                raise UsageError(
                    f"{cls.__name__}.{name} of this row is {key[name]!r}, not "
                    f"{values[name]!r}: leave it out, or pass the other row"
                )
            # A column, a flag of one, or a property: anything else would not be stored.
            if not hasattr(type(getattr_static(cls, name, None)), "__set__"):
                raise UsageError(cls.no_column(name))

    @classmethod
    def no_column(cls, name: str) -> str:
        """Return the message that a name is not a column of this table."""
        return f"{cls.__name__} has no column {name!r}. {nearest(name, cls._meta.fields)}"


@cache
def _maker(
    model: type[OutputModel], row_model: type[Model]
) -> Callable[[Model, dict[str, object]], Any]:
    """Return a function that makes a result for a row as ``model(**own, **values)`` does.

    Columns that have no setter of their own are set all at once, which takes a third of the time.
    For a column that points to the row, `values` may only hold the same value.
    """
    if not issubclass(row_model, Model):
        given = f"an object of type {row_model.__name__!r}"
        raise UsageError(
            f"{model.__name__}: a result is made from its row itself, not from {given}"
        )
    link, copied = model.copied_from(row_model)
    is_plain = _plainly_set(model).difference(link.result).issuperset
    new, default_values = model.__new__, model._meta.get_default_dict
    columns = tuple(copied.items())

    def make(row: Model, values: dict[str, object]) -> OutputModel:
        of_row = row.__data__.get
        if not is_plain(values):
            own = {name: of_row(field) for name, field in columns}
            model._check({name: own[name] for name in link.result}, values)
            return model(**own | values)
        result = new(model)
        result.__data__ = data = default_values()  # type: ignore[no-untyped-call]
        for name, field in columns:
            data[name] = of_row(field)
        data.update(values)
        result._dirty, result.__rel__ = set(data), {}  # type: ignore[attr-defined]
        return result

    return make


@cache
def link_of(output: type[OutputModel], model: type[Model]) -> Link:
    """Return how the results of an output model point to the rows of an input model.

    Raises
    ------
    TaskError
        If they do not.
    """
    link: Link | None = output.link_to(model)
    if link is None:
        name = model._meta.name
        raise TaskError(
            f"{output.__name__} does not say how its results point to rows of {model.__name__}: "
            f"write {name} = result_of({model.__name__}) in {output.__name__}"
        )
    return link


_OF_SPECTRA = Link(("spectrum_pk",), ("spectrum_pk",), is_whole=True)
_OF_SOURCES = Link(("pk",), ("source_pk",), is_whole=True, null=("spectrum_pk",))


class PipelineOutputModel(OutputModel):
    """The columns of every result of a spectrum or a source.

    The database allows one row for each ``spectrum_pk`` (``source_pk`` for results of no spectrum),
    major.minor version and number of the result within its input row.

    Examples
    --------
    >>> import peewee
    >>> from astra.models import BossVisitSpectrum, PipelineOutputModel
    >>> class Brightness(PipelineOutputModel):
    ...     brightness = peewee.FloatField(help_text="[mag]")
    >>> spectrum = BossVisitSpectrum.get()
    >>> Brightness.from_spectrum(spectrum, brightness=17.5).spectrum_pk == spectrum.spectrum_pk
    True
    """

    source_pk = BigIntegerField(null=True, index=True)
    spectrum_pk = BigIntegerField(null=True)

    declared_links = {SpectrumMixin: _OF_SPECTRA, Source: _OF_SOURCES}

    @classmethod
    def gathers(cls, model: type[Model]) -> bool:
        """Return whether a task on such rows may yield results of other rows, such as spectra."""
        return issubclass(model, Source)

    def index_of(self, link: Link) -> Link:
        """Return the link to a spectrum for every result of one, even if computed from a source."""
        return _OF_SPECTRA if link == _OF_SOURCES and self.spectrum_pk is not None else link

    @classmethod
    def copied_from(cls, model: type[Model]) -> tuple[Link, dict[str, str]]:
        link, copied = super().copied_from(model)
        if issubclass(model, SpectrumMixin | Source):
            copied["input_modified"] = "modified"
        if issubclass(model, SpectrumMixin):
            copied["source_pk"] = "source"
        return link, copied

    @classmethod
    def from_spectrum(cls, spectrum: SpectrumMixin, **values: object) -> Self:
        """Make a result for `spectrum`, not saved yet, with your columns set from `values`.

        Raises
        ------
        UsageError
            If a name in `values` is not a column of this table.
        """
        return _maker(cls, type(spectrum))(spectrum, values)  # type: ignore[no-any-return]

    @classmethod
    def from_source(cls, source: Source, **values: object) -> Self:
        """Make a result for a source as a whole, not saved yet, as :meth:`from_spectrum` does."""
        return _maker(cls, type(source))(source, values)  # type: ignore[no-any-return]

    @property
    def source(self) -> Source | None:
        """The source of this result, looked up now; None where it is not known."""
        return None if self.source_pk is None else Source.get_or_none(Source.pk == self.source_pk)


#: As a base after ``BaseModel``: class Result(BaseModel, PipelineOutputMixin).
PipelineOutputMixin = PipelineOutputModel

#: Models of results that have no table of their own.
BASES = frozenset({OutputModel, PipelineOutputModel})
