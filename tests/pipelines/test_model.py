"""The models that ship, their fluxes and derivatives."""

import numpy as np
import pytest

from astra.pipelines.slam import synthetic
from astra.pipelines.slam.continuum import normalise
from astra.pipelines.slam.label import label
from astra.pipelines.slam.model_file import DEFAULT, SHIPPED, load
from astra.pipelines.slam.shipped import make_synthetic
from astra.pipelines.slam.synthetic import WAVELENGTH
from tests.pipelines.spectra import DWARF, flags


def test_the_model_that_ships_is_what_its_grid_makes(model):
    assert SHIPPED[DEFAULT].stat().st_size < 2_500_000
    made = make_synthetic()
    assert np.allclose(made.nodes, model.nodes) and np.allclose(made.wavelength, model.wavelength)
    labels = synthetic.random_labels(np.random.default_rng(0), 50)
    assert np.abs(made.flux(labels) - model.flux(labels)).max() < 1e-3
    assert made.scatter == pytest.approx(model.scatter, rel=0.05)


def test_the_model_knows_stars_that_it_has_not_seen(model):
    labels = synthetic.random_labels(np.random.default_rng(3), 200, margin=0.05)
    truth = synthetic.normalised(labels) * synthetic.continuum(labels[:, 0])
    truth = np.array(
        [normalise(f, np.full(WAVELENGTH.size, 1e8), model.continuum_basis)[0] for f in truth]
    )
    error = model.flux(labels) - truth
    assert np.median(error.std(0)) < 0.002 and error.std() < 0.004


@pytest.mark.parametrize("labels", [DWARF, [2900, 5.3, 0.3, 0.3], [4400, 4.1, -0.9, 0.0]])
def test_derivatives_of_the_flux_are_those_of_differences(model, labels):
    flux, jacobian = model.flux_and_jacobian(labels)
    assert flux == pytest.approx(model.flux(labels))
    for derivative, direction in zip(jacobian, np.diag([1.0, 1e-3, 1e-3, 1e-3]), strict=True):
        change = model.flux(labels + direction) - model.flux(labels - direction)
        numeric = change / (2 * direction.sum())
        assert np.allclose(derivative, numeric, rtol=1e-3, atol=1e-4 * np.abs(numeric).max())


def test_many_labels_at_once(model):
    labels = synthetic.random_labels(np.random.default_rng(3), 5)
    flux, jacobian = model.flux_and_jacobian(labels)
    assert flux.shape == (5, WAVELENGTH.size) and jacobian.shape == (5, 4, WAVELENGTH.size)
    one_flux, one_jacobian = model.flux_and_jacobian(labels[2])
    assert np.allclose(flux[2], one_flux) and np.allclose(jacobian[2], one_jacobian)


def test_the_model_of_real_stars_knows_where_its_kind_ends():
    shipped = load("slam_templates")
    validation = shipped.validation
    assert shipped.label_names == ("teff", "fe_h") and "PyHammer" in shipped.description
    assert len(validation.labels) == 43 and validation.flagged.sum() <= 2
    assert validation.outside_flagged.size == 57
    assert validation.outside_flagged.mean() > 0.95
    pull = (validation.fitted - validation.labels) / validation.errors
    width = np.sqrt((pull[~validation.flagged] ** 2).mean(0))
    assert ((width > 0.8) & (width < 1.25)).all()
    wavelength = WAVELENGTH
    flat = label(shipped, wavelength, (wavelength / 6000) ** -1.5, np.full(wavelength.size, 2500.0))
    assert "flag_outside_domain" in flags(flat)


def test_the_flux_is_a_sum_over_the_nodes(model):
    distance = (np.array(DWARF) - model.centre) / model.scale - model.nodes
    kernel = np.exp(-model.gamma * (distance**2).sum(1))
    assert np.allclose(model.bias + kernel @ model.coefficients, model.flux(DWARF))
