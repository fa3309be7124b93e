"""Fit labels to many normalised spectra at once, by Levenberg-Marquardt; see problem.py."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.pipelines.slam.model import Model
from astra.pipelines.slam.pixels import Binned
from astra.pipelines.slam.problem import Problem
from astra.records import dataclass

Array = NDArray[np.float64]

MAX_ITERATIONS = 60

#: The longest step, as a share of a label's range.
MAX_STEP = 0.2

#: A fit has converged when a full step would lower chi2 by less than this, times the reduced chi2
#: if that is above 1: the step is then about 0.03 of the labels' errors.
TOLERANCE = 1e-3

#: A fit ends when even steps with this damping do not lower chi2. It has then converged if a full
#: step would lower chi2 by less than `TOLERANCE_AT_END`, since the model has single precision.
MAX_DAMPING = 1e8
TOLERANCE_AT_END = 1e-2

#: A label is at an edge if it is closer to it than this share of the label's range.
EDGE_SHARE = 1e-3


@dataclass(frozen=True, eq=False)
class Fit:
    """The fits of M spectra, with D parameters each: L labels and, if fitted, the velocity."""

    labels: Array  #: (M, D), NaN where the fit failed
    covariance: Array  #: of their errors, (M, D, D), NaN where the fit failed
    initial: Array  #: where the fit started, (M, D), NaN where there was nothing to fit
    chi2: Array  #: (M,), NaN where the fit failed
    n_pixels: NDArray[np.int64]  #: pixels with data, (M,)
    n_freedom: NDArray[np.int64]  #: degrees of freedom, (M,)
    n_iterations: NDArray[np.int64]  #: steps that were tried, (M,)
    converged: NDArray[np.bool_]  #: (M,)
    at_edge: NDArray[np.bool_]  #: (M, D)

    @property
    def errors(self) -> Array:
        """Standard deviations of the labels, (M, D)."""
        return np.sqrt(np.diagonal(self.covariance, axis1=-2, axis2=-1))

    @property
    def correlation(self) -> Array:
        """Correlations of the labels' errors, (M, D, D)."""
        return self.covariance / (self.errors[:, :, None] * self.errors[:, None, :])


def fit(
    model: Model,
    flux: ArrayLike,
    ivar: ArrayLike,
    *,
    free_continuum: bool = True,
    max_iterations: int = MAX_ITERATIONS,
) -> Fit:
    """Fit labels to M spectra on the model's pixels, with uncertainties from the Jacobian.

    Parameters
    ----------
    model
        The trained model, of L labels and P pixels.
    flux, ivar
        Normalised spectra and inverse variances; shape (M, P) or (P,). Pixels that are NaN, or
        whose ivar is not positive, are not used.
    free_continuum
        Whether to fit the remaining continuum as well: a polynomial of the model's degree.
    max_iterations
        The largest number of steps; a fit that has not converged then has failed.

    Returns
    -------
    Fit
        Labels lie inside the range of the training set. The covariance is the inverse of
        ``J.T @ J``, where ``J`` is the Jacobian of the weighted residuals without its component
        along the continuum.
    """
    problem = Problem.of(model, on_pixels(flux, ivar), free_continuum)
    return minimise(problem, problem.nearest_nodes()[0], max_iterations)


def on_pixels(flux: ArrayLike, ivar: ArrayLike) -> Binned:
    """Return spectra on the model's own pixels; bad are NaN pixels, and those with an ivar of 0."""
    flux, ivar = (np.atleast_2d(np.asarray(a, float)) for a in (flux, ivar))
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    return Binned(np.where(good, flux, 0.0), np.where(good, ivar, 0.0))


def minimise(
    problem: Problem, starts: Sequence[Array], max_iterations: int = MAX_ITERATIONS
) -> Fit:
    """Fit from each of `starts`, of shape (M, D) each, and return the fit with the lowest chi2.

    Parameters are scaled to their ranges, from 0 to 1.
    """
    best, *others = [_minimum(problem, start, max_iterations) for start in starts]
    for other in others:
        steps = best.n_iterations + other.n_iterations
        better = other.converged & ~(best.chi2 <= other.chi2)
        for field in fields(Fit):
            getattr(best, field.name)[better] = getattr(other, field.name)[better]
        best.n_iterations[:] = steps
    return best


def _minimum(problem: Problem, start: Array, max_iterations: int) -> Fit:
    """Return the minimum in which the search from `start` ends."""
    n_freedom = problem.n_pixels - problem.n_parameters
    search = _search(problem, start, np.flatnonzero(n_freedom > 0), max_iterations)
    covariance, regular = _covariances(search.hessian)
    converged = search.converged & regular
    failed = ~converged
    unit = np.where(failed[:, None], np.nan, search.unit)
    lower, width = problem.lower, problem.width
    covariance[failed] = np.nan
    return Fit(
        labels=lower + width * unit,
        covariance=covariance * width[:, None] * width,
        initial=np.where((problem.n_pixels > 0)[:, None], lower + width * start, np.nan),
        chi2=np.where(failed, np.nan, search.chi2),
        n_pixels=problem.n_pixels,
        n_freedom=n_freedom,
        n_iterations=search.n_iterations,
        converged=converged,
        at_edge=(unit < EDGE_SHARE) | (unit > 1 - EDGE_SHARE),
    )


@dataclass(eq=False)
class _Search:
    """Where each of M spectra has got to."""

    unit: Array  # labels, from 0 to 1 over the range of the grid, (M, L)
    chi2: Array  # and half its Hessian and minus half its gradient, there
    hessian: Array
    gradient: Array
    damping: Array
    n_iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]

    @classmethod
    def begin(cls, problem: Problem, start: Array, which: NDArray[np.int64]) -> "_Search":
        m, n_labels = start.shape
        search = cls(
            unit=start.copy(),
            chi2=np.full(m, np.nan),
            hessian=np.full((m, n_labels, n_labels), np.nan),
            gradient=np.full((m, n_labels), np.nan),
            damping=np.full(m, 1e-2),
            n_iterations=np.zeros(m, int),
            converged=np.zeros(m, bool),
        )
        if which.size:
            search.move_to(which, start[which], *problem.linearise(start[which], which))
        return search

    def move_to(
        self, which: NDArray[np.int64], unit: Array, chi2: Array, hessian: Array, gradient: Array
    ) -> None:
        self.unit[which], self.chi2[which] = unit, chi2
        self.hessian[which], self.gradient[which] = hessian, gradient


def _search(
    problem: Problem, start: Array, which: NDArray[np.int64], max_iterations: int
) -> _Search:
    """Levenberg-Marquardt with labels kept inside the grid (Marquardt 1963, SIAM J. 11, 431)."""
    search = _Search.begin(problem, start, which)
    for _ in range(max_iterations):
        which = _one_step(problem, search, which)
        if not which.size:
            break
    return search


def _one_step(problem: Problem, search: _Search, which: NDArray[np.int64]) -> NDArray[np.int64]:
    """Try a step for those that have not converged: they are returned."""
    unit = search.unit[which]
    hessian, gradient = _fixed_at_edges(unit, search.hessian[which], search.gradient[which])
    gain_of_full_step = (gradient * _damped_steps(hessian, gradient, 0.0)).sum(-1)
    excess = search.chi2[which] / (problem.n_pixels - problem.n_parameters)[which]
    may_go_on = search.damping[which] < MAX_DAMPING
    tolerance = np.where(may_go_on, TOLERANCE, TOLERANCE_AT_END) * np.maximum(excess, 1.0)
    search.converged[which] = gain_of_full_step < tolerance
    ahead = ~search.converged[which] & may_go_on
    which, unit = which[ahead], unit[ahead]
    hessian, gradient = hessian[ahead], gradient[ahead]
    if not which.size:
        return which

    step = _damped_steps(hessian, gradient, search.damping[which])
    step *= np.minimum(1, MAX_STEP / np.maximum(np.abs(step).max(-1), 1e-300))[:, None]
    trial = np.clip(unit + step, 0.0, 1.0)
    expected = _expected_gain(hessian, gradient, trial - unit)
    found = problem.linearise(trial, which)
    search.n_iterations[which] += 1
    gained = search.chi2[which] - found[0]
    better = gained > 0
    # Nielsen (1999, IMM-REP-1999-05, Technical University of Denmark): a step that gains much
    # less than expected has gone too far, even if it gained; this ends zigzags.
    share = np.clip(gained / np.maximum(expected, 1e-300), 0.0, 2.0)
    search.damping[which] *= np.where(better, np.clip(1 - (2 * share - 1) ** 3, 0.1, 2.0), 5.0)
    search.move_to(which[better], trial[better], *(value[better] for value in found))
    return which


def _expected_gain(hessian: Array, gradient: Array, step: Array) -> Array:
    """By how much `step` would lower chi2 (m,) if the model were linear."""
    curved = np.einsum("mi,mij,mj->m", step, hessian, step)
    return 2 * (gradient * step).sum(-1) - curved


def _fixed_at_edges(unit: Array, hessian: Array, gradient: Array) -> tuple[Array, Array]:
    """Labels at an edge that chi2 would push over it are not free."""
    held = ((unit <= 0) & (gradient < 0)) | ((unit >= 1) & (gradient > 0))
    pair = held[:, :, None] | held[:, None, :]
    diagonal = np.eye(unit.shape[1], dtype=bool)
    hessian = np.where(pair, np.where(diagonal, 1.0, 0.0), hessian)
    return hessian, np.where(held, 0.0, gradient)


def _damped_steps(hessian: Array, gradient: Array, damping: ArrayLike) -> Array:
    """Steps (m, L), the Hessian's diagonal strengthened by `damping`, of shape (m,) or ()."""
    scale = np.sqrt(np.maximum(np.diagonal(hessian, axis1=-2, axis2=-1), 1e-300))
    unit = hessian / (scale[:, :, None] * scale[:, None, :])
    # 1e-12 determines labels that the spectrum does not constrain.
    unit = unit + (1e-12 + np.asarray(damping)[..., None, None]) * np.eye(scale.shape[1])
    return np.linalg.solve(unit, (gradient / scale)[..., None])[..., 0] / scale


def _covariances(hessian: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Covariances (M, L, L), and which of them are good to use (M,)."""
    n_labels = hessian.shape[-1]
    scale = np.sqrt(np.diagonal(hessian, axis1=-2, axis2=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = hessian / (scale[:, :, None] * scale[:, None, :])
    finite = np.isfinite(unit).all((-2, -1))
    unit[~finite], scale[~finite] = np.eye(n_labels), 1.0
    regular = finite & (np.linalg.eigvalsh(unit)[:, 0] > 1e-10)
    unit[~regular] = np.eye(n_labels)
    return np.linalg.inv(unit) / (scale[:, :, None] * scale[:, None, :]), regular
