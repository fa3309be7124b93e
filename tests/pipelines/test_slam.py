"""The numerics of slam.slam: no database. The task itself is tested with the other tasks."""

import json
import subprocess
import sys

import numpy as np
import pytest

from astra.errors import UsageError
from astra.pipelines.slam import synthetic
from astra.pipelines.slam.continuum import basis, normalise
from astra.pipelines.slam.fit import fit, on_pixels
from astra.pipelines.slam.label import label, label_many, prepare
from astra.pipelines.slam.model_file import DEFAULT, SHIPPED, load
from astra.pipelines.slam.outliers import clean
from astra.pipelines.slam.problem import Problem
from astra.pipelines.slam.regression import Factors, choose, radial_kernel, solve
from astra.pipelines.slam.resample import resample
from astra.pipelines.slam.shipped import make_synthetic
from astra.pipelines.slam.synthetic import LABELS, WAVELENGTH
from astra.pipelines.slam.training import GAMMAS, RIDGES, train

DWARF = np.array([3500.0, 4.8, -0.2, 0.1])


@pytest.fixture(scope="module")
def model():
    return load()


def observe(model, labels, snr, rng, wavelength=WAVELENGTH):
    """Normalised spectra of all `labels`, and their inverse variances."""
    pairs = []
    for one in labels:
        pixels = synthetic.spectrum(one, snr, rng, wavelength)
        pairs.append(normalise(*resample(*pixels, model.wavelength), model.continuum_basis))
    return tuple(np.array(part) for part in zip(*pairs, strict=True))


def at(spectrum, air):
    """Flux in the pixel of a line."""
    return spectrum[..., np.argmin(np.abs(WAVELENGTH - synthetic.air_to_vacuum(air)))]


# -- synthetic spectra --------------------------------------------------------------------


def test_lines_stand_at_vacuum_wavelengths():
    # H alpha and Na I D2, NIST Atomic Spectra Database
    assert synthetic.air_to_vacuum([6562.79, 5889.951]) == pytest.approx(
        [6564.60, 5891.583], abs=0.01
    )


@pytest.mark.parametrize(
    ("air", "label", "change"),
    [
        (7070, "teff", -300),  # TiO in cooler stars
        (8542.09, "teff", 300),  # Ca II in hotter ones
        (8194.82, "logg", 0.4),  # Na I in dwarfs
        (8542.09, "logg", -0.4),  # Ca II in giants
        (6910, "logg", 0.4),  # CaH in dwarfs
        (8688.63, "fe_h", 0.3),  # Fe I
        (5183.60, "alpha_fe", 0.2),  # Mg b
    ],
)
def test_lines_deepen_as_in_stars(air, label, change):
    star = np.array([3800.0, 4.7, -0.2, 0.1])
    other = star + change * np.array([name == label for name in LABELS])
    before, after = at(synthetic.normalised([star, other]), air)
    assert after < before - 0.005


def test_iron_does_not_know_alpha():
    # At 4500 K and [Fe/H] = -1 no band of TiO is left around the line.
    poor, rich = synthetic.normalised([[4500, 4.5, -1, 0.0], [4500, 4.5, -1, 0.3]])
    assert abs(at(rich, 5269.54) / at(poor, 5269.54) - 1) < 0.02
    assert at(rich, 5183.60) < 0.95 * at(poor, 5183.60)


def test_a_seed_gives_one_spectrum():
    one, two = (synthetic.spectrum(DWARF, 50, np.random.default_rng(4)) for _ in "ab")
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_snr_is_the_median_ratio():
    _, flux, ivar = synthetic.spectrum(DWARF, 40, np.random.default_rng(4))
    assert np.median(flux * np.sqrt(ivar)) == pytest.approx(40, rel=0.05)


def test_the_grid_fills_its_range_and_has_no_twins():
    nodes = (synthetic.grid(500) - synthetic.LOWER) / (synthetic.UPPER - synthetic.LOWER)
    assert nodes.min() >= 0 and nodes.max() <= 1
    assert np.allclose(np.histogram(nodes[:, 0], 5, (0, 1))[0], 100, atol=10)
    distance = np.sqrt(((nodes[:, None] - nodes) ** 2).sum(-1))
    assert distance[np.triu_indices(500, 1)].min() > 0.1


# -- resampling ---------------------------------------------------------------------------


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


# -- continuum ----------------------------------------------------------------------------


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


# -- regression and training --------------------------------------------------------------


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
    gamma, ridge = choose(nodes, flux, gammas, ridges)
    assert gamma == best
    assert ridge.tolist() == [ridges[i] for i in table[best].argmin(0)]


def small_set(n=40, **noise):
    labels = synthetic.grid(n)
    flux = synthetic.normalised(labels)[:, ::8] * synthetic.continuum(labels[:, 0], WAVELENGTH[::8])
    return labels, WAVELENGTH[::8], flux


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
        (lambda x, w, f: (x, w[1:], f), "want flux and ivar of shape"),
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


def test_a_spectrum_without_data_is_left_out_of_the_training():
    labels, wavelength, flux = small_set()
    flux[3] = np.nan
    trained = train(labels, wavelength, flux)
    assert np.flatnonzero(trained.validation.rejected).tolist() == [3]
    assert np.isfinite(trained.components).all() and (trained.label_floor > 0).all()


def test_five_spectra_give_a_model_whose_errors_are_not_none():
    labels, wavelength, flux = small_set()
    assert (train(labels[:5], wavelength, flux[:5]).label_floor > 0).all()


def test_training_writes_what_loading_reads(tmp_path):
    trained = train(*small_set(), path=tmp_path / "model.npz", description="forty")
    loaded = load(tmp_path / "model.npz")
    assert loaded.description == "forty" and loaded.label_names == LABELS
    assert loaded.gamma == trained.gamma and loaded.digest == trained.digest
    assert np.allclose(loaded.flux(DWARF), trained.flux(DWARF), atol=1e-5)


# -- the model and its file ---------------------------------------------------------------


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
def test_derivatives_of_the_flux(model, labels):
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


def rewritten(path, **changes):
    with np.load(SHIPPED[DEFAULT]) as arrays:
        kept = {name: arrays[name] for name in arrays.files} | changes
    np.savez(path, **{name: array for name, array in kept.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "no model of slam.slam"),
        ({"format": None}, "no model of slam.slam"),
        ({"format_version": 99}, "format version 99, and this astra reads 2"),
        ({"nodes": None}, "lacks the array 'nodes'"),
    ],
)
def test_files_that_are_no_model(tmp_path, changes, message):
    rewritten(tmp_path / "other.npz", **changes)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "other.npz")


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.npz does not exist.*ships with astra"):
        load(tmp_path / "gone.npz")
    for content in (b"", b"some text", SHIPPED[DEFAULT].read_bytes()[:5000]):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(UsageError, match=r"broken\.npz is no model file"):
            load(tmp_path / "broken.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(UsageError, match="is no model file"):
        load(tmp_path / "array.npy")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "pickle.npz", format=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="is no model file"):
        load(tmp_path / "pickle.npz")


# -- fits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("free_continuum", [True, False])
def test_gradient_of_chi2(model, free_continuum):
    flux, ivar = observe(model, [DWARF], 50, np.random.default_rng(0))
    problem = Problem.of(model, on_pixels(flux, ivar), free_continuum)
    here, first = np.array([[0.45, 0.5, 0.4, 0.6]]), np.array([0])
    _, _, gradient = problem.linearise(here, first)
    for i, step in enumerate(1e-5 * np.eye(4)):
        higher, lower = (problem.linearise(here + s, first)[0][0] for s in (step, -step))
        assert -2 * gradient[0, i] == pytest.approx((higher - lower) / 2e-5, rel=1e-4)


def test_labels_without_noise(model):
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


# -- one spectrum -------------------------------------------------------------------------


def near(columns, truth, sigmas=5):
    return all(
        abs(columns[n] - t) < sigmas * columns[f"e_{n}"] for n, t in zip(LABELS, truth, strict=True)
    )


def flags(columns):
    return {name for name, value in columns.items() if name.startswith("flag_") and value}


def test_a_spectrum_with_holes_masks_and_rubbish(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH)
    bits = np.zeros(flux.size, int)
    flux[:100], ivar[300:350], flux[400:403] = np.nan, 0, np.inf
    flux[1000:1200], bits[1000:1200] = 1e6, 4
    keep = np.r_[0:1500, 1700:2400]
    columns = label(model, wavelength[keep], flux[keep], ivar[keep], bits[keep])
    assert near(columns, DWARF) and not flags(columns)
    assert columns["n_pixels"] < WAVELENGTH.size - 200
    assert columns["snr"] == pytest.approx(60, rel=0.1)


@pytest.mark.parametrize("unit", [1e-300, 1e-17, 1e150])
def test_the_unit_of_flux_does_not_matter(model, unit):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    plain = label(model, wavelength, flux, ivar)
    with np.errstate(over="ignore"):
        scaled = flux * unit, ivar / unit / unit
    with np.errstate(all="raise", under="ignore"):
        found = label(model, wavelength, *scaled)
    if unit == 1e-300:  # its inverse variance is no number
        assert found["flag_no_valid_pixels"] and found["teff"] is None
    else:
        assert (found["teff"], found["snr"]) == pytest.approx((plain["teff"], plain["snr"]))


@pytest.mark.parametrize("v_rad", [-299_792.458, 1e300])
def test_no_star_is_as_fast_as_light(model, v_rad):
    pixels = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    with np.errstate(all="raise", under="ignore"):
        found = label(model, *pixels, v_rad=v_rad)
    assert found["flag_no_valid_pixels"] and found["teff"] is None


@pytest.mark.parametrize("v_rad", [-120.0, 300.0])
def test_a_visit_is_shifted_to_rest(model, v_rad):
    pixels = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH, v_rad)
    known = label(model, *pixels, v_rad=v_rad)
    assert near(known, DWARF) and not flags(known)
    searched = label(model, *pixels, is_at_rest=False)
    assert near(searched, DWARF) and flags(searched) == {"flag_no_velocity"}
    for found in (known, searched):
        assert abs(found["v_fit"] - v_rad) < 5 * found["e_v_fit"] < 20


def test_labels_do_not_depend_on_the_unit_of_the_flux(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    one = label(model, wavelength, flux, ivar)
    other = label(model, wavelength, flux * 1e-17, ivar * 1e34)
    assert [one[n] for n in LABELS] == pytest.approx([other[n] for n in LABELS])


@pytest.mark.parametrize("case", ["nan", "flagged", "elsewhere", "none"])
def test_nothing_to_fit_is_flagged(model, case):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    bits = np.full(flux.size, int(case == "flagged"))
    columns = {
        "nan": lambda: label(model, wavelength, flux * np.nan, ivar),
        "flagged": lambda: label(model, wavelength, flux, ivar, bits),
        "elsewhere": lambda: label(model, wavelength + 9000, flux, ivar),
        "none": lambda: label(model, None, None, None),
    }[case]()
    assert flags(columns) == {"flag_no_valid_pixels", "flag_few_pixels", "flag_fit_failed"}
    assert columns["teff"] is None and columns["chi2"] is None and columns["n_pixels"] == 0
    assert not any(isinstance(value, float) and np.isnan(value) for value in columns.values())


def test_doubtful_spectra_are_flagged(model):
    rng = np.random.default_rng(1)
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, rng)
    assert "flag_bad_chi2" in flags(label(model, wavelength, flux, 100 * ivar))
    assert "flag_few_pixels" in flags(label(model, wavelength[:200], flux[:200], ivar[:200]))
    assert flags(label(model, wavelength[:8], flux[:8], ivar[:8])) >= {"flag_fit_failed"}
    dark = flags(label(model, wavelength, -flux, ivar))
    assert dark >= {"flag_bad_continuum", "flag_fit_failed", "flag_low_snr"}
    assert "flag_low_snr" in flags(label(model, *synthetic.spectrum(DWARF, 4, rng)))
    cool = label(model, *synthetic.spectrum([2600, 4.8, 0, 0], 100, rng))
    assert "flag_teff_edge" in flags(cool) and cool["teff"] is not None


def test_wavelengths_that_occur_twice_count_twice(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    once = label(model, wavelength, flux, ivar)
    twice = label(model, *(np.tile(a, 2) for a in (wavelength, flux, ivar / 2)))
    assert twice["teff"] == pytest.approx(once["teff"], abs=0.1)
    assert twice["e_teff"] == pytest.approx(once["e_teff"], rel=0.01)
    assert flags(label(model, np.full(flux.size, 6000.0), flux, ivar)) >= {"flag_no_valid_pixels"}


def test_arrays_of_different_shapes_are_an_error(model):
    with pytest.raises(ValueError, match="must have one shape"):
        label(model, WAVELENGTH, np.ones(5), np.ones(WAVELENGTH.size))


def test_masked_pixels_take_their_own_information_away_and_bias_nothing(model):
    wavelength, flux, _ = synthetic.spectrum(DWARF, 1e6, np.random.default_rng(1), WAVELENGTH)
    ivar = np.full(flux.size, (50 / np.median(flux)) ** 2)
    whole = label(model, wavelength, flux, ivar)
    masked = label(model, wavelength, np.where(np.arange(flux.size) % 4 == 3, np.nan, flux), ivar)
    assert abs(masked["fe_h"] - whole["fe_h"]) < 0.003
    assert near(masked, DWARF, sigmas=2.5)


def test_a_wrong_velocity_is_fitted_with_the_labels(model):
    pixels = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH, 100.0)
    found = label(model, *pixels)
    assert near(found, DWARF) and found["v_fit"] == pytest.approx(100, abs=5 * found["e_v_fit"])
    assert found["e_v_fit"] < 4


def test_cosmic_rays_and_active_stars_keep_their_labels(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH)
    plain = label(model, wavelength, flux, ivar)
    hit = flux.copy()
    hit[[300, 900, 1200, 1700, 2300]] *= (2, 4, 1.8, 3, 2.5)
    hit[np.abs(wavelength - 6564.6) < 6] *= 4
    found = label(model, wavelength, hit, ivar)
    assert near(found, DWARF) and not flags(found) and found["n_clipped"] >= 5
    for name in LABELS:
        assert abs(found[name] - plain[name]) < 0.5 * plain[f"e_{name}"]


def test_the_model_and_the_continuum_on_the_pixels_of_the_spectrum(model):
    wavelength, flux, ivar = synthetic.spectrum(
        DWARF, 60, np.random.default_rng(1), WAVELENGTH, 80.0
    )
    (columns,) = label_many(model, [prepare(model, wavelength, flux, ivar, None, 80.0)], True)
    inside = np.isfinite(columns["model_flux"])
    assert inside.mean() > 0.99
    deviation = (flux - columns["model_flux"])[inside] * np.sqrt(ivar[inside])
    # Lines are narrower than two pixels of BOSS, which are one of the model.
    assert 0.95 < deviation.std() < 1.25 and abs(deviation.mean()) < 0.1
    assert (columns["model_flux"][inside] <= 2 * columns["model_continuum"][inside]).all()


def test_any_set_of_labels_labels():
    labels, wavelength, flux = small_set(60)
    names = ("teff", "fe_h", "c_fe")
    trained = train(labels[:, [0, 2, 3]], wavelength, flux, label_names=names, validates=False)
    (columns,) = label_many(
        trained, [prepare(trained, wavelength, flux[7], np.full(flux[7].size, 1e4))]
    )
    assert columns["teff"] is not None and "logg" not in columns
    assert json.loads(columns["other_labels"]).keys() == {"c_fe", "e_c_fe"}


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


def test_columns_are_those_of_the_table(model):
    from astra.models.pipeline import PipelineOutputModel
    from astra.models.slam import Slam

    pixels = prepare(model, *synthetic.spectrum(DWARF, 60, np.random.default_rng(1)))
    (columns,) = label_many(model, [pixels], store_model=True)
    fields = set(Slam._meta.fields) - set(PipelineOutputModel._meta.fields)
    bits = {name for name in vars(Slam) if name.startswith("flag_")}
    own = fields | bits - {"flag_edge", "flag_bad", "flag_warn"}
    assert own - {"result_flags"} == set(columns)
    row = Slam(**columns | {"flag_bad_chi2": True})
    assert row.flag_bad and row.flag_warn and not row.flag_edge


def test_importing_the_numerics_does_not_wait_for_them():
    code = "import sys, astra.pipelines.slam as s; print('astra.pipelines.slam.fit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_train_is_the_function_each_time():
    import astra.pipelines.slam as package

    assert package.train is train and package.train is train
