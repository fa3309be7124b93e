"""The pseudo-continuum of a spectrum: a smooth curve through its mean, by which it is normalised.

Between the molecular bands of cool dwarfs no continuum is visible. Every spectrum, whether it is
used for training or to be labelled, is therefore divided by a *pseudo-continuum*: the exponential
``c`` of a polynomial in log wavelength for which ``flux / c`` scatters evenly around 1, that is,
for which every term ``b`` of the polynomial has ``sum(weight * b * (flux / c - 1)) = 0`` over the
good pixels.

This has three advantages. A smooth factor in the flux (reddening, slit losses) changes only ``c``
and not the normalised spectrum. The condition is linear in the flux, so noise does not bias it, as
it biases an upper envelope. And ``c`` is positive everywhere. Spectra of equal labels may still
differ (by their masks and weights), but only by a smooth factor near 1, which is fitted together
with the labels: see problem.py.
"""

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MAX_ITERATIONS = 50

#: The iteration ends when no logarithm of a continuum changes by more than this; the next step
#: would be a hundred times smaller.
LOG_TOLERANCE = 1e-5

#: It begins with every eighth pixel, if at least `MIN_COARSE_PIXELS` of these have data.
COARSE_STEP = 8
MIN_COARSE_PIXELS = 100

#: Pixels well above this signal-to-noise ratio have equal weights; fainter ones have lower weights.
FULL_WEIGHT_SNR = 5.0


def basis(wavelength: Array, degree: int) -> Array:
    """Return Chebyshev polynomials in log wavelength, from -1 to 1 over it; (P, degree + 1)."""
    log = np.log(wavelength)
    x = 2 * (log - log[0]) / (log[-1] - log[0]) - 1
    return chebvander(x, degree)


def products(weight: Array, moments: Array) -> Array:
    """Return the weighted sum over all pixels of the product of each pair of curves.

    For Chebyshev polynomials, ``T(i) T(j) = (T(i + j) + T(|i - j|)) / 2``.

    Parameters
    ----------
    weight
        Of the pixels, (M, P).
    moments
        The curves of :func:`basis` up to twice the degree, (P, 2 K - 1).

    Returns
    -------
    array, shape (M, K, K)
    """
    number, moment = np.arange((moments.shape[1] + 1) // 2), weight @ moments
    higher, lower = number[:, None] + number, np.abs(number[:, None] - number)
    return np.asarray(moment[:, higher] + moment[:, lower]) / 2


def continua(flux: Array, ivar: Array, basis: Array) -> Array:
    """Return the pseudo-continua of spectra, by Newton's method.

    Parameters
    ----------
    flux, ivar
        Shape (M, P); pixels of ivar 0 do not count.
    basis
        Smooth curves, shape (P, K), of :func:`basis`.

    Returns
    -------
    array, shape (M, P)
        Positive; NaN for a spectrum that has fewer than K good pixels, or whose mean is not
        positive.
    """
    good, n_curves = ivar > 0, basis.shape[1]
    count = good.sum(1)
    mean = np.where(good, flux, 0.0).sum(1) / np.maximum(count, 1)
    level = np.full(flux.shape, np.nan)
    (which,) = np.nonzero((count >= n_curves) & (mean > 0))
    if not which.size:
        return level
    good = good[which]
    flux, ivar = np.where(good, flux[which], 0.0), np.where(good, ivar[which], 0.0)
    coefficients = np.zeros((which.size, n_curves))
    coefficients[:, 0] = np.log(mean[which])
    for every in (COARSE_STEP, 1):
        thin = slice(None, None, every)
        use = np.flatnonzero(good[:, thin].sum(1) >= (MIN_COARSE_PIXELS if every > 1 else 0))
        parts = flux[use, thin], ivar[use, thin], good[use, thin]
        coefficients[use] = _newton(*parts, basis[thin], coefficients[use])
    level[which] = np.exp(_bounded_in_gaps(coefficients @ basis.T, good))
    return level


def _newton(
    flux: Array, ivar: Array, good: NDArray[np.bool_], basis: Array, coefficients: Array
) -> Array:
    """Return the coefficients (M, K) of the logarithms of continua, given initial ones."""
    n_curves, coefficients = basis.shape[1], coefficients.copy()
    moments = np.asarray(chebvander(basis[:, 1], 2 * n_curves - 2), float)
    active = np.arange(len(flux))
    log_level = np.where(good, coefficients @ basis.T, 0.0)
    for _ in range(MAX_ITERATIONS):
        inverse = np.exp(-log_level)
        ratio = flux[active] * inverse
        weight = ivar[active] / (ivar[active] + (FULL_WEIGHT_SNR * inverse) ** 2)
        # A ratio below 0.1 is noise: the bound keeps the matrix positive and changes no solution.
        hessian = products(weight * np.maximum(ratio, 0.1), moments)
        # The ridge determines curves that the pixels do not constrain.
        trace = np.trace(hessian, axis1=1, axis2=2)[:, None, None]
        hessian += (1e-10 * trace + 1e-300) * np.eye(n_curves)
        gradient = (weight * (ratio - 1)) @ basis
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        log_step = np.where(good[active], step @ basis.T, 0.0)
        change = np.abs(log_step).max(1)
        shorter = 1 / np.maximum(change, 1.0)[:, None]
        coefficients[active] += step * shorter
        ahead = change >= LOG_TOLERANCE
        if not ahead.any():
            break
        active, log_level = active[ahead], (log_level + log_step * shorter)[ahead]
    return coefficients


def normalise(flux: ArrayLike, ivar: ArrayLike, basis: Array) -> tuple[Array, Array]:
    """Divide fluxes by their pseudo-continua, and scale their inverse variances likewise.

    Parameters
    ----------
    flux, ivar
        Shape (P,) or (M, P). Pixels that are NaN, or whose ivar is not positive, are not used.
    basis
        Smooth curves, shape (P, K), of :func:`basis`.

    Returns
    -------
    flux, ivar
        Of the same shape; 1 and 0 for pixels that are not used, and for all pixels if there is no
        continuum.
    """
    flux, ivar = np.asarray(flux, float), np.asarray(ivar, float)
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    flux, ivar = np.where(good, flux, 0.0), np.where(good, ivar, 0.0)
    level = continua(np.atleast_2d(flux), np.atleast_2d(ivar), basis).reshape(flux.shape)
    good &= np.isfinite(level)
    level = np.where(good, level, 1.0)
    return np.where(good, flux / level, 1.0), np.where(good, ivar * level**2, 0.0)


def _bounded_in_gaps(log_level: Array, good: NDArray[np.bool_]) -> Array:
    """Limit a polynomial in wide gaps, where it is not used, so that it does not overflow."""
    low = np.where(good, log_level, np.inf).min(1, keepdims=True)
    high = np.where(good, log_level, -np.inf).max(1, keepdims=True)
    return np.clip(log_level, low - 1, high + 1)
