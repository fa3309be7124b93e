"""Compute chi2 of many spectra, and its derivatives by the labels and the velocity.

The fit minimises ``chi2(x) = sum_p w[p] * (flux[p] - c[p] * model[p](x))**2``
(Zhang et al. 2020), with weights ``w = 1 / (1/ivar + scatter**2)`` that include the scatter of the
model. ``c`` is a polynomial near 1, the remaining continuum. For each ``x``, the best-fitting ``c``
is computed, so that the search is only over the parameters ``x`` (variable projection: Golub &
Pereyra 1973, SIAM J. Numer. Anal. 10, 413; derivatives as in Kaufman 1975, BIT 15, 49).
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from astra.pipelines.slam.continuum import products
from astra.pipelines.slam.model import Model
from astra.pipelines.slam.pixels import Binned, Singles
from astra.records import dataclass

Array = NDArray[np.float64]
Reals = NDArray[np.floating]
Integers = NDArray[np.int64]

#: Fits with models of at most this many nodes start twice: at the best node, and at the best of the
#: nodes that are farther from it than this, in scaled labels.
FEW_NODES = 80
FAR_DISTANCE = 0.5

#: The velocity is fitted within this distance of the assumed one.
VELOCITY_REACH_KM_S = 150.0


@dataclass(frozen=True, eq=False)
class Problem:
    """Spectra and weights; parameters are scaled to their ranges, from 0 to 1."""

    model: Model
    spectra: Binned
    weight: Array  #: square root of the inverse variance of noise and model together, (M, P)
    curves: Array  #: the continuum is a linear combination of these, (P, K)

    @classmethod
    def of(cls, model: Model, spectra: Binned, free_continuum: bool = True) -> "Problem":
        """Compute the weights from noise and scatter; masked pixels get none."""
        good = (spectra.ivar > 0) & model.is_used
        variance = 1 / np.where(good, spectra.ivar, 1.0) + model.scatter**2
        weight = np.where(good, 1 / np.sqrt(variance), 0.0)
        curves = model.continuum_basis[:, : None if free_continuum else 0]
        return cls(model, spectra, weight, curves)

    def without(self, clipped: NDArray[np.bool_]) -> "Problem":
        """Return the problem without some of its pixels, (M, P)."""
        return replace(self, weight=np.where(clipped, 0.0, self.weight))

    @property
    def has_velocity(self) -> bool:
        """Whether the last parameter is a velocity; it is not for spectra on the model's pixels."""
        return self.spectra.taps is not None

    @property
    def n_pixels(self) -> Integers:
        return np.count_nonzero(self.weight, axis=1)

    @property
    def n_parameters(self) -> int:
        return len(self.model.label_names) + self.has_velocity + self.curves.shape[1]

    @property
    def lower(self) -> Array:
        """The smallest value of each parameter."""
        return np.append(self.model.lower, [-VELOCITY_REACH_KM_S][: self.has_velocity])

    @property
    def width(self) -> Array:
        """The range of each parameter."""
        width = self.model.upper - self.model.lower
        return np.append(width, [2 * VELOCITY_REACH_KM_S][: self.has_velocity])

    def nearest_nodes(self) -> tuple[list[Array], Array]:
        """Return the nodes at which to start (M, D), and the chi2 of the best node (M,).

        The first is the node with the lowest chi2. With few nodes, chi2 may have several minima, so
        the best of the nodes that are far from the first is returned as well, and the continuum is
        fitted: that of a spectrum of which a part is missing differs from the model's. For speed,
        it is not fitted with many nodes, the model is not averaged like the spectra, and only some
        pixels of a large model are used.
        """
        model, some = self.model, self.model.start_pixels
        square, flux = self.weight[:, some] ** 2, self.spectra.flux[:, some]
        if len(model.nodes) <= FEW_NODES and self.curves.shape[1]:
            chi2 = self._chi2_with_continua(square, flux)
        else:
            chi2 = np.append(square, square * flux, axis=1) @ model.start_fluxes
        chi2 += (square * flux**2).sum(1, keepdims=True)
        best = np.argmin(chi2, axis=1)
        starts = [self._at_nodes(best)]
        if len(model.nodes) <= FEW_NODES:
            distance = np.sqrt(((model.nodes[best, None] - model.nodes) ** 2).sum(-1))
            far = np.where(distance > FAR_DISTANCE, chi2, np.inf)
            starts.append(self._at_nodes(np.argmin(far, axis=1)))
        return starts, chi2.min(1)

    def _chi2_with_continua(self, square: Array, flux: Array) -> Array:
        """Return chi2 at each node with its best continuum, less that of a flux of 0; (M, N)."""
        some = self.model.start_pixels
        nodes, curves = self.model.node_flux[:, some], self.curves[some]
        gram = np.stack([products(square * node**2, self.model.continuum_moments[some])
                         for node in nodes], axis=1)  # fmt: skip
        along = np.stack([(square * flux * node) @ curves for node in nodes], axis=1)
        trace = np.trace(gram, axis1=2, axis2=3)[..., None, None]
        inverse = np.linalg.inv(gram + (1e-13 * trace + 1e-300) * np.eye(curves.shape[1]))
        return -(along[..., None, :] @ inverse @ along[..., None])[..., 0, 0]

    def _at_nodes(self, which: Integers) -> Array:
        """Return the parameters of nodes, with the velocity in the middle of its range; (M, D)."""
        model = self.model
        unit = (model.node_labels[which] - model.lower) / (model.upper - model.lower)
        middle = np.full((len(unit), int(self.has_velocity)), 0.5)
        return np.append(np.clip(unit, 0.0, 1.0), middle, axis=1)

    def labels(self, unit: Array) -> Array:
        """Return the labels of scaled parameters."""
        n_labels = len(self.model.label_names)
        return self.lower[:n_labels] + self.width[:n_labels] * unit[:, :n_labels]

    def flux_at(self, unit: Array, which: Integers) -> Array:
        """Return the model's flux (m, P), averaged like the spectra."""
        rows = _with_bias(self.model.scores(self.labels(unit))[:, None])
        return self._averaged(rows, unit, which)[0][:, 0].astype(float)

    def model_at(self, unit: Array, which: Integers) -> tuple[Array, Reals]:
        """Return the model's flux (m, P), averaged like the spectra, and its slopes (m, D, P)."""
        scores, slopes = self.model.scores_and_slopes(self.labels(unit))
        slopes *= self.width[: slopes.shape[1], None]
        rows = np.append(slopes, np.zeros((*slopes.shape[:2], 1)), axis=2)
        rows = np.append(rows, _with_bias(scores[:, None]), axis=1)
        averaged, by_velocity = self._averaged(rows, unit, which)
        flux = averaged[:, -1].astype(float)
        if by_velocity is None:
            return flux, averaged[:, :-1]
        averaged[:, -1] = by_velocity * np.float32(self.width[-1])
        return flux, averaged

    def _averaged(self, rows: Array, unit: Array, which: Integers) -> tuple[Reals, Singles | None]:
        """Return sums of components and bias (m, C, P), averaged like the spectra.

        Also return the derivative of each last one by the velocity, (m, P); None if the velocity is
        not a parameter.
        """
        model = self.model
        if not self.has_velocity:
            return rows @ model.components_and_bias, None
        # One product in single precision is faster than one for each spectrum.
        densities = rows.reshape(-1, rows.shape[-1]).astype(np.float32) @ model.densities
        densities = densities.reshape(*rows.shape[:2], -1)
        shift = ((unit[:, -1] - 0.5) * self.width[-1]).astype(np.float32)
        return self.spectra.average(densities, which, shift, model.grid.velocity_taps)

    def continuum(self, flux: Array, which: Integers) -> tuple[Array, Array | None]:
        """Return the best-fitting continuum (m, P), and the inverse Gram matrices (m, K, K)."""
        n_curves = self.curves.shape[1]
        if not n_curves:
            return np.ones_like(flux), None
        weighted = flux * self.weight[which]
        gram = products(weighted**2, self.model.continuum_moments)
        trace = np.trace(gram, axis1=1, axis2=2)[:, None, None]
        inverse = np.linalg.inv(gram + (1e-13 * trace + 1e-300) * np.eye(n_curves))
        along = (weighted * self.weighted_flux[which]) @ self.curves
        level = (inverse @ along[..., None])[..., 0]
        return level @ self.curves.T, inverse

    @cached_property
    def weighted_flux(self) -> Array:
        """The spectra times their weights, (M, P)."""
        return self.spectra.flux * self.weight

    def residuals(self, unit: Array, which: Integers) -> tuple[Array, Array, Array]:
        """Return the residuals, the model and the continuum, of shape (m, P) each."""
        flux = self.flux_at(unit, which)
        level, _ = self.continuum(flux, which)
        return self.spectra.flux[which] - level * flux, flux, level

    def linearise(self, unit: Array, which: Integers) -> tuple[Array, Array, Array]:
        """Return chi2 (m,), half its Hessian (m, D, D) and minus half its gradient (m, D)."""
        weight = self.weight[which]
        flux, jacobian = self.model_at(unit, which)
        level, inverse = self.continuum(flux, which)
        flux *= weight
        residual = self.weighted_flux[which] - level * flux
        level *= weight
        jacobian *= level.astype(jacobian.dtype)[:, None]
        hessian = jacobian @ np.swapaxes(jacobian, -1, -2)
        gradient = (jacobian @ residual.astype(jacobian.dtype)[..., None])[..., 0]
        if inverse is not None:
            jacobian *= flux.astype(jacobian.dtype)[:, None]
            across = jacobian.reshape(-1, len(self.curves)) @ self.curves.astype(jacobian.dtype)
            across = across.reshape(*jacobian.shape[:2], -1)
            hessian = hessian - across @ inverse @ np.swapaxes(across, -1, -2)
        return np.square(residual).sum(-1), hessian.astype(float), gradient.astype(float)


def _with_bias(scores: Array) -> Array:
    """Append a score of 1 for the bias to the scores of components: (m, C, R + 1)."""
    return np.append(scores, np.ones((*scores.shape[:-1], 1)), axis=-1)
