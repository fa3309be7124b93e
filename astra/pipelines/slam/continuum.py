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
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_ITERATIONS = 50

#: Pixels count alike above this signal-to-noise ratio, and less below it.
FAINT = 5.0


def basis(wavelength: Array, degree: int) -> Array:
    """Chebyshev polynomials in log wavelength, from -1 to 1 over the range; (P, degree + 1)."""
    log = np.log(wavelength)
    x = 2 * (log - log[0]) / (log[-1] - log[0]) - 1
    return np.polynomial.chebyshev.chebvander(x, degree)


def continuum(flux: Array, ivar: Array, basis: Array) -> Array:
    """The pseudo-continuum of a spectrum, by Newton's method.

    Parameters
    ----------
    flux, ivar
        Shape (P,); pixels of ivar 0 do not count.
    basis
        Smooth curves, shape (P, K), of :func:`basis`.

    Returns
    -------
    array, shape (P,)
        Positive; NaN everywhere if fewer than K pixels count, or the flux has no positive mean.
    """
    nothing = np.full(flux.shape, np.nan)
    good = ivar > 0
    if good.sum() < basis.shape[1] or not flux[good].mean() > 0:
        return nothing
    curves, flux, ivar = basis[good], flux[good], ivar[good]
    log_level = np.full(flux.shape, np.log(flux.mean()))
    coefficients = np.zeros(basis.shape[1])
    coefficients[0] = log_level[0]
    for _ in range(MAX_ITERATIONS):
        level = np.exp(log_level)
        ratio, snr2 = flux / level, ivar * level**2
        weighted = curves * (snr2 / (snr2 + FAINT**2))[:, None]
        # Below 0.1 a ratio is noise: the bound keeps the matrix positive, and changes no solution.
        hessian = (weighted * np.maximum(ratio, 0.1)[:, None]).T @ curves
        step = np.linalg.lstsq(hessian, weighted.T @ (ratio - 1), rcond=None)[0]
        change = np.abs(curves @ step).max()
        coefficients += step / max(change, 1.0)
        log_level = curves @ coefficients
        if change < 1e-9:
            break
    # A wide gap may let the polynomial run away in it, where it is not used.
    return np.exp(np.clip(basis @ coefficients, log_level.min() - 1, log_level.max() + 1))


def normalise(flux: Array, ivar: Array, basis: Array) -> tuple[Array, Array]:
    """Flux divided by its pseudo-continuum, and the inverse variance of that.

    Parameters
    ----------
    flux, ivar
        Shape (P,). Pixels of NaN, or of an ivar that is not positive, carry no datum.
    basis
        Smooth curves, shape (P, K), of :func:`basis`.

    Returns
    -------
    flux, ivar
        Shape (P,); 1 and 0 for pixels without datum, and for all if there is no continuum.
    """
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    level = continuum(np.where(good, flux, 0.0), np.where(good, ivar, 0.0), basis)
    good &= np.isfinite(level)
    level, flux, ivar = (np.where(good, a, 1.0) for a in (level, flux, ivar))
    return np.where(good, flux / level, 1.0), np.where(good, ivar * level**2, 0.0)
