"""The regression of all pixels at once, and its left-out errors."""

import numpy as np
import pytest

from astra.pipelines.slam.regression import Factors, choose_hyperparameters, radial_kernel, solve

RIDGE = np.array([0.01, 0.01, 0.1, 0.01, 0.001])


@pytest.fixture
def samples():
    rng = np.random.default_rng(6)
    nodes = rng.normal(size=(30, 3))
    return nodes, np.sin(nodes @ rng.normal(size=(3, 5))) + rng.normal(0, 0.05, (30, 5))


def regression_at(x, nodes, flux, gamma, ridge):
    factors = Factors.of(nodes, gamma)
    coefficients, bias = factors.coefficients_and_bias(flux, np.atleast_1d(ridge))
    return radial_kernel(x, nodes, gamma) @ coefficients + bias


def test_coefficients_solve_their_equations(samples):
    nodes, flux = samples
    coefficients, bias = Factors.of(nodes, 0.2).coefficients_and_bias(flux, RIDGE)
    kernel = radial_kernel(nodes, nodes, 0.2)
    assert np.allclose(kernel @ coefficients + RIDGE * coefficients + bias, flux)
    assert np.allclose(coefficients.sum(0), 0)


def test_left_out_errors_are_those_of_training_without(samples):
    nodes, flux = samples
    solved = solve(Factors.of(nodes, 0.2), flux, np.ones(flux.shape, bool), RIDGE)
    for i in range(len(nodes)):
        rest = np.arange(len(nodes)) != i
        expected = flux[i] - regression_at(nodes[i], nodes[rest], flux[rest], 0.2, RIDGE)
        assert np.allclose(solved.left_out_error[i], expected, atol=1e-9)


def test_a_missing_flux_is_as_if_the_spectrum_were_not_there(samples):
    nodes, flux = samples
    good = np.random.default_rng(0).random(flux.shape) > 0.2
    solved = solve(Factors.of(nodes, 0.2), np.where(good, flux, np.nan), good, RIDGE)
    x = np.random.default_rng(1).normal(size=(7, 3))
    found = regression_at(x, nodes, solved.flux, 0.2, RIDGE)
    for pixel, rows in enumerate(good.T):
        expected = regression_at(x, nodes[rows], flux[rows][:, [pixel]], 0.2, RIDGE[pixel])
        assert np.allclose(found[:, pixel], expected[:, 0], atol=1e-8)


def test_hyperparameters_have_the_least_left_out_errors(samples):
    nodes, flux = samples
    gammas, ridges = (0.02, 0.1, 0.5), (1e-3, 1e-2, 0.1)
    good = np.ones(flux.shape, bool)

    def errors(gamma, ridge):
        return (
            solve(Factors.of(nodes, gamma), flux, good, np.full(5, ridge)).left_out_error ** 2
        ).mean(0)

    table = {gamma: np.array([errors(gamma, ridge) for ridge in ridges]) for gamma in gammas}
    best = min(gammas, key=lambda gamma: np.log(table[gamma].min(0)).sum())
    gamma, ridge = choose_hyperparameters(nodes, flux, gammas, ridges)
    assert gamma == best
    assert ridge.tolist() == [ridges[i] for i in table[best].argmin(0)]
