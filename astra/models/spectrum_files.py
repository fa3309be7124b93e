"""Read the arrays of one spectrum from a file, or raise why it cannot be read.

| file | read as |
| --- | --- |
| ``.npz`` | arrays ``wavelength``, ``flux``, ``ivar`` and, where known, ``pixel_flags`` |
| SDSS, BOSS and SDSS-V ``spec-*`` | the first table with a column FLUX: a row for each pixel |
| ``mwmStar``, ``mwmVisit`` | the table of the row's instrument and telescope: a row for each one |

Wavelengths are in a column ``wavelength`` (vacuum Angstrom, or the unit of the column), in
``loglam`` (their log10), or in the header of the table (``CRVAL``, ``CDELT``, a ``CTYPE`` of
LOG-LINEAR).
"""

import zlib
from dataclasses import field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from astra.errors import BadSpectrum, MissingExtra
from astra.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from astropy.io.fits import BinTableHDU, HDUList

#: The arrays of a spectrum, and the columns of a table that may hold each.
_COLUMNS = {
    "wavelength": ("wavelength", "loglam"),
    "flux": ("flux",),
    "ivar": ("ivar",),
    "pixel_flags": ("pixel_flags", "and_mask"),
}
#: How files name the unit of wavelengths that are in Angstrom.
_ANGSTROM = ("angstrom", "angstroms", "ang", "aa", "a")
_OBSERVATORIES = {"apo": "APO", "lco": "LCO"}


@dataclass(frozen=True)
class Wanted:
    """Selects a spectrum from a file with several."""

    instrument: str | None = None  #: "BOSS" or "APOGEE"
    telescope: str | None = None  #: such as "apo25m"
    mjd: int | None = None


@dataclass(frozen=True)
class Pixels:
    """One spectrum from a file."""

    arrays: "dict[str, np.ndarray]" = field(default_factory=dict)
    is_at_rest: bool = False  #: whether its wavelengths are in the frame of the star


def read_pixels(path: Path, wanted: Wanted | None = None) -> Pixels:
    """Read the spectrum in a file.

    Parameters
    ----------
    path
        The file; its name ends in ``.npz``, ``.fits``, ``.fits.gz`` or ``.fit``.
    wanted
        Which spectrum of several.

    Raises
    ------
    BadSpectrum
        If the file is of another kind, lacks an array, or has several matching spectra.
    MissingExtra
        If astropy is wanted and not installed.
    OSError
        If it cannot be read.
    """
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if path.suffix.lower() == ".npz":
        pixels = Pixels(_read_npz(path))
    elif suffixes & {".fits", ".fit"}:
        pixels = _read_fits(path, wanted or Wanted())
    else:
        raise BadSpectrum(f"{path}: a spectrum is an .npz or a .fits file, not {path.suffix!r}")
    _check(path, pixels.arrays)
    return pixels


def _check(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    for name in ("wavelength", "flux", "ivar"):
        if name not in arrays:
            raise BadSpectrum(
                f"{path} has no {name!r}: a spectrum is wavelength [vacuum Angstrom], flux and "
                f"ivar; the file holds {', '.join(sorted(arrays)) or 'none of them'}"
            )
    for name in _COLUMNS.keys() & arrays.keys():
        if arrays[name].dtype.kind not in "fiub":
            raise BadSpectrum(f"{path}: {name!r} holds {arrays[name].dtype}, not real numbers")
    shapes = {name: array.shape for name, array in arrays.items() if name in _COLUMNS}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise BadSpectrum(f"{path}: the arrays of a spectrum have one shape (P,), not {shown}")


def _read_npz(path: Path) -> "dict[str, np.ndarray]":
    from zipfile import BadZipFile  # here, as few commands read files

    import numpy as np

    try:
        # Opened here because numpy does not close a damaged file that it has opened.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise BadSpectrum(f"{path} cannot be read as an .npz of arrays: {error}") from error


def _read_fits(path: Path, wanted: Wanted) -> Pixels:
    import gzip

    try:
        from astropy.io import fits
    except ImportError as error:
        raise MissingExtra("fits", "astropy", f"to read {path}") from error
    try:
        # All of a compressed file is read: its check sum, at its end, says whether it is whole.
        is_compressed = path.suffix.lower() == ".gz"
        content = BytesIO(gzip.decompress(path.read_bytes())) if is_compressed else path
        with fits.open(content, memmap=False) as units:
            unit = _choose_table(path, units, wanted)
            return _read_table(path, unit, wanted)
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadSpectrum(f"{path} cannot be read as FITS: {error}") from error


def _choose_table(path: Path, units: "HDUList", wanted: Wanted) -> "BinTableHDU":
    """Return the table of the requested spectrum."""
    tables = [u for u in units if getattr(u, "columns", None) is not None]
    with_flux = [u for u in tables if "flux" in _names(u) and len(u.data)]
    if not with_flux:
        held = [f"{u.name or number}: {_contents(u)}" for number, u in enumerate(units)]
        raise BadSpectrum(
            f"{path} has no table with a column 'flux' and any row; it holds {'; '.join(held)}"
        )
    by_instrument = [u for u in with_flux if _instrument(u)]
    if not by_instrument:
        return with_flux[0]
    matching = [u for u in by_instrument if _matches(u, wanted)]
    if len(matching) == 1:
        return matching[0]
    meant = " ".join(filter(None, (wanted.instrument, wanted.telescope))) or "any instrument"
    raise BadSpectrum(
        f"{path} has {len(matching) or 'no'} tables of {meant} with spectra, among "
        f"{', '.join(u.name for u in by_instrument)}: set the row's telescope to choose one"
    )


def _contents(unit: "BinTableHDU") -> str:
    if getattr(unit, "columns", None) is not None:
        return f"a table of {len(unit.data)} rows with {', '.join(_names(unit)) or 'no columns'}"
    shape = () if unit.data is None else unit.data.shape
    return f"an image {shape}" if shape else "no data"


def _names(unit: "BinTableHDU") -> list[str]:
    return [name.lower() for name in unit.columns.names]


def _instrument(unit: "BinTableHDU") -> tuple[str, str] | None:
    """Return instrument and observatory of a table of mwmStar or mwmVisit: ("BOSS", "APO")."""
    instrument, _, observatory = unit.name.upper().partition("/")
    if "INSTRMNT" in unit.header and "OBSRVTRY" in unit.header:
        instrument, observatory = unit.header["INSTRMNT"], unit.header["OBSRVTRY"]
    return (instrument.upper(), observatory.upper()) if observatory else None


def _matches(unit: "BinTableHDU", wanted: Wanted) -> bool:
    instrument, observatory = _instrument(unit) or ("", "")
    if wanted.instrument is not None and instrument != wanted.instrument:
        return False
    site = _OBSERVATORIES.get((wanted.telescope or "")[:3].lower())
    return site is None or observatory == site


def _read_table(path: Path, unit: "BinTableHDU", wanted: Wanted) -> Pixels:
    import numpy as np

    names, arrays, column = _names(unit), {}, {}
    for ours, theirs in _COLUMNS.items():
        if present := [name for name in theirs if name in names]:
            column[ours] = unit.columns[names.index(present[0])]
            arrays[ours] = np.asarray(unit.data[column[ours].name])
    # A vector in each row, of a fixed or of a variable length.
    one_spectrum_a_row = arrays["flux"].ndim > 1 or arrays["flux"].dtype.kind == "O"
    if one_spectrum_a_row:
        row = _choose_row(path, unit, wanted)
        arrays = {name: np.asarray(array[row]) for name, array in arrays.items()}
    arrays = {n: array.astype(array.dtype.newbyteorder("=")) for n, array in arrays.items()}
    if "wavelength" not in arrays:
        _from_header(path, unit, names, arrays)
    elif column["wavelength"].name.lower() == "loglam":
        arrays["wavelength"] = 10 ** arrays["wavelength"].astype(float)
    else:
        arrays["wavelength"] = arrays["wavelength"] * _angstrom(path, column["wavelength"].unit)
    if "pixel_flags" in arrays:
        arrays["pixel_flags"] = arrays["pixel_flags"].astype(np.int64)
    return Pixels(arrays, is_at_rest=one_spectrum_a_row and _instrument(unit) is not None)


def _angstrom(path: Path, unit: str | None) -> float:
    """Return the unit of a column of wavelengths in Angstrom."""
    if not unit or unit.lower() in _ANGSTROM:
        return 1.0
    from astropy.units import Unit

    try:
        return float(Unit(unit).to("Angstrom"))
    except (ValueError, TypeError) as error:
        raise BadSpectrum(
            f"{path}: the column 'wavelength' is in {unit!r}, which is no length: give vacuum "
            "Angstrom"
        ) from error


def _choose_row(path: Path, unit: "BinTableHDU", wanted: Wanted) -> int:
    import numpy as np

    n = len(unit.data)
    if n == 1:
        return 0
    names = _names(unit)
    if wanted.mjd is not None and "mjd" in names:
        days = np.asarray(unit.data[unit.columns.names[names.index("mjd")]])
        rows = np.flatnonzero(days == wanted.mjd)
        if rows.size == 1:
            return int(rows[0])
        mismatch = f"{rows.size or 'none'} of MJD {wanted.mjd}"
    elif wanted.mjd is None:
        mismatch = "and the row has no MJD"
    else:
        mismatch = "and no column mjd"
    table = unit.name or "its table"
    raise BadSpectrum(f"{path} has {n} spectra in {table}, {mismatch}: exactly one must match")


def _from_header(
    path: Path, unit: "BinTableHDU", names: list[str], arrays: "dict[str, np.ndarray]"
) -> None:
    """Add wavelengths that are only in the header of a table."""
    import numpy as np

    header = unit.header
    if {"CRVAL", "CDELT"} <= set(header) and header.get("CTYPE", "").upper() == "LOG-LINEAR":
        first = header.get("CRPIX", 1) - 1
        steps = np.arange(arrays["flux"].shape[-1]) - first
        arrays["wavelength"] = 10 ** (header["CRVAL"] + header["CDELT"] * steps)
    elif "wave" in names:
        raise BadSpectrum(
            f"{path}: it is not known whether the column WAVE is in vacuum or in air; give "
            "'wavelength' in vacuum Angstrom, or 'loglam', its log10"
        )
