"""The tables: sources, spectra, results of pipelines, and what astra itself remembers."""

from astra.models.base import BaseModel
from astra.models.pipeline import OutputModel, PipelineOutputModel, result_of
from astra.models.slam import Slam
from astra.models.source import Source
from astra.models.spectrum import (
    ApogeeCoaddedSpectrumInApStar,
    ApogeeCombinedSpectrum,
    ApogeeVisitSpectrum,
    BossCombinedSpectrum,
    BossVisitSpectrum,
    Spectrum,
    SpectrumMixin,
)

__all__ = [
    "ApogeeCoaddedSpectrumInApStar",
    "ApogeeCombinedSpectrum",
    "ApogeeVisitSpectrum",
    "BaseModel",
    "BossCombinedSpectrum",
    "BossVisitSpectrum",
    "OutputModel",
    "PipelineOutputModel",
    "Slam",
    "Source",
    "Spectrum",
    "SpectrumMixin",
    "result_of",
]
