"""The Stellar LAbel Machine: labels of stars from BOSS spectra.

Zhang et al. 2020, ApJS 246, 9; for M dwarfs Li et al. 2021, ApJS 253, 45. ``slam`` is the task,
``train`` makes a model file from labelled spectra.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from astra import task
from astra.errors import UsageError
from astra.models.boss import BossVisitSpectrum
from astra.models.mwm import BossCombinedSpectrum
from astra.models.slam import Slam

if TYPE_CHECKING:
    from pathlib import Path

    from astra.pipelines.slam.label import Pixels
    from astra.pipelines.slam.model import Model
    from astra.pipelines.slam.training import train

__all__ = ["slam", "train"]

log = logging.getLogger(__name__)

BossSpectrum = BossVisitSpectrum | BossCombinedSpectrum

#: So many spectra are labelled at once.
BATCH = 32


def _model_file(model: str | None) -> "str | Path":
    """The file of a model that is named as the task takes it."""
    from astra.pipelines.slam.model_file import DEFAULT, SHIPPED

    name = DEFAULT if model is None else str(model)
    return SHIPPED.get(name, name)


@task(files={"model": _model_file})
def slam(
    spectra: Iterable[BossVisitSpectrum | BossCombinedSpectrum],
    model: str | None = None,
    store_model: bool = False,
) -> Iterable[Slam]:
    """Label BOSS spectra.

    A visit is shifted to rest by its ``xcsao_v_rad``; where that is not known its velocity is
    searched for, and flagged. Combined spectra are at rest. What is left of the velocity is fitted
    together with the labels.

    Parameters
    ----------
    spectra : iterable of BossVisitSpectrum or BossCombinedSpectrum
        Visits or combined spectra, on any pixels.
    model : str, optional
        A file that ``astra slam train`` wrote, or the name of a model that ships with astra:
        ``slam_templates`` was trained on real stars, ``slam_synthetic`` on synthetic ones, and is
        the default, for demonstrations.
    store_model : bool
        Whether results hold the model's flux and the continuum, on the pixels of the spectrum.

    Yields
    ------
    Slam
        One for each spectrum, in their order.

    Raises
    ------
    UsageError
        If `model` is missing or no model; before the first spectrum is asked for.

    Examples
    --------
    >>> from astra.models import BossVisitSpectrum
    >>> from astra.pipelines.slam import slam
    >>> spectra = BossVisitSpectrum.select().limit(2)
    >>> for result in slam(spectra, write_to_database=False):
    ...     print(type(result).__name__)
    Slam
    Slam
    """
    from astra.pipelines.slam.model_file import DEFAULT, load

    machine = load(DEFAULT if model is None else model)
    batch: list[tuple[BossSpectrum, Pixels]] = []
    warned = model is not None
    for spectrum in spectra:
        try:
            pixels = _pixels(machine, spectrum)
        except Exception:
            yield from _label(machine, batch, store_model)  # the error is this spectrum's alone
            raise
        warned = warned or _warns_of_default(spectrum)
        batch.append((spectrum, pixels))
        if len(batch) == BATCH:
            yield from _label(machine, batch, store_model)
            batch = []
    yield from _label(machine, batch, store_model)


def _warns_of_default(spectrum: BossSpectrum) -> bool:
    """Return whether the spectrum comes from a file, and if so warn that no model was chosen."""
    from astra.pipelines.slam.model_file import DEFAULT

    if spectrum.path:
        log.warning(
            "slam.slam: no model was chosen, and %s knows synthetic stars only; for real "
            "spectra add --set model=slam_templates, or a file of `astra slam train`", DEFAULT
        )  # fmt: skip
    return bool(spectrum.path)


def _pixels(machine: "Model", spectrum: BossSpectrum) -> "Pixels":
    from astra.pipelines.slam.label import prepare

    is_visit = isinstance(spectrum, BossVisitSpectrum) and not spectrum.is_at_rest
    arrays = (spectrum.wavelength, spectrum.flux, spectrum.ivar, spectrum.pixel_flags)
    v_rad = spectrum.xcsao_v_rad if is_visit else None
    pixels = prepare(machine, *arrays, v_rad, is_at_rest=not is_visit)
    if spectrum.path and machine.covers(pixels.wavelength[pixels.good]).sum() < 2:
        raise _nothing_to_label(machine, spectrum.path, pixels)
    return pixels


def _nothing_to_label(machine: "Model", path: str, pixels: "Pixels") -> UsageError:
    """Return the error of a file in which no pixel is a datum that the model could be fitted to."""
    import numpy as np

    counts = {
        "lie in the range of the model": machine.covers(pixels.wavelength),
        "have a finite flux": np.isfinite(pixels.flux),
        "have a positive ivar": pixels.ivar > 0,
        "are good": pixels.good,
    }
    first, last = machine.wavelength[[0, -1]]
    return UsageError(
        f"{path} has nothing to label: of its {pixels.good.size} pixels "
        + ", ".join(f"{np.count_nonzero(which)} {what}" for what, which in counts.items())
        + f"; the model covers {first:.0f} to {last:.0f} Angstrom (vacuum), and a pixel is good "
        "if wavelength, flux and ivar are finite, ivar is positive, and no flag is set"
    )


def _label(
    machine: "Model", batch: list[tuple[BossSpectrum, "Pixels"]], store_model: bool
) -> Iterator[Slam]:
    from astra.pipelines.slam.label import label_many

    if batch:
        columns = label_many(machine, [pixels for _, pixels in batch], store_model)
        for (spectrum, _), values in zip(batch, columns, strict=True):
            yield Slam.from_spectrum(spectrum, **values)


def __getattr__(name: str) -> object:
    if name == "train":
        from astra.pipelines.slam.training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
