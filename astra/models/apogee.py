"""Spectra of APOGEE: visits, and what an apStar file holds."""

from peewee import BigIntegerField, FloatField, IntegerField, TextField

from astra.models.base import BaseModel
from astra.models.spectrum import SpectrumMixin


class ApogeeMixin(SpectrumMixin):
    """What all spectra of APOGEE have."""

    instrument = "APOGEE"

    apred = TextField(null=True, help_text="reduction of the APOGEE pipeline")
    telescope = TextField(null=True)
    field = TextField(null=True)
    apogee_id = TextField(null=True)
    v_rad = FloatField(null=True, help_text="barycentric radial velocity [km/s]")
    e_v_rad = FloatField(null=True)
    spectrum_flags = IntegerField(default=0)


class ApogeeVisitSpectrum(BaseModel, ApogeeMixin):
    """One visit of APOGEE: 1.51 to 1.70 micron, R about 22,500.

    Examples
    --------
    >>> from astra.models import ApogeeVisitSpectrum
    >>> ApogeeVisitSpectrum.create(snr=80.0).spectrum_pk is not None
    True
    """

    plate = TextField(null=True)
    fiber = IntegerField(null=True)
    mjd = IntegerField(null=True)
    date_obs = TextField(null=True)
    bc = FloatField(null=True, help_text="barycentric correction [km/s]")


class ApogeeVisitSpectrumInApStar(BaseModel, ApogeeMixin):
    """One visit of APOGEE, resampled on the 8,575 pixels of an apStar file.

    Examples
    --------
    >>> from astra.models import ApogeeVisitSpectrumInApStar
    >>> ApogeeVisitSpectrumInApStar.create(snr=80.0).spectrum_pk is not None
    True
    """

    drp_spectrum_pk = BigIntegerField(
        null=True, index=True, help_text="the visit's own spectrum, before it was resampled"
    )
    plate = TextField(null=True)
    fiber = IntegerField(null=True)
    mjd = IntegerField(null=True)
    date_obs = TextField(null=True)


class ApogeeCoaddedSpectrumInApStar(BaseModel, ApogeeMixin):
    """All visits of a star, coadded, resampled on the 8,575 pixels of an apStar file.

    Examples
    --------
    >>> from astra.models import ApogeeCoaddedSpectrumInApStar
    >>> ApogeeCoaddedSpectrumInApStar.create(n_visits=3).spectrum_pk is not None
    True
    """

    n_visits = IntegerField(null=True)
    n_good_visits = IntegerField(null=True)
    min_mjd = IntegerField(null=True)
    max_mjd = IntegerField(null=True)
