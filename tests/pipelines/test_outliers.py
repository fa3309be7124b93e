"""Spectra and pixels that training leaves out."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from astra.pipelines.slam import synthetic
from astra.pipelines.slam.continuum import basis, normalise
from astra.pipelines.slam.outliers import clean
from astra.pipelines.slam.pictures import labels_figure
from astra.pipelines.slam.synthetic import WAVELENGTH
from astra.pipelines.slam.training import GAMMAS, RIDGES, train
from tests.pipelines.spectra import small_set


def test_a_spectrum_without_data_is_left_out_of_the_training():
    labels, wavelength, flux = small_set()
    flux[3] = np.nan
    trained = train(labels, wavelength, flux)
    assert np.flatnonzero(trained.validation.rejected).tolist() == [3]
    assert np.isfinite(trained.components).all() and (trained.label_floor > 0).all()


def test_wrong_labels_and_bad_pixels_are_left_out_of_the_training():
    labels, wavelength, flux = small_set(200)
    rng = np.random.default_rng(3)
    sigma = 0.01 * flux.mean(1, keepdims=True)
    noisy = flux + rng.normal(0, 1, flux.shape) * sigma
    ivar = np.broadcast_to(sigma**-2, flux.shape)
    wrong = rng.permutation(200)[:10]
    dirty = labels.copy()
    dirty[wrong] = synthetic.random_labels(rng, 10)
    bad = rng.random(flux.shape) < 0.01
    spoiled = np.where(bad, noisy * rng.uniform(2, 5, flux.shape), noisy)
    clean_model = train(labels, wavelength, noisy, ivar, validates=False)
    dirty_model = train(dirty, wavelength, spoiled, ivar, validates=False)
    left = train(dirty, wavelength, spoiled, ivar, rejects=False, validates=False)
    truth = clean_model.flux(labels)
    error = np.abs(dirty_model.flux(labels) - truth).mean()
    assert error < 0.7 * np.abs(left.flux(labels) - truth).mean()


def test_spectra_that_were_rejected_are_labelled_by_the_model_and_drawn_in_red():
    rng = np.random.default_rng(3)
    labels, wavelength, flux = small_set(80)
    sigma = 0.01 * flux.mean(1, keepdims=True)
    noisy = flux + rng.normal(0, 1, flux.shape) * sigma
    true_teff, wrong = labels[:, 0].copy(), [20, 40]
    labels[wrong, 0] += [1200.0, -1200.0]
    model = train(labels, wavelength, noisy, np.broadcast_to(sigma**-2, flux.shape))
    validation = model.validation
    assert validation.rejected[wrong].all() and validation.flagged[wrong].all()
    assert validation.fitted[wrong, 0] == pytest.approx(true_teff[wrong], abs=100)
    figure = labels_figure(Figure, model, validation)
    red = [c for c in figure.axes[0].containers if c.get_label() == "rejected in training"]
    points = red[0].lines[0]
    assert points.get_color() == "tab:red" and set(labels[wrong, 0]) <= set(points.get_xdata())


def test_wrong_labels_do_not_hide_each_other():
    rng = np.random.default_rng(31)
    labels, curves = synthetic.random_labels(rng, 150), basis(WAVELENGTH, 4)
    pairs = [normalise(*synthetic.spectrum(star, 150, rng)[1:], curves) for star in labels]
    flux, ivar = (np.array(part)[:, ::32] for part in zip(*pairs, strict=True))
    wrong = rng.permutation(150)[:7]
    labels[wrong] = synthetic.random_labels(rng, 7)
    nodes = (labels - labels.mean(0)) / labels.std(0)
    kept = clean(nodes, flux, ivar > 0, 1 / ivar, GAMMAS, RIDGES, rejects=True).kept
    assert kept[wrong].sum() <= 1 and (~kept).sum() <= 14
