"""A trained model: the flux of each pixel, and its derivatives, as functions of the labels."""

from dataclasses import field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.pipelines.slam.continuum import basis
from astra.pipelines.slam.domain import Domain
from astra.pipelines.slam.pixels import Grid, Singles
from astra.pipelines.slam.regression import radial_kernel
from astra.records import dataclass

Array = NDArray[np.float64]

#: Approximate number of pixels that are used to choose the node at which a fit starts.
MAX_START_PIXELS = 640


def _none() -> Array:
    return np.zeros((0, 2))


def covered(wavelength: Array, ranges: Array) -> NDArray[np.bool_]:
    """Return which wavelengths lie in any of the ranges, of shape (m, 2)."""
    inside = [(low <= wavelength) & (wavelength <= high) for low, high in ranges]
    return np.logical_or.reduce([np.zeros(wavelength.shape, bool), *inside])


@dataclass(frozen=True, eq=False)
class Validation:
    """The cross-validation of a model: each training spectrum is labelled by a model without it."""

    labels: Array  #: labels of the training set, (N, L)
    fitted: Array  #: fitted labels, NaN where the fit failed, (N, L)
    errors: Array  #: errors of the fitted labels, including the floors, (N, L)
    mismatch: Array  #: rms of the residuals less the noise, in units of the continuum, (N,)
    flagged: NDArray[np.bool_]  #: whether a spectrum would be flagged as bad, (N,)
    outside_flagged: NDArray[np.bool_]  #: the same of the spectra of other kinds, (O,)
    rejected: NDArray[np.bool_]  #: whether a spectrum was rejected as an outlier, (N,)


@dataclass(frozen=True, eq=False)
class Model:
    """One support vector regression for each pixel, all with the same nodes and kernel.

    The normalised flux of pixel ``p`` at labels ``x`` is ``bias[p] + sum_i coefficients[i, p] *
    exp(-gamma * |z(x) - nodes[i]|**2)``, with ``z(x) = (x - centre) / scale``
    (Zhang et al. 2020; in a least-squares regression every training spectrum is a node). The
    coefficients are stored as a product, ``node_weights @ components``: see
    :func:`.regression.compress`.
    """

    wavelength: Array  #: vacuum Angstrom, ascending, (P,)
    label_names: tuple[str, ...]  #: L names
    centre: Array  #: of labels, (L,)
    scale: Array  #: of labels, (L,)
    nodes: Array  #: scaled labels of the training spectra, (N, L)
    node_weights: Array  #: of R components at the nodes, (N, R)
    components: Array  #: (R, P)
    bias: Array  #: flux far from all nodes, (P,)
    scatter: Array  #: leave-one-out error of the flux less the noise of the training set, (P,)
    gamma: float  #: inverse square width of the kernel, in scaled labels
    lower: Array  #: smallest labels that a fit may find, (L,)
    upper: Array  #: largest labels that a fit may find, (L,)
    continuum_degree: int  #: of the polynomial by which the spectra were normalised
    label_floor: Array  #: added to the fit's errors in quadrature, from cross-validation, (L,)
    domain: Domain | None = None
    rest_masks: Array = field(
        default_factory=_none
    )  #: ranges not used, in the star's frame, (m, 2)
    observed_masks: Array = field(
        default_factory=_none
    )  #: the same in the observer's frame, (m, 2)
    validation: Validation | None = None
    description: str = ""  #: what it was trained on
    digest: str = ""  #: of the file from which it was read

    @property
    def coefficients(self) -> Array:
        """Weights of the nodes in each pixel, (N, P)."""
        return self.node_weights @ self.components

    @cached_property
    def continuum_basis(self) -> Array:
        """The smooth curves of the continuum, (P, continuum_degree + 1)."""
        return basis(self.wavelength, self.continuum_degree)

    @cached_property
    def grid(self) -> Grid:
        """The model's pixels with their edges."""
        return Grid(self.wavelength)

    @cached_property
    def continuum_moments(self) -> Array:
        """The curves up to twice the degree, for :func:`.continuum.products`."""
        return basis(self.wavelength, 2 * self.continuum_degree)

    @cached_property
    def components_and_bias(self) -> Array:
        """The components, and the bias as the last one, (R + 1, P)."""
        return np.vstack([self.components, self.bias])

    @cached_property
    def splines(self) -> Array:
        """Spline coefficients of the integrals of the components and the bias, (R + 1, S)."""
        return self.grid.splines(self.components_and_bias)

    @cached_property
    def densities(self) -> Singles:
        """Differences of the spline coefficients, (R + 1, S - 1)."""
        return np.diff(self.splines, axis=1).astype(np.float32)

    def covers(self, wavelength: Array) -> NDArray[np.bool_]:
        """Return which wavelengths lie in the range of the model."""
        return (wavelength >= self.wavelength[0]) & (wavelength <= self.wavelength[-1])

    @cached_property
    def is_used(self) -> NDArray[np.bool_]:
        """The pixels that no mask in the star's frame covers, (P,)."""
        return ~covered(self.wavelength, self.rest_masks)

    @cached_property
    def node_labels(self) -> Array:
        """Labels of the training spectra, (N, L)."""
        return self.centre + self.scale * self.nodes

    @cached_property
    def node_flux(self) -> Array:
        """Fluxes at the nodes, (N, P)."""
        return self.flux(self.node_labels)

    @cached_property
    def node_moments(self) -> Array:
        """The weights of the nodes, and their products with each scaled label, (N, (L + 1) R)."""
        factors = np.append(np.ones((len(self.nodes), 1)), self.nodes, axis=1)
        return (factors[:, :, None] * self.node_weights[:, None]).reshape(len(factors), -1)

    @property
    def start_pixels(self) -> slice:
        """The pixels that are used to choose the node at which a fit starts."""
        return slice(None, None, 1 + self.wavelength.size // MAX_START_PIXELS)

    @cached_property
    def start_fluxes(self) -> Array:
        """Squares of the nodes' fluxes in these pixels, and -2 times the fluxes, (2 P', N)."""
        flux = self.node_flux[:, self.start_pixels].T
        return np.append(flux**2, -2 * flux, axis=0)

    def scores(self, labels: ArrayLike) -> Array:
        """Return the weights (..., R) of the components at `labels` (..., L)."""
        scaled = (np.asarray(labels, float) - self.centre) / self.scale
        return radial_kernel(scaled, self.nodes, self.gamma) @ self.node_weights

    def scores_and_slopes(self, labels: Array) -> tuple[Array, Array]:
        """Return the scores (..., R), and their derivatives by the labels (..., L, R).

        The derivative of the kernel by scaled label ``l`` is
        ``-2 * gamma * (z[l] - nodes[i, l])`` times the kernel.
        """
        scaled = (labels - self.centre) / self.scale
        moments = radial_kernel(scaled, self.nodes, self.gamma) @ self.node_moments
        moments = moments.reshape(*scaled.shape[:-1], scaled.shape[-1] + 1, -1)
        scores = moments[..., 0, :]
        offset = scaled[..., None] * scores[..., None, :] - moments[..., 1:, :]
        return scores, -2 * self.gamma / self.scale[:, None] * offset

    def flux(self, labels: ArrayLike) -> Array:
        """Return the normalised flux.

        Parameters
        ----------
        labels
            Shape (L,) or (M, L), in the units of the training set.

        Returns
        -------
        array, shape (P,) or (M, P)
        """
        return self.scores(labels) @ self.components + self.bias

    def flux_and_jacobian(self, labels: ArrayLike) -> tuple[Array, Array]:
        """Return the normalised flux, and its derivatives by the labels.

        Parameters
        ----------
        labels
            Shape (L,) or (M, L), in the units of the training set.

        Returns
        -------
        flux, jacobian
            Shapes (P,) and (L, P), or (M, P) and (M, L, P); the latter per unit of the label.
        """
        scores, slopes = self.scores_and_slopes(np.asarray(labels, float))
        return scores @ self.components + self.bias, slopes @ self.components

    def distance(self, labels: Array) -> Array:
        """Return the distance of labels (M, L) from the nearest node, in scaled labels; (M,)."""
        scaled = (labels - self.centre) / self.scale
        square = (scaled**2).sum(-1)[:, None] + (self.nodes**2).sum(-1) - 2 * scaled @ self.nodes.T
        return np.sqrt(np.maximum(square.min(1), 0.0))
