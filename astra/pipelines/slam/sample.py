"""Read training sets: a table of labels, with the spectra that belong to it, on one pixel grid.

The labels are columns of numbers. The spectra are in the table itself, or the table names them:

| table | spectra |
| --- | --- |
| ``.npz`` | arrays ``wavelength`` (P,), ``flux`` and ``ivar`` (N, P) |
| ``.fits`` | vector columns ``wavelength`` or ``loglam``, ``flux`` and ``ivar`` |
| ``.csv`` or ``.fits`` | a column ``path`` of files, below the folder of the table |
| ``.csv`` or ``.fits`` | a column ``spectrum_pk`` of spectra in the database |

Spectra from files and from the database are shifted to the rest frame by the column ``v_rad``
[km/s], if there is one; those of ``mwmVisit`` and ``mwmStar`` files are in the rest frame already.
"""

import csv
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astra.database.connection import connection
from astra.errors import MissingExtra, UsageError, nearest
from astra.models.spectrum_files import Wanted, read_pixels
from astra.pipelines.slam.pixels import at_rest, good_pixels
from astra.pipelines.slam.resample import resample
from astra.records import dataclass

Array = NDArray[np.float64]

#: Width of the pixels of BOSS in log10(wavelength), to which spectra without a common grid are
#: resampled.
BOSS_STEP = 1e-4
#: A pixel is used if at least this share of the spectra has data there.
MIN_COMPLETENESS = 0.5
#: Wavelengths of spectra on a common grid may differ by this fraction.
SAME_GRID = 1e-6


@dataclass(frozen=True, eq=False)
class Sample:
    """N labelled spectra on P pixels."""

    names: tuple[str, ...]  #: names of the spectra: their files, keys or rows, (N,)
    labels: Array  #: (N, L)
    wavelength: Array  #: vacuum Angstrom, (P,)
    flux: Array  #: (N, P)
    ivar: Array  #: 0 where there are no data, (N, P)
    n_without_labels: int  #: rows that were omitted because a label is missing


def read_sample(
    table: Path, label_names: Sequence[str], within: tuple[float, float] | None = None
) -> Sample:
    """Read a table of labels and its spectra.

    Parameters
    ----------
    table
        An ``.npz``, ``.fits`` or ``.csv`` file.
    label_names
        The columns to use as labels; rows in which one of them is missing are omitted.
    within
        First and last wavelength [Angstrom]; by default all that at least half of the spectra have.

    Raises
    ------
    UsageError
        If the table, a column or a spectrum is missing or cannot be read.
    """
    columns = _columns(table)
    _check_lengths(table, columns, label_names)
    labels = np.stack([_numbers(table, columns, name) for name in label_names], axis=1)
    has_labels = np.isfinite(labels).all(1)
    rows = np.flatnonzero(has_labels)
    if rows.size < 2:
        raise UsageError(
            f"{table} has {rows.size} rows in which all of the labels {', '.join(label_names)} are "
            "given; at least 2 are needed, and a useful model needs many more"
        )
    names, wavelength, flux, ivar = _spectra(table, columns, rows)
    use = (ivar > 0).mean(0) >= MIN_COMPLETENESS
    if within is not None:
        use &= (wavelength >= within[0]) & (wavelength <= within[1])
    if use.sum() < 2:
        raise UsageError(
            f"{table}: only {use.sum()} wavelengths"
            + (f" from {within[0]:g} to {within[1]:g} Angstrom" if within else "")
            + " have data in at least half of the spectra"
        )
    return Sample(
        names,
        labels[rows],
        wavelength[use],
        flux[:, use],
        ivar[:, use],
        int((~has_labels).sum()),
    )


def read_others(table: Path, label_names: Sequence[str], wavelength: Array) -> tuple[Array, Array]:
    """Read spectra of other kinds than the training set: the rows in which a label is missing.

    Parameters
    ----------
    table
        A table as for :func:`read_sample`. If it lacks the columns of labels, all rows are read.
    label_names
        The labels.
    wavelength
        The pixels of the sample, (P,).

    Returns
    -------
    flux, ivar
        Each of shape (O, P).
    """
    columns = _columns(table)
    _check_lengths(table, columns, label_names)
    known = [_numbers(table, columns, name) for name in label_names if name.lower() in columns]
    n = len(next(iter(columns.values()), ())) if "flux" not in columns else len(columns["flux"])
    has_labels = np.isfinite(known).all(0) if len(known) == len(label_names) else np.zeros(n, bool)
    rows = np.flatnonzero(~has_labels)
    if not rows.size:
        raise UsageError(
            f"{table} has no spectra of other kinds: all of its rows have the labels "
            f"{', '.join(label_names)}"
        )
    _, own, flux, ivar = _spectra(table, columns, rows)
    pairs = [resample(own, *pair, wavelength) for pair in zip(flux, ivar, strict=True)]
    one, other = (np.array(part) for part in zip(*pairs, strict=True))
    return one, other


# -- tables -------------------------------------------------------------------------------


def _columns(table: Path) -> dict[str, NDArray]:
    """Return the columns of a table, by their names in lower case."""
    suffixes = {suffix.lower() for suffix in table.suffixes}
    try:
        if table.suffix.lower() == ".npz":
            with table.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name.lower(): archive[name] for name in archive.files}
        if suffixes & {".fits", ".fit"}:
            return _fits_columns(table)
        if table.suffix.lower() == ".csv":
            with table.open(newline="", encoding="utf-8-sig") as text:  # Excel begins with a mark
                reader = csv.DictReader(text)
                rows, names = list(reader), reader.fieldnames or ()
            return {name.lower(): np.array([row[name] or "" for row in rows]) for name in names}
    except FileNotFoundError:
        raise UsageError(f"{table} does not exist") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{table} cannot be read as a table: {error}") from error
    raise UsageError(f"{table} is not an .npz, .fits or .csv file")


def _check_lengths(table: Path, columns: dict[str, NDArray], label_names: Sequence[str]) -> None:
    """Refuse columns of different lengths, which an .npz may hold."""
    used = [*label_names, "flux", "ivar", "name", "path", "spectrum_pk", "v_rad", "mjd"]
    lengths = {n: columns[n].shape[:1] for n in map(str.lower, used) if n in columns}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {columns[name].shape}" for name in lengths)
        raise UsageError(f"{table}: its columns must have one value for each row: {shown}")


def _fits_columns(table: Path) -> dict[str, NDArray]:
    try:
        from astropy.io import fits
    except ImportError as error:
        raise MissingExtra("fits", "astropy", f"to read {table}") from error
    with fits.open(table, memmap=False) as units:
        for unit in units:
            if getattr(unit, "columns", None) is not None and len(unit.data):
                columns = {name: np.asarray(unit.data[name]) for name in unit.columns.names}
                return {
                    name.lower(): column.astype(column.dtype.newbyteorder("="))
                    for name, column in columns.items()
                }
    raise UsageError(f"{table} contains no table with rows")


def _numbers(table: Path, columns: dict[str, NDArray], name: str) -> Array:
    """Return a column as numbers, NaN where it is empty."""
    column = columns.get(name.lower())
    if column is None:
        raise UsageError(f"{table} has no column {name!r}. {nearest(name, columns)}")
    if column.dtype.kind in "US":
        column = np.array([word.strip() or "nan" for word in column.astype(str)], object)
    try:
        return np.asarray(column, float)
    except ValueError as error:
        raise UsageError(f"{table}: the column {name!r} must hold numbers: {error}") from error


# -- spectra ------------------------------------------------------------------------------


def _spectra(
    table: Path, columns: dict[str, NDArray], rows: NDArray[np.int64]
) -> tuple[tuple[str, ...], Array, Array, Array]:
    """Return names, wavelengths (P,), flux and inverse variance (N, P) of some rows."""
    if "flux" in columns:
        for name in ("wavelength", "ivar"):
            if name not in columns and not (name == "wavelength" and "loglam" in columns):
                raise UsageError(f"{table} has a column 'flux' but no column {name!r}")
        _check_shapes(table, columns)
        named = columns.get("name", columns.get("path"))
        names = tuple(str(named[i]) if named is not None else f"row {i + 1}" for i in rows)
        wavelength = (
            columns["wavelength"] if "wavelength" in columns else 10 ** columns["loglam"]
        ).astype(float)
        flux, ivar = (columns[name][rows].astype(float) for name in ("flux", "ivar"))
        if wavelength.ndim == 1:
            return names, wavelength, *_without_bad_pixels(flux, ivar)
        return names, *_on_one_grid(list(zip(wavelength[rows], flux, ivar, strict=True)))
    if "path" in columns:
        names = tuple(str(columns["path"][i]) for i in rows)
        read = _from_file
    elif "spectrum_pk" in columns:
        try:
            names = tuple(str(int(columns["spectrum_pk"][i])) for i in rows)
        except ValueError as error:
            raise UsageError(
                f"{table}: the column 'spectrum_pk' must hold whole numbers: {error}"
            ) from error
        read = _from_database
    else:
        raise UsageError(
            f"{table} has no spectra: it needs the columns wavelength, flux and ivar, or the "
            "column 'path' with their files, or 'spectrum_pk' with their keys in the database"
        )
    v_rad = _numbers(table, columns, "v_rad") if "v_rad" in columns else np.zeros(rows.max() + 1)
    mjd = _numbers(table, columns, "mjd") if "mjd" in columns else np.full(rows.max() + 1, np.nan)
    each = []
    with connection() if read is _from_database else nullcontext():
        for name, i in zip(names, rows, strict=True):
            wavelength, flux, ivar, flags, is_at_rest = read(table, name, mjd[i])
            bad = ~good_pixels(wavelength, flux, ivar, flags)
            if not is_at_rest and np.isfinite(v_rad[i]):
                wavelength = at_rest(wavelength, v_rad[i])
            each.append((wavelength, flux, np.where(bad, 0.0, ivar)))
    return names, *_on_one_grid(each)


def _check_shapes(table: Path, columns: dict[str, NDArray]) -> None:
    """Refuse spectra in the table itself that are not arrays of numbers on the same pixels."""
    names = "flux", "ivar", "wavelength" if "wavelength" in columns else "loglam"
    arrays = {name: columns[name] for name in names}
    shape, ivar_shape, wavelength_shape = (array.shape for array in arrays.values())
    if (
        len(shape) != 2
        or ivar_shape != shape
        or wavelength_shape not in (shape, shape[1:])
        or any(array.dtype.kind not in "fiu" for array in arrays.values())
    ):
        found = ", ".join(f"{n} {a.shape} of {a.dtype}" for n, a in arrays.items())
        raise UsageError(
            f"{table}: flux and ivar must be numbers of the shape (N, P), and wavelengths of the "
            f"shape (P,) or (N, P), for N spectra of P pixels; they are {found}"
        )


#: Wavelengths, fluxes, inverse variances, flags or None, and whether it is in the rest frame.
_OneSpectrum = tuple[Array, Array, Array, NDArray[np.int64] | None, bool]


def _from_file(table: Path, name: str, mjd: float) -> _OneSpectrum:
    path = table.parent / name
    try:
        wanted = Wanted("BOSS", mjd=int(mjd) if np.isfinite(mjd) else None)
        pixels = read_pixels(path, wanted)
    except OSError as error:
        raise UsageError(
            f"{path}, which {table} names, cannot be read: {error.strerror or error}"
        ) from error
    arrays = pixels.arrays
    wavelength, flux, ivar = (
        np.asarray(arrays[name], float) for name in ("wavelength", "flux", "ivar")
    )
    return wavelength, flux, ivar, arrays.get("pixel_flags"), pixels.is_at_rest


def _from_database(table: Path, name: str, mjd: float) -> _OneSpectrum:
    from astra.models.spectrum import Spectrum, every_spectrum_model

    register = Spectrum.get_or_none(Spectrum.pk == int(name))
    models = {model._meta.table_name: model for model in every_spectrum_model()}
    if register is None or register.kind not in models:
        raise UsageError(f"{table}: the database has no spectrum with spectrum_pk {name}")
    model = models[register.kind]
    row = model.get(model.spectrum_pk == int(name))
    if row.wavelength is None or row.flux is None or row.ivar is None:
        raise UsageError(f"{table}: spectrum_pk {name} has no wavelength, flux or ivar")
    wavelength, flux, ivar = (
        np.asarray(array, float) for array in (row.wavelength, row.flux, row.ivar)
    )
    return wavelength, flux, ivar, row.pixel_flags, row.is_at_rest


def _on_one_grid(each: list[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """Return spectra on one grid: their own if they share one, otherwise the pixels of BOSS."""
    first = each[0][0]
    if all(w.shape == first.shape and np.allclose(w, first, rtol=SAME_GRID) for w, _, _ in each):
        flux, ivar = (np.array([one[k] for one in each]) for k in (1, 2))
        return first, *_without_bad_pixels(flux, ivar)
    low = min(float(np.nanmin(w)) for w, _, _ in each)
    high = max(float(np.nanmax(w)) for w, _, _ in each)
    numbers = np.arange(
        np.ceil(np.log10(low) / BOSS_STEP), np.floor(np.log10(high) / BOSS_STEP) + 1
    )
    wavelength = 10 ** (BOSS_STEP * numbers)
    pairs = [resample(*one, wavelength) for one in each]
    return wavelength, *(np.array(part) for part in zip(*pairs, strict=True))  # type: ignore[return-value]


def _without_bad_pixels(flux: Array, ivar: Array) -> tuple[Array, Array]:
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    return np.where(good, flux, 0.0), np.where(good, ivar, 0.0)
