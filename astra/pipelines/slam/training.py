"""Train a model on labelled spectra.

The flux of each pixel is a support vector regression on the labels with a radial kernel (Zhang et
al. 2020, ApJS 246, 9), here in its least-squares form (Suykens & Vandewalle 1999, Neural Processing
Letters 9, 293), whose solution is linear in the flux. The width of the kernel, which all pixels
share, and the ridge of each pixel minimise the leave-one-out error. Spectra are weighted by their
noise. Fluxes and whole spectra with a very large leave-one-out error are rejected. Then each
spectrum is labelled by a model that was trained without it, which gives the error floors of the
labels and the limits beyond which a spectrum is flagged.
"""

from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.errors import UsageError, nearest
from astra.pipelines.slam.continuum import basis, normalise
from astra.pipelines.slam.model import Model
from astra.pipelines.slam.model_file import save
from astra.pipelines.slam.outliers import Cleaned, clean
from astra.pipelines.slam.regression import compress
from astra.pipelines.slam.validation import add_validation
from astra.records import dataclass

Array = NDArray[np.float64]

#: Candidates for the width of the kernel and the ridges, for labels of unit variance.
GAMMAS = tuple(2.0 ** np.arange(-9, 0))
RIDGES = tuple(10.0 ** np.arange(-8, 1))
CONTINUUM_DEGREE = 4

#: How far beyond the training set labels may be fitted, as a share of their range.
MARGIN = 0.05

#: Ranges that fits do not use [vacuum Angstrom]. In the frame of the star: H alpha and H beta,
#: which active stars emit whatever their labels. In the frame of the observer: the sky line at 5577
#: and the A and B bands of oxygen.
REST_MASKS = ((4853.0, 4873.0), (6555.0, 6575.0))
OBSERVED_MASKS = ((5570.0, 5588.0), (6866.0, 6950.0), (7590.0, 7705.0))


class Options(TypedDict, total=False):
    """Options of the training; the defaults are :data:`DEFAULTS`."""

    continuum_degree: int  #: degree of the polynomial that models the continuum
    is_normalised: bool  #: whether the spectra have been divided by their continuum already
    gammas: tuple[float, ...]  #: candidates for the width of the kernel
    ridges: tuple[float, ...]  #: candidates for the ridge of each pixel
    rest_masks: ArrayLike  #: ranges [Angstrom] that fits do not use, in the star's frame, (m, 2)
    observed_masks: ArrayLike  #: the same in the observer's frame, (m, 2)
    rejects: bool  #: whether spectra and pixels that the others contradict are rejected
    validates: bool  #: whether each training spectrum is labelled by a model without it


DEFAULTS: Options = {
    "continuum_degree": CONTINUUM_DEGREE,
    "is_normalised": False,
    "gammas": GAMMAS,
    "ridges": RIDGES,
    "rest_masks": REST_MASKS,
    "observed_masks": OBSERVED_MASKS,
    "rejects": True,
    "validates": True,
}


def train(
    labels: ArrayLike,
    wavelength: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike | None = None,
    path: str | Path | None = None,
    *,
    label_names: tuple[str, ...] = ("teff", "logg", "fe_h", "alpha_fe"),
    outside: tuple[ArrayLike, ArrayLike] | None = None,
    description: str = "",
    **options: Unpack[Options],
) -> Model:
    """Train a model on labelled spectra, and write it if `path` is given; see docs/slam.md.

    Parameters
    ----------
    labels : array_like
        Shape (N, L), finite.
    wavelength : array_like
        Vacuum Angstrom, ascending, shape (P,), the same for all spectra; resample.py makes them so.
    flux, ivar : array_like
        Spectra in the rest frame and their inverse variances [any unit], shape (N, P). Pixels that
        are NaN, or whose ivar is not positive, are not used. Without `ivar`, the spectra are
        assumed to have no noise.
    path : str or Path, optional
        File to write, ``.npz``.
    label_names : tuple of str
        Names of the L labels.
    outside : tuple of array_like, optional
        Fluxes and ivars (O, P) of spectra of other kinds, which the model is to flag.
    description : str
        What the model was trained on; stored in the file.
    **options : Options
        For example ``rejects=False``, to keep outliers: see :class:`Options`.

    Returns
    -------
    Model
        The trained model, also if it was written to `path`.

    Raises
    ------
    UsageError
        If shapes do not match, a label is not finite or does not vary, or a pixel has few data.

    Examples
    --------
    >>> from astra.pipelines.slam import synthetic, train
    >>> model = train(*synthetic.training_set(30), path="model.npz")  # doctest: +SKIP
    """
    if unknown := options.keys() - DEFAULTS.keys():
        raise TypeError(f"train() takes no {min(unknown)!r}. {nearest(min(unknown), DEFAULTS)}")
    chosen = DEFAULTS | options
    spectra = _TrainingSet.of(labels, wavelength, flux, ivar, label_names)
    others = None if outside is None else spectra.of_other_kinds(*outside)
    cleaned, noise = _cleaned(spectra, chosen)
    model = _model(spectra, cleaned, noise, chosen, label_names, description)
    if chosen["validates"]:
        model = add_validation(model, cleaned, spectra.labels, spectra.pixels(cleaned.good), others)
    return model if path is None else save(model, path)


@dataclass(frozen=True, eq=False)
class _TrainingSet:
    """Labelled spectra whose shapes have been checked."""

    labels: Array  # (N, L)
    wavelength: Array  # (P,)
    flux: Array  # (N, P)
    ivar: Array  # (N, P)
    has_noise: bool

    @classmethod
    def of(
        cls,
        labels: ArrayLike,
        wavelength: ArrayLike,
        flux: ArrayLike,
        ivar: ArrayLike | None,
        label_names: tuple[str, ...],
    ) -> "_TrainingSet":
        try:
            labels = np.asarray(labels, float)
        except ValueError as error:
            raise UsageError(f"labels must be numbers: {error}") from error
        wavelength, flux = np.asarray(wavelength, float), np.asarray(flux, float)
        precise = _tiny_noise(flux) if ivar is None else np.asarray(ivar, float)
        _check(labels, wavelength, flux, precise, label_names)
        return cls(labels, wavelength, flux, precise, ivar is not None)

    def of_other_kinds(self, flux: ArrayLike, ivar: ArrayLike) -> tuple[Array, Array]:
        """Check the shapes of spectra of other kinds, and return them, (O, P) each."""
        pair, n_pixels = (np.asarray(flux, float), np.asarray(ivar, float)), self.wavelength.size
        for part in pair:
            if part.ndim != 2 or part.shape[1] != n_pixels:
                raise UsageError(
                    f"spectra of other kinds have shape {part.shape}, not (O, {n_pixels})"
                )
        return pair

    def pixels(self, good: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
        """Return wavelengths, fluxes, and inverse variances that are 0 where not `good`."""
        return self.wavelength, self.flux, np.where(good, self.ivar, 0.0)


def _cleaned(spectra: _TrainingSet, chosen: Options) -> tuple[Cleaned, Array]:
    """Normalise the spectra and reject outliers; return also the variances of the noise."""
    flux, ivar = spectra.flux, spectra.ivar
    if not chosen["is_normalised"]:
        flux, ivar = normalise(flux, ivar, basis(spectra.wavelength, chosen["continuum_degree"]))
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    _check_pixels(good, spectra.wavelength)
    noise = np.where(good & spectra.has_noise, 1 / np.where(good, ivar, 1.0), 0.0)
    centre, scale = _standard(spectra.labels)
    nodes = (spectra.labels - centre) / scale
    choices = chosen["gammas"], chosen["ridges"], chosen["rejects"]
    return clean(nodes, flux, good, noise, *choices), noise


def _standard(labels: Array) -> tuple[Array, Array]:
    """Return the means of labels and their standard deviations; 1 for labels that do not vary."""
    return labels.mean(0), np.where(np.ptp(labels, axis=0) > 0, labels.std(0), 1.0)


def _model(
    spectra: _TrainingSet,
    cleaned: Cleaned,
    noise: Array,
    chosen: Options,
    label_names: tuple[str, ...],
    description: str,
) -> Model:
    """Return a model of the spectra that were not rejected, without a cross-validation."""
    node_weights, components, bias = compress(cleaned.factors, cleaned.solved.flux, cleaned.ridge)
    centre, scale = _standard(spectra.labels)
    lower, upper = _bounds(spectra.labels[cleaned.kept])
    return Model(
        wavelength=spectra.wavelength,
        label_names=tuple(label_names),
        centre=centre,
        scale=scale,
        nodes=cleaned.factors.nodes,
        node_weights=node_weights,
        components=components * cleaned.spread,
        bias=cleaned.middle + bias * cleaned.spread,
        scatter=_scatter(cleaned, noise),
        gamma=cleaned.gamma,
        lower=lower,
        upper=upper,
        continuum_degree=chosen["continuum_degree"],
        label_floor=np.zeros(len(label_names)),
        rest_masks=np.asarray(chosen["rest_masks"], float).reshape(-1, 2),
        observed_masks=np.asarray(chosen["observed_masks"], float).reshape(-1, 2),
        description=description,
    )


def _bounds(labels: Array) -> tuple[Array, Array]:
    """Return the bounds of fitted labels: a little beyond those of the training set."""
    low, high = labels.min(0), labels.max(0)
    margin = MARGIN * np.where(high > low, high - low, 1e-6)
    return low - margin, high + margin


def _scatter(cleaned: Cleaned, noise: Array) -> Array:
    """Return the leave-one-out error of each pixel less the noise, without outliers; (P,)."""
    good = cleaned.good[cleaned.kept]
    error = np.where(good, cleaned.solved.left_out_error * cleaned.spread, 0.0)
    excess = (error**2 - np.where(good, noise[cleaned.kept], 0.0)).sum(0) / good.sum(0)
    return np.sqrt(np.maximum(excess, 0.0))


def _tiny_noise(flux: Array) -> Array:
    """Return inverse variances for a signal-to-noise ratio of 10,000 at each mean flux."""
    level = np.abs(np.where(np.isfinite(flux), flux, 0.0)).mean(-1, keepdims=True)
    return np.broadcast_to((1e4 / np.where(level > 0, level, 1.0)) ** 2, flux.shape)


def _check(
    labels: Array, wavelength: Array, flux: Array, ivar: Array, label_names: tuple[str, ...]
) -> None:
    n, p = len(labels), len(wavelength)
    if labels.shape != (n, len(label_names)):
        raise UsageError(f"labels have shape {labels.shape}, not (N, {len(label_names)})")
    if len(set(label_names)) < len(label_names):
        raise UsageError(f"a label is named twice: {', '.join(label_names)}")
    if flux.shape != (n, p) or ivar.shape != (n, p):
        raise UsageError(
            f"for {n} rows of labels and {p} wavelengths, flux and ivar must have the shape "
            f"{(n, p)}, not {flux.shape} and {ivar.shape}"
        )
    if not (np.isfinite(wavelength).all() and (np.diff(wavelength) > 0).all() and p > 1):
        raise UsageError("wavelengths must be finite and ascending")
    for name, column in zip(label_names, labels.T, strict=True):
        if not np.isfinite(column).all():
            raise UsageError(
                f"label {name!r} of spectrum {np.argmin(np.isfinite(column))} is not finite"
            )
        if n < 2 or np.ptp(column) == 0:
            raise UsageError(
                f"label {name!r} is {column[0] if n else 'missing'} in all {n} spectra: "
                f"omit this label, or add spectra with other values"
            )


def _check_pixels(good: NDArray[np.bool_], wavelength: Array) -> None:
    few = good.sum(0) < 2
    if few.any():
        raise UsageError(
            f"{few.sum()} pixels have data in fewer than two spectra, the first at "
            f"{wavelength[np.argmax(few)]:.1f} Angstrom: cut them off before training"
        )
