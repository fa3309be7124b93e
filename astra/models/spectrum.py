"""Spectra: one table for each instrument and product, one register of their keys."""

from functools import cached_property
from typing import TYPE_CHECKING

from peewee import SQL, BigAutoField, Field, FloatField, ForeignKeyField, Model, TextField

from astra.config.settings import data_path
from astra.database.connection import database, tuples
from astra.fields import ArrayField
from astra.models.base import BaseModel, TimeField, every_subclass
from astra.models.source import Source
from astra.models.spectrum_files import Pixels, Wanted, read_pixels

if TYPE_CHECKING:
    import numpy as np

    Mixin = Model  # what the tables are that a mixin is for
else:
    Mixin = object


class Spectrum(BaseModel):
    """The register of all spectra: gives each a ``spectrum_pk``, unique over all tables.

    Examples
    --------
    >>> from astra.models import Spectrum
    >>> len(Spectrum.allocate("boss_visit_spectrum", 3))
    3
    """

    pk = BigAutoField()
    kind = TextField(
        default="", constraints=[SQL("DEFAULT ''")], help_text="the table that holds it"
    )

    @classmethod
    def allocate(cls, kind: str, n: int) -> list[int]:
        """Return `n` new keys for rows of the table `kind`."""
        keys: list[int] = []
        with database.atomic():
            while len(keys) < n:
                rows = [{"kind": kind}] * min(500, n - len(keys))
                keys += (pk for (pk,) in tuples(cls.insert_many(rows).returning(cls.pk)))
        return keys


def _pixels(name: str, description: str) -> property:
    """Return a property: an array of pixels, from the row itself or else from its file."""
    column = f"stored_{name}"

    def read(row: "SpectrumMixin") -> object:
        stored = getattr(row, column)
        return row._file.arrays.get(name) if stored is None and row.path else stored

    def store(row: "SpectrumMixin", value: object) -> None:
        setattr(row, column, value)

    return property(read, store, doc=description)


class SpectrumMixin(Mixin):
    """What every table of spectra has: subclass ``BaseModel, SpectrumMixin`` for your own.

    ``wavelength`` [Angstrom, vacuum], ``flux`` [1e-17 erg/s/cm^2/A, or normalised],
    ``ivar`` [inverse variance of the flux] and ``pixel_flags`` [bits, 0 is good] are arrays of one
    shape, (P,). They are read from the file that the row names (``path``, below the configured
    ``[data] root``; see spectrum_files.py), or from the row itself (``stored_flux`` and so on).

    Examples
    --------
    >>> import peewee
    >>> from astra.models import BaseModel, SpectrumMixin
    >>> class LamostSpectrum(BaseModel, SpectrumMixin):
    ...     plan_id = peewee.TextField(null=True)
    >>> LamostSpectrum(stored_flux=[1.0, 2.0]).flux
    [1.0, 2.0]
    """

    pk = BigAutoField()
    spectrum_pk = ForeignKeyField(
        Spectrum, unique=True, lazy_load=False, column_name="spectrum_pk", on_delete="CASCADE"
    )
    source = ForeignKeyField(Source, null=True, column_name="source_pk", backref=None)
    source_pk: int | None
    release = TextField(null=True)
    snr = FloatField(null=True, help_text="signal-to-noise ratio per pixel")
    path = TextField(null=True, help_text="file: .npz, or .fits with the extra 'fits'")
    stored_wavelength = ArrayField(null=True)
    stored_flux = ArrayField(null=True)
    stored_ivar = ArrayField(null=True)
    stored_pixel_flags = ArrayField(null=True)
    created = TimeField(now=True, null=False)
    modified = TimeField(now=True, null=False)

    #: ModelMeta copies these attributes to each table, where BaseModel's would take precedence.
    is_input = True
    #: The column that results point to, and the row that is loaded with each row (see keys.py).
    row_key, loaded_with = "spectrum_pk", "source"

    #: Which table of a file of several instruments holds these spectra.
    instrument: str | None = None

    @classmethod
    def fill_keys(cls, rows: list[dict[object, object]]) -> list[dict[object, object]]:
        """Return the same rows; those without a ``spectrum_pk`` are given a new one."""
        rows = [dict(row) for row in rows]
        names = {"spectrum_pk", cls.spectrum_pk}
        bare = [row for row in rows if not names & row.keys()]
        keys = Spectrum.allocate(cls._meta.table_name, len(bare))
        for row, key in zip(bare, keys, strict=True):
            row["spectrum_pk"] = key
        return rows

    # -- pixels -------------------------------------------------------------------------

    wavelength = _pixels("wavelength", "Vacuum wavelengths [Angstrom], shape (P,).")
    flux = _pixels("flux", "Flux [1e-17 erg/s/cm^2/A, or normalised], shape (P,).")
    ivar = _pixels(
        "ivar",
        "Inverse variance of the flux [its unit to the power -2], shape (P,); 0 for no datum.",
    )
    pixel_flags = _pixels(
        "pixel_flags", "Bits for defects of each pixel, shape (P,); None if they are not known."
    )

    @property
    def e_flux(self) -> "np.ndarray | None":
        """Uncertainty of the flux [its unit], shape (P,); infinite where there are no data."""
        if self.ivar is None:
            return None
        import numpy as np

        ivar = np.asarray(self.ivar, dtype=float)
        error = np.full_like(ivar, np.inf)
        np.power(ivar, -0.5, out=error, where=ivar > 0)
        return error

    @property
    def is_at_rest(self) -> bool:
        """Whether the wavelengths are in the frame of the star, according to the file."""
        return bool(self.path) and self.stored_wavelength is None and self._file.is_at_rest

    @cached_property
    def _file(self) -> "Pixels":
        wanted = Wanted(self.instrument, *(getattr(self, n, None) for n in ("telescope", "mjd")))
        return read_pixels(data_path(self.path or ""), wanted)


def every_spectrum_model() -> list[type[SpectrumMixin]]:
    """Return all tables of spectra, those of your own imported modules too."""
    from astra.models import import_all

    import_all()
    return [m for m in every_subclass(BaseModel) if issubclass(m, SpectrumMixin)]


def pixel_columns(model: type[Model]) -> list[Field]:
    """Return the columns of `model` that hold arrays: the wide ones."""
    return [field for field in model._meta.sorted_fields if isinstance(field, ArrayField)]
