"""Combined spectra of stars, as an mwmStar file holds them."""

from peewee import FloatField, IntegerField

from astra.models.apogee import ApogeeMixin
from astra.models.base import BaseModel
from astra.models.boss import BossMixin


class ApogeeCombinedSpectrum(BaseModel, ApogeeMixin):
    """All visits of a star by APOGEE, combined at rest.

    Examples
    --------
    >>> from astra.models import ApogeeCombinedSpectrum
    >>> ApogeeCombinedSpectrum.create(n_visits=3).spectrum_pk is not None
    True
    """

    n_visits = IntegerField(null=True)
    min_mjd = IntegerField(null=True)
    max_mjd = IntegerField(null=True)
    nmf_rchi2 = FloatField(null=True)


class BossCombinedSpectrum(BaseModel, BossMixin):
    """All visits of a star by BOSS, combined at rest.

    Examples
    --------
    >>> from astra.models import BossCombinedSpectrum
    >>> BossCombinedSpectrum.create(n_visits=3).spectrum_pk is not None
    True
    """

    n_visits = IntegerField(null=True)
    min_mjd = IntegerField(null=True)
    max_mjd = IntegerField(null=True)
