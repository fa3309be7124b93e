"""A pipeline's module in the manner of the published package, which runs here as it is."""

import datetime
from collections.abc import Iterable

import numpy as np

from astra import __version__, task
from astra.fields import (
    AutoField,
    BitField,
    DateTimeField,
    FloatField,
    ForeignKeyField,
    PixelArray,
    TextField,
)
from astra.glossary import Glossary
from astra.models.base import BaseModel
from astra.models.boss import BossVisitSpectrum
from astra.models.pipeline import PipelineOutputMixin
from astra.models.source import Source
from astra.models.spectrum import Spectrum
from astra.utils import expand_path, log


class LineWidth(BaseModel, PipelineOutputMixin):
    """Widths of lines; columns that every result has are declared once more."""

    source_pk = ForeignKeyField(Source, null=True, index=True, lazy_load=False)
    spectrum_pk = ForeignKeyField(Spectrum, index=True, lazy_load=False)
    task_pk = AutoField(help_text=Glossary.task_pk)
    v_astra = TextField(default=__version__, help_text=Glossary.v_astra)
    created = DateTimeField(default=datetime.datetime.now)
    t_elapsed = FloatField(null=True)
    tag = TextField(default="", index=True)

    teff = FloatField(null=True)
    e_teff = FloatField(null=True, help_text=Glossary.e_teff)
    width = FloatField(null=True, help_text="of the line [Angstrom]")
    model_flux = PixelArray(help_text=Glossary.model_flux)
    result_flags = BitField(default=0, help_text="Result flags")
    flag_wide = result_flags.flag(2**0, help_text="Wider than the window")
    flag_noisy = result_flags.flag(help_text="Noisy")


@task
def line_width(
    spectra: Iterable[BossVisitSpectrum], template: str = "$HOME/template"
) -> Iterable[LineWidth]:
    log.info("template: %s", expand_path(template))
    for spectrum in spectra:
        yield LineWidth.from_spectrum(
            spectrum,
            width=float(spectrum.spectrum_pk),
            model_flux=np.ones(3),
            flag_noisy=spectrum.spectrum_pk == 2,
        )
