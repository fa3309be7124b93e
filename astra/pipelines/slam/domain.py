"""Decide whether a spectrum is of the kind that a model was trained on.

There are three tests, whose limits come from spectra that were left out of the training: how far
the labels are from those of the training set; how far the spectrum, in coarse pixels, is from those
of the training set; and, if training was given spectra of other kinds, on which side it lies of the
boundary between the two that a least-squares support vector machine draws (Suykens & Vandewalle
1999, Neural Processing Letters 9, 293).
"""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from astra.pipelines.slam.regression import Factors, choose_hyperparameters, radial_kernel, solve
from astra.records import dataclass

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Width of a coarse pixel, in the natural logarithm of the wavelength.
COARSE_WIDTH = 0.018

#: Number of principal components of the coarse spectra in which the boundary is drawn.
N_COMPONENTS = 10

#: Candidates for the width of the boundary's kernel and its ridge, for components of unit variance.
GAMMAS = (0.03, 0.1, 0.3, 1.0)
RIDGES = (1e-3, 1e-2, 0.1)

#: The limit of a distance, as a multiple of the largest one among spectra that were left out.
DISTANCE_SLACK = 1.3

#: The limit of the residuals, as a multiple of the largest ones among the `N_NEIGHBOURS` training
#: spectra with the nearest labels, each labelled by a model without it.
MISMATCH_SLACK = 3.2
#: Residuals of one percent of the continuum are never flagged.
MIN_MISMATCH = 0.01
N_NEIGHBOURS = 8


@dataclass(frozen=True, eq=False)
class Domain:
    """The coarse spectra and labels of a training set, and the boundary to other kinds."""

    inside: Array  #: coarse spectra of the training set, (N, C)
    most_distance: float  #: largest allowed rms distance from the nearest of these
    most_label_distance: float  #: and from the nearest node, in scaled labels
    labels: Array  #: scaled labels of the training set, (N, L)
    mismatch: Array  #: rms residuals of left-out spectra, NaN beyond the boundary, (N,)
    middle: Array  #: mean of all coarse spectra, (C,)
    directions: Array  #: of the components, (Q, C); none without spectra of other kinds
    nodes: Array  #: components of all spectra, (K, Q)
    weights: Array  #: of the nodes, (K,)
    bias: float
    gamma: float

    def is_outside(self, coarse: Array, noise2: Array) -> Flags:
        """Return which coarse spectra are of other kinds.

        Parameters
        ----------
        coarse : coarse spectra, (M, C).
        noise2 : mean variances of their noise, (M,).
        """
        square = (coarse**2).sum(1)[:, None] + (self.inside**2).sum(1)
        square = (square - 2 * coarse @ self.inside.T).min(1) / coarse.shape[1]
        far = square > self.most_distance**2 + 2 * noise2
        if not self.nodes.size:
            return np.asarray(far)
        found = radial_kernel(self.components(coarse), self.nodes, self.gamma)
        return np.asarray(far | (found @ self.weights + self.bias < 0))

    def mismatch_limits(self, labels: Array) -> Array:
        """Return the largest allowed rms residual, in units of the continuum; (M,).

        Parameters
        ----------
        labels : scaled labels, (M, L).
        """
        return MISMATCH_SLACK * _largest_mismatch_nearby(labels, self.labels, self.mismatch)

    def components(self, coarse: Array) -> Array:
        """Return the principal components of coarse spectra, (M, Q)."""
        return (coarse - self.middle) @ self.directions.T


def coarsen(wavelength: Array, flux: Array, noise2: Array) -> tuple[Array, Array]:
    """Average spectra over coarse pixels (M, C); return also their mean noise variance (M,)."""
    n = max(int(np.log(wavelength[-1] / wavelength[0]) / COARSE_WIDTH), 1)
    parts = np.array_split(np.arange(flux.shape[1]), n)
    coarse = np.stack([np.clip(flux[:, part], -1, 3).mean(1) for part in parts], axis=1)
    noise = np.stack([noise2[:, part].sum(1) / len(part) ** 2 for part in parts], axis=1)
    return coarse, np.minimum(noise, 1.0).mean(1)


def learn_domain(
    inside: Array, outside: Array, mismatch: Array, nodes: Array, fitted: Array
) -> tuple[Domain, Flags, Flags]:
    """Determine the limits from spectra that were left out.

    Parameters
    ----------
    inside, outside
        Coarse spectra of the training set and of other kinds, (N, C) and (O, C).
    mismatch
        Mean squared residuals of the training set, NaN where a fit failed, (N,).
    nodes
        Scaled labels of the training set, (N, L).
    fitted
        Scaled labels that were fitted to the spectra that were left out.

    Returns
    -------
    domain, inside_flagged, outside_flagged
        The domain, and which of the spectra are flagged when each is left out in turn.
    """
    is_wrong, outside_flagged = np.zeros(len(inside), bool), np.zeros(len(outside), bool)
    boundary = _no_boundary(inside.shape[1])
    if len(outside):
        boundary, value = _boundary(np.vstack([inside, outside]), len(inside))
        is_wrong, outside_flagged = value[: len(inside)] < 0, value[len(inside) :] < 0
    distance, sizes = _nearest(inside, ~is_wrong), np.sqrt(np.maximum(mismatch, 0.0))
    domain = Domain(
        inside=inside,
        most_distance=DISTANCE_SLACK * float(distance[~is_wrong].max(initial=0.0)),
        most_label_distance=DISTANCE_SLACK
        * float(_nearest(nodes, np.ones(len(nodes), bool)).max())
        * np.sqrt(nodes.shape[1]),
        labels=nodes,
        mismatch=np.where(is_wrong, np.nan, sizes),
        **boundary,
    )
    limit = MISMATCH_SLACK * _largest_mismatch_nearby(
        fitted, nodes, domain.mismatch, leaves_out=True
    )
    flagged = is_wrong | (distance > domain.most_distance) | ~(sizes <= limit)
    return domain, flagged, outside_flagged


class _Boundary(TypedDict):
    """The fields of `Domain` that describe the boundary to other kinds."""

    middle: Array
    directions: Array
    nodes: Array
    weights: Array
    bias: float
    gamma: float


def _no_boundary(n_coarse: int) -> _Boundary:
    return {
        "middle": np.zeros(n_coarse), "directions": np.zeros((0, n_coarse)),
        "nodes": np.zeros((0, 0)), "weights": np.zeros(0), "bias": 0.0, "gamma": 1.0,
    }  # fmt: skip


def _boundary(coarse: Array, n_inside: int) -> tuple[_Boundary, Array]:
    """Return the boundary, and on which side of a boundary drawn without it each spectrum lies."""
    middle = coarse.mean(0)
    _, size, directions = np.linalg.svd(coarse - middle, full_matrices=False)
    n = min(N_COMPONENTS, int(np.count_nonzero(size > 1e-9 * size[0])))
    directions = directions[:n]
    directions = directions / ((coarse - middle) @ directions.T).std()
    nodes = (coarse - middle) @ directions.T
    side = np.where(np.arange(len(coarse)) < n_inside, 1.0, -1.0)[:, None]
    gamma, ridge = choose_hyperparameters(nodes, side, GAMMAS, RIDGES)
    factors = Factors.of(nodes, gamma)
    solved = solve(factors, side, np.ones(side.shape, bool), ridge)
    weights, bias = factors.coefficients_and_bias(side, ridge)
    boundary: _Boundary = {
        "middle": middle, "directions": directions, "nodes": nodes, "weights": weights[:, 0],
        "bias": float(bias[0]), "gamma": gamma,
    }  # fmt: skip
    return boundary, (side - solved.left_out_error)[:, 0]


def _nearest(points: Array, among: Flags) -> Array:
    """Return the rms distance of each point from the nearest other point of `among`, (N,)."""
    square = ((points[:, None] - points[None, among]) ** 2).mean(-1)
    own = np.flatnonzero(among)
    square[own, np.arange(own.size)] = np.inf
    nearest = np.sqrt(square.min(1, initial=np.inf))
    return np.where(np.isfinite(nearest), nearest, 0.0)


def _largest_mismatch_nearby(
    labels: Array, nodes: Array, mismatch: Array, leaves_out: bool = False
) -> Array:
    """Return the largest mismatch of the nodes that are nearest to each of `labels`, (M,)."""
    square = ((np.nan_to_num(labels)[:, None] - nodes) ** 2).sum(-1)
    square[:, ~np.isfinite(mismatch)] = np.inf
    if leaves_out:
        np.fill_diagonal(square, np.inf)
    nearest = np.argsort(square, axis=1)[:, :N_NEIGHBOURS]
    worst = np.nan_to_num(mismatch)[nearest].max(1)
    return np.asarray(np.maximum(worst, MIN_MISMATCH / MISMATCH_SLACK))
