"""The tables: sources, spectra, results of pipelines, and what astra itself remembers.

Each is imported on first use, because an element needs few of them; :func:`import_all` is for code
that needs all tables.
"""

from typing import Any

from astra.lazy import on_first_use

TYPE_CHECKING = False  # type checkers assume True
if TYPE_CHECKING:
    from astra.models.apogee import (
        ApogeeCoaddedSpectrumInApStar,
        ApogeeVisitSpectrum,
        ApogeeVisitSpectrumInApStar,
    )
    from astra.models.base import BaseModel
    from astra.models.boss import BossVisitSpectrum
    from astra.models.mwm import ApogeeCombinedSpectrum, BossCombinedSpectrum
    from astra.models.pipeline import (
        OutputModel,
        PipelineOutputMixin,
        PipelineOutputModel,
        result_of,
    )
    from astra.models.slam import Slam
    from astra.models.source import Source
    from astra.models.spectrum import Spectrum, SpectrumMixin

__all__ = [
    "ApogeeCoaddedSpectrumInApStar",
    "ApogeeCombinedSpectrum",
    "ApogeeVisitSpectrum",
    "ApogeeVisitSpectrumInApStar",
    "BaseModel",
    "BossCombinedSpectrum",
    "BossVisitSpectrum",
    "OutputModel",
    "PipelineOutputMixin",
    "PipelineOutputModel",
    "Slam",
    "Source",
    "Spectrum",
    "SpectrumMixin",
    "result_of",
]

__getattr__, __dir__ = on_first_use(__name__)


def import_all() -> list[Any]:
    """Import and return everything in ``__all__``."""
    return [__getattr__(name) for name in __all__]
