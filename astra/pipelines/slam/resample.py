"""Resample spectra to other pixels: bad pixels are omitted, the others averaged by overlap."""

import numpy as np
from numpy.typing import NDArray

from astra.pipelines.slam.pixels import edges, good_pixels

Array = NDArray[np.float64]

#: A new pixel has data if good pixels cover at least this share of it.
MIN_COVERAGE = 0.5


def resample(
    wavelength: Array, flux: Array, ivar: Array, onto: Array, good: NDArray[np.bool_] | None = None
) -> tuple[Array, Array]:
    """Return the mean flux in each new pixel, weighted by overlap, and its inverse variance.

    If an input pixel overlaps two new ones, each gets its share of the information, so that the
    total information is preserved. The noise therefore stays calibrated also on finer or shifted
    pixels, where neighbours are correlated.

    Parameters
    ----------
    wavelength, flux, ivar
        The spectrum, each of shape (P,), in any order of wavelength. Pixels in gaps may be missing
        or marked as bad.
    onto
        Centres of the new pixels, ascending, shape (Q,).
    good
        The pixels to use, shape (P,); by default those of :func:`good_pixels`.

    Returns
    -------
    flux, ivar
        Each of shape (Q,); both are 0 where good pixels cover less than half of the new pixel.
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

    # Each piece between two adjacent edges lies in at most one old and one new pixel.
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
        has_datum = covered >= MIN_COVERAGE * (new_right - new_left)
        return np.where(has_datum, mean, 0.0), np.where(has_datum, 1 / variance, 0.0)
