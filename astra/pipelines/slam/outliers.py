"""Which training spectra, and which pixels of them, do not belong to the rest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.pipelines.slam.regression import Factors, Training, choose, solve

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Rounds of judging, at most; they end when no trust changes by more than this.
MOST_ROUNDS = 12
SETTLED = 0.05

#: A pixel is rejected when its left-out error exceeds its spread over the training set, and what
#: is usual in its spectrum, so many times.
BAD_PIXEL = 5.0

#: The misfit of a spectrum is measured in standard deviations of the logarithm of the left-out
#: errors, from that of the median spectrum. A standard deviation is at least this.
LEAST_SIGMA = 0.14

#: From this misfit on a spectrum is suspect, and its weight is divided by e for every two standard
#: deviations: wrong labels would otherwise spoil the regression around them, and hide each other.
SUSPECT = 3.0
#: From this one on it is rejected.
REJECTED = 5.0

#: Training never loses more than this share of its spectra.
MOST_REJECTED = 0.25


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
    solved: Training  #: fluxes of mean 0 and variance 1, of the spectra that were kept


def clean(
    nodes: Array,
    flux: Array,
    good: Flags,
    noise: Array,
    gammas: tuple[float, ...],
    ridges: tuple[float, ...],
    rejects: bool,
) -> Cleaned:
    """Solve the regression, and leave out what it cannot explain from the other spectra.

    All spectra are judged anew in each round, also those that hardly count any more: none is lost
    to what a bad one did to its surroundings.

    Parameters
    ----------
    nodes
        Scaled labels, (N, L).
    flux, noise
        Normalised spectra, and the variances of their noise, (N, P).
    good
        Which pixels have data, (N, P).
    gammas, ridges
        Among which to choose.
    rejects
        Whether to leave outliers out; spectra without data are left out in any case.
    """
    kept: Flags = np.asarray(good.any(1))
    good, trust = good.copy(), np.ones(kept.sum())
    for _ in range(MOST_ROUNDS if rejects else 0):
        cleaned = _solved(nodes, flux, good, noise, kept, gammas, ridges, trust)
        before, (trust, bad_pixels) = trust, _judged(cleaned, trust)
        is_settled = np.abs(trust - before).max() < SETTLED and not (good[kept] & bad_pixels).any()
        good[kept] &= ~bad_pixels
        if is_settled:
            break
    # Beyond the share that may be lost, the least trusted go.
    stays = trust >= min(_trust(REJECTED), np.quantile(trust, MOST_REJECTED))
    kept[kept] = stays
    return _solved(nodes, flux, good, noise, kept, gammas, ridges, trust[stays])


def _solved(
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
            gamma, ridge = choose(nodes[kept], solved.flux, gammas, ridges, weight)
    return Cleaned(kept, good, weight, middle, spread, gamma, ridge, factors, solved)


#: Good enough to fill gaps before there are better ones, for labels of unit variance.
_FIRST_GAMMA = 0.06
_FIRST_RIDGE = 1e-3


def _weights(variance: Array, data: Flags, scatter2: float) -> Array:
    """Return the weights of spectra by their typical noise and the scatter of all; mean 1."""
    typical = np.array(
        [np.median(v[g]) if g.any() else 1.0 for v, g in zip(variance, data, strict=True)]
    )
    total = typical + scatter2
    if not (total > 0).all():
        return np.ones(len(variance))
    weight = 1 / total
    return np.asarray(weight / weight.mean())


def _judged(cleaned: Cleaned, trust: Array) -> tuple[Array, Flags]:
    """Return how far to trust each kept spectrum, 0 to 1, (n,), and pixels to leave out (n, P)."""
    data = cleaned.good[cleaned.kept]
    # Were it trusted, its errors would be as large as if its weight were that of the others.
    size = np.abs(cleaned.solved.standardised) / np.sqrt(trust)[:, None]
    size = np.where(data, size, np.nan)
    size = size / np.maximum(1.4826 * np.nanmedian(size, axis=0), 1e-12)
    misfit = np.nanmedian(size, axis=1) / 0.6745
    level = np.log(np.maximum(misfit, 1e-12))
    level -= np.median(level)
    sigma = max(1.4826 * float(np.median(np.abs(level))), LEAST_SIGMA)
    return _trust(level / sigma), size > BAD_PIXEL * np.maximum(misfit, 1.0)[:, None]


def _trust(sigmas: ArrayLike) -> Array:
    """Return the factor of the weight of spectra of such misfits, from 0 to 1."""
    return np.asarray(np.exp(-np.maximum(np.asarray(sigmas) - SUSPECT, 0.0) / 2))


def standardise(flux: Array, good: Flags) -> tuple[Array, Array, Array]:
    """Return fluxes of mean 0 and variance 1 in each pixel; the mean; the deviation.

    The mean and the deviation are those of the good pixels' middle half.
    """
    only = np.where(good, flux, np.nan)
    low, middle, high = np.nanpercentile(only, [25, 50, 75], axis=0)
    spread = (high - low) / 1.349
    spread = np.where(spread > 0, spread, np.nanstd(only, axis=0))
    spread = np.where(spread > 0, spread, 1.0)
    return np.where(good, flux - middle, 0.0) / spread, middle, spread
