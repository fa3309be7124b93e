"""Spectra on the pixels of the model: bad pixels out, the others averaged by their overlap."""

import numpy as np
from numpy.typing import NDArray

from astra.pipelines.slam.pixels import edges, good_pixels

Array = NDArray[np.float64]

#: A pixel of the model has a datum where good pixels cover at least this share of it.
LEAST_COVERAGE = 0.5


def resample(
    wavelength: Array, flux: Array, ivar: Array, onto: Array, good: NDArray[np.bool_] | None = None
) -> tuple[Array, Array]:
    """Mean flux over each new pixel, weighted by overlap, and its inverse variance.

    An input pixel that is cut in two gives each part its share of the information, so that the
    information of all new pixels adds up to that of the old ones they replace: noise stays
    calibrated on finer and on shifted pixels too, where neighbours become correlated.

    Parameters
    ----------
    wavelength, flux, ivar
        The spectrum, each of shape (P,), in any order of wavelength; gaps may be left out of it or
        marked as bad.
    onto
        Centres of the new pixels, ascending, shape (Q,).
    good
        The pixels to use, shape (P,); by default those of :func:`good_pixels`.

    Returns
    -------
    flux, ivar
        Each of shape (Q,); 0 and 0 where good pixels cover less than half of the new one.
    """
    if good is None:
        good = good_pixels(wavelength, flux, ivar)
    if good.sum() < 2:
        return np.zeros(onto.size), np.zeros(onto.size)
    finite = np.flatnonzero(np.isfinite(wavelength) & (wavelength > 0))
    order = finite[np.argsort(wavelength[finite], kind="stable")]
    left, right = edges(np.log(wavelength[order]))
    use = good[order]
    order, left, right = order[use], left[use], right[use]
    new_left, new_right = edges(np.log(onto))

    # The pieces between all edges: each lies in at most one old and one new pixel.
    cuts = np.unique(np.concatenate([left, right, new_left, new_right]))
    length, middle = np.diff(cuts), (cuts[1:] + cuts[:-1]) / 2
    old = np.searchsorted(left, middle) - 1
    new = np.searchsorted(new_left, middle) - 1
    inside = (old >= 0) & (new >= 0)
    inside[inside] &= (middle < right[old])[inside] & (middle < new_right[new])[inside]
    old, new, length = old[inside], new[inside], length[inside]

    def total(value: Array) -> Array:
        return np.bincount(new, value, onto.size).astype(float)

    covered = total(length)
    share = length / (right - left)[old]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total(length * flux[order][old]) / covered
        variance = total(length**2 / (ivar[order][old] * share)) / covered**2
        has_datum = covered >= LEAST_COVERAGE * (new_right - new_left)
        return np.where(has_datum, mean, 0.0), np.where(has_datum, 1 / variance, 0.0)
