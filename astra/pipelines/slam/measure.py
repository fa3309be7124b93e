"""Fit labels and velocities to the observed pixels of many spectra, without cosmic rays."""

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from astra.pipelines.slam.continuum import continua
from astra.pipelines.slam.domain import coarsen
from astra.pipelines.slam.fit import Fit, minimise
from astra.pipelines.slam.model import Model
from astra.pipelines.slam.pixels import SPEED_OF_LIGHT_KM_S, Binned, Observed, edges
from astra.pipelines.slam.problem import Problem
from astra.records import dataclass

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: Largest number of rounds; each averages, fits and clips the spectra again.
MAX_ROUNDS = 8

#: The velocity has settled when it changes by less than this share of its error, or than this.
SETTLED_SHARE = 0.05
SETTLED_KM_S = 3.0

#: If the velocity is unknown, the fit starts at the best of these.
START_VELOCITIES_KM_S = np.arange(-500.0, 501.0, 100.0)

#: Pixels that deviate from the model by more than this many standard deviations are excluded, and
#: their neighbours above the second limit; but at most this share of all pixels, the worst ones.
CLIP_AT = 5.0
CLIP_NEIGHBOURS_AT = 3.0
MAX_CLIPPED_SHARE = 0.05

#: Noise, in units of the continuum, above which a pixel has a lower weight in the mismatch.
MISMATCH_NOISE = 0.03


@dataclass(eq=False)
class Measured:
    """The fits of M spectra, with their velocities, clipped pixels and mismatches."""

    fit: Fit  #: labels, and as the last parameter the velocity beyond the last shift
    velocity: Array  #: [km/s] in the frame in which the spectra were given, (M,)
    n_valid: Integers  #: pixels of the model that have data, (M,)
    n_clipped: Integers  #: pixels left out by their residuals, (M,)
    mismatch2: Array  #: mean squared residual less the noise, in units of the continuum, (M,)
    e_mismatch2: Array  #: its error due to the noise, (M,)
    continuum: Array  #: in the unit of the flux, on the model's pixels, (M, P)
    coarse: Array  #: the spectrum in coarse pixels, see domain.py, (M, C)
    coarse_noise2: Array  #: mean variance of the noise of these, (M,)
    settled: Flags  #: whether velocity and clipped pixels no longer change, (M,)

    def update(self, which: Integers, other: "Measured") -> None:
        """Replace the values of some spectra by those of a later round."""
        other.fit.n_iterations[:] += self.fit.n_iterations[which]
        other.fit.initial[:] = self.fit.initial[which]
        for mine, theirs in ((self, other), (self.fit, other.fit)):
            for field in fields(theirs):
                if field.name != "fit":
                    getattr(mine, field.name)[which] = getattr(theirs, field.name)


def measure(model: Model, observed: Observed, unknown: Flags | None = None) -> Measured:
    """Fit labels and velocities.

    Parameters
    ----------
    model
        The trained model.
    observed
        M spectra, approximately in the rest frame.
    unknown
        Which of them have an unknown velocity, (M,).
    """
    which = np.arange(observed.n_spectra)
    velocity = np.zeros(observed.n_spectra)
    clipped = np.zeros((observed.n_spectra, model.wavelength.size), bool)
    if unknown is not None and unknown.any():
        searched = np.flatnonzero(unknown)
        velocity[searched] = _best_velocities(model, observed.subset(searched))
    measured, start, clipped = _one_round(model, observed, velocity, clipped, None)
    velocity = measured.velocity.copy()
    for _ in range(MAX_ROUNDS - 1):
        start, which = start[~measured.settled[which]], which[~measured.settled[which]]
        if not which.size:
            break
        some = observed.subset(which)
        found, start, now_clipped = _one_round(model, some, velocity[which], clipped[which], start)
        measured.update(which, found)
        clipped[which], velocity[which] = now_clipped, found.velocity
    return measured


def normalised(
    model: Model, observed: Observed, velocity: Array, clipped: Flags | None = None
) -> tuple[Problem, Binned, Array]:
    """Shift and average spectra; return the normalised problem, the spectra, and their continua."""
    binned = Binned.of(model.grid, observed.shifted(velocity))
    used = binned.ivar if clipped is None else np.where(clipped, 0.0, binned.ivar)
    level = continua(binned.flux, used, model.continuum_basis)
    good = (binned.ivar > 0) & np.isfinite(level)
    safe = np.where(good, level, 1.0)
    flux = np.where(good, binned.flux / safe, 0.0)
    ivar = np.where(good, binned.ivar * safe**2, 0.0)
    spectra = Binned(flux, ivar, binned.offset, binned.taps)
    return Problem.of(model, spectra), binned, level


def _best_velocities(model: Model, observed: Observed) -> Array:
    """Return the start velocity at which a node fits best, for each spectrum; (M,)."""
    chi2 = []
    for velocity in START_VELOCITIES_KM_S:
        problem, _, _ = normalised(model, observed, np.full(observed.n_spectra, velocity))
        chi2.append(problem.nearest_nodes()[1] / np.maximum(problem.n_pixels, 1))
    return START_VELOCITIES_KM_S[np.argmin(chi2, axis=0)]


def _one_round(
    model: Model, observed: Observed, velocity: Array, clipped: Flags, start: Array | None
) -> tuple[Measured, Array, Flags]:
    """Average, fit and clip; return also the parameters to continue from and the clipped pixels."""
    problem, binned, level = normalised(model, observed, velocity, clipped)
    clean = problem.without(clipped)
    starts = clean.nearest_nodes()[0] if start is None else [start]
    found = minimise(clean, starts)
    unit = (found.labels - problem.lower) / problem.width
    unit = np.where(found.converged[:, None], unit, starts[0])
    residual, _, left = clean.residuals(unit, np.arange(len(unit)))
    mismatch2, e_mismatch2 = _mismatch(clean, residual)
    labels = (problem.lower + problem.width * unit)[:, :-1]
    coarse, coarse_noise2 = _coarse(clean, model.flux(labels), left)
    now_clipped = _clipped(residual * problem.weight) & found.converged[:, None]

    step, error = found.labels[:, -1], found.errors[:, -1]
    with np.errstate(invalid="ignore"):
        at_rest = np.abs(step) <= np.maximum(SETTLED_SHARE * error, SETTLED_KM_S)
    settled = ~found.converged | (at_rest & ~(now_clipped & ~clipped).any(1))
    unit[:, -1] = 0.5
    measured = Measured(
        fit=found,
        velocity=velocity + np.where(found.converged, step, 0.0),
        n_valid=np.count_nonzero(binned.ivar * model.is_used, axis=1),
        n_clipped=now_clipped.sum(1),
        mismatch2=np.where(found.converged, mismatch2, np.nan),
        e_mismatch2=e_mismatch2,
        continuum=level * left,
        coarse=coarse,
        coarse_noise2=coarse_noise2,
        settled=settled,
    )
    return measured, unit, now_clipped


def _coarse(problem: Problem, flux: Array, left: Array) -> tuple[Array, Array]:
    """Return coarse spectra, in which the model replaces missing and clipped pixels."""
    good = (problem.weight > 0) & (left > 0.1)
    safe = np.where(good, left, 1.0)
    filled = np.where(good, problem.spectra.flux / safe, flux)
    noise2 = np.where(good, 1 / np.where(good, problem.spectra.ivar * safe**2, 1.0), 0.0)
    return coarsen(problem.model.wavelength, filled, noise2)


def _mismatch(problem: Problem, residual: Array) -> tuple[Array, Array]:
    """Return the weighted mean of the squared residuals less the noise, and its error.

    The weights depend only on the noise, and not on the model's scatter in a pixel.
    """
    good = problem.weight > 0
    variance = np.where(good, 1 / np.where(good, problem.spectra.ivar, 1.0), 0.0)
    weight = np.where(good, 1 / (variance + MISMATCH_NOISE**2), 0.0)
    total = np.maximum(weight.sum(1), 1e-300)
    excess = (weight * (residual**2 - variance)).sum(1) / total
    return excess, np.sqrt(2 * (weight**2 * variance**2).sum(1)) / total


def _clipped(deviation: Array) -> Flags:
    """Return the pixels to exclude, given their residuals in standard deviations; (M, P)."""
    size = np.abs(deviation)
    most = max(1, int(MAX_CLIPPED_SHARE * size.shape[1]))
    limit = np.maximum(np.partition(size, -most, axis=1)[:, -most], CLIP_AT)[:, None]
    far = size > limit
    beside = np.zeros_like(far)
    beside[:, 1:] |= far[:, :-1]
    beside[:, :-1] |= far[:, 1:]
    return far | (beside & (size > CLIP_NEIGHBOURS_AT))


def on_own_pixels(
    model: Model, found: Measured, i: int, wavelength: Array, scale: float
) -> dict[str, Array | None]:
    """Return the model's flux and the continuum of spectrum `i` on its own pixels.

    They are NaN outside of the model's range; both are None if the fit failed.
    """
    if not found.fit.converged[i]:
        return {"model_flux": None, "model_continuum": None}
    order = np.argsort(wavelength, kind="stable")
    shift = np.log1p(found.velocity[i] / SPEED_OF_LIGHT_KM_S)
    left, right = edges(np.log(wavelength[order]) - shift)
    scores = np.append(model.scores(found.fit.labels[i, :-1]), 1.0)
    means = model.grid.means(scores @ model.splines, left, right)
    level = np.interp((left + right) / 2, np.log(model.wavelength), found.continuum[i])
    flux, continuum = np.full(wavelength.shape, np.nan), np.full(wavelength.shape, np.nan)
    inside = np.isfinite(means)
    flux[order[inside]] = (means * level)[inside] * scale
    continuum[order[inside]] = level[inside] * scale
    return {"model_flux": flux.astype(np.float32), "model_continuum": continuum.astype(np.float32)}
