"""The continuum of spectra, up to what the labels say: a smooth curve through their mean.

Cool dwarfs have no continuum to be seen between their bands. Every spectrum, of the training set
and of the night, is divided by a *pseudo-continuum*: the exponential ``c`` of a polynomial in log
wavelength for which ``flux / c`` scatters evenly around 1, that is, for which every curve ``b`` of
the polynomial has ``sum(weight * b * (flux / c - 1)) = 0`` over the good pixels.

This has three virtues. A smooth factor in the flux (reddening, slit losses) appears in ``c`` alone
and leaves the normalised spectrum as it was. The condition is linear in the flux, so that noise
does not shift it, as it shifts envelopes. And ``c`` is positive everywhere. What still differs
between spectra of equal labels (masks, weights) is again smooth and near 1, and is solved for
together with the labels: see fit.py.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MAX_ITERATIONS = 50

#: Pixels count alike above this signal-to-noise ratio, and less below it.
FAINT = 5.0


def basis(wavelength: Array, degree: int) -> Array:
    """Return Chebyshev polynomials in log wavelength, from -1 to 1 over it; (P, degree + 1)."""
    log = np.log(wavelength)
    x = 2 * (log - log[0]) / (log[-1] - log[0]) - 1
    return np.polynomial.chebyshev.chebvander(x, degree)


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
        Positive; NaN for a spectrum of which fewer than K pixels count, or without positive mean.
    """
    good, n_curves = ivar > 0, basis.shape[1]
    count = good.sum(1)
    mean = np.where(good, flux, 0.0).sum(1) / np.maximum(count, 1)
    level = np.full(flux.shape, np.nan)
    (which,) = np.nonzero((count >= n_curves) & (mean > 0))
    if not which.size:
        return level
    flux, ivar, good = flux[which], ivar[which], good[which]
    products = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1)
    coefficients = np.zeros((which.size, n_curves))
    coefficients[:, 0] = np.log(mean[which])
    active = np.arange(which.size)
    for _ in range(MAX_ITERATIONS):
        log_level = coefficients[active] @ basis.T
        log_level = _tamed(log_level, good[active])
        inverse = np.exp(-log_level)
        ratio, snr2 = flux[active] * inverse, ivar[active] / inverse**2
        weight = snr2 / (snr2 + FAINT**2)
        # Below 0.1 a ratio is noise: the bound keeps the matrix positive, and changes no solution.
        hessian = (weight * np.maximum(ratio, 0.1)) @ products
        hessian = hessian.reshape(-1, n_curves, n_curves)
        # The ridge holds curves that the pixels say nothing about.
        trace = np.trace(hessian, axis1=1, axis2=2)[:, None, None]
        hessian += 1e-10 * trace * np.eye(n_curves)
        gradient = (weight * (ratio - 1)) @ basis
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        change = np.where(good[active], np.abs(step @ basis.T), 0.0).max(1)
        coefficients[active] += step / np.maximum(change, 1.0)[:, None]
        active = active[change >= 1e-7]
        if not active.size:
            break
    level[which] = np.exp(_tamed(coefficients @ basis.T, good))
    return level


def normalise(flux: ArrayLike, ivar: ArrayLike, basis: Array) -> tuple[Array, Array]:
    """Divide fluxes by their pseudo-continua, and scale their inverse variances likewise.

    Parameters
    ----------
    flux, ivar
        Shape (P,) or (M, P). Pixels of NaN, or of an ivar that is not positive, carry no datum.
    basis
        Smooth curves, shape (P, K), of :func:`basis`.

    Returns
    -------
    flux, ivar
        Of the same shape; 1 and 0 for pixels without datum, and for all if there is no continuum.
    """
    flux, ivar = np.asarray(flux, float), np.asarray(ivar, float)
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    flux, ivar = np.where(good, flux, 0.0), np.where(good, ivar, 0.0)
    level = continua(np.atleast_2d(flux), np.atleast_2d(ivar), basis).reshape(flux.shape)
    good &= np.isfinite(level)
    level = np.where(good, level, 1.0)
    return np.where(good, flux / level, 1.0), np.where(good, ivar * level**2, 0.0)


def _tamed(log_level: Array, good: NDArray[np.bool_]) -> Array:
    """Keep a polynomial from running away in a wide gap, where it is not used."""
    low = np.where(good, log_level, np.inf).min(1, keepdims=True)
    high = np.where(good, log_level, -np.inf).max(1, keepdims=True)
    return np.clip(log_level, low - 1, high + 1)
