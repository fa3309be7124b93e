"""A trained Stellar LAbel Machine: fluxes and their derivatives for labels, and its file."""

import zipfile
import zlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra.errors import UsageError, nearest
from astra.pipelines.slam.continuum import basis
from astra.pipelines.slam.regression import coefficients_and_bias, radial_kernel

Array = NDArray[np.float64]

#: What a model file says of itself; the version grows when the arrays in it change meaning.
FORMAT = "astra-slam"

FORMAT_VERSION = 1

#: The model that ships with the package, trained on the grid of synthetic.py.
SHIPPED = Path(__file__).with_name("slam_small.npz")


@dataclass(frozen=True, eq=False)
class Model:
    """One support vector regression per pixel, all with the same nodes and kernel.

    The normalised flux of pixel ``p`` at labels ``x`` is ``bias[p] + sum_i coefficients[i, p] *
    exp(-gamma * |z(x) - nodes[i]|**2)``, with ``z(x) = (x - centre) / scale``
    (Zhang et al. 2020; in least squares every training spectrum is a node).
    """

    wavelength: Array  #: vacuum Angstrom, ascending, (P,)
    label_names: tuple[str, ...]  #: L names
    centre: Array  #: of labels, (L,)
    scale: Array  #: of labels, (L,)
    nodes: Array  #: scaled labels of the training spectra, (N, L)
    training_flux: Array  #: normalised fluxes of the training spectra, without gaps, (N, P)
    scatter: Array  #: leave-one-out error of the flux beyond the noise of the training set, (P,)
    gamma: float  #: inverse square width of the kernel, in scaled labels
    ridge: Array  #: weight of smoothness against fidelity, 1/C of a support vector machine, (P,)
    continuum_degree: int  #: of the polynomial by which the spectra were normalised
    description: str = ""  #: what it was trained on

    @cached_property
    def lower(self) -> Array:
        """Least of each label in the training set, (L,)."""
        return self.centre + self.scale * self.nodes.min(0)

    @cached_property
    def upper(self) -> Array:
        """Greatest of each label in the training set, (L,)."""
        return self.centre + self.scale * self.nodes.max(0)

    @cached_property
    def _solution(self) -> tuple[Array, Array]:
        return coefficients_and_bias(self.nodes, self.training_flux, self.gamma, self.ridge)

    @property
    def coefficients(self) -> Array:
        """Weights of the nodes in each pixel, (N, P)."""
        return self._solution[0]

    @property
    def bias(self) -> Array:
        """Flux of each pixel far from all nodes, (P,)."""
        return self._solution[1]

    @cached_property
    def continuum_basis(self) -> Array:
        """The smooth curves of the continuum, (P, continuum_degree + 1)."""
        return basis(self.wavelength, self.continuum_degree)

    @cached_property
    def node_flux(self) -> Array:
        """Fluxes at the nodes, (N, P)."""
        return self.flux(self.centre + self.scale * self.nodes)

    def flux(self, labels: ArrayLike) -> Array:
        """Normalised flux.

        Parameters
        ----------
        labels
            Shape (L,) or (M, L), in the units of the training set.

        Returns
        -------
        array, shape (P,) or (M, P)
        """
        scaled = (np.asarray(labels, float) - self.centre) / self.scale
        return radial_kernel(scaled, self.nodes, self.gamma) @ self.coefficients + self.bias

    def flux_and_jacobian(self, labels: ArrayLike) -> tuple[Array, Array]:
        """Normalised flux, and its derivatives by the labels.

        The derivative of the kernel by scaled label ``l`` is
        ``-2 * gamma * (z[l] - nodes[i, l])`` times the kernel.

        Parameters
        ----------
        labels
            Shape (L,) or (M, L), in the units of the training set.

        Returns
        -------
        flux, jacobian
            Shapes (P,) and (L, P), or (M, P) and (M, L, P); the latter per unit of the label.
        """
        scaled = (np.asarray(labels, float) - self.centre) / self.scale
        kernel = radial_kernel(scaled, self.nodes, self.gamma)
        offset = np.moveaxis(scaled[..., None, :] - self.nodes, -1, -2)
        slopes = -2 * self.gamma / self.scale[:, None] * offset * kernel[..., None, :]
        return kernel @ self.coefficients + self.bias, slopes @ self.coefficients

    def save(self, path: str | Path) -> Path:
        """Write an ``.npz`` file, which holds plain arrays: no pickle.

        The training fluxes are kept, in single precision, in place of the coefficients: these are
        differences of large numbers, would need twice the space, and follow from one solution of
        the linear system when the file is read.
        """
        path = Path(path)
        contents: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        contents |= {"format": FORMAT, "format_version": FORMAT_VERSION}
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in contents.items()}
        arrays["training_flux"] = arrays["training_flux"].astype(np.float32)
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
        return path

    @classmethod
    def load(
        cls, path: str | Path = SHIPPED, label_names: tuple[str, ...] | None = None
    ) -> "Model":
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.
        label_names
            The labels that it must have, in this order; None for any.

        Raises
        ------
        UsageError
            If the file is missing, is no model of this format or one of another version, or was
            trained on other labels.
        """
        arrays = _read(Path(path))
        if label_names is not None and tuple(arrays["label_names"]) != label_names:
            raise UsageError(
                f"model file {path} has the labels {', '.join(arrays['label_names'])}, "
                f"and {', '.join(label_names)} are wanted: train it again with these"
            )
        return cls(
            **{name: arrays[name].astype(float) for name in _ARRAYS},
            label_names=tuple(map(str, arrays["label_names"])),
            gamma=float(arrays["gamma"]),
            continuum_degree=int(arrays["continuum_degree"]),
            description=str(arrays["description"]),
        )


_ARRAYS = ("wavelength", "centre", "scale", "nodes", "training_flux", "scatter", "ridge")


def _read(path: Path) -> dict[str, NDArray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UsageError(
            f"model file {path} does not exist; make one with astra.pipelines.slam.train, "
            f"or leave the parameter `model` out to use the one that ships with astra"
        ) from None
    except OSError as error:
        raise UsageError(f"model file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path} is no model file: it must be an .npz written by astra.pipelines.slam.train"
        ) from error
    if str(arrays.get("format")) != FORMAT:
        raise UsageError(
            f"{path} is an .npz, but no model of slam.slam: its key 'format' is "
            f"{str(arrays.get('format'))!r}, not {FORMAT!r}"
        )
    if int(arrays["format_version"]) != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {arrays['format_version']}, and this astra reads "
            f"{FORMAT_VERSION}: train it again with astra.pipelines.slam.train"
        )
    for name in (field.name for field in fields(Model)):
        if name not in arrays:
            raise UsageError(f"{path} lacks the array {name!r}. {nearest(name, arrays)}")
    return arrays
