"""Least-squares support vector regression with a radial kernel, of all pixels at once.

With kernel ``K``, ridge ``r`` and fluxes ``y`` of the training spectra, the coefficients ``a`` and
the bias ``b`` solve ``(K + r) a + b = y`` and ``sum(a) = 0`` (Suykens & Vandewalle 1999, Neural
Processing Letters 9, 293). Among vectors that sum to 0, the eigenvectors ``V`` and eigenvalues
``e`` of the kernel give ``a = V (V.T y / (e + r))``: one factorisation for all pixels, each with a
ridge of its own.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def radial_kernel(x: Array, nodes: Array, gamma: float) -> Array:
    """``exp(-gamma * |x - node|**2)``: shape (..., N) for x (..., L) and nodes (N, L)."""
    square = (x**2).sum(-1)[..., None] + (nodes**2).sum(-1) - 2 * x @ nodes.T
    return np.exp(-gamma * np.maximum(square, 0.0))


def coefficients_and_bias(
    nodes: Array, flux: Array, gamma: float, ridge: Array
) -> tuple[Array, Array]:
    """The regression of fluxes without gaps.

    Parameters
    ----------
    nodes
        Scaled labels, shape (N, L).
    flux
        Shape (N, P).
    gamma
        Of the kernel.
    ridge
        Of each pixel, shape (P,).

    Returns
    -------
    coefficients, bias
        Shapes (N, P) and (P,).
    """
    values, vectors = _factors(nodes, gamma)
    coefficients = vectors @ ((vectors.T @ flux) / (values[:, None] + ridge))
    # sum(a) = 0, so that the mean over the equations leaves the bias.
    bias = (flux - radial_kernel(nodes, nodes, gamma) @ coefficients).mean(0)
    return coefficients, bias


@dataclass(frozen=True)
class Training:
    """What the fluxes of the training set say of themselves."""

    flux: Array  #: the fluxes, gaps filled with what the regression itself says there, (N, P)
    left_out_error: (
        Array  #: of each spectrum, if it were not in the training set; 0 in gaps, (N, P)
    )


def solve(
    nodes: Array, flux: Array, good: NDArray[np.bool_], gamma: float, ridge: Array
) -> Training:
    """Fill gaps, and leave each spectrum out in turn.

    A missing flux is one whose coefficient is zero: the value that makes it so follows from a block
    of the inverse ``V (1 / (e + r)) V.T``. The error of a spectrum left out is ``a[i] / inverse[i,
    i]`` (Cawley & Talbot 2007, JMLR 8, 841).

    Parameters
    ----------
    nodes
        Scaled labels, shape (N, L).
    flux
        Shape (N, P); ignored where it is not good.
    good
        Which fluxes are data, shape (N, P).
    gamma
        Of the kernel.
    ridge
        Of each pixel, shape (P,).
    """
    values, vectors = _factors(nodes, gamma)
    shrink = 1 / (values[:, None] + ridge)
    flux = np.where(good, flux, 0.0)
    for pixel in np.flatnonzero(~good.all(0)):
        gaps = vectors[~good[:, pixel]]
        block = (gaps * shrink[:, pixel]) @ gaps.T
        unfilled = gaps @ (shrink[:, pixel] * (vectors.T @ flux[:, pixel]))
        flux[~good[:, pixel], pixel] = -np.linalg.solve(block, unfilled)
    left_out = vectors @ (shrink * (vectors.T @ flux)) / (vectors**2 @ shrink)
    return Training(flux, np.where(good, left_out, 0.0))


def choose(
    nodes: Array, flux: Array, gammas: tuple[float, ...], ridges: tuple[float, ...]
) -> tuple[float, Array]:
    """The kernel and the ridges under which spectra that are left out are most likely.

    Each pixel has the ridge of its least mean square left-out error, and all have the width for
    which the sum of the logarithms of these errors is least: a pixel's error is its own measure.

    Parameters
    ----------
    nodes
        Scaled labels, shape (N, L).
    flux
        Without gaps, shape (N, P).
    gammas, ridges
        To choose from; at least one of each.

    Returns
    -------
    gamma, ridge
        A number, and an array of shape (P,).
    """
    errors = {gamma: _left_out_errors(nodes, flux, gamma, ridges) for gamma in gammas}
    floor = np.finfo(float).tiny
    best = min(gammas, key=lambda gamma: np.log(errors[gamma].min(0) + floor).sum())
    return best, np.asarray(ridges)[errors[best].argmin(0)]


def _left_out_errors(nodes: Array, flux: Array, gamma: float, ridges: tuple[float, ...]) -> Array:
    """Mean square error of each pixel in spectra that are left out, for each ridge; (R, P)."""
    values, vectors = _factors(nodes, gamma)
    rotated, squares = vectors.T @ flux, vectors**2
    errors = np.empty((len(ridges), flux.shape[1]))
    for i, ridge in enumerate(ridges):
        shrink = 1 / (values + ridge)
        left_out = (vectors * shrink) @ rotated / (squares @ shrink)[:, None]
        errors[i] = (left_out**2).mean(0)
    return errors


def _factors(nodes: Array, gamma: float) -> tuple[Array, Array]:
    """Eigenvalues (N - 1,) and eigenvectors (N, N - 1) of the kernel on vectors that sum to 0."""
    n = len(nodes)
    mirror = np.full(n, n**-0.5)
    mirror[0] += 1
    # A reflection that takes the first axis to the constant vector, and the others to its plane.
    plane = (np.eye(n) - 2 * np.outer(mirror, mirror) / (mirror @ mirror))[:, 1:]
    values, vectors = np.linalg.eigh(plane.T @ radial_kernel(nodes, nodes, gamma) @ plane)
    return np.maximum(values, 0.0), plane @ vectors
