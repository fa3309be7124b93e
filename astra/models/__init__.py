"""The tables: sources, spectra, results of pipelines, and what astra itself remembers."""

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
