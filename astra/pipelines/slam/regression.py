"""Least-squares support vector regression with a radial kernel, for all pixels at once.

With kernel ``K``, ridge ``r``, fluxes ``y`` of the training spectra and their relative variances
``1 / w``, the coefficients ``a`` and the bias ``b`` solve ``(K + r / w) a + b = y`` and
``sum(a) = 0`` (Suykens & Vandewalle 1999, Neural Processing Letters 9, 293; weights as in Suykens
et al. 2002, Neurocomputing 48, 85). With ``u = sqrt(w)`` and among vectors that are orthogonal to
``u``, the eigenvectors ``V`` and eigenvalues ``e`` of ``u K u`` give
``a = u V (V.T u y / (e + r))``: one factorisation is enough for all pixels, although each pixel has
a ridge of its own.
"""

import numpy as np
from numpy.typing import NDArray

from astra.records import dataclass

Array = NDArray[np.float64]

#: The components of a model reproduce its flux with this root mean square error.
COMPRESSION_ERROR = 3e-4


def radial_kernel(x: Array, nodes: Array, gamma: float) -> Array:
    """Return ``exp(-gamma * |x - node|**2)``: shape (..., N) for x (..., L) and nodes (N, L)."""
    square = (x**2).sum(-1)[..., None] + (nodes**2).sum(-1) - 2 * x @ nodes.T
    return np.exp(-gamma * np.maximum(square, 0.0))


@dataclass(frozen=True, eq=False)
class Factors:
    """The kernel of weighted training spectra, factorised."""

    nodes: Array  #: scaled labels, (N, L)
    gamma: float  #: of the kernel
    root_weight: Array  #: square root of each spectrum's weight, (N,)
    values: Array  #: eigenvalues, (N - 1,)
    vectors: Array  #: eigenvectors, (N, N - 1)

    @classmethod
    def of(cls, nodes: Array, gamma: float, weight: Array | None = None) -> "Factors":
        """Factorise the kernel in the space that is orthogonal to the square root of `weight`."""
        root = np.ones(len(nodes)) if weight is None else np.sqrt(weight)
        mirror = root / np.sqrt((root**2).sum())
        mirror[0] += 1
        # A reflection maps the first axis to `root`, and the others to the space orthogonal to it.
        plane = (np.eye(len(nodes)) - 2 * np.outer(mirror, mirror) / (mirror @ mirror))[:, 1:]
        kernel = root[:, None] * radial_kernel(nodes, nodes, gamma) * root
        values, vectors = np.linalg.eigh(plane.T @ kernel @ plane)
        return cls(nodes, gamma, root, np.maximum(values, 0.0), plane @ vectors)

    def coefficients_and_bias(self, flux: Array, ridge: Array) -> tuple[Array, Array]:
        """Return the regression of fluxes without gaps (N, P): shapes (N, P) and (P,)."""
        rotated = self.vectors.T @ (flux * self.root_weight[:, None])
        coefficients = self.vectors @ (rotated / (self.values[:, None] + ridge))
        coefficients *= self.root_weight[:, None]
        # sum(a) = 0, so the weighted mean over the equations is the bias.
        rest = flux - radial_kernel(self.nodes, self.nodes, self.gamma) @ coefficients
        return coefficients, self.root_weight**2 @ rest / (self.root_weight**2).sum()


def compress(
    factors: Factors, flux: Array, ridge: Array, error: float = COMPRESSION_ERROR
) -> tuple[Array, Array, Array]:
    """Compress the regression into a few components, so that it is fast to evaluate.

    Parameters
    ----------
    factors
        The factorised kernel.
    flux
        Fluxes without gaps, shape (N, P).
    ridge
        The ridge of each pixel, shape (P,).
    error
        The largest root mean square error of the flux at the nodes.

    Returns
    -------
    node_weights, components, bias
        Shapes (N, R), (R, P) and (P,): ``K @ node_weights @ components + bias`` is the flux.
    """
    coefficients, bias = factors.coefficients_and_bias(flux, ridge)
    at_nodes = radial_kernel(factors.nodes, factors.nodes, factors.gamma) @ coefficients
    _, size, components = np.linalg.svd(at_nodes, full_matrices=False)
    lost = np.sqrt(np.append(np.cumsum(size[::-1] ** 2)[::-1], 0.0) / flux.size)
    components = components[: max(1, int(np.argmax(lost <= error)))]
    return coefficients @ components.T, components, bias


@dataclass(frozen=True)
class Solution:
    """The regression of a training set: its fluxes without gaps and their leave-one-out errors."""

    flux: Array  #: the fluxes, with gaps filled by the regression itself, (N, P)
    left_out_error: Array  #: error of each flux by a regression without its spectrum, (N, P)
    standardised: Array  #: the same in units of its expected standard deviation, (N, P)


def solve(factors: Factors, flux: Array, good: NDArray[np.bool_], ridge: Array) -> Solution:
    """Fill gaps, and compute the errors of spectra that are left out in turn.

    A missing flux must have no influence, that is, a coefficient of zero. The value for which this
    holds follows from a block of the inverse ``V (1 / (e + r)) V.T``. The leave-one-out error is
    ``a[i] / inverse[i, i]`` (Cawley & Talbot 2007, JMLR 8, 841); that of a finite flux in a gap is
    its difference from the value that fills the gap.

    Parameters
    ----------
    factors
        The factorised kernel.
    flux
        Shape (N, P); ignored where it is not good.
    good
        Which fluxes are good, shape (N, P).
    ridge
        The ridge of each pixel, shape (P,).
    """
    root, vectors = factors.root_weight[:, None], factors.vectors
    shrink = 1 / (factors.values[:, None] + ridge)
    filled = np.where(good, flux, 0.0)
    for pixel in np.flatnonzero(~good.all(0)):
        bad = ~good[:, pixel]
        gaps = vectors[bad]
        block = (gaps * shrink[:, pixel]) @ gaps.T
        unfilled = gaps @ (shrink[:, pixel] * (vectors.T @ (root[:, 0] * filled[:, pixel])))
        filled[bad, pixel] = -np.linalg.solve(block, unfilled) / root[bad, 0]
    scaled = vectors @ (shrink * (vectors.T @ (root * filled)))
    inverse = vectors**2 @ shrink
    in_gap = np.where(np.isfinite(flux), flux - filled, 0.0)
    left_out = np.where(good, scaled / inverse / root, in_gap)
    return Solution(filled, left_out, scaled / np.sqrt(inverse))


def choose_hyperparameters(
    nodes: Array,
    flux: Array,
    gammas: tuple[float, ...],
    ridges: tuple[float, ...],
    weight: Array | None = None,
) -> tuple[float, Array]:
    """Choose the kernel and the ridges with the smallest leave-one-out errors.

    Each pixel gets the ridge with the smallest mean squared leave-one-out error. All pixels share
    the width of the kernel for which the sum of the logarithms of these errors is smallest, so that
    noisy pixels do not dominate.

    Parameters
    ----------
    nodes
        Scaled labels, shape (N, L).
    flux
        Fluxes without gaps, shape (N, P).
    gammas, ridges
        The candidates; at least one of each.
    weight
        The weight of each spectrum, shape (N,).

    Returns
    -------
    gamma, ridge
        A number, and an array of shape (P,).
    """
    errors = {g: _left_out_errors(Factors.of(nodes, g, weight), flux, ridges) for g in gammas}
    floor = np.finfo(float).tiny
    best = min(gammas, key=lambda gamma: np.log(errors[gamma].min(0) + floor).sum())
    return best, np.asarray(ridges)[errors[best].argmin(0)]


def _left_out_errors(factors: Factors, flux: Array, ridges: tuple[float, ...]) -> Array:
    """Return the weighted mean squared leave-one-out error for each ridge; (R, P)."""
    rotated = factors.vectors.T @ (flux * factors.root_weight[:, None])
    squares = factors.vectors**2
    errors = np.empty((len(ridges), flux.shape[1]))
    for i, ridge in enumerate(ridges):
        shrink = 1 / (factors.values + ridge)
        left_out = (factors.vectors * shrink) @ rotated / (squares @ shrink)[:, None]
        errors[i] = (left_out**2).mean(0)
    return errors
