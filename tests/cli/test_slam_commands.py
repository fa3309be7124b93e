"""``astra slam train`` and ``astra slam check``: tables of labels, joined to spectra."""

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

from astra.cli.group import main
from astra.errors import UsageError
from astra.models import BossVisitSpectrum, Source
from astra.pipelines.slam import model_file, synthetic
from astra.pipelines.slam.sample import read_sample
from astra.pipelines.slam.synthetic import LABELS, WAVELENGTH

N = 40
#: The last label is the same in all: a model of three.
NAMES = LABELS[:3]


@pytest.fixture(scope="module")
def stars():
    """Labels, wavelengths, flux and inverse variance of stars at S/N 100."""
    rng = np.random.default_rng(5)
    labels = synthetic.grid(N)
    labels[:, 3] = 0.0
    spectra = [synthetic.spectrum(one, 100, rng) for one in labels]
    return labels, WAVELENGTH, *(np.array([one[k] for one in spectra]) for k in (1, 2))


@pytest.fixture
def npz(tmp_path, stars):
    labels, wavelength, flux, ivar = stars
    columns = dict(zip(LABELS, labels.T, strict=True))
    np.savez(tmp_path / "set.npz", wavelength=wavelength, flux=flux, ivar=ivar, **columns)
    return tmp_path / "set.npz"


def astra(*words):
    """What a command prints, without line breaks, and its exit status."""
    done = CliRunner().invoke(main, ["slam", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, " ".join(done.output.split())


def write_csv(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'teff'"),
        ("path,teff\n", "has 0 rows in which all of the labels"),
        ("\ufeffteff,path\n", "has 0 rows in which all of the labels"),
        ("path,teff\na.npz,4000,more\n", "has 1 rows in which all of the labels"),
        ("path,teff\na.npz,hot\n", "must hold numbers: could not convert string to float: 'hot'"),
    ],
)
def test_a_table_that_is_no_training_set_is_refused(tmp_path, text, message):
    (tmp_path / "set.csv").write_text(text)
    status, said = astra("train", tmp_path / "set.csv", "-o", tmp_path / "m.npz", "--labels=teff")
    assert status == 2 and message in said


# -- the commands -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("set.npz", "would replace the spectra to train on"),
        ("link.npz", "would replace the spectra to train on"),
        ("model", "ends with .npz"),
        ("folder.npz", "ends with .npz"),
        ("no/such/model.npz", "mkdir -p"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_training(
    tmp_path, npz, monkeypatch, output, message
):
    before = npz.read_bytes()
    (tmp_path / "link.npz").symlink_to(npz)
    (tmp_path / "folder.npz").mkdir()
    monkeypatch.setattr("astra.pipelines.slam.train", None)
    status, text = astra("train", npz, "-o", tmp_path / output, "--labels", "teff")
    assert status == 2 and message in text
    assert npz.read_bytes() == before


def test_a_model_of_any_labels_is_trained_checked_and_drawn(tmp_path, npz):
    model, pictures = tmp_path / "model.npz", tmp_path / "pictures"
    status, said = astra(
        "train", npz, "-o", model, "--labels", ",".join(NAMES), "--pictures", pictures
    )
    assert status == 0, said
    assert f"trained on {N} spectra of set.npz" in said and "a model without it" in said
    assert f"--set model={model}" in said
    assert all(name in said for name in NAMES)
    for name in ("labels", "fits", "model"):
        assert (pictures / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    loaded = model_file.load(model)
    assert loaded.label_names == NAMES
    status, checked = astra("check", model)
    assert status == 0 and loaded.digest in checked
    assert checked in said.replace("picture ", "")  # both commands print the same about a model
    model_file.save(replace(loaded, validation=None), model)
    status, checked = astra("check", model)
    assert status == 0 and "not cross-validated: errors have no floor" in checked
    assert all(name in checked for name in NAMES) and "flagged as bad" not in checked


def test_rows_without_labels_are_left_out_and_the_range_is_kept_to(tmp_path, stars):
    labels, wavelength, flux, ivar = stars
    teff = labels[:, 0].copy()
    teff[:4] = np.nan
    np.savez(tmp_path / "set.npz", wavelength=wavelength, flux=flux, ivar=ivar, teff=teff)
    sample = read_sample(tmp_path / "set.npz", ("teff",), (6000.0, 7000.0))
    assert sample.n_without_labels == 4 and len(sample.labels) == N - 4
    assert sample.names[0] == "row 5"
    first, last = sample.wavelength[[0, -1]]
    assert 6000 <= first < 6006 and 6993 < last <= 7000
    status, said = astra(
        "train", tmp_path / "set.npz", "-o", tmp_path / "m.npz", "--labels", "teff",
        "--range", "6000:7000",
    )  # fmt: skip
    assert status == 0 and "omitted 4 rows in which a label is missing" in said
    assert f"from {first:.0f} to {last:.0f} Angstrom" in said


def test_spectra_of_other_kinds_are_flagged(tmp_path, stars):
    labels, wavelength, flux, ivar = stars
    other = np.arange(N) % 8 == 7
    teff = np.where(other, np.nan, labels[:, 0])
    level = np.median(flux, axis=1, keepdims=True)
    flux = np.where(other[:, None], level * (wavelength / 7000) ** 2, flux)  # without any line
    np.savez(tmp_path / "set.npz", wavelength=wavelength, flux=flux, ivar=ivar, teff=teff)
    words = ("train", tmp_path / "set.npz", "-o", tmp_path / "m.npz", "--labels", "teff")
    status, said = astra(*words, "--others", tmp_path / "set.npz")
    assert status == 0, said
    assert f"spectra of other kinds: {other.sum()} of {other.sum()} are flagged" in said
    assert model_file.load(tmp_path / "m.npz").validation.outside_flagged.size == other.sum()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "teff,logz"], "no column 'logz'. Did you mean 'logg'"),
        (["--labels", ","], "name at least one column"),
        (["--labels", "teff", "--range", "7000"], "should be FIRST:LAST"),
        (["--labels", "teff", "--range", "7000:6000"], "should be FIRST:LAST"),
        (["--labels", "teff", "--range", "100:200"], "only 0 wavelengths from 100 to 200"),
        (["--labels", "teff", "--others", "set.npz"], "all of its rows have the labels teff"),
        (["--labels", "alpha_fe"], "label 'alpha_fe'"),
    ],
)
def test_invalid_options_are_reported(tmp_path, npz, words, message):
    status, said = astra("train", npz, "-o", tmp_path / "m.npz", *words)
    assert status == 2 and message in said, said
    assert not (tmp_path / "m.npz").exists()


def test_a_model_that_is_none_and_missing_matplotlib(tmp_path, npz, monkeypatch):
    assert astra("check", npz)[0] == 2
    status, said = astra("check", tmp_path / "gone.npz")
    assert status == 2 and "gone.npz does not exist" in said
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, said = astra("check", "slam_templates", "--pictures", tmp_path / "pictures")
    assert status == 2 and "pip install 'sdss-astra[plots]'" in said


# -- tables -------------------------------------------------------------------------------


def fits_table(path, wavelength, flux, ivar, labels, **more):
    """A table with a vector column for each array."""
    columns = [fits.Column(n, "D", array=c) for n, c in zip(LABELS, labels.T, strict=True)]
    vectors = {"wavelength": np.broadcast_to(wavelength, flux.shape), "flux": flux, "ivar": ivar}
    columns += [fits.Column(n, f"{a.shape[1]}D", array=a) for n, a in vectors.items()]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    return path


def test_tables_of_fits(tmp_path, npz, stars):
    labels, wavelength, flux, ivar = stars
    one = read_sample(npz, NAMES)
    other = read_sample(fits_table(tmp_path / "a.fits", wavelength, flux, ivar, labels), NAMES)
    for name in ("labels", "wavelength", "flux", "ivar"):
        assert np.allclose(getattr(one, name), getattr(other, name)), name


def test_files_on_grids_of_their_own_are_shifted_to_rest(tmp_path):
    rng = np.random.default_rng(2)
    star, v_rad = [3500.0, 4.8, 0.0, 0.0], [0.0, 150.0, -80.0]
    for number, velocity in enumerate(v_rad):
        wavelength = 10 ** (3.71 + 1e-4 * (np.arange(2000) + 0.3 * number))
        _, flux, ivar = synthetic.spectrum(star, 1e4, rng, wavelength, velocity)
        flux /= np.median(flux)
        np.savez(tmp_path / f"{number}.npz", wavelength=wavelength, flux=flux, ivar=ivar)
    table = write_csv(
        tmp_path / "set.csv",
        {"path": [f"{n}.npz" for n in range(3)], "teff": [3500, 3501, ""], "v_rad": v_rad},
    )
    sample = read_sample(table, ("teff",))
    assert sample.names == ("0.npz", "1.npz") and sample.n_without_labels == 1
    numbers = np.log10(sample.wavelength) / 1e-4
    assert np.allclose(numbers, np.round(numbers), atol=1e-6)
    at_d = np.abs(sample.wavelength - 5891.58) < 25  # around Na D2
    lowest = sample.wavelength[at_d][sample.flux[:, at_d].argmin(1)]
    assert np.abs(np.diff(lowest)) < 2.0


def test_a_sample_takes_its_spectra_from_the_database(tmp_path, stars, sqlite_url):
    labels, wavelength, flux, ivar = stars
    source = Source.create(sdss_id=1)
    keys = [
        BossVisitSpectrum.create(
            source=source.pk, wavelength=wavelength, flux=flux[i], ivar=ivar[i]
        ).spectrum_pk
        for i in range(3)
    ]
    columns = {"spectrum_pk": keys, "teff": labels[:3, 0]}
    sample = read_sample(write_csv(tmp_path / "set.csv", columns), ("teff",))
    assert sample.names == tuple(map(str, keys)) and np.allclose(sample.flux, flux[:3])
    empty = BossVisitSpectrum.create(source=source.pk).spectrum_pk
    for last, message in (
        (999, "no spectrum with spectrum_pk 999"),
        (empty, f"spectrum_pk {empty} has no wavelength, flux or ivar"),
        ("", "the column 'spectrum_pk' must hold whole numbers"),
    ):
        columns = {"spectrum_pk": [*keys, last], "teff": [1, 2, 3, 4]}
        with pytest.raises(UsageError, match=message):
            read_sample(write_csv(tmp_path / "set.csv", columns), ("teff",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wavelength": None}, "has a column 'flux' but no column 'wavelength'"),
        ({"ivar": None}, "has a column 'flux' but no column 'ivar'"),
        ({"ivar": np.ones((3, 4))}, r"flux \(3, 5\) of float64, ivar \(3, 4\)"),
        ({"wavelength": np.arange(1.0, 5)}, r"shape \(P,\) or \(N, P\).*wavelength \(4,\)"),
        ({"flux": np.full((3, 5), "a")}, "flux and ivar must be numbers"),
        ({"teff": [1, 2]}, r"one value for each row: teff \(2,\), flux \(3, 5\)"),
    ],
)
def test_arrays_that_do_not_belong_together(tmp_path, changes, message):
    columns = {
        "wavelength": np.arange(1.0, 6), "flux": np.ones((3, 5)), "ivar": np.ones((3, 5)),
        "teff": [1, 2, 3],
    }  # fmt: skip
    kept = {name: column for name, column in (columns | changes).items() if column is not None}
    np.savez(tmp_path / "set.npz", **kept)
    with pytest.raises(UsageError, match=message):
        read_sample(tmp_path / "set.npz", ("teff",))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"teff": [1, 2]}, "has no spectra: it needs the columns"),
        ({"teff": [1, ""], "path": ["a.npz", "b.npz"]}, "has 1 rows in which all of the labels"),
        ({"teff": ["hot", 2], "path": ["a.npz", "b.npz"]}, "'teff' must hold numbers"),
        (
            {"teff": [1, 2], "path": ["a.npz", "b.npz"]},
            "a.npz, which .*set.csv names, cannot be read: No such file",
        ),
    ],
)
def test_tables_that_are_no_training_set(tmp_path, columns, message):
    with pytest.raises(UsageError, match=message):
        read_sample(write_csv(tmp_path / "set.csv", columns), ("teff",))


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "a.txt").write_text("teff\n1\n")
    (tmp_path / "a.npz").write_bytes(b"nothing")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(UsageError, match=r"is not an \.npz, \.fits or \.csv file"):
        read_sample(tmp_path / "a.txt", ("teff",))
    with pytest.raises(UsageError, match="cannot be read as a table"):
        read_sample(tmp_path / "a.npz", ("teff",))
    with pytest.raises(UsageError, match="no column 'teff'"):
        read_sample(tmp_path / "a.csv", ("teff",))
    fits.PrimaryHDU().writeto(tmp_path / "a.fits")
    with pytest.raises(UsageError, match="contains no table with rows"):
        read_sample(tmp_path / "a.fits", ("teff",))
    with pytest.raises(UsageError, match=r"gone\.npz does not exist"):
        read_sample(tmp_path / "gone.npz", ("teff",))
