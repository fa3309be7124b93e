"""Training a model from arrays."""

import numpy as np
import pytest

from astra.errors import UsageError
from astra.pipelines.slam.model_file import load
from astra.pipelines.slam.shipped import TEMPLATES_RANGE, make_templates
from astra.pipelines.slam.training import train
from tests.pipelines.spectra import DWARF, small_set


def test_training_survives_holes_in_the_spectra():
    labels, wavelength, flux = small_set(60)
    whole = train(labels, wavelength, flux)
    holes = np.random.default_rng(0).random(flux.shape) < 0.05
    holed = train(labels, wavelength, np.where(holes, np.nan, flux))
    assert np.isfinite(holed.components).all()
    assert np.abs(holed.flux(DWARF) - whole.flux(DWARF)).max() < 0.05


def test_noise_of_the_training_set_is_not_taken_for_error_of_the_model():
    labels, wavelength, flux = small_set(200)
    sigma = 0.05 * flux.mean(1, keepdims=True)
    noisy = flux + np.random.default_rng(0).normal(0, 1, flux.shape) * sigma
    ivar = np.broadcast_to(sigma**-2, flux.shape)
    assert np.median(train(labels, wavelength, noisy, ivar).scatter) < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, f: (x[:, :3], w, f), "labels have shape"),
        (lambda x, w, f: (x, w[1:], f), "flux and ivar must have the shape"),
        (lambda x, w, f: (x, w[::-1], f), "ascending"),
        (
            lambda x, w, f: (np.where(x == x[3], np.nan, x), w, f),
            "'teff' of spectrum 3 is not finite",
        ),
        (lambda x, w, f: (x * [1, 1, 0, 1], w, f), "'fe_h' is .* in all 40 spectra"),
        (lambda x, w, f: (np.full(x.shape, "M3"), w, f), "labels must be numbers: .*M3"),
        (lambda x, w, f: (x, w, np.where(w == w[5], np.nan, f)), "1 pixels have data in fewer"),
    ],
)
def test_what_cannot_be_trained_on(change, message):
    with pytest.raises(UsageError, match=message):
        train(*change(*small_set()))


def test_an_unknown_option_and_a_label_named_twice_are_refused():
    labels, wavelength, flux = small_set()
    with pytest.raises(TypeError, match=r"takes no 'reject'. Did you mean 'rejects'"):
        train(labels, wavelength, flux, reject=False)
    with pytest.raises(UsageError, match="named twice: teff, teff"):
        train(labels[:, [0, 0]], wavelength, flux, label_names=("teff", "teff"))
    with pytest.raises(UsageError, match=r"other kinds have shape \(2, 3\), not \(O, "):
        train(labels, wavelength, flux, outside=(np.ones((2, 3)), np.ones((2, 3))))


def test_a_model_of_real_stars_is_trained_from_a_file_of_templates(tmp_path):
    labels, _, flux = small_set()
    numbers = np.arange(flux.shape[1])
    first, last = TEMPLATES_RANGE
    wavelength = 0.99 * first * (1.02 * last / first) ** (numbers / numbers[-1])
    columns = {"teff": labels[:, 0], "fe_h": labels[:, 2], "in_domain": numbers[: len(flux)] < 30}
    ivar = np.full(flux.shape, 1e4)
    np.savez(tmp_path / "in.npz", wavelength=wavelength, flux=flux, ivar=ivar, **columns)
    make_templates(tmp_path / "in.npz", tmp_path / "out.npz")
    trained = load(tmp_path / "out.npz")
    assert trained.label_names == ("teff", "fe_h") and trained.description.startswith("30 ")
    assert trained.domain is not None and len(trained.validation.outside_flagged) == 10


def test_five_spectra_give_a_model_whose_errors_are_not_none():
    labels, wavelength, flux = small_set()
    assert (train(labels[:5], wavelength, flux[:5]).label_floor > 0).all()
