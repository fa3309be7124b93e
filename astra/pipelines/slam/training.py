"""Training: from labelled spectra to a model."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.errors import UsageError
from astra.pipelines.slam.continuum import basis, normalise
from astra.pipelines.slam.model import Model
from astra.pipelines.slam.model_file import save
from astra.pipelines.slam.outliers import Cleaned, clean
from astra.pipelines.slam.regression import compress
from astra.pipelines.slam.validation import validated

Array = NDArray[np.float64]

#: Widths of the kernel and ridges among which training chooses, for labels of unit variance.
GAMMAS = tuple(2.0 ** np.arange(-9, 0))
RIDGES = tuple(10.0 ** np.arange(-8, 1))
CONTINUUM_DEGREE = 4

#: Labels are fitted so far beyond the training set, as a share of their range.
MARGIN = 0.05

#: Ranges that fits do not use [vacuum Angstrom]: H alpha and H beta in the frame of the star, in
#: emission in active stars whatever their labels; in the frame of the observer the night's line at
#: 5577 and the B and A bands of oxygen.
REST_MASKS = ((4853.0, 4873.0), (6555.0, 6575.0))
OBSERVED_MASKS = ((5570.0, 5588.0), (6866.0, 6950.0), (7590.0, 7705.0))


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
    rest_masks: ArrayLike = REST_MASKS,
    observed_masks: ArrayLike = OBSERVED_MASKS,
    rejects: bool = True,
    validates: bool = True,
    outside: tuple[ArrayLike, ArrayLike] | None = None,
    description: str = "",
) -> Model:
    """Train a model on labelled spectra, and write it to `path` if that is given.

    Each pixel's flux is a support vector regression of the labels with a radial kernel
    (Zhang et al. 2020, ApJS 246, 9), here in its least-squares form (Suykens & Vandewalle 1999,
    Neural Processing Letters 9, 293), whose solution is linear in the flux. The width of the
    kernel, one for all pixels, and the ridge of each are those of the least leave-one-out error.
    Spectra count by their noise. Fluxes, and whole spectra, whose leave-one-out error is out of
    all proportion are rejected. Then each spectrum is labelled by a model that has not seen it:
    this gives the floors of the labels' errors and the limits beyond which a spectrum is flagged.

    Parameters
    ----------
    labels : array_like
        Shape (N, L), finite.
    wavelength : array_like
        Vacuum Angstrom, ascending, shape (P,), the same for all: see resample.py.
    flux, ivar : array_like
        Spectra at rest and their inverse variances [any unit], shape (N, P). NaN pixels, and
        those of an ivar that is not positive, are left out of the regression of their pixel.
        Without `ivar`, all finite pixels count, and are taken to be without noise.
    path : str or Path, optional
        File to write, ``.npz``.
    label_names : tuple of str
        Names of the L labels. Those that ``slam`` has columns for are stored there, the others
        together in its column ``other_labels``.
    continuum_degree : int
        Of the polynomial that takes out the continuum.
    is_normalised : bool
        Whether the spectra are divided by their continuum already, and are used as they are.
    gammas, ridges : tuple of float
        Widths of the kernel and ridges to choose among [no unit].
    rest_masks, observed_masks : array_like
        Ranges of wavelength [Angstrom] that fits do not use, shape (m, 2), in the frame of the
        star and in that of the observer.
    rejects : bool
        Whether spectra and pixels that the others contradict are left out.
    validates : bool
        Whether the training spectra are labelled by models that have not seen them: this gives
        the least errors of labels and the limits of the domain.
    outside : tuple of array_like, optional
        Fluxes and inverse variances, (O, P), of spectra of other kinds, if there are any: the
        model then knows where its kind ends.
    description : str
        A sentence in the file: what the model was trained on.

    Returns
    -------
    Model
        The trained model, also if it was written to `path`.

    Raises
    ------
    UsageError
        If the shapes do not fit together, a label is not finite, none varies, or a pixel has
        fewer than two spectra with data.

    Examples
    --------
    >>> import numpy as np
    >>> from astra.pipelines.slam import synthetic, train
    >>> rng = np.random.default_rng(1)
    >>> labels = synthetic.random_labels(rng, 30)
    >>> spectra = [synthetic.spectrum(star, 50.0, rng) for star in labels]
    >>> wavelength = spectra[0][0]
    >>> flux, ivar = (np.array([one[i] for one in spectra]) for i in (1, 2))
    >>> model = train(labels, wavelength, flux, ivar, "model.npz")  # doctest: +SKIP
    """
    try:
        labels = np.asarray(labels, float)
    except ValueError as error:
        raise UsageError(f"labels must be numbers: {error}") from error
    wavelength, flux = np.asarray(wavelength, float), np.asarray(flux, float)
    precise = _next_to_no_noise(flux) if ivar is None else np.asarray(ivar, float)
    _check(labels, wavelength, flux, precise, label_names)
    normal, precision = flux, precise
    if not is_normalised:
        normal, precision = normalise(flux, precise, basis(wavelength, continuum_degree))
    good = np.isfinite(normal) & np.isfinite(precision) & (precision > 0)
    _check_pixels(good, wavelength)
    noise = np.where(good & (ivar is not None), 1 / np.where(good, precision, 1.0), 0.0)

    centre, scale = labels.mean(0), np.where(np.ptp(labels, axis=0) > 0, labels.std(0), 1.0)
    nodes = (labels - centre) / scale
    cleaned = clean(nodes, normal, good, noise, gammas, ridges, rejects)
    node_weights, components, bias = compress(cleaned.factors, cleaned.solved.flux, cleaned.ridge)
    nodes = nodes[cleaned.kept]
    lower, upper = _bounds(labels[cleaned.kept])
    model = Model(
        wavelength=wavelength,
        label_names=tuple(label_names),
        centre=centre,
        scale=scale,
        nodes=nodes,
        node_weights=node_weights,
        components=components * cleaned.spread,
        bias=cleaned.middle + bias * cleaned.spread,
        scatter=_scatter(cleaned, noise),
        gamma=cleaned.gamma,
        lower=lower,
        upper=upper,
        continuum_degree=continuum_degree,
        label_floor=np.zeros(len(label_names)),
        rest_masks=np.asarray(rest_masks, float).reshape(-1, 2),
        observed_masks=np.asarray(observed_masks, float).reshape(-1, 2),
        description=description,
    )
    if validates:
        observed = (wavelength, flux, np.where(cleaned.good, precise, 0.0))
        others = outside and (np.asarray(outside[0], float), np.asarray(outside[1], float))
        for other in others or ():
            if other.ndim != 2 or other.shape[1] != wavelength.size:
                raise UsageError(
                    f"spectra of other kinds have shape {other.shape}, not (O, {wavelength.size})"
                )
        model = validated(model, cleaned, labels, observed, others)
    return model if path is None else save(model, path)


def _bounds(labels: Array) -> tuple[Array, Array]:
    """Return how far labels are fitted: a little beyond those of the training set."""
    low, high = labels.min(0), labels.max(0)
    margin = MARGIN * np.where(high > low, high - low, 1e-6)
    return low - margin, high + margin


def _scatter(cleaned: Cleaned, noise: Array) -> Array:
    """Return the left-out error of each pixel beyond the noise, without the outliers; (P,)."""
    good = cleaned.good[cleaned.kept]
    error = np.where(good, cleaned.solved.left_out_error * cleaned.spread, 0.0)
    excess = (error**2 - np.where(good, noise[cleaned.kept], 0.0)).sum(0) / good.sum(0)
    return np.sqrt(np.maximum(excess, 0.0))


def _next_to_no_noise(flux: Array) -> Array:
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
            f"{n} labels and {p} wavelengths want flux and ivar of shape {(n, p)}, "
            f"not {flux.shape} and {ivar.shape}"
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
                f"leave it out of the labels, or add spectra in which it differs"
            )


def _check_pixels(good: NDArray[np.bool_], wavelength: Array) -> None:
    few = good.sum(0) < 2
    if few.any():
        raise UsageError(
            f"{few.sum()} pixels have data in fewer than two spectra, the first at "
            f"{wavelength[np.argmax(few)]:.1f} Angstrom: cut them off before training"
        )
