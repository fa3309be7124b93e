"""chi2 of many spectra, and its derivatives by labels and velocity.

What is minimised is ``chi2(x) = sum_p w[p] * (flux[p] - c[p] * model[p](x))**2``
(Zhang et al. 2020), with weights ``w = 1 / (1/ivar + scatter**2)``, the scatter being
that of the model. ``c`` is a polynomial near 1: what is left of the continuum. At each ``x`` it is
the one that fits best, so that only the parameters are searched for (variable projection: Golub &
Pereyra 1973, SIAM J. Numer. Anal. 10, 413; derivatives as of Kaufman 1975, BIT 15, 49).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from astra.pipelines.slam.continuum import products
from astra.pipelines.slam.model import Model
from astra.pipelines.slam.pixels import Binned, Singles

Array = NDArray[np.float64]
Reals = NDArray[np.floating]
Integers = NDArray[np.int64]

#: Fits by models of so few nodes start twice: at the best, and at the best that is so far from it,
#: in scaled labels.
FEW_NODES = 80
FAR_NODE = 0.5

#: The velocity is searched for this far to either side of the one that is assumed.
VELOCITY_REACH_KM_S = 150.0


@dataclass(frozen=True, eq=False)
class Problem:
    """Spectra and weights; parameters are measured from 0 to 1 over their ranges."""

    model: Model
    spectra: Binned
    weight: Array  #: square root of the inverse variance, of noise and model together, (M, P)
    curves: Array  #: of the continuum, (P, K)

    @classmethod
    def of(cls, model: Model, spectra: Binned, free_continuum: bool = True) -> "Problem":
        """Weigh noise and scatter; pixels under a mask of the model do not count."""
        good = (spectra.ivar > 0) & model.is_used
        variance = 1 / np.where(good, spectra.ivar, 1.0) + model.scatter**2
        weight = np.where(good, 1 / np.sqrt(variance), 0.0)
        curves = model.continuum_basis[:, : None if free_continuum else 0]
        return cls(model, spectra, weight, curves)

    def without(self, clipped: NDArray[np.bool_]) -> "Problem":
        """Return the problem with pixels (M, P) left out."""
        return replace(self, weight=np.where(clipped, 0.0, self.weight))

    @property
    def has_velocity(self) -> bool:
        """Whether a velocity is the last parameter: not of spectra on the model's own pixels."""
        return self.spectra.taps is not None

    @property
    def n_pixels(self) -> Integers:
        return np.count_nonzero(self.weight, axis=1)

    @property
    def n_parameters(self) -> int:
        return len(self.model.label_names) + self.has_velocity + self.curves.shape[1]

    @property
    def lower(self) -> Array:
        """Least of each parameter."""
        return np.append(self.model.lower, [-VELOCITY_REACH_KM_S][: self.has_velocity])

    @property
    def width(self) -> Array:
        """Range of each parameter."""
        width = self.model.upper - self.model.lower
        return np.append(width, [2 * VELOCITY_REACH_KM_S][: self.has_velocity])

    def nearest_nodes(self) -> tuple[list[Array], Array]:
        """Return where to start (M, D), and the chi2 of the best node (M,).

        That is the node of least chi2, and for models of few nodes, of which chi2 may have several
        minima, also the best of those that are far from it. The continuum is left as it is, the
        model is not averaged as the spectra were, and of large models only some pixels are used.
        """
        model, some = self.model, self.model.start_pixels
        square, flux = self.weight[:, some] ** 2, self.spectra.flux[:, some]
        chi2 = np.append(square, square * flux, axis=1) @ model.start_fluxes
        chi2 += (square * flux**2).sum(1, keepdims=True)
        best = np.argmin(chi2, axis=1)
        starts = [self._at_nodes(best)]
        if len(model.nodes) <= FEW_NODES:
            distance = np.sqrt(((model.nodes[best, None] - model.nodes) ** 2).sum(-1))
            far = np.where(distance > FAR_NODE, chi2, np.inf)
            starts.append(self._at_nodes(np.argmin(far, axis=1)))
        return starts, chi2.min(1)

    def _at_nodes(self, which: Integers) -> Array:
        """Return nodes as parameters, the velocity in the middle; (M, D)."""
        model = self.model
        unit = (model.node_labels[which] - model.lower) / (model.upper - model.lower)
        middle = np.full((len(unit), int(self.has_velocity)), 0.5)
        return np.append(np.clip(unit, 0.0, 1.0), middle, axis=1)

    def labels(self, unit: Array) -> Array:
        """Return the labels at parameters."""
        n_labels = len(self.model.label_names)
        return self.lower[:n_labels] + self.width[:n_labels] * unit[:, :n_labels]

    def flux_at(self, unit: Array, which: Integers) -> Array:
        """Return the model's flux (m, P), averaged as the spectra."""
        rows = _with_bias(self.model.scores(self.labels(unit))[:, None])
        return self._averaged(rows, unit, which)[0][:, 0].astype(float)

    def model_at(self, unit: Array, which: Integers) -> tuple[Array, Reals]:
        """Return the model's flux (m, P), averaged as the spectra, and its slopes (m, D, P)."""
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
        """Return sums of components and bias (m, C, P), averaged as the spectra.

        The slopes of the last of each by the velocity, (m, P), are None if that is no parameter.
        """
        model = self.model
        if not self.has_velocity:
            return rows @ model.components_and_bias, None
        # One product in single precision, not one for each spectrum.
        densities = rows.reshape(-1, rows.shape[-1]).astype(np.float32) @ model.densities
        densities = densities.reshape(*rows.shape[:2], -1)
        shift = ((unit[:, -1] - 0.5) * self.width[-1]).astype(np.float32)
        return self.spectra.average(densities, which, shift, model.grid.velocity_taps)

    def continuum(self, flux: Array, which: Integers) -> tuple[Array, Array | None]:
        """Return the continuum (m, P) that fits best, and the inverse Gram matrices (m, K, K)."""
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
        """Return flux less model (m, P), the model, and the continuum, of shape (m, P) each."""
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
    """Return scores of components (m, C, R), and 1 for the bias: (m, C, R + 1)."""
    return np.append(scores, np.ones((*scores.shape[:-1], 1)), axis=-1)
