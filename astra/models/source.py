"""Stars, galaxies and what else was observed: one row each."""

from collections.abc import Iterable

from peewee import (
    AutoField,
    BigIntegerField,
    ColumnBase,
    DoubleField,
    FloatField,
    IntegerField,
    Model,
    TextField,
)

from astra.database.connection import dialect
from astra.errors import TaskError
from astra.models.base import BaseModel, TimeField


class Source(BaseModel):
    """An astronomical source.

    Positions are ICRS degrees; proper motions mas/yr; parallaxes mas; magnitudes as published by
    each survey, in its own system.

    Examples
    --------
    >>> from astra.models import Source
    >>> Source.create(sdss_id=54392544, ra=10.68, dec=41.27).sdss_id
    54392544
    """

    pk = AutoField()
    sdss_id = BigIntegerField(null=True, unique=True)
    sdss4_apogee_id = TextField(null=True, index=True)
    gaia_dr2_source_id = BigIntegerField(null=True)
    gaia_dr3_source_id = BigIntegerField(null=True, index=True)
    tic_v8_id = BigIntegerField(null=True)
    healpix = IntegerField(null=True)

    catalogid = BigIntegerField(null=True)
    catalogid21 = BigIntegerField(null=True)
    catalogid25 = BigIntegerField(null=True)
    catalogid31 = BigIntegerField(null=True)
    n_associated = IntegerField(null=True)
    version_id = IntegerField(null=True)

    ra = DoubleField(null=True)
    dec = DoubleField(null=True)
    l = DoubleField(null=True)  # noqa: E741 - its published name
    b = DoubleField(null=True)
    plx = FloatField(null=True)
    e_plx = FloatField(null=True)
    pmra = FloatField(null=True)
    e_pmra = FloatField(null=True)
    pmde = FloatField(null=True)
    e_pmde = FloatField(null=True)
    gaia_v_rad = FloatField(null=True)
    gaia_e_v_rad = FloatField(null=True)

    g_mag = FloatField(null=True)
    bp_mag = FloatField(null=True)
    rp_mag = FloatField(null=True)
    j_mag = FloatField(null=True)
    e_j_mag = FloatField(null=True)
    h_mag = FloatField(null=True)
    e_h_mag = FloatField(null=True)
    k_mag = FloatField(null=True)
    e_k_mag = FloatField(null=True)
    w1_mag = FloatField(null=True)
    e_w1_mag = FloatField(null=True)
    w2_mag = FloatField(null=True)
    e_w2_mag = FloatField(null=True)
    ebv = FloatField(null=True)
    e_ebv = FloatField(null=True)

    created = TimeField(now=True, null=False)
    modified = TimeField(now=True, null=False)

    is_input = True


def of_sources(model: type[Model], sdss_ids: Iterable[int]) -> ColumnBase:
    """Return the clause that a row is one of these sources, or belongs to one of them.

    Raises
    ------
    TaskError
        If rows of the model belong to no source.
    """
    if not issubclass(model, Source) and getattr(model, "loaded_with", None) != "source":
        raise TaskError(
            f"--sdss-ids: rows of {model.__name__} have no source; select rows by --keys"
        )
    source = model if issubclass(model, Source) else Source
    return dialect().among(source.sdss_id, sdss_ids)
