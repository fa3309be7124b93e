"""Synthetic spectra of cool dwarfs, with which the pipeline is trained, tested and demonstrated.

The spectra consist of a few lines and bands, which depend on labels as those of real stars do:

* the continuum is a black body, times a slope of the instrument;
* TiO and VO bands grow steeply with decreasing temperature, and with the abundances of metals and
  alpha elements;
* CaH contains one metal atom and TiO contains two, and CaH bands grow with gravity: the ratio of
  the two distinguishes subdwarfs from dwarfs (Gizis 1997, AJ 113, 806);
* Na I, K I and Mg b have wings, whose strength grows with the pressure, hence with gravity
  (Schiavon et al. 1997, ApJ 479, 902 for Na I 8190);
* the Ca II triplet grows with decreasing gravity (Jorgensen, Carlsson & Johnson 1992, A&A 254,
  258);
* lines of Mg, Ca and Ti depend on [alpha/H], those of Fe, Na and K on [Fe/H];
* strong lines saturate (Minnaert's formula, Z. Astrophys. 10, 40, 1935).

The amplitudes are chosen so that the spectra look like M dwarfs at R = 2000; they are not fitted to
any star. A model that is trained on these spectra labels synthetic spectra. For real stars, train
one on labelled spectra.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.pipelines.slam.pixels import at_rest
from astra.records import dataclass

Array = NDArray[np.float64]

#: The labels, in the order of every array of labels.
LABELS = ("teff", "logg", "fe_h", "alpha_fe")

#: Smallest and largest value of each label in the grid: K, log10(cm/s^2), dex, dex.
LOWER = np.array([2800.0, 4.0, -1.0, -0.1])

UPPER = np.array([4500.0, 5.5, 0.5, 0.4])

#: Pixels of BOSS lie at multiples of 1e-4 in log10 of the vacuum wavelength [Angstrom].
BOSS_STEP = 1e-4

#: Pixels of the model, which are those of BOSS from 5000 to 9000 Angstrom; shape (2552,). Wider
#: pixels would not resolve the lines, so the model would not give their flux in an observed pixel.
WAVELENGTH: Array = np.power(10.0, 3.6990 + BOSS_STEP * np.arange(2552))

RESOLUTION = 2000.0

#: Distance, in log10, of the points over which the flux of a pixel is averaged.
POINT_STEP = BOSS_STEP / 2


@dataclass(frozen=True)
class Species:
    """How the lines and bands of one absorber depend on labels.

    Its optical depth is ``depth * 10**(metal * [X/H] + heat * (5040 K / teff - 1.4)
    + gravity * (logg - 4.75))``, [X/H] being [Fe/H], or [Fe/H] + [alpha/Fe] if it is an alpha
    element.
    """

    alpha: bool
    metal: float
    heat: float
    gravity: float


SPECIES = {
    "TiO": Species(alpha=True, metal=0.9, heat=2.4, gravity=-0.10),
    "VO": Species(alpha=False, metal=0.7, heat=3.3, gravity=-0.05),
    "CaH": Species(alpha=True, metal=0.25, heat=1.8, gravity=0.45),
    "CaOH": Species(alpha=True, metal=0.5, heat=3.5, gravity=0.20),
    "Mg I": Species(alpha=True, metal=0.7, heat=0.5, gravity=0.40),
    "Ca I": Species(alpha=True, metal=0.7, heat=0.7, gravity=0.25),
    "Ca II": Species(alpha=True, metal=0.6, heat=-1.5, gravity=-0.35),
    "Ti I": Species(alpha=True, metal=0.8, heat=0.4, gravity=0.05),
    "Fe I": Species(alpha=False, metal=0.8, heat=0.2, gravity=0.05),
    "Na I": Species(alpha=False, metal=0.6, heat=1.2, gravity=0.45),
    "K I": Species(alpha=False, metal=0.6, heat=1.3, gravity=0.45),
    "Cr I": Species(alpha=False, metal=0.8, heat=0.5, gravity=0.05),
}

#: Lines: species, wavelength in air [Angstrom], optical depth, share in the pressure wings.
LINES = (
    ("Mg I", 5167.32, 1.6, 0.4),
    ("Mg I", 5172.68, 2.4, 0.5),
    ("Mg I", 5183.60, 3.0, 0.5),
    ("Mg I", 8806.76, 0.7, 0.2),
    ("Cr I", 5206.04, 1.2, 0.1),
    ("Cr I", 5208.42, 1.4, 0.1),
    ("Fe I", 5227.19, 1.2, 0.1),
    ("Fe I", 5269.54, 2.0, 0.1),
    ("Fe I", 5328.04, 1.7, 0.1),
    ("Fe I", 5371.49, 1.5, 0.1),
    ("Fe I", 5405.77, 1.3, 0.1),
    ("Fe I", 5429.70, 1.4, 0.1),
    ("Fe I", 5446.92, 1.3, 0.1),
    ("Fe I", 6393.60, 0.6, 0.0),
    ("Fe I", 6494.98, 0.8, 0.0),
    ("Fe I", 8327.06, 0.5, 0.0),
    ("Fe I", 8387.77, 0.8, 0.0),
    ("Fe I", 8468.41, 0.6, 0.0),
    ("Fe I", 8514.07, 0.6, 0.0),
    ("Fe I", 8674.75, 0.5, 0.0),
    ("Fe I", 8688.63, 1.0, 0.0),
    ("Fe I", 8824.22, 0.9, 0.0),
    ("Ca I", 5588.76, 0.9, 0.1),
    ("Ca I", 6102.72, 0.7, 0.1),
    ("Ca I", 6122.22, 1.0, 0.2),
    ("Ca I", 6162.17, 1.2, 0.2),
    ("Ca I", 6439.07, 0.8, 0.1),
    ("Ca I", 6572.78, 0.5, 0.0),
    ("Na I", 5889.95, 3.5, 0.6),
    ("Na I", 5895.92, 3.0, 0.6),
    ("Na I", 8183.26, 1.0, 0.4),
    ("Na I", 8194.82, 1.5, 0.4),
    ("K I", 7664.90, 2.5, 0.6),
    ("K I", 7698.96, 2.1, 0.6),
    ("Ti I", 8364.24, 0.5, 0.0),
    ("Ti I", 8382.53, 0.7, 0.0),
    ("Ti I", 8396.90, 0.5, 0.0),
    ("Ti I", 8412.36, 0.6, 0.0),
    ("Ti I", 8426.50, 0.8, 0.0),
    ("Ti I", 8434.96, 1.0, 0.0),
    ("Ca II", 8498.02, 1.2, 0.2),
    ("Ca II", 8542.09, 2.2, 0.3),
    ("Ca II", 8662.14, 1.9, 0.3),
)

#: Bands, degraded to the red: species, head in air [Angstrom], optical depth, width [Angstrom].
BANDS = (
    ("TiO", 5167.0, 0.45, 90.0),
    ("TiO", 5448.0, 0.50, 90.0),
    ("TiO", 5759.0, 0.40, 70.0),
    ("TiO", 5847.0, 0.45, 90.0),
    ("TiO", 6159.0, 0.55, 110.0),
    ("TiO", 6569.0, 0.25, 60.0),
    ("TiO", 6651.0, 0.55, 90.0),
    ("TiO", 7053.0, 1.00, 110.0),
    ("TiO", 7589.0, 0.60, 90.0),
    ("TiO", 8432.0, 0.30, 60.0),
    ("TiO", 8859.0, 0.40, 80.0),
    ("VO", 7334.0, 0.08, 90.0),
    ("VO", 7851.0, 0.10, 90.0),
    ("VO", 8521.0, 0.06, 80.0),
    ("CaH", 6346.0, 0.30, 30.0),
    ("CaH", 6385.0, 0.35, 40.0),
    ("CaH", 6750.0, 0.45, 60.0),
    ("CaH", 6903.0, 0.50, 50.0),
    ("CaOH", 5530.0, 0.10, 40.0),
    ("CaOH", 6230.0, 0.08, 30.0),
)

#: Central depth of a saturated line or band.
DEEPEST = 0.9


def air_to_vacuum(wavelength: ArrayLike) -> Array:
    """Convert wavelengths in standard air to vacuum [Angstrom].

    The refractive index is that of Birch & Downs (1994, Metrologia 31, 315).

    >>> float(air_to_vacuum(6562.79).round(2))
    6564.6
    """
    air = np.asarray(wavelength, float)
    s2 = (1e4 / air) ** 2
    index = 1 + 8.34254e-5 + 2.406147e-2 / (130 - s2) + 1.5998e-4 / (38.9 - s2)
    return air * index


def random_labels(rng: np.random.Generator, n: int, margin: float = 0.0) -> Array:
    """Draw the labels of `n` stars from a uniform distribution over the grid.

    Parameters
    ----------
    rng
        Source of randomness: ``numpy.random.default_rng(seed)``.
    n
        Number of stars.
    margin
        Share of each label's range that is not used at either end.

    Returns
    -------
    array, shape (n, 4)
        teff [K], logg [log10 cm/s^2], [Fe/H] and [alpha/Fe] [dex].
    """
    return LOWER + (UPPER - LOWER) * rng.uniform(margin, 1 - margin, (n, len(LABELS)))


def grid(n: int) -> Array:
    """Return the labels of `n` stars that fill the grid without clumps or gaps; shape (n, 4).

    This is an additive recurrence, a low-discrepancy sequence. Each label advances by a power of
    1/g modulo its range, where g is the root of g**5 = g + 1, which generalises the golden ratio to
    four dimensions. The same `n` gives the same stars.
    """
    g = 1.1673039782614187
    steps = np.outer(np.arange(1, n + 1), g ** -np.arange(1.0, len(LABELS) + 1))
    return LOWER + (UPPER - LOWER) * ((0.5 + steps) % 1)


def training_set(n: int) -> tuple[Array, Array, Array]:
    """Return labels of :func:`grid`, wavelengths (2552,) and spectra without noise (n, 2552)."""
    labels = grid(n)
    return labels, WAVELENGTH, normalised(labels) * continuum(labels[:, 0])


def normalised(labels: ArrayLike, wavelength: Array = WAVELENGTH, v_rad: float = 0.0) -> Array:
    """Return spectra without continuum and noise: the share of the light that is not absorbed.

    Parameters
    ----------
    labels
        Shape (..., 4), as from :func:`random_labels`.
    wavelength
        Vacuum wavelengths [Angstrom], ascending, shape (P,).
    v_rad
        Radial velocity [km/s].

    Returns
    -------
    array, shape (..., P)
        Between 0 and 1.
    """
    labels = np.asarray(labels, float)
    teff, logg, fe_h, alpha_fe = np.moveaxis(labels, -1, 0)[..., None]
    points = _points(wavelength, v_rad)
    profiles = _profiles(tuple(points.ravel()))
    depths: list[Array] = []
    for name, species in SPECIES.items():
        core, wings = profiles[name]
        log_depth = (
            species.metal * (fe_h + species.alpha * alpha_fe)
            + species.heat * (5040 / teff - 1.4)
            + species.gravity * (logg - 4.75)
        )
        # The wings are formed by collisions, so they grow further with the pressure.
        depths.append(10**log_depth * (core + 10 ** (0.35 * (logg - 4.75)) * wings))
    tau = np.sum(depths, axis=0)
    left = 1 - DEEPEST * tau / (DEEPEST + tau)
    return left.reshape(*labels.shape[:-1], *points.shape).mean(-1)


def continuum(teff: ArrayLike, wavelength: Array = WAVELENGTH) -> Array:
    """Return black bodies, 1 at 7500 Angstrom: (..., P) for temperatures of shape (...) [K]."""
    teff = np.asarray(teff, float)[..., None]

    def planck(micron: Array | float) -> Array:
        return 1 / (micron**5 * np.expm1(14_387.77 / (micron * teff)))

    return planck(wavelength / 1e4) / planck(0.75)


def spectrum(
    labels: ArrayLike,
    snr: float,
    rng: np.random.Generator,
    wavelength: Array = WAVELENGTH,
    v_rad: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Return one observed spectrum: continuum, lines, a slope of the instrument, and noise.

    Parameters
    ----------
    labels
        teff [K], logg [log10 cm/s^2], [Fe/H], [alpha/Fe] [dex]; shape (4,).
    snr
        Median signal-to-noise ratio per pixel. The noise is Gaussian and constant over the
        spectrum, as if the sky dominated.
    rng
        Source of randomness, also for the slope and the scale of the flux.
    wavelength
        Vacuum wavelengths [Angstrom], ascending, shape (P,): :data:`WAVELENGTH` for the pixels of
        the model.
    v_rad
        Radial velocity [km/s] by which the spectrum is shifted.

    Returns
    -------
    wavelength, flux, ivar
        Each of shape (P,): Angstrom, 1e-17 erg/s/cm^2/A, inverse variance of the flux.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> wavelength, flux, ivar = spectrum([3500, 4.8, 0.0, 0.0], snr=50, rng=rng)
    >>> flux.shape
    (2552,)
    """
    labels = np.asarray(labels, float)
    x = np.log(wavelength / 7000.0)
    scale, slope, bend = 10 ** rng.uniform(0.5, 2.5), *rng.normal(0, 0.2, 2)
    flux = normalised(labels, wavelength, v_rad) * continuum(labels[0], wavelength)
    flux *= scale * np.exp(slope * x + bend * x**2)
    sigma = np.median(flux) / snr
    return wavelength, flux + rng.normal(0, sigma, flux.shape), np.full(flux.shape, sigma**-2)


def _points(wavelength: Array, v_rad: float) -> Array:
    """Return the rest wavelengths of the points over which pixels are averaged; (P, points)."""
    log = np.log10(at_rest(wavelength, v_rad))
    width = np.gradient(log)
    n = max(1, round(float(width.max()) / POINT_STEP))
    return np.power(10.0, log[:, None] + width[:, None] * ((np.arange(n) + 0.5) / n - 0.5))


@lru_cache(maxsize=8)
def _profiles(points: tuple[float, ...]) -> dict[str, tuple[Array, Array]]:
    """Return the cores and pressure wings of each species, as reference optical depths."""
    x = np.array(points)
    profiles = {name: (np.zeros(x.size), np.zeros(x.size)) for name in SPECIES}
    for name, air, depth, wing in LINES:
        centre = air_to_vacuum(air)
        offset = (x - centre) / _width(centre)
        profiles[name][0][:] += depth * (1 - wing) * np.exp(-(offset**2) / 2)
        profiles[name][1][:] += depth * wing / (1 + (offset / 2) ** 2)
    for name, air, depth, width in BANDS:
        head = air_to_vacuum(air)
        edge = 1 / (1 + np.exp(-np.clip(1.7 * (x - head) / _width(head), -60, 60)))
        profiles[name][0][:] += depth * edge * np.exp(-np.clip(x - head, 0, None) / width)
    return profiles


def _width(wavelength: Array) -> Array:
    """Return the standard deviation [Angstrom] of the line spread function."""
    return wavelength / RESOLUTION / 2.3548
