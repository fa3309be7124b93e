"""From the pixels of one spectrum to the columns of its result."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.pipelines.slam.continuum import normalise
from astra.pipelines.slam.fit import Fit, fit
from astra.pipelines.slam.model import Model
from astra.pipelines.slam.resample import at_rest, good_pixels, resample

Array = NDArray[np.float64]

#: Flagged: data for less than this share of the model's pixels; a larger reduced chi2; a lower
#: signal-to-noise ratio.
FEW_PIXELS = 0.5

BAD_CHI2 = 3.0

LOW_SNR = 10.0


def label(
    model: Model,
    wavelength: ArrayLike | None,
    flux: ArrayLike | None,
    ivar: ArrayLike | None,
    pixel_flags: ArrayLike | None = None,
    v_rad: float | None = None,
) -> dict[str, Any]:
    """Labels of one spectrum, as columns of the table of results.

    Parameters
    ----------
    model
        The trained model.
    wavelength, flux, ivar
        Vacuum Angstrom, flux in any unit, its inverse variance; each of shape (P,). The pixels
        need not be the model's. None is a spectrum without data.
    pixel_flags
        Integers, shape (P,); pixels that are not 0 do not count, nor do those of NaN or of an
        inverse variance that is not positive.
    v_rad
        Radial velocity [km/s] of the star in these wavelengths; None where they are at rest.

    Returns
    -------
    dict
        Labels, ``e_...``, ``rho_..._...``, ``initial_...``, ``chi2`` and so on, and every flag as
        a bool. None stands for what is not known; there is no NaN.

    Raises
    ------
    ValueError
        If the arrays differ in shape.
    """
    wavelength, flux, ivar, flags = _arrays(wavelength, flux, ivar, pixel_flags)
    if v_rad is not None and np.isfinite(v_rad):
        wavelength = at_rest(wavelength, v_rad)
    flux, ivar = _scaled(flux, ivar, good_pixels(wavelength, flux, ivar, flags))
    good = good_pixels(wavelength, flux, ivar, flags)
    snr = float(np.median(flux[good] * np.sqrt(ivar[good]))) if good.any() else None

    resampled = resample(wavelength, flux, ivar, model.wavelength, good)
    n_valid = int(np.count_nonzero(resampled[1]))
    normalised = normalise(*resampled, model.continuum_basis)
    found = fit(model, *normalised)
    columns = _columns(model, found)
    reduced_chi2 = columns["reduced_chi2"]
    return columns | {
        "snr": snr,
        "flag_no_valid_pixels": n_valid == 0,
        "flag_few_pixels": n_valid < FEW_PIXELS * model.wavelength.size,
        "flag_fit_failed": not found.converged[0],
        "flag_bad_continuum": n_valid > int(found.n_pixels[0]),
        "flag_bad_chi2": reduced_chi2 is not None and reduced_chi2 > BAD_CHI2,
        "flag_low_snr": snr is not None and snr < LOW_SNR,
    }


def _scaled(flux: Array, ivar: Array, good: NDArray[np.bool_]) -> tuple[Array, Array]:
    """In units of the median flux: squares of what was in W/m^2, or in photons, stay finite."""
    scale = float(np.median(np.abs(flux[good]))) if good.any() else 0.0
    if scale == 0.0:
        return flux, ivar
    with np.errstate(over="ignore", invalid="ignore"):
        return flux / scale, ivar * scale * scale


def _columns(model: Model, found: Fit) -> dict[str, Any]:
    names = model.label_names
    columns: dict[str, Any] = {}
    for i, name in enumerate(names):
        columns[name] = _number(found.labels[0, i])
        columns[f"e_{name}"] = _number(found.errors[0, i])
        columns[f"initial_{name}"] = _number(found.initial[0, i])
        columns[f"flag_{name}_edge"] = bool(found.at_edge[0, i])
    for (i, one), (j, other) in combinations(enumerate(names), 2):
        columns[f"rho_{one}_{other}"] = _number(found.correlation[0, i, j])
    chi2 = _number(found.chi2[0])
    return columns | {
        "chi2": chi2,
        "reduced_chi2": None if chi2 is None else chi2 / int(found.n_freedom[0]),
        "n_pixels": int(found.n_pixels[0]),
        "n_iterations": int(found.n_iterations[0]),
    }


def _number(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None


def _arrays(
    wavelength: ArrayLike | None,
    flux: ArrayLike | None,
    ivar: ArrayLike | None,
    pixel_flags: ArrayLike | None,
) -> tuple[Array, Array, Array, NDArray[np.int64] | None]:
    if wavelength is None or flux is None or ivar is None:
        return np.zeros(0), np.zeros(0), np.zeros(0), None
    arrays = [np.asarray(a, float) for a in (wavelength, flux, ivar)]
    flags = None if pixel_flags is None else np.asarray(pixel_flags)
    shapes = [a.shape for a in arrays] + ([] if flags is None else [flags.shape])
    if len(set(shapes)) > 1 or arrays[0].ndim != 1:
        raise ValueError(
            f"wavelength, flux, ivar and pixel_flags must have one shape (P,), not {shapes}"
        )
    return arrays[0], arrays[1], arrays[2], flags
