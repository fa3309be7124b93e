"""Combined spectra of stars, as an mwmStar file holds them."""

from peewee import FloatField, IntegerField

from astra.models.apogee import ApogeeMixin
from astra.models.base import BaseModel
from astra.models.boss import BossMixin


class ApogeeCombinedSpectrum(BaseModel, ApogeeMixin):
    """All visits of a star, combined at rest."""

    n_visits = IntegerField(null=True)
    min_mjd = IntegerField(null=True)
    max_mjd = IntegerField(null=True)
    nmf_rchi2 = FloatField(null=True)


class BossCombinedSpectrum(BaseModel, BossMixin):
    """All visits of a star, combined at rest."""

    n_visits = IntegerField(null=True)
    min_mjd = IntegerField(null=True)
    max_mjd = IntegerField(null=True)
