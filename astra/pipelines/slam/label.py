"""Label spectra: from their pixels to the columns of their results."""

import json
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.pipelines.slam.measure import Measured, measure, on_own_pixels
from astra.pipelines.slam.model import Model, covered
from astra.pipelines.slam.pixels import Observed, at_rest, good_pixels
from astra.records import dataclass

Array = NDArray[np.float64]

#: The labels that have columns of their own in the table of results.
LABELS = ("teff", "logg", "fe_h", "alpha_fe")

#: A result is flagged if less than this share of the model's pixels has data; if its reduced chi2
#: is larger or its signal-to-noise ratio lower than this; if the fitted velocity differs by more
#: than this from the given one.
MIN_PIXEL_SHARE = 0.5
MAX_REDUCED_CHI2 = 3.0
MIN_SNR = 10.0
MAX_VELOCITY_KM_S = 300.0

#: The scale of a flux is the median over every sixteenth pixel.
SCALE_STEP = 16

#: A mismatch is flagged if it exceeds the limit by more than this many of its errors.
MISMATCH_SIGMAS = 3.0


@dataclass(frozen=True, eq=False)
class Pixels:
    """One spectrum, ready to be fitted."""

    wavelength: Array  #: in the frame of the star, as far as its velocity is known
    flux: Array  #: in units of `scale`
    ivar: Array
    good: NDArray[np.bool_]
    scale: float  #: median size of the flux: squares of W/m^2, or of photons, stay finite
    v_rad: float | None
    is_unknown: bool  #: whether the velocity is unknown, and has to be searched for


def prepare(
    model: Model,
    wavelength: ArrayLike | None,
    flux: ArrayLike | None,
    ivar: ArrayLike | None,
    pixel_flags: ArrayLike | None = None,
    v_rad: float | None = None,
    *,
    is_at_rest: bool = True,
) -> Pixels:
    """Check and mask one spectrum, and shift it to rest; arguments as in :func:`label`."""
    wavelength, flux, ivar, flags = _arrays(wavelength, flux, ivar, pixel_flags)
    good = good_pixels(wavelength, flux, ivar, flags) & ~covered(wavelength, model.observed_masks)
    some = np.flatnonzero(good)[::SCALE_STEP]
    scale = float(np.median(np.abs(flux[some]))) if some.size else 0.0
    scale = scale if scale > 0 else 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        flux, ivar = flux / scale, ivar * scale * scale
    has_velocity = v_rad is not None and np.isfinite(v_rad)
    if v_rad is not None and has_velocity:
        wavelength = at_rest(wavelength, v_rad)
    good &= good_pixels(wavelength, flux, ivar)
    is_unknown = not (is_at_rest or has_velocity)
    return Pixels(wavelength, flux, ivar, good, scale, v_rad if has_velocity else None, is_unknown)


def label(
    model: Model,
    wavelength: ArrayLike | None,
    flux: ArrayLike | None,
    ivar: ArrayLike | None,
    pixel_flags: ArrayLike | None = None,
    v_rad: float | None = None,
    *,
    is_at_rest: bool = True,
) -> dict[str, object]:
    """Label one spectrum, and return the columns of the table of results.

    Parameters
    ----------
    model
        The trained model.
    wavelength, flux, ivar
        Vacuum Angstrom, flux in any unit, its inverse variance; each of shape (P,). The pixels
        need not be those of the model. None means that the spectrum has no data.
    pixel_flags
        Integers, shape (P,). Pixels whose flag is not 0 are not used, nor are those that are NaN or
        whose inverse variance is not positive.
    v_rad
        Radial velocity [km/s] of the star in the frame of these wavelengths, if it is known.
    is_at_rest
        Whether a spectrum without `v_rad` is in the rest frame. If not, its velocity is searched
        for.

    Returns
    -------
    dict
        Labels, ``e_...``, ``rho_..._...``, ``initial_...``, ``chi2`` and so on, and every flag as
        a bool. An unknown value is None, never NaN.

    Raises
    ------
    ValueError
        If the arrays differ in shape.
    """
    pixels = (wavelength, flux, ivar, pixel_flags, v_rad)
    return label_many(model, [prepare(model, *pixels, is_at_rest=is_at_rest)])[0]


def label_many(
    model: Model, spectra: Sequence[Pixels], store_model: bool = False
) -> list[dict[str, object]]:
    """Label several spectra at once, which is much faster than calling :func:`label` for each.

    Parameters
    ----------
    model
        The trained model.
    spectra
        Spectra from :func:`prepare`.
    store_model
        Whether to return also the model's flux and the continuum, on the pixels of the spectrum.
    """
    observed = Observed.of([(s.wavelength, s.flux, s.ivar, s.good) for s in spectra])
    measured = measure(model, observed, np.array([s.is_unknown for s in spectra], bool))
    outside, limits = _is_outside(model, measured), _mismatch_limits(model, measured)
    columns = []
    for i, one in enumerate(spectra):
        row = _label_columns(model, measured, i) | _other_columns(
            model, measured, i, one, limits[i]
        )
        row["flag_outside_domain"] = bool(outside[i] and measured.fit.converged[i])
        if store_model:
            row |= on_own_pixels(model, measured, i, one.wavelength, one.scale)
        columns.append(row)
    return columns


def _mismatch_limits(model: Model, measured: Measured) -> Array:
    """Return the mismatch above which each spectrum is flagged, (M,)."""
    if model.domain is None:
        return np.full(len(measured.velocity), np.inf)
    return model.domain.mismatch_limits((measured.fit.labels[:, :-1] - model.centre) / model.scale)


def _is_outside(model: Model, measured: Measured) -> NDArray[np.bool_]:
    """Return which spectra are not of the kind that the model was trained on."""
    if model.domain is None:
        return np.zeros(len(measured.velocity), bool)
    far = (
        model.distance(np.nan_to_num(measured.fit.labels[:, :-1]))
        > model.domain.most_label_distance
    )
    return np.asarray(far | model.domain.is_outside(measured.coarse, measured.coarse_noise2))


def _label_columns(model: Model, measured: Measured, i: int) -> dict[str, object]:
    """Return the columns of the labels; labels without a column are in ``other_labels``."""
    names = model.label_names
    values, initial = measured.fit.labels[i, :-1], measured.fit.initial[i, :-1]
    covariance = measured.fit.covariance[i, :-1, :-1] + np.diag(model.label_floor**2)
    errors, edge = np.sqrt(np.diagonal(covariance)), measured.fit.at_edge[i, :-1]
    columns: dict[str, object] = {f"flag_{name}_edge": False for name in LABELS}
    others: dict[str, object] = {}
    for k, name in enumerate(names):
        if name not in LABELS:
            others[name] = _number(values[k])
            others[f"e_{name}"] = _number(errors[k])
            continue
        columns[name], columns[f"e_{name}"] = _number(values[k]), _number(errors[k])
        columns[f"initial_{name}"] = _number(initial[k])
        columns[f"flag_{name}_edge"] = bool(edge[k])
    for (j, one), (k, other) in combinations(enumerate(names), 2):
        if one in LABELS and other in LABELS:
            pair = sorted((one, other), key=LABELS.index)
            columns[f"rho_{pair[0]}_{pair[1]}"] = _number(covariance[j, k] / errors[j] / errors[k])
    others_edge = any(edge[k] for k, name in enumerate(names) if name not in LABELS)
    return columns | {
        "other_labels": json.dumps(others) if others else None,
        "flag_other_edge": bool(others_edge),
    }


def _other_columns(
    model: Model, measured: Measured, i: int, pixels: Pixels, limit: float
) -> dict[str, object]:
    chi2, n_valid = _number(measured.fit.chi2[i]), int(measured.n_valid[i])
    reduced_chi2 = None if chi2 is None else chi2 / int(measured.fit.n_freedom[i])
    good = pixels.good
    snr = float(np.median(pixels.flux[good] * np.sqrt(pixels.ivar[good]))) if good.any() else None
    converged, velocity = bool(measured.fit.converged[i]), float(measured.velocity[i])
    excess = measured.mismatch2[i] - MISMATCH_SIGMAS * measured.e_mismatch2[i]
    reach = MAX_VELOCITY_KM_S * (2 if pixels.is_unknown else 1)
    return {
        "chi2": chi2,
        "reduced_chi2": reduced_chi2,
        "mismatch": _number(np.sqrt(np.maximum(measured.mismatch2[i], 0.0))),
        "n_pixels": int(measured.fit.n_pixels[i]),
        "n_clipped": int(measured.n_clipped[i]),
        "n_iterations": int(measured.fit.n_iterations[i]),
        "v_fit": (pixels.v_rad or 0.0) + velocity if converged else None,
        "e_v_fit": _number(measured.fit.errors[i, -1]),
        "snr": snr,
        "model_digest": model.digest or None,
        "flag_no_valid_pixels": n_valid == 0,
        "flag_few_pixels": n_valid < MIN_PIXEL_SHARE * np.count_nonzero(model.is_used),
        "flag_fit_failed": not converged,
        "flag_bad_continuum": n_valid > int(measured.fit.n_pixels[i]) + int(measured.n_clipped[i]),
        "flag_bad_chi2": reduced_chi2 is not None and reduced_chi2 > MAX_REDUCED_CHI2,
        "flag_low_snr": snr is not None and snr < MIN_SNR,
        "flag_mismatch": bool(excess > limit**2),
        "flag_no_velocity": pixels.is_unknown,
        "flag_bad_velocity": converged and abs(velocity) > reach,
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
            f"wavelength, flux, ivar and pixel_flags must have the same shape (P,), not {shapes}"
        )
    return arrays[0], arrays[1], arrays[2], flags
