"""Columns of models: peewee's, arrays, and flags. ``help_text`` is the description of a column.

Subclasses of ``BaseModel`` take a missing description from :mod:`astra.glossary`.
"""

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import peewee
from peewee import (  # noqa: F401 - modules of the published package import them from here
    AutoField,
    BigAutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
    CharField,
    DateField,
    DateTimeField,
    DecimalField,
    DoubleField,
    FieldAccessor,
    FloatField,
    ForeignKeyField,
    IntegerField,
    Model,
    SmallIntegerField,
    TextField,
    TimeField,
    TimestampField,
    UUIDField,
)

from astra.config.settings import data_path
from astra.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    import numpy as np


class BitField(peewee.BitField):
    """A whole number whose bits are flags, each with a description."""

    def flag(self, value: int | None = None, help_text: str | None = None) -> Any:
        """Declare the flag of a bit: of `value`, or of the bit after the last one."""
        declared = super().flag(value)
        declared.help_text = help_text
        return declared


class ArrayField(BlobField):
    """A numpy array in the row itself, in numpy's own ``.npy`` form; no pickles."""

    def db_value(self, value: object) -> object:
        return None if value is None else super().db_value(packed_array(value))

    def python_value(self, value: bytes | memoryview | None) -> "np.ndarray | None":
        return None if value is None else unpacked_array(bytes(value))


def packed_array(value: object) -> bytes:
    """Return an array in numpy's ``.npy`` form, which keeps its type and its shape; no pickles."""
    import numpy as np  # here, as few commands touch an array

    if np.ma.is_masked(value):  # their values would be taken for valid ones
        raise ValueError("it has masked values, which no .npy holds: yield array.filled(np.nan)")
    buffer = BytesIO()
    np.save(buffer, np.asarray(value), allow_pickle=False)
    return buffer.getvalue()


def unpacked_array(packed: bytes) -> "np.ndarray":
    """Return the array of :func:`packed_array`."""
    import numpy as np

    array: np.ndarray = np.load(BytesIO(packed), allow_pickle=False)
    return array


class PixelArray(ArrayField):
    """An array with a value for each pixel, stored in the row; NULL unless it is set.

    Parameters
    ----------
    ext : number or name of a table in the FITS file at the row's ``path``, from which the array is
        read if the row holds none.
    column_name : the column of that table; by default the name of the field.
    transform : a function that is applied to the array that was read.
    accessor_class : gets and sets the attribute, instead of peewee's.
    options : those of peewee's fields, such as ``help_text``.
    """

    def __init__(
        self,
        ext: int | str | None = None,
        column_name: str | None = None,
        transform: "Callable[[np.ndarray], np.ndarray] | None" = None,
        accessor_class: object = None,
        **options: object,
    ) -> None:
        self.ext, self.fits_column, self.transform = ext, column_name, transform
        if accessor_class is not None:
            self.accessor_class = accessor_class
        elif ext is not None:
            self.accessor_class = _FromFile
        super().__init__(**{"null": True} | options)


class _FromFile(FieldAccessor):
    """Returns the array of a row; reads it from the row's file if the row holds none."""

    def __get__(self, row: Model | None, model: type[Model] | None = None) -> object:
        value = super().__get__(row, model)
        if value is None and row is not None and (path := getattr(row, "path", None)):
            value = row.__data__[self.name] = _read(self.field, str(data_path(path)))
        return value


def _read(field: PixelArray, path: str) -> object:
    try:
        from astropy.io import fits
    except ImportError as error:
        raise MissingExtra("fits", "astropy", f"to read {path}") from error
    name = field.fits_column or field.name
    try:
        import numpy as np

        array = np.asarray(fits.getdata(path, field.ext)[name])
    except (KeyError, IndexError) as error:
        raise UsageError(
            f"{path} has no column {name!r} in the table {field.ext!r}, which "
            f"{field.model.__name__}.{field.name} is read from: {error}"
        ) from error
    array = array.astype(array.dtype.newbyteorder("="))
    return array if field.transform is None else field.transform(array)


#: What ``from astra.fields import *`` takes.
__all__ = [name for name in dir() if name.endswith(("Field", "PixelArray"))]
