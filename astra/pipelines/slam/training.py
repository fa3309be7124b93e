"""Training: from labelled spectra to a model."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.errors import UsageError
from astra.pipelines.slam.continuum import basis, normalise
from astra.pipelines.slam.model import Model
from astra.pipelines.slam.regression import choose, solve

Array = NDArray[np.float64]

#: Widths of the kernel and ridges among which training chooses, for labels of unit variance.
GAMMAS = tuple(2.0 ** np.arange(-9, 0))

RIDGES = tuple(10.0 ** np.arange(-8, 1))

CONTINUUM_DEGREE = 4


def train(
    labels: ArrayLike,
    wavelength: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike | None = None,
    path: str | Path | None = None,
    *,
    label_names: tuple[str, ...] = ("teff", "logg", "fe_h", "alpha_fe"),
    continuum_degree: int = CONTINUUM_DEGREE,
    is_normalised: bool = False,
    gammas: tuple[float, ...] = GAMMAS,
    ridges: tuple[float, ...] = RIDGES,
    description: str = "",
) -> Model:
    """A model from labelled spectra, written to `path` if that is given.

    Each pixel's flux is a support vector regression of the labels with a radial kernel
    (Zhang et al. 2020, ApJS 246, 9), here in its least-squares form (Suykens & Vandewalle 1999,
    Neural Processing Letters 9, 293), whose solution is linear in the flux. The width of the
    kernel, one for all pixels, and the ridge of each are those of the least leave-one-out error.

    Parameters
    ----------
    labels
        Shape (N, L), finite.
    wavelength
        Vacuum Angstrom, ascending, shape (P,), the same for all: see resample.py.
    flux, ivar
        Spectra at rest and their inverse variances, shape (N, P). NaN pixels, and those of an
        ivar that is not positive, are left out of the regression of their pixel. Without `ivar`,
        all finite pixels count, and are taken for free of noise.
    path
        File to write, ``.npz``.
    label_names
        Names of the L labels. The task ``slam.slam`` wants these four.
    continuum_degree
        Of the polynomial that takes out the continuum.
    is_normalised
        Whether the spectra are divided by their continuum already, and are used as they are.
    gammas, ridges
        Among which to choose.
    description
        A sentence in the file: what the model was trained on.

    Returns
    -------
    Model

    Raises
    ------
    UsageError
        If the shapes do not fit together, a label is not finite or does not vary, or a pixel has
        fewer than two spectra with data.
    """
    labels, wavelength, flux = (np.asarray(a, float) for a in (labels, wavelength, flux))
    noise_free = ivar is None
    ivar = _next_to_no_noise(flux) if ivar is None else np.asarray(ivar, float)
    _check(labels, wavelength, flux, ivar, label_names)

    if not is_normalised:
        curves = basis(wavelength, continuum_degree)
        pairs = [normalise(f, w, curves) for f, w in zip(flux, ivar, strict=True)]
        flux, ivar = (np.array(a) for a in zip(*pairs, strict=True))
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    _check_pixels(good, wavelength)

    centre, scale = labels.mean(0), labels.std(0)
    nodes = (labels - centre) / scale
    unit, middle, spread = _standardise(flux, good)
    filled = unit if good.all() else solve(nodes, unit, good, *_first_guess(wavelength)).flux
    gamma, ridge = choose(nodes, filled, gammas, ridges)
    solved = solve(nodes, unit, good, gamma, ridge)

    noise = np.where(good & (not noise_free), 1 / np.where(good, ivar, 1.0), 0.0)
    excess = ((solved.left_out_error * spread) ** 2 - noise).sum(0) / good.sum(0)
    model = Model(
        wavelength=wavelength,
        label_names=tuple(label_names),
        centre=centre,
        scale=scale,
        nodes=nodes,
        training_flux=middle + solved.flux * spread,
        scatter=np.sqrt(np.maximum(excess, 0.0)),
        gamma=gamma,
        ridge=ridge,
        continuum_degree=continuum_degree,
        description=description,
    )
    if path is not None:
        model.save(path)
    return model


def _next_to_no_noise(flux: Array) -> Array:
    """Inverse variances for a signal-to-noise ratio of 10,000 at each spectrum's mean flux."""
    level = np.abs(np.where(np.isfinite(flux), flux, 0.0)).mean(-1, keepdims=True)
    return np.broadcast_to((1e4 / np.where(level > 0, level, 1.0)) ** 2, flux.shape)


def _standardise(flux: Array, good: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Fluxes of mean 0 and variance 1 in each pixel, 0 where missing; the mean; the deviation."""
    count = good.sum(0)
    middle = np.where(good, flux, 0.0).sum(0) / count
    offset = np.where(good, flux - middle, 0.0)
    spread = np.sqrt((offset**2).sum(0) / count)
    spread = np.where(spread > 0, spread, 1.0)
    return offset / spread, middle, spread


def _first_guess(wavelength: Array) -> tuple[float, Array]:
    """A width and ridges that are good enough to fill gaps before there are better ones."""
    return 0.06, np.full(wavelength.shape, 1e-3)


def _check(
    labels: Array, wavelength: Array, flux: Array, ivar: Array, label_names: tuple[str, ...]
) -> None:
    n, p = len(labels), len(wavelength)
    if labels.shape != (n, len(label_names)):
        raise UsageError(f"labels have shape {labels.shape}, not (N, {len(label_names)})")
    if flux.shape != (n, p) or ivar.shape != (n, p):
        raise UsageError(
            f"{n} labels and {p} wavelengths want flux and ivar of shape {(n, p)}, "
            f"not {flux.shape} and {ivar.shape}"
        )
    if not (np.isfinite(wavelength).all() and (np.diff(wavelength) > 0).all() and p > 1):
        raise UsageError("wavelengths must be finite and ascending")
    for name, column in zip(label_names, labels.T, strict=True):
        if not np.isfinite(column).all():
            raise UsageError(f"label {name!r} of spectrum {np.argmin(np.isfinite(column))} is NaN")
        if n < 2 or np.ptp(column) == 0:
            raise UsageError(f"label {name!r} is the same in all spectra: leave it out")


def _check_pixels(good: NDArray[np.bool_], wavelength: Array) -> None:
    few = good.sum(0) < 2
    if few.any():
        raise UsageError(
            f"{few.sum()} pixels have data in fewer than two spectra, the first at "
            f"{wavelength[np.argmax(few)]:.1f} Angstrom: cut them off before training"
        )
