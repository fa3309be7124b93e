"""Which training spectra, and which pixels of them, do not belong to the rest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astra.pipelines.slam.regression import Factors, Training, choose, solve

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Rounds of rejection, at most.
MOST_ROUNDS = 12

#: A pixel is rejected when its left-out error exceeds its spread over the training set, and what
#: is usual in its spectrum, so many times.
BAD_PIXEL = 5.0

#: A spectrum is rejected when its left-out errors exceed those of the median spectrum so many
#: times, and the median of their logarithms by so many standard deviations.
BAD_SPECTRUM = 2.0
BAD_SPECTRUM_SIGMAS = 5.0

#: A round rejects the spectra within this factor of the worst: they spoil those beside them.
WORST = 0.5

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
    good = good.copy()
    for _ in range(MOST_ROUNDS):
        cleaned = _solved(nodes, flux, good, noise, kept, gammas, ridges)
        if not rejects:
            break
        spectra, pixels = _outliers(cleaned)
        before = kept.sum() + good.sum()
        kept, good = kept & ~spectra, good & ~pixels
        if kept.sum() + good.sum() == before:
            break
    return cleaned


def _solved(
    nodes: Array,
    flux: Array,
    good: Flags,
    noise: Array,
    kept: Flags,
    gammas: tuple[float, ...],
    ridges: tuple[float, ...],
) -> Cleaned:
    flux, data = flux[kept], good[kept]
    unit, middle, spread = standardise(flux, data)
    variance = noise[kept] / spread**2
    weight = _weights(variance, data, 0.0)
    gamma, ridge = _FIRST_GAMMA, np.full(flux.shape[1], _FIRST_RIDGE)
    for is_last in (False, True):
        factors = Factors.of(nodes[kept], gamma, weight)
        solved = solve(factors, unit, data, ridge)
        if not is_last:
            excess = np.where(data, solved.left_out_error**2 - variance, np.nan)
            weight = _weights(variance, data, max(float(np.nanmedian(excess)), 1e-4))
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


def _outliers(cleaned: Cleaned) -> tuple[Flags, Flags]:
    """Return spectra (N,) and pixels (N, P) to leave out."""
    data = cleaned.good[cleaned.kept]
    size = np.where(data, np.abs(cleaned.solved.standardised), np.nan)
    size = size / np.maximum(1.4826 * np.nanmedian(size, axis=0), 1e-12)
    misfit = np.nanmedian(size, axis=1) / 0.6745
    level = np.log(np.maximum(misfit, 1e-12))
    middle = np.median(level)
    sigma = 1.4826 * np.median(np.abs(level - middle))
    is_bad = level > middle + max(BAD_SPECTRUM_SIGMAS * sigma, np.log(BAD_SPECTRUM))
    is_bad &= misfit > WORST * misfit.max()
    n_all = cleaned.kept.size
    spectra, pixels = np.zeros(n_all, bool), np.zeros(cleaned.good.shape, bool)
    if (n_all - cleaned.kept.sum()) + is_bad.sum() <= MOST_REJECTED * n_all:
        spectra[cleaned.kept] = is_bad
    far = size > BAD_PIXEL * np.maximum(misfit, 1.0)[:, None]
    pixels[cleaned.kept] = far & ~is_bad[:, None]
    return spectra, pixels


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
