"""Find training spectra, and pixels of them, that contradict the others."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.pipelines.slam.regression import Factors, Solution, choose_hyperparameters, solve
from astra.records import dataclass

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Largest number of rounds; they end earlier when no trust changes by more than this.
MAX_ROUNDS = 12
SETTLED_CHANGE = 0.05

#: A pixel is rejected if its leave-one-out error is this many times as large as the pixel's spread
#: over the training set, and as what is usual in its spectrum.
BAD_PIXEL_FACTOR = 5.0

#: The misfit of a spectrum is the logarithm of its leave-one-out error less that of the median
#: spectrum, in standard deviations of all spectra. The standard deviation is at least this.
MIN_SIGMA = 0.14

#: Above this misfit a spectrum is suspect, and its weight is divided by e for every further two
#: standard deviations: otherwise wrong labels would distort the regression around them, and hide
#: each other.
SUSPECT_SIGMAS = 3.0
#: Above this misfit it is rejected.
REJECTED_SIGMAS = 5.0

#: The largest share of the training set that is rejected.
MAX_REJECTED_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Cleaned:
    """A training set without its outliers, and its regression."""

    kept: Flags  #: spectra, (N,)
    good: Flags  #: pixels of all spectra, (N, P)
    weight: Array  #: of the spectra that were kept, (n,)
    middle: Array  #: mean of each pixel, (P,)
    spread: Array  #: standard deviation of each pixel, (P,)
    gamma: float
    ridge: Array  #: (P,)
    factors: Factors  #: of the spectra that were kept
    solved: Solution  #: fluxes of mean 0 and variance 1, of the spectra that were kept


def clean(
    nodes: Array,
    flux: Array,
    good: Flags,
    noise: Array,
    gammas: tuple[float, ...],
    ridges: tuple[float, ...],
    rejects: bool,
) -> Cleaned:
    """Solve the regression, and exclude spectra and pixels that the other spectra contradict.

    Each round judges all spectra again, including those whose weight is low by now, so that no good
    spectrum is rejected because of a bad one nearby.

    Parameters
    ----------
    nodes
        Scaled labels, (N, L).
    flux, noise
        Normalised spectra, and the variances of their noise, (N, P).
    good
        Which pixels have data, (N, P).
    gammas, ridges
        Candidates for the width of the kernel and for the ridges.
    rejects
        Whether to reject outliers; spectra without data are excluded in any case.
    """
    kept: Flags = np.asarray(good.any(1))
    good, trust = good.copy(), np.ones(kept.sum())
    for _ in range(MAX_ROUNDS if rejects else 0):
        cleaned = _regression(nodes, flux, good, noise, kept, gammas, ridges, trust)
        before, (trust, bad_pixels) = trust, _trust_and_bad_pixels(cleaned, trust)
        is_settled = (
            np.abs(trust - before).max() < SETTLED_CHANGE and not (good[kept] & bad_pixels).any()
        )
        good[kept] &= ~bad_pixels
        if is_settled:
            break
    # If more than the largest share would be rejected, only the least trusted are.
    stays = trust >= min(_trust(REJECTED_SIGMAS), np.quantile(trust, MAX_REJECTED_SHARE))
    kept[kept] = stays
    return _regression(nodes, flux, good, noise, kept, gammas, ridges, trust[stays])


def _regression(
    nodes: Array,
    flux: Array,
    good: Flags,
    noise: Array,
    kept: Flags,
    gammas: tuple[float, ...],
    ridges: tuple[float, ...],
    trust: Array,
) -> Cleaned:
    flux, data = flux[kept], good[kept]
    unit, middle, spread = standardise(flux, data)
    variance = noise[kept] / spread**2
    weight = _weights(variance, data, 0.0) * trust
    gamma, ridge = _FIRST_GAMMA, np.full(flux.shape[1], _FIRST_RIDGE)
    for is_last in (False, True):
        factors = Factors.of(nodes[kept], gamma, weight)
        solved = solve(factors, unit, data, ridge)
        if not is_last:
            excess = np.where(data, solved.left_out_error**2 - variance, np.nan)
            weight = _weights(variance, data, max(float(np.nanmedian(excess)), 1e-4)) * trust
            gamma, ridge = choose_hyperparameters(nodes[kept], solved.flux, gammas, ridges, weight)
    return Cleaned(kept, good, weight, middle, spread, gamma, ridge, factors, solved)


#: Initial values, with which gaps are filled for the first time; for labels of unit variance.
_FIRST_GAMMA = 0.06
_FIRST_RIDGE = 1e-3


def _weights(variance: Array, data: Flags, scatter2: float) -> Array:
    """Return weights, of mean 1, from each spectrum's typical noise and the scatter of all."""
    typical = np.array(
        [np.median(v[g]) if g.any() else 1.0 for v, g in zip(variance, data, strict=True)]
    )
    total = typical + scatter2
    if not (total > 0).all():
        return np.ones(len(variance))
    weight = 1 / total
    return np.asarray(weight / weight.mean())


def _trust_and_bad_pixels(cleaned: Cleaned, trust: Array) -> tuple[Array, Flags]:
    """Return the trust in each kept spectrum, 0 to 1, (n,), and the pixels to reject (n, P)."""
    data = cleaned.good[cleaned.kept]
    # Correct for the lower weight of a spectrum that is not trusted.
    size = np.abs(cleaned.solved.standardised) / np.sqrt(trust)[:, None]
    size = np.where(data, size, np.nan)
    size = size / np.maximum(1.4826 * np.nanmedian(size, axis=0), 1e-12)
    misfit = np.nanmedian(size, axis=1) / 0.6745
    level = np.log(np.maximum(misfit, 1e-12))
    level -= np.median(level)
    sigma = max(1.4826 * float(np.median(np.abs(level))), MIN_SIGMA)
    return _trust(level / sigma), size > BAD_PIXEL_FACTOR * np.maximum(misfit, 1.0)[:, None]


def _trust(sigmas: ArrayLike) -> Array:
    """Return the trust in spectra of these misfits: factors of their weights, from 0 to 1."""
    return np.asarray(np.exp(-np.maximum(np.asarray(sigmas) - SUSPECT_SIGMAS, 0.0) / 2))


def standardise(flux: Array, good: Flags) -> tuple[Array, Array, Array]:
    """Scale fluxes to mean 0 and variance 1 in each pixel; return also the means and deviations.

    Both are robust: the median, and a deviation from the interquartile range, of good pixels.
    """
    only = np.where(good, flux, np.nan)
    low, middle, high = np.nanpercentile(only, [25, 50, 75], axis=0)
    spread = (high - low) / 1.349
    spread = np.where(spread > 0, spread, np.nanstd(only, axis=0))
    spread = np.where(spread > 0, spread, 1.0)
    return np.where(good, flux - middle, 0.0) / spread, middle, spread
