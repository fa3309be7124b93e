"""Spectra of BOSS: visits."""

from peewee import BigIntegerField, FloatField, IntegerField, TextField

from astra.models.base import BaseModel
from astra.models.spectrum import SpectrumMixin


class BossMixin(SpectrumMixin):
    """What all spectra of BOSS have."""

    instrument = "BOSS"

    run2d = TextField(null=True, help_text="reduction of the BOSS pipeline")
    telescope = TextField(null=True)
    xcsao_v_rad = FloatField(null=True, help_text="barycentric radial velocity [km/s]")
    xcsao_e_v_rad = FloatField(null=True)
    spectrum_flags = IntegerField(default=0)


class BossVisitSpectrum(BaseModel, BossMixin):
    """One visit of BOSS: 3,600 to 10,400 Angstrom, R about 2,000.

    Examples
    --------
    >>> from astra.models import BossVisitSpectrum
    >>> BossVisitSpectrum.create(snr=30.0).spectrum_pk is not None
    True
    """

    fieldid = IntegerField(null=True)
    catalogid = BigIntegerField(null=True)
    mjd = IntegerField(null=True)
    fiberid = IntegerField(null=True)
    exptime = FloatField(null=True, help_text="[s]")
