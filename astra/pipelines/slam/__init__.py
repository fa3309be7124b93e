"""The Stellar LAbel Machine: labels of cool dwarfs from BOSS spectra.

Zhang et al. 2020, ApJS 246, 9; for M dwarfs Li et al. 2021, ApJS 253, 45. ``slam`` is the task,
``train`` makes a model file from labelled spectra.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from astra import task
from astra.models.slam import Slam
from astra.models.spectrum import BossCombinedSpectrum, BossVisitSpectrum

if TYPE_CHECKING:
    from astra.pipelines.slam.training import train

__all__ = ["slam", "train"]

#: The labels that a model must have for the columns of ``Slam``.
LABELS = ("teff", "logg", "fe_h", "alpha_fe")


@task
def slam(
    spectra: Iterable[BossVisitSpectrum | BossCombinedSpectrum], model: str | None = None
) -> Iterable[Slam]:
    """Labels of BOSS spectra.

    A visit is shifted to rest by its ``xcsao_v_rad``, where that is known; combined spectra are at
    rest.

    Parameters
    ----------
    spectra
        Visits or combined spectra, on any pixels.
    model
        A file that :func:`train` wrote. By default the small one that ships with astra; it knows
        synthetic stars only.

    Yields
    ------
    Slam
        One for each spectrum, in their order.

    Raises
    ------
    UsageError
        If `model` is missing or no model of these labels; before the first spectrum is asked for.
    """
    from astra.pipelines.slam.label import label
    from astra.pipelines.slam.model import SHIPPED, Model

    machine = Model.load(SHIPPED if model is None else model, label_names=LABELS)
    for spectrum in spectra:
        is_visit = isinstance(spectrum, BossVisitSpectrum) and not spectrum.is_at_rest
        v_rad = spectrum.xcsao_v_rad if is_visit else None
        pixels = (spectrum.wavelength, spectrum.flux, spectrum.ivar, spectrum.pixel_flags)
        yield Slam.from_spectrum(spectrum, **label(machine, *pixels, v_rad))


def __getattr__(name: str) -> Any:
    if name == "train":
        from astra.pipelines.slam.training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
