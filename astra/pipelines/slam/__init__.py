"""The Stellar LAbel Machine: stellar labels, such as temperatures, from BOSS spectra.

Zhang et al. 2020, ApJS 246, 9; for M dwarfs Li et al. 2021, ApJS 253, 45. ``slam`` is the task;
``train`` trains a model on labelled spectra and writes its file.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from astra import task
from astra.errors import BadSpectrum
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

#: Number of spectra that are labelled at once.
BATCH = 32


def _model_file(model: str | None) -> "str | Path":
    """Return the file of a model, given the value of the task's argument `model`."""
    from astra.pipelines.slam.model_file import DEFAULT, SHIPPED

    name = DEFAULT if model is None else str(model)
    return SHIPPED.get(name, name)


@task(files={"model": _model_file})
def slam(
    spectra: Iterable[BossVisitSpectrum | BossCombinedSpectrum],
    model: str | None = None,
    store_model: bool = False,
) -> Iterable[Slam]:
    """Determine stellar labels from BOSS spectra.

    A visit is shifted to the rest frame by its ``xcsao_v_rad``. If that is unknown, its velocity is
    searched for and the result is flagged. Combined spectra are in the rest frame already. The
    remaining velocity is fitted together with the labels.

    Parameters
    ----------
    spectra : iterable of BossVisitSpectrum or BossCombinedSpectrum
        Visits or combined spectra, on any pixels.
    model : str, optional
        A file that ``astra slam train`` wrote, or the name of a model that ships with astra:
        ``slam_templates`` was trained on real stars. ``slam_synthetic``, the default, was trained
        on synthetic ones and is meant for demonstrations.
    store_model : bool
        Whether to store the model's flux and the continuum, on the pixels of the spectrum.

    Yields
    ------
    Slam
        One result for each spectrum, in the order of the spectra.

    Raises
    ------
    UsageError
        If `model` does not exist or is not a model; raised before the first spectrum is read.

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
            yield from _label(machine, batch, store_model)  # only this spectrum has failed
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
            "slam.slam: no model was chosen, and %s was trained on synthetic stars only; for real "
            "spectra add --set model=slam_templates, or --set model=FILE with a file that "
            "`astra slam train` wrote", DEFAULT
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


def _nothing_to_label(machine: "Model", path: str, pixels: "Pixels") -> BadSpectrum:
    """Return the error of a file that has no pixels to which the model could be fitted."""
    import numpy as np

    counts = {
        "lie in the range of the model": machine.covers(pixels.wavelength),
        "have a finite flux": np.isfinite(pixels.flux),
        "have a positive ivar": pixels.ivar > 0,
        "are good": pixels.good,
    }
    first, last = machine.wavelength[[0, -1]]
    return BadSpectrum(
        f"{path} has no data that could be labelled: of its {pixels.good.size} pixels "
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
