"""Labels of normalised spectra, with errors that are true."""

import numpy as np
import pytest

from astra.pipelines.slam import synthetic
from astra.pipelines.slam.fit import fit, on_pixels
from astra.pipelines.slam.problem import Problem
from astra.pipelines.slam.synthetic import LABELS, WAVELENGTH
from tests.pipelines.spectra import DWARF, observe


@pytest.mark.parametrize("free_continuum", [True, False])
def test_the_gradient_of_chi2_is_that_of_differences(model, free_continuum):
    flux, ivar = observe(model, [DWARF], 50, np.random.default_rng(0))
    problem = Problem.of(model, on_pixels(flux, ivar), free_continuum)
    here, first = np.array([[0.45, 0.5, 0.4, 0.6]]), np.array([0])
    _, _, gradient = problem.linearise(here, first)
    for i, step in enumerate(1e-5 * np.eye(4)):
        higher, lower = (problem.linearise(here + s, first)[0][0] for s in (step, -step))
        assert -2 * gradient[0, i] == pytest.approx((higher - lower) / 2e-5, rel=1e-4)


def test_labels_without_noise_are_recovered(model):
    labels = synthetic.random_labels(np.random.default_rng(8), 20, margin=0.1)
    found = fit(model, model.flux(labels), np.full((20, WAVELENGTH.size), 1e6))
    assert found.converged.all() and not found.at_edge.any()
    assert np.abs((found.labels - labels) / found.errors).max() < 0.05


#: Scatter of teff [K], logg, [Fe/H] and [alpha/Fe] [dex], at most.
STATED_SCATTER = {100: (11, 0.011, 0.011, 0.012), 30: (32, 0.033, 0.034, 0.037)}


@pytest.mark.parametrize("snr", STATED_SCATTER)
def test_labels_are_recovered_with_errors_that_are_true(model, snr):
    rng = np.random.default_rng(100 + snr)
    truth = synthetic.random_labels(rng, 400, margin=0.1)
    found = fit(model, *observe(model, truth, snr, rng))
    assert found.converged.all()
    inside = ~found.at_edge.any(1)
    assert inside.mean() > 0.97

    error = (found.labels - truth)[inside]
    assert (error.std(0) < STATED_SCATTER[snr]).all()
    assert (np.abs(error.mean(0)) < 0.2 * error.std(0)).all()
    width = (error / found.errors[inside]).std(0)
    assert ((width > 0.8) & (width < 1.25)).all()
    assert np.median(found.chi2 / found.n_freedom) == pytest.approx(1, abs=0.1)


def test_correlations_are_those_of_the_errors(model):
    rng = np.random.default_rng(5)
    found = fit(model, *observe(model, np.tile(DWARF, (400, 1)), 50, rng))
    measured = np.corrcoef(found.labels.T)
    assert np.abs(measured - np.median(found.correlation, axis=0)).max() < 0.15
    assert found.labels.std(0) == pytest.approx(np.median(found.errors, axis=0), rel=0.15)


def test_a_batch_is_as_good_as_one_by_one(model):
    rng = np.random.default_rng(2)
    flux, ivar = observe(model, synthetic.random_labels(rng, 5, 0.1), 50, rng)
    ivar[3] = 0
    together = fit(model, flux, ivar)
    for i in range(5):
        alone = fit(model, flux[i], ivar[i])
        assert np.allclose(alone.labels[0], together.labels[i], rtol=1e-6, equal_nan=True)
        assert alone.n_iterations[0] == together.n_iterations[i]


@pytest.mark.parametrize(("name", "beyond"), [("teff", 2600), ("logg", 3.5), ("fe_h", 0.9)])
def test_stars_beyond_the_grid_end_at_its_edge(model, name, beyond):
    star = np.where(np.array(LABELS) == name, beyond, DWARF)
    found = fit(model, *observe(model, [star], 100, np.random.default_rng(0)))
    assert found.at_edge[0, LABELS.index(name)]
    assert (found.labels >= model.lower - 1e-9).all() and (found.labels <= model.upper + 1e-9).all()


def test_a_fit_that_has_not_converged_has_no_labels(model):
    found = fit(model, *observe(model, [DWARF], 100, np.random.default_rng(0)), max_iterations=1)
    assert not found.converged[0]
    assert np.isnan(found.labels).all() and np.isnan(found.errors).all() and np.isnan(found.chi2[0])
    assert np.isfinite(found.initial).all() and not found.at_edge.any()
