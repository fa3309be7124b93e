"""The continuum that spectra are divided by."""

import numpy as np
import pytest

from astra.pipelines.slam import synthetic
from astra.pipelines.slam.continuum import basis, normalise
from astra.pipelines.slam.synthetic import WAVELENGTH
from tests.pipelines.spectra import DWARF


def test_a_smooth_factor_leaves_the_normalised_spectrum_as_it_was():
    curves = basis(WAVELENGTH, 4)
    _, flux, ivar = synthetic.spectrum(DWARF, 80, np.random.default_rng(0))
    smooth = 1e-17 * np.exp(curves @ [0.3, -1.0, 0.4, 0.2, -0.1])
    plain, weights = normalise(flux, ivar, curves)
    reddened, same_weights = normalise(flux * smooth, ivar / smooth**2, curves)
    assert np.allclose(plain, reddened, rtol=1e-6)
    assert np.allclose(weights, same_weights, rtol=1e-6)


def test_noise_does_not_shift_the_continuum():
    curves = basis(WAVELENGTH, 4)
    truth = synthetic.normalised(DWARF) * synthetic.continuum(DWARF[0])
    clean, _ = normalise(truth, np.full(WAVELENGTH.size, 1e6), curves)
    rng = np.random.default_rng(1)
    noisy = [
        normalise(
            truth + rng.normal(0, 0.1, WAVELENGTH.size), np.full(WAVELENGTH.size, 100.0), curves
        )
        for _ in range(200)
    ]
    # The error of the mean is 0.1 / sqrt(200) = 0.7 percent in each of the pixels.
    assert abs(np.median(np.mean([flux for flux, _ in noisy], axis=0) / clean) - 1) < 0.003


def test_bad_pixels_have_no_weight():
    _, flux, ivar = synthetic.spectrum(DWARF, 80, np.random.default_rng(0))
    flux[10:20], ivar[30:40], ivar[50:60], ivar[70] = np.nan, 0, -1, np.nan
    normalised, weights = normalise(flux, ivar, basis(WAVELENGTH, 4))
    assert np.isfinite(normalised).all() and np.isfinite(weights).all()
    assert np.flatnonzero(weights == 0).tolist() == [
        *range(10, 20),
        *range(30, 40),
        *range(50, 60),
        70,
    ]


@pytest.mark.parametrize("flux", [np.nan, -1.0, 0.0])
def test_without_light_there_is_no_continuum(flux):
    normalised, weights = normalise(
        np.full(WAVELENGTH.size, flux), np.ones(WAVELENGTH.size), basis(WAVELENGTH, 4)
    )
    assert (normalised == 1).all() and not weights.any()
