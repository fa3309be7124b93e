"""Least-squares support vector regression with a radial kernel, of all pixels at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def radial_kernel(x: Array, nodes: Array, gamma: float) -> Array:
    """``exp(-gamma * |x - node|**2)``: shape (..., N) for x (..., L) and nodes (N, L)."""
    square = (x**2).sum(-1)[..., None] + (nodes**2).sum(-1) - 2 * x @ nodes.T
    return np.exp(-gamma * np.maximum(square, 0.0))


def system(nodes: Array, gamma: float, ridge: float) -> Array:
    """The matrix ``[[0, 1], [1, K + ridge]]`` of the regression.

    It turns the bias and the coefficients into 0 and the fluxes; shape (N + 1, N + 1).
    """
    n = len(nodes)
    matrix = np.zeros((n + 1, n + 1))
    matrix[0, 1:] = matrix[1:, 0] = 1.0
    matrix[1:, 1:] = radial_kernel(nodes, nodes, gamma) + ridge * np.eye(n)
    return matrix


def coefficients_and_bias(
    nodes: Array, flux: Array, gamma: float, ridge: float
) -> tuple[Array, Array]:
    """The regression of fluxes without gaps (N, P): coefficients (N, P) and bias (P,)."""
    right = np.concatenate([np.zeros((1, flux.shape[1])), flux])
    solution = np.linalg.solve(system(nodes, gamma, ridge), right)
    return solution[1:], solution[0]


@dataclass(frozen=True)
class Solution:
    """A regression of P pixels on N spectra."""

    flux: Array  #: the fluxes, gaps filled with what the regression itself says there, (N, P)
    left_out_error: Array  #: of each spectrum, if it were not in the training set, (N, P)


def solve(
    nodes: Array, flux: Array, good: NDArray[np.bool_], gamma: float, ridge: float
) -> Solution:
    """Least-squares support vector regression of all pixels by one inverse.

    With the bias the system is ``[[0, 1], [1, K + ridge]] [bias, a] = [0, flux]`` (Suykens &
    Vandewalle 1999, Neural Processing Letters 9, 293). A missing flux is one whose coefficient is
    zero: the value that makes it so follows from a small block of the same inverse. The error of a
    spectrum left out is ``a[i] / inverse[i, i]`` (Cawley & Talbot 2007, JMLR 8, 841).

    Parameters
    ----------
    nodes
        Scaled labels, shape (N, L).
    flux
        Shape (N, P); ignored where it is not good.
    good
        Which fluxes are data, shape (N, P).
    gamma, ridge
        Of the kernel and of the regression.
    """
    inverse = np.linalg.inv(system(nodes, gamma, ridge))
    block = inverse[1:, 1:]

    flux = np.where(good, flux, 0.0)
    coefficients = block @ flux
    for pixel in np.flatnonzero(~good.all(0)):
        missing = np.flatnonzero(~good[:, pixel])
        value = -np.linalg.solve(block[np.ix_(missing, missing)], coefficients[missing, pixel])
        flux[missing, pixel] = value
        coefficients[:, pixel] += block[:, missing] @ value
        coefficients[missing, pixel] = 0.0
    return Solution(flux, coefficients / np.diag(block)[:, None])


def choose(
    nodes: Array, flux: Array, gammas: tuple[float, ...], ridges: tuple[float, ...]
) -> tuple[float, float]:
    """The width of the kernel and the ridge of least mean square leave-one-out error.

    One eigenvalue decomposition of the centred kernel serves all ridges of a width: centring takes
    the place of the bias.

    Parameters
    ----------
    nodes
        Scaled labels, shape (N, L).
    flux
        Standardised, without gaps, shape (N, P).
    gammas, ridges
        To choose from.

    Returns
    -------
    gamma, ridge
    """
    centring = np.eye(len(nodes)) - 1 / len(nodes)
    errors: dict[tuple[float, float], float] = {}
    for gamma in gammas:
        kernel = centring @ radial_kernel(nodes, nodes, gamma) @ centring
        values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
        # The constant vector has the eigenvalue 0, and is the bias: no ridge holds it down.
        constant = np.argmax(np.abs(vectors.sum(0)))
        rotated = vectors.T @ flux
        for ridge in ridges:
            shrink = 1 / (np.maximum(values, 0.0) + ridge)
            shrink[constant] = 0.0
            leverage = (vectors**2 * shrink).sum(1)
            left_out = (vectors * shrink) @ rotated / leverage[:, None]
            errors[gamma, ridge] = float((left_out**2).mean())
    return min(errors, key=errors.__getitem__)
