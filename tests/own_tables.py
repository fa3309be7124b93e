"""Tables that others made, in a schema of theirs, and tasks on them, as a user writes them."""

import os
from collections.abc import Iterable

from peewee import (
    BigIntegerField,
    CharField,
    CompositeKey,
    DateField,
    DateTimeField,
    FloatField,
    IntegerField,
    Model,
    TextField,
    UUIDField,
)

from astra import task
from astra.models import OutputModel, result_of

#: Where the tables stand; SQLite has no schemas.
SCHEMA = os.environ.get("SURVEY_SCHEMA")


class LightCurve(Model):
    """A text for a key, and nothing that says when a row changed."""

    obj_id = TextField(primary_key=True)
    mag = FloatField()

    class Meta:
        table_name = "light_curve"
        schema = SCHEMA


class SurveyStar(Model):
    """A UUID for a key, and a column of another name that says when a row changed."""

    uid = UUIDField(primary_key=True)
    mag = FloatField()
    updated_at = DateTimeField(null=True)

    class Meta:
        table_name = "star"
        schema = SCHEMA
        modified = "updated_at"


class Exposure(Model):
    """A key of two columns."""

    night = DateField()
    fiber = IntegerField()
    mag = FloatField()
    # A name that stands in astra's own queries, too.
    changed = DateField(null=True, column_name="why")

    class Meta:
        table_name = "exposure"
        schema = SCHEMA
        primary_key = CompositeKey("night", "fiber")
        modified = "changed"


class NightLog(Model):
    """A date for a key."""

    night = DateField(primary_key=True)
    mag = FloatField()

    class Meta:
        table_name = "night_log"
        schema = SCHEMA


class Counted(Model):
    """A whole number for a key."""

    number = BigIntegerField(primary_key=True)
    mag = FloatField()

    class Meta:
        table_name = "counted"
        schema = SCHEMA


class Bright(Model):
    """A view, of which nobody but the model says that it has a key."""

    name = CharField(primary_key=True)
    mag = FloatField()

    class Meta:
        table_name = "bright"
        schema = SCHEMA


INPUTS = (LightCurve, SurveyStar, Exposure, NightLog, Counted, Bright)


class Period(OutputModel):
    light_curve = result_of(LightCurve)
    period = FloatField()


class StarPeriod(OutputModel):
    star = result_of(SurveyStar)
    period = FloatField()


class ExposurePeriod(OutputModel):
    exposure = result_of(Exposure)
    period = FloatField()


class NightPeriod(OutputModel):
    night = result_of(NightLog)
    period = FloatField()


class CountedPeriod(OutputModel):
    counted = result_of(Counted)
    period = FloatField()


class BrightPeriod(OutputModel):
    bright = result_of(Bright)
    period = FloatField()


def measured(
    output: type[OutputModel], rows: Iterable[Model], limit: float
) -> Iterable[OutputModel]:
    """A result of twice the magnitude; rows of 3 raise, rows of 4 yield nothing."""
    for row in rows:
        if row.mag == limit:
            raise ValueError(f"magnitude {row.mag}")
        if row.mag != limit + 1:
            yield output.from_row(row, period=2 * row.mag)


@task
def periods(rows: Iterable[LightCurve], limit: float = 3.0) -> Iterable[Period]:
    yield from measured(Period, rows, limit)


@task
def of_stars(rows: Iterable[SurveyStar], limit: float = 3.0) -> Iterable[StarPeriod]:
    yield from measured(StarPeriod, rows, limit)


@task
def of_exposures(rows: Iterable[Exposure], limit: float = 3.0) -> Iterable[ExposurePeriod]:
    yield from measured(ExposurePeriod, rows, limit)


@task
def of_nights(rows: Iterable[NightLog], limit: float = 3.0) -> Iterable[NightPeriod]:
    yield from measured(NightPeriod, rows, limit)


@task
def of_counted(rows: Iterable[Counted], limit: float = 3.0) -> Iterable[CountedPeriod]:
    yield from measured(CountedPeriod, rows, limit)


@task
def of_bright(rows: Iterable[Bright], limit: float = 3.0) -> Iterable[BrightPeriod]:
    yield from measured(BrightPeriod, rows, limit)


@task
def all_at_once(rows: Iterable[LightCurve]) -> Iterable[Period]:
    """Takes its rows before it yields, the last first."""
    for row in list(rows)[::-1]:
        yield Period.from_row(row, period=row.mag)


TASKS = {
    of_stars: (SurveyStar, StarPeriod), periods: (LightCurve, Period), of_exposures: (Exposure, ExposurePeriod),
    of_nights: (NightLog, NightPeriod), of_counted: (Counted, CountedPeriod), of_bright: (Bright, BrightPeriod),
}  # fmt: skip
