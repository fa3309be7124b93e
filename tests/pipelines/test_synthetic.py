"""Synthetic spectra of cool dwarfs."""

import numpy as np
import pytest

from astra.pipelines.slam import synthetic
from astra.pipelines.slam.synthetic import LABELS, WAVELENGTH
from tests.pipelines.spectra import DWARF


def at(spectrum, air):
    """Flux in the pixel of a line."""
    return spectrum[..., np.argmin(np.abs(WAVELENGTH - synthetic.air_to_vacuum(air)))]


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
