"""Spectra on other pixels."""

import numpy as np
import pytest

from astra.pipelines.slam import synthetic
from astra.pipelines.slam.resample import resample
from astra.pipelines.slam.synthetic import WAVELENGTH
from tests.pipelines.spectra import DWARF


def test_resampling_onto_its_own_pixels_changes_nothing():
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 50, np.random.default_rng(0))
    new_flux, new_ivar = resample(wavelength, flux, ivar, wavelength)
    assert np.allclose(new_flux, flux, rtol=1e-9) and np.allclose(new_ivar, ivar, rtol=1e-6)


def test_two_pixels_make_a_wider_one():
    rng = np.random.default_rng(0)
    flux, ivar = rng.normal(1, 0.1, WAVELENGTH.size), np.full(WAVELENGTH.size, 100.0)
    pairs = np.exp(np.log(WAVELENGTH).reshape(-1, 2).mean(1))
    new_flux, new_ivar = resample(WAVELENGTH, flux, ivar, pairs)
    assert np.allclose(new_flux, flux.reshape(-1, 2).mean(1), atol=1e-4)
    assert np.allclose(new_ivar, 200, rtol=1e-3)


@pytest.mark.parametrize("step", [0.7e-4, 1e-4, 3.3e-4, 4e-4, 9e-4])
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5])
def test_resampling_neither_makes_nor_loses_information(step, shift):
    n = int(0.3 / step)
    wavelength = 10 ** (3.69 + step * (np.arange(n) + shift))
    _, ivar = resample(wavelength, np.ones(n), np.full(n, 4.0), WAVELENGTH)
    assert ivar.sum() == pytest.approx(4.0 * WAVELENGTH.size * 1e-4 / step, rel=0.01)


def test_order_bad_pixels_and_gaps():
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 50, np.random.default_rng(0), WAVELENGTH)
    expected = resample(wavelength, flux, ivar, WAVELENGTH)
    reverse = resample(wavelength[::-1], flux[::-1], ivar[::-1], WAVELENGTH)
    assert np.allclose(expected, reverse)

    hole = (wavelength > 6000) & (wavelength < 6300)
    marked = resample(wavelength, np.where(hole, np.nan, flux), ivar, WAVELENGTH)
    left_out = resample(wavelength[~hole], flux[~hole], ivar[~hole], WAVELENGTH)
    inside = (WAVELENGTH > 6005) & (WAVELENGTH < 6295)
    assert not marked[1][inside].any() and not left_out[1][inside].any()
    outside = (WAVELENGTH < 5995) | (WAVELENGTH > 6305)
    assert np.allclose(np.array(marked)[:, outside], np.array(left_out)[:, outside])
    assert np.allclose(np.array(marked)[:, outside], np.array(expected)[:, outside])


def test_one_pixel_alone_is_no_spectrum():
    flux, ivar = resample(np.array([6000.0]), np.ones(1), np.ones(1), WAVELENGTH)
    assert not flux.any() and not ivar.any()
