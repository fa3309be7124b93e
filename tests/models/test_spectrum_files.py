"""Files of spectra: what is read, and what is refused, with a message that says why."""

import gzip
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from astra.errors import MissingExtra, UsageError
from astra.models import ApogeeVisitSpectrum, BossVisitSpectrum, Slam, Source
from astra.models.failures import Failure
from astra.models.spectrum_files import Wanted, read_pixels
from astra.pipelines.slam import slam, synthetic
from tests.conftest import ROOT

LOGLAM = 3.5523 + 1e-4 * np.arange(50)
FLUX = np.linspace(1, 2, 50)
BOSS = Wanted("BOSS", "apo25m")


def column(name, array, kind="E"):
    array = np.atleast_1d(array)
    vector = array.ndim > 1
    return fits.Column(name, f"{array.shape[1]}{kind}" if vector else kind, array=array)


def spec_table(upper=False, **more):
    """The first table of a spec file: a row for each pixel."""
    columns = {"flux": FLUX, "loglam": LOGLAM, "ivar": FLUX * 0 + 4, "and_mask": FLUX > 1.5} | more
    columns = {name: array for name, array in columns.items() if array is not None}
    return fits.BinTableHDU.from_columns(
        [
            column(name.upper() if upper else name, array, "J" if "mask" in name else "E")
            for name, array in columns.items()
        ],
        name="COADD",
    )


def mwm_table(instrument, observatory, n=1, in_header=False):
    """A table of mwmVisit or mwmStar: a row for each spectrum, the first of flux 1 to 2."""
    flux = FLUX + np.arange(n)[:, None]
    columns = [
        column("mjd", 59_000 + np.arange(n), "J"),
        column("flux", flux),
        column("ivar", np.full((n, 50), 4.0)),
        column("pixel_flags", np.zeros((n, 50))),
    ]
    if not in_header:
        columns.append(column("wavelength", np.tile(10**LOGLAM, (n, 1)), "D"))
    table = fits.BinTableHDU.from_columns(columns)
    table.name = f"{instrument}/{observatory}"
    cards = {"INSTRMNT": instrument, "OBSRVTRY": observatory}
    if in_header:
        cards |= {"CRVAL": 3.5523, "CDELT": 1e-4, "CRPIX": 1, "CTYPE": "LOG-LINEAR"}
    table.header.update(cards)
    return table


def table_of(unit=None, flux=FLUX):
    """A table of a wavelength, in some unit, and of a flux, in any format, for each pixel."""
    kind = {"U": "20A", "c": "C"}.get(flux.dtype.kind, "E")
    return fits.BinTableHDU.from_columns(
        [
            fits.Column("wavelength", "D", unit, array=10**LOGLAM),
            fits.Column("flux", kind, array=flux),
            fits.Column("ivar", "E", array=FLUX),
        ]
    )


def empty(table):
    return fits.BinTableHDU(table.data[:0], header=table.header)


def write(path, *units):
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(path)
    return path


# -- what is read -------------------------------------------------------------------------


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("name", ["spec-0618-52049-0372.fits", "spec.fits.gz", "SPEC.FIT"])
def test_spec_files_are_read_from_their_first_table_with_flux(tmp_path, name, upper):
    others = fits.BinTableHDU.from_columns([column("Z", [0.1])], name="SPALL")
    pixels = read_pixels(write(tmp_path / name, spec_table(upper), others), BOSS)
    assert np.allclose(pixels.arrays["wavelength"], 10**LOGLAM, rtol=1e-6)
    assert np.allclose(pixels.arrays["flux"], FLUX) and (pixels.arrays["ivar"] == 4).all()
    assert pixels.arrays["pixel_flags"].tolist() == (FLUX > 1.5).astype(int).tolist()
    assert all(array.dtype.isnative for array in pixels.arrays.values())
    assert not pixels.is_at_rest


@pytest.mark.parametrize("in_header", [False, True])
def test_mwm_files_have_a_table_for_each_instrument_and_vectors_in_a_row(tmp_path, in_header):
    path = write(
        tmp_path / "mwmStar-0.6.0-1.fits",
        mwm_table("BOSS", "APO", in_header=in_header),
        empty(mwm_table("BOSS", "LCO")),
        mwm_table("APOGEE", "APO", in_header=in_header),
    )
    pixels = read_pixels(path, BOSS)
    assert {array.shape for array in pixels.arrays.values()} == {(50,)}
    assert np.allclose(pixels.arrays["wavelength"], 10**LOGLAM) and pixels.is_at_rest
    assert read_pixels(path, Wanted("BOSS")).arrays["flux"].shape == (50,)  # LCO's is empty
    with pytest.raises(UsageError, match=r"has no tables of BOSS lco25m"):
        read_pixels(path, Wanted("BOSS", "lco25m"))


def test_the_day_of_a_visit_says_which_row_is_meant(tmp_path):
    path = write(tmp_path / "mwmVisit-0.6.0-1.fits", mwm_table("BOSS", "APO", n=3))
    second = read_pixels(path, Wanted("BOSS", "apo25m", 59_001))
    assert np.allclose(second.arrays["flux"], FLUX + 1)
    with pytest.raises(UsageError, match=r"3 spectra in BOSS/APO, none of MJD 60000"):
        read_pixels(path, Wanted("BOSS", "apo25m", 60_000))
    with pytest.raises(UsageError, match=r"the row has no MJD"):
        read_pixels(path, BOSS)
    columns = [c for c in fits.getdata(path, "BOSS/APO").columns if c.name != "mjd"]
    without = fits.BinTableHDU.from_columns(columns, name="BOSS/APO")
    path = write(tmp_path / "mwmVisit-0.6.0-2.fits", without)
    with pytest.raises(UsageError, match=r"3 spectra in BOSS/APO, and no column mjd"):
        read_pixels(path, Wanted("BOSS", "apo25m", 59_001))


def test_two_telescopes_and_none_that_is_meant(tmp_path):
    path = write(tmp_path / "a.fits", mwm_table("BOSS", "APO"), mwm_table("BOSS", "LCO"))
    with pytest.raises(UsageError, match=r"2 tables of BOSS with spectra.*set the row's telescope"):
        read_pixels(path, Wanted("BOSS"))


def test_rows_know_their_instrument(tmp_path, sqlite_url):
    path = write(tmp_path / "a.fits", mwm_table("BOSS", "APO", n=2), mwm_table("APOGEE", "LCO"))
    visit = BossVisitSpectrum(path=str(path), telescope="apo25m", mjd=59_001)
    assert np.allclose(visit.flux, FLUX + 1) and visit.is_at_rest
    assert np.allclose(ApogeeVisitSpectrum(path=str(path), telescope="lco25m").flux, FLUX)
    assert not BossVisitSpectrum(wavelength=LOGLAM, flux=FLUX, ivar=FLUX).is_at_rest


@pytest.mark.parametrize(("unit", "angstrom"), [("nm", 10), ("um", 1e4), ("Angstrom", 1), ("A", 1)])
def test_wavelengths_are_converted_to_angstrom(tmp_path, unit, angstrom):
    pixels = read_pixels(write(tmp_path / "a.fits", table_of(unit)))
    assert pixels.arrays["wavelength"] == pytest.approx(angstrom * 10**LOGLAM)


def test_vectors_of_variable_length_are_read(tmp_path):
    columns = [
        fits.Column(name, "PD()", array=np.array([array, FLUX[:3]], dtype=object))
        for name, array in {"loglam": LOGLAM, "flux": FLUX, "ivar": FLUX}.items()
    ]
    mjd = column("mjd", [59000, 59001], "J")
    path = write(tmp_path / "a.fits", fits.BinTableHDU.from_columns([mjd, *columns]))
    assert read_pixels(path, Wanted(mjd=59000)).arrays["wavelength"] == pytest.approx(10**LOGLAM)
    assert read_pixels(path, Wanted(mjd=59001)).arrays["flux"].shape == (3,)


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (lambda: [spec_table(ivar=None)], "has no 'ivar'.*holds flux, pixel_flags, wavelength"),
        (lambda: [spec_table(loglam=None)], "has no 'wavelength'"),
        (lambda: [spec_table(loglam=None, WAVE=LOGLAM)], "WAVE is in vacuum or in air"),
        (lambda: [spec_table(flux=None)], "no table with a column 'flux'"),
        (lambda: [fits.ImageHDU(np.ones((4, 50)))], r"no table.*an image \(4, 50\)"),
        (lambda: [], "no table with a column 'flux'"),
        (lambda: [table_of(flux=FLUX.astype(str))], "'flux' holds .*, not real numbers"),
        (lambda: [table_of(flux=FLUX.astype(complex))], "'flux' holds .*, not real numbers"),
        (lambda: [table_of(unit="km/s")], "in 'km/s', which is no length"),
    ],
)
def test_fits_files_that_are_no_spectrum(tmp_path, units, message):
    with pytest.raises(UsageError, match=message):
        read_pixels(write(tmp_path / "a.fits", *units()), BOSS)


def test_files_that_are_cut_off_or_of_another_kind(tmp_path):
    whole = write(tmp_path / "whole.fits", spec_table())
    for content in (b"", b"some text", whole.read_bytes()[:3000], whole.read_bytes()[:5900]):
        (tmp_path / "cut.fits").write_bytes(content)
        with pytest.raises(UsageError, match=r"cut\.fits"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy's own, of the length
            read_pixels(tmp_path / "cut.fits")
    with pytest.raises(FileNotFoundError):
        read_pixels(tmp_path / "gone.fits")
    with pytest.raises(UsageError, match=r"an \.npz or a \.fits file, not '\.txt'"):
        read_pixels(tmp_path / "a.txt")


def test_compressed_files_that_are_not_whole(tmp_path):
    noise = np.random.default_rng(1).normal(size=9000)
    columns = {"flux": noise, "loglam": noise, "ivar": noise, "and_mask": None}
    whole = gzip.compress(write(tmp_path / "a.fits", spec_table(**columns)).read_bytes())
    spoilt = whole[:20_000] + b"spoilt" + whole[20_006:]
    for content in (whole[:20_000], whole[:-4], spoilt, b"no gzip"):
        (tmp_path / "a.fits.gz").write_bytes(content)
        with pytest.raises(UsageError, match=r"a\.fits\.gz cannot be read as FITS"):
            read_pixels(tmp_path / "a.fits.gz")


def test_arrays_of_npz_files_are_read(tmp_path):
    arrays = {"wavelength": 10**LOGLAM, "flux": FLUX, "ivar": FLUX}
    np.savez(tmp_path / "whole.npz", **arrays)
    assert read_pixels(tmp_path / "whole.npz").arrays.keys() == arrays.keys()
    for name in arrays:
        np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if k != name})
        with pytest.raises(UsageError, match=f"has no '{name}'"):
            read_pixels(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **arrays | {"ivar": np.ones(3)})
    with pytest.raises(UsageError, match=r"one shape \(P,\), not wavelength \(50,\).*ivar \(3,\)"):
        read_pixels(tmp_path / "a.npz")
    np.save(tmp_path / "one.npy", FLUX)
    (tmp_path / "one.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UsageError, match=r"cannot be read as an \.npz"):
        read_pixels(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **arrays | {"flux": np.array([{}], dtype=object)})
    with pytest.raises(UsageError, match=r"cannot be read as an \.npz"):
        read_pixels(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    with pytest.raises(UsageError, match=r"cannot be read as an \.npz"):
        read_pixels(tmp_path / "a.npz")


# -- in a task ----------------------------------------------------------------------------


def fill(tmp_path: Path, v_rad: float = 80.0) -> None:
    """One star as a spec file, as a visit at rest in an mwm file, and as a file without ivar."""
    labels, rng = [3500.0, 4.8, 0.0, 0.0], np.random.default_rng(1)
    wavelength = synthetic.WAVELENGTH
    flux, ivar = synthetic.spectrum(labels, 60, rng, wavelength, v_rad)[1:]
    moving = {"loglam": np.log10(wavelength), "flux": flux, "ivar": ivar, "and_mask": None}
    write(tmp_path / "spec.fits", spec_table(**moving))
    write(tmp_path / "bad.fits", spec_table(**moving | {"ivar": None}))
    flux, ivar = synthetic.spectrum(labels, 60, rng, wavelength)[1:]
    names = {"wavelength": (wavelength, "D"), "flux": (flux, "E"), "ivar": (ivar, "E")}
    table = fits.BinTableHDU.from_columns(
        [column(name, array[None], kind) for name, (array, kind) in names.items()]
    )
    table.header.update({"INSTRMNT": "BOSS", "OBSRVTRY": "APO"})
    write(tmp_path / "mwmVisit.fits", table)
    source = Source.create(sdss_id=1)
    for name in ("spec.fits", "mwmVisit.fits", "bad.fits"):
        BossVisitSpectrum.create(
            source=source.pk, path=str(tmp_path / name), telescope="apo25m", xcsao_v_rad=v_rad
        )


def test_a_visit_that_its_file_holds_at_rest_is_not_shifted_again(tmp_path, sqlite_url):
    fill(tmp_path)
    rows = BossVisitSpectrum.select().limit(2).order_by(BossVisitSpectrum.pk)
    results = list(slam(rows, write_to_database=False, re_raise_exceptions=True))
    assert len(results) == 2
    assert all(abs(result.teff - 3500) < 5 * result.e_teff for result in results)


@pytest.mark.parametrize(
    "change",
    [
        {"ivar": np.zeros(50)},
        {"flux": np.full(50, np.nan)},
        {"loglam": np.full(50, np.nan)},
        {"loglam": LOGLAM + 1},
        {"and_mask": np.ones(50)},
    ],
)
def test_a_file_in_which_no_pixel_is_a_datum_is_an_error_of_its_row(tmp_path, change):
    path = write(tmp_path / "spec.fits", spec_table(**change))
    row = BossVisitSpectrum(path=str(path), xcsao_v_rad=0.0)
    with pytest.raises(
        UsageError, match=r"spec\.fits has no data that could be labelled: .* 50 pixels"
    ):
        list(slam([row], write_to_database=False, re_raise_exceptions=True))


def run_slam(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "astra", "run", "slam.slam", "--max-rows", "10"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_that_is_no_spectrum_fails_its_row_alone(tmp_path, sqlite_url):
    fill(tmp_path)
    run_slam()
    assert Slam.select().count() == 2
    (failure,) = Failure.select()
    assert "bad.fits has no 'ivar'" in failure.message


def test_without_astropy_the_task_fails_once_and_no_row_does(tmp_path, sqlite_url):
    fill(tmp_path)
    hidden = tmp_path / "hidden" / "astropy"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not here')")
    done = run_slam(PYTHONPATH=str(hidden.parent))
    assert done.returncode == 4, (done.stdout, done.stderr)
    assert not Slam.select().exists() and not Failure.select().exists()
    assert "0 done + 0 failed" in done.stdout
    assert "pip install 'sdss-astra[fits]'; the rows stay pending" in done.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "astropy.io", None)
        with pytest.raises(MissingExtra, match="astropy is not installed"):
            read_pixels(tmp_path / "spec.fits")


def test_files_without_data_fail_their_rows_even_if_a_page_has_no_others(tmp_path, sqlite_url):
    """Their page is not broken: the night after would find the same rows pending."""
    source = Source.create(sdss_id=1)
    for number, change in enumerate(({"ivar": np.zeros(50)}, {"flux": np.full(50, np.nan)})):
        path = write(tmp_path / f"spec-{number}.fits", spec_table(**change))
        BossVisitSpectrum.create(source=source, path=str(path), xcsao_v_rad=0.0)
    BossVisitSpectrum.create(source=source, path=str(write_text(tmp_path / "spec.txt")))
    done = run_slam()
    assert done.returncode == 8, done.stderr
    assert [failure.exception for failure in Failure.select()] == ["BadSpectrum"] * 3


def write_text(path: Path) -> Path:
    path.write_text("no spectrum")
    return path
