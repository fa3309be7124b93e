"""Read and write model files: ``.npz`` files of plain arrays, without pickle."""

import hashlib
import zipfile
import zlib
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from astra.errors import UsageError, nearest
from astra.pipelines.slam.domain import Domain
from astra.pipelines.slam.model import Model, Validation

#: The format as named in the file; its version is raised when the meaning of an array changes.
FORMAT = "astra-slam"
FORMAT_VERSION = 2

#: The models that ship with the package, by the name that the argument `model` accepts.
SHIPPED = {
    "slam_synthetic": Path(__file__).with_name("slam_synthetic.npz"),
    "slam_templates": Path(__file__).with_name("slam_templates.npz"),
}

#: The model that is used if none is chosen.
DEFAULT = "slam_synthetic"

Part = TypeVar("Part", Validation, Domain)

#: Fields that are stored under other names in the file, or not at all.
_NESTED = ("validation", "domain", "digest")

#: Arrays that are stored in single precision.
_SINGLE = ("components", "bias", "scatter")


def save(model: Model, path: str | Path) -> Model:
    """Write an ``.npz`` file; return the model with the digest of that file."""
    arrays: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    for field in fields(Model):
        if field.name not in _NESTED:
            arrays[field.name] = np.asarray(getattr(model, field.name))
    for name in _SINGLE:
        arrays[name] = arrays[name].astype(np.float32)
    for prefix, part in (("validation", model.validation), ("domain", model.domain)):
        for field in fields(part) if part is not None else ():
            arrays[f"{prefix}_{field.name}"] = np.asarray(getattr(part, field.name))
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    Path(path).write_bytes(buffer.getvalue())
    return replace(model, digest=_digest(buffer.getvalue()))


def load(path: str | Path = DEFAULT) -> Model:
    """Read a model file that :func:`save` wrote.

    Parameters
    ----------
    path
        The file, or the name of a model that ships with astra.

    Raises
    ------
    UsageError
        If the file is missing, or is not a model, or has another version of the format.
    """
    path = SHIPPED.get(str(path), Path(path))
    content, arrays = _read(path)
    values = {name: arrays[name].astype(float) for name in _ARRAYS}
    return Model(
        **values,
        label_names=tuple(map(str, arrays["label_names"])),
        gamma=float(arrays["gamma"]),
        continuum_degree=int(arrays["continuum_degree"]),
        validation=_part(Validation, "validation", arrays),
        domain=_part(Domain, "domain", arrays),
        description=str(arrays["description"]),
        digest=_digest(content),
    )


_ARRAYS = (
    "wavelength", "centre", "scale", "nodes", "node_weights", "components", "bias", "scatter",
    "lower", "upper", "label_floor", "rest_masks", "observed_masks",
)  # fmt: skip


def _part(kind: type[Part], prefix: str, arrays: dict[str, NDArray[np.generic]]) -> Part | None:
    """Return the validation or the domain in a file; None if the file has none."""
    if f"{prefix}_{fields(kind)[0].name}" not in arrays:
        return None
    values = {f.name: arrays[f"{prefix}_{f.name}"] for f in fields(kind)}
    contents: dict[str, Any] = {n: a if a.ndim else a.item() for n, a in values.items()}
    return kind(**contents)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(path: Path) -> tuple[bytes, dict[str, NDArray[np.generic]]]:
    try:
        content = path.read_bytes()
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UsageError(
            f"model file {path} does not exist; make one with `astra slam train`, or use one that "
            f"ships with astra: {' or '.join(SHIPPED)}"
        ) from None
    except OSError as error:
        raise UsageError(f"model file {path} cannot be read: {error.strerror or error}") from error
    except (
        ValueError,
        TypeError,
        EOFError,
        AttributeError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise UsageError(
            f"{path} is not a model file: it must be an .npz file that `astra slam train` wrote"
        ) from error
    if str(arrays.get("format")) != FORMAT:
        raise UsageError(
            f"{path} is an .npz file, but not a model of slam.slam: its array 'format' is "
            f"{str(arrays.get('format'))!r}, not {FORMAT!r}"
        )
    if int(arrays["format_version"]) != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {arrays['format_version']}, but this version of astra "
            f"reads {FORMAT_VERSION}: train the model again with `astra slam train`"
        )
    for field in fields(Model):
        if field.name not in (*_NESTED, *arrays):
            raise UsageError(
                f"{path} lacks the array {field.name!r}. {nearest(field.name, arrays)}"
            )
    return content, arrays
