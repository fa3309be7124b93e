"""What a result bears once it is stored, and what it may not be given."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import cached_property

import numpy as np
import pytest
from peewee import (
    SQL,
    BooleanField,
    DateField,
    DateTimeField,
    Field,
    FixedCharField,
    FloatField,
    IntegerField,
    JSONField,
    TextField,
)

from astra import task
from astra.api import run_here
from astra.database.connection import connection, database
from astra.errors import UsageError
from astra.fields import ArrayField
from astra.models import BossVisitSpectrum, PipelineOutputModel, Source
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.keys import bound_to_database
from astra.plan.plan import create_plan
from astra.status.status import status
from astra.status.verify import verify
from tests.forks import astra
from tests.many_tasks import Peak
from tests.own_tables import LightCurve, Period, periods
from tests.sample_tasks import Measured, OfSource, fill, measure


def test_a_result_has_the_times_of_the_database(url):
    fill(3)
    results = list(measure(BossVisitSpectrum.select()))
    with connection():
        for result in results:
            stored = Measured.get_by_id(result.task_pk)
            assert (result.created, result.modified) == (stored.created, stored.modified)
        assert [result.source for result in results] == [
            spectrum.source
            for spectrum in BossVisitSpectrum.select().order_by(BossVisitSpectrum.pk)
        ]
        assert Measured().source is None
        first = results[0].created
        (again,) = measure(BossVisitSpectrum.select().where(BossVisitSpectrum.pk == 1))
        assert again.created <= again.modified
        assert again.created in {r.created for r in results} and again.modified > first


def test_the_key_of_another_row_is_refused():
    spectrum = BossVisitSpectrum(spectrum_pk=3)
    with pytest.raises(UsageError, match="spectrum_pk of this row is 3"):
        Measured.from_spectrum(spectrum, spectrum_pk=4, value=1.0)
    assert Measured.from_spectrum(spectrum, spectrum_pk=3, value=1.0).spectrum_pk == 3
    with pytest.raises(UsageError, match="source_pk of this row is 1"):
        OfSource.from_source(Source(pk=1), source_pk=2, value=1.0)
    with pytest.raises(UsageError, match="light_curve of this row is 'a'"):
        Period.from_row(LightCurve(obj_id="a"), light_curve="b", period=1.0)


@task
def mistyped(spectra: Iterable[BossVisitSpectrum], way: str) -> Iterable[Measured]:
    """Set an attribute that is no column, in every result but the first."""
    for n, spectrum in enumerate(spectra):
        if way == "constructor":
            key = spectrum.spectrum_pk
            yield Measured(spectrum_pk=key, value=1.0, **({"numbr": 1} if n else {}))
            continue
        result = Measured.from_spectrum(spectrum, value=1.0)
        if n:
            setattr(result, "filter" if way == "name of peewee's" else "numbr", 1)
        yield result


@pytest.mark.parametrize("way", ["constructor", "attribute", "name of peewee's"])
def test_an_attribute_that_is_no_column_is_refused(url, way):
    fill(3)
    kept = list(mistyped(BossVisitSpectrum.select(), way))
    with connection():
        failures = list(Failure.select())
    assert len(kept) == 1 and {failure.exception for failure in failures} == {"NoColumn"}
    message = "has no column 'filter'" if "peewee" in way else "Did you mean 'number'?"
    assert len(failures) == 2 and message in failures[0].message


def test_a_mistyped_attribute_of_every_result_breaks_the_page(url):
    fill(3)
    (planned,) = create_plan(always_mistyped)
    run_here(planned.plan)
    with connection():
        (attempt,) = Attempt.select()
    assert status(planned.plan).rows == {"done": 0, "broken": 3}
    assert "Measured has no column 'numbr'. Did you mean 'number'?" in attempt.message


@task
def always_mistyped(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        result = Measured.from_spectrum(spectrum, value=1.0)
        result.numbr = 1
        yield result


class Described(PipelineOutputModel):
    """Has attributes that are no columns, and that its class knows."""

    number = IntegerField(null=True)
    note = None

    @cached_property
    def index(self):
        """Stand for the same name of peewee's."""
        return 2 * self.number

    @property
    def half(self):
        return self.number / 2

    @half.setter
    def half(self, value):
        self.number = 2 * value


@task
def describe(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Described]:
    for spectrum in spectra:
        result = Described(spectrum_pk=spectrum.spectrum_pk, half=3)
        result.note, result._scratch = "for the task only", result.index
        yield result


def test_attributes_that_the_class_of_a_result_knows_are_allowed(url):
    fill(3)
    with connection():
        Described.create_table()
    assert [(r.number, r.index) for r in describe(BossVisitSpectrum.select())] == [(6, 12)] * 3
    with connection():
        assert Described.select().where(Described.number == 6).count() == 3


def test_identifiers_of_catalogues_have_64_bits(url):
    with connection():
        made = BossVisitSpectrum.create(catalogid=27021600491023544)
        assert BossVisitSpectrum.get_by_id(made.pk).catalogid == 27021600491023544


@task
def half_named(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Yield a text and a number for every second row, and NULL for the others."""
    for spectrum in spectra:
        named = spectrum.spectrum_pk % 2 == 0
        yield Measured.from_spectrum(
            spectrum, value=1.0, text="named" if named else None, number=2 if named else None
        )


@pytest.mark.postgres
@pytest.mark.parametrize("n", [10, 120])  # a single INSERT, and COPY
def test_null_is_stored_as_null_whatever_the_settings_of_the_database(pg_url, n):
    fill(n)
    with connection():
        name = database.execute_sql("SELECT current_database()").fetchone()[0]
        for setting in ("array_nulls = off", "DateStyle = 'SQL, DMY'"):
            database.execute_sql(f'ALTER DATABASE "{name}" SET {setting}')
    (planned,) = create_plan(half_named, BossVisitSpectrum, limit=n)
    # A process of its own: its connections are new, and have these settings.
    done = astra("submit", planned.plan, "--local")
    assert done.returncode == 0, done.stdout + done.stderr
    with connection():
        stored = {(result.text, result.number) for result in Measured.select()}
        assert stored == {("named", 2), (None, None)} and Measured.select().count() == n


class Exact(PipelineOutputModel):
    number = IntegerField(null=True)
    size = FloatField(null=True)
    flag = BooleanField(null=True)
    code = FixedCharField(null=True, max_length=4)
    day = DateField(null=True)
    at = DateTimeField(null=True)
    text = TextField(null=True)
    pixels = ArrayField(null=True)


@task
def too_large(spectra: Iterable[BossVisitSpectrum], column: str, value: float) -> Iterable[Exact]:
    """One value that its column cannot hold, and NULL in every third result."""
    for n, spectrum in enumerate(spectra):
        values = {"number": 1, "size": 2.0} if n % 3 else {}
        yield Exact.from_spectrum(spectrum, **values | ({column: value} if n == 4 else {}))


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("number", 2**31, "out of range for type integer"), ("size", 1e-60, "range for type real")],
)
def test_a_value_that_cannot_be_copied_costs_its_row_alone(pg_url, column, value, said):
    fill(60)  # enough for a COPY
    with connection():
        Exact.create_table()
    (planned,) = create_plan(too_large, arguments={"column": column, "value": value})
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 59, "failed": 1} and verify(planned.plan).sound
    with connection():
        assert said in Failure.get().message
        assert Exact.select().where(Exact.number.is_null()).count() == 20


_KATHMANDU = timezone(timedelta(hours=5, minutes=45))


class Length(np.ndarray):
    """A number with a unit, as those of astropy."""

    def __float__(self) -> float:
        raise TypeError("only dimensionless quantities can be converted")

    def tolist(self) -> object:
        raise NotImplementedError


#: Values that a column would change, and others of their kind that it stores as they are.
_REFUSED_AND_TAKEN = [
    ({"number": 1.5}, {"number": np.float32(2)}), ({"number": np.float64(-0.5)}, {"number": "5"}),
    ({"number": Decimal("0.5")}, {"number": np.array(5, dtype=">i8")}),
    ({"flag": "no"}, {"flag": np.bool_(False)}), ({"flag": 2}, {"flag": 1}),
    ({"flag": float("nan")}, {"flag": 0.0}), ({"code": "abcde"}, {"code": "ab  "}),
    ({"day": datetime(2001, 2, 3, 4)}, {"day": datetime(2001, 2, 3)}),
    ({"day": "today"}, {"day": "2001-02-03"}), ({"at": "now"}, {"at": datetime(2001, 2, 3, 4)}),
    ({"at": "3/4/2001"}, {"at": "2001-02-03T04:05:06"}), ({"at": "infinity"}, {"at": None}),
    ({"text": np.arange(2000)}, {"text": np.str_("a")}),
    ({"size": np.zeros(()).view(Length)}, {"size": np.zeros(())}),
    ({"pixels": np.ma.array([1.0, 9.0], mask=[0, 1])}, {"pixels": np.ma.array([1.0, 9.0])}),
    ({"at": datetime(2001, 2, 3, tzinfo=_KATHMANDU)}, {"at": datetime(2001, 2, 3, tzinfo=UTC)}),
]  # fmt: skip


@task
def refused_or_taken(spectra: Iterable[BossVisitSpectrum], which: int) -> Iterable[Exact]:
    for row, values in zip(spectra, _REFUSED_AND_TAKEN, strict=False):
        yield Exact.from_spectrum(row, **values[which])


def test_a_value_that_its_column_would_change_is_refused(url):
    with connection():
        Exact.create_table()
        rows = [BossVisitSpectrum.create() for _ in _REFUSED_AND_TAKEN]
    assert not list(refused_or_taken(rows, which=0))
    with connection():
        said = {int(f.key): f.message for f in Failure.select()}
    for row, (refused, _) in zip(rows, _REFUSED_AND_TAKEN, strict=True):
        assert next(iter(refused)) in said[row.spectrum_pk]
    assert len(list(refused_or_taken(rows, which=1))) == len(rows)


@task
def misdirected(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """The result of each seventh row is for the row before, which is in another page."""
    for spectrum in spectra:
        result = Measured.from_spectrum(spectrum, value=spectrum.spectrum_pk)
        result.spectrum_pk -= spectrum.spectrum_pk % 7 == 0
        yield result


@task
def twice(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=spectrum.spectrum_pk)
        yield Measured.from_spectrum(spectrum, value=-1.0)


def test_a_result_for_a_row_that_is_not_the_pages_own(url):
    """It is not stored, and harms neither that row nor what verify says."""
    fill(14)
    (made,) = create_plan(misdirected, BossVisitSpectrum, limit=1)
    run_here(made.plan)
    with connection():
        stored = dict(Measured.select(Measured.spectrum_pk, Measured.value).tuples())
    assert stored == {key: float(key) for key in range(1, 15) if key % 7}
    assert status(made.plan).rows["done"] == 12 and verify(made.plan).sound


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_a_second_result_of_a_row_leaves_the_first(url, batch_size):
    fill(8)
    (made,) = create_plan(twice, BossVisitSpectrum, limit=4, arguments={"batch_size": batch_size})
    run_here(made.plan)
    with connection():
        stored = dict(Measured.select(Measured.spectrum_pk, Measured.value).tuples())
        assert {f.exception for f in Failure.select()} == {"DuplicateResult"}
    assert stored == {key: float(key) for key in range(1, 9)}
    assert verify(made.plan).sound


@task
def periods_twice(curves: Iterable[LightCurve]) -> Iterable[Period]:
    rows = list(curves)
    for curve in rows + rows:
        yield Period.from_row(curve, period=1.0)


def test_a_second_result_of_a_row_is_recorded_by_its_key_of_any_type(url):
    bound_to_database(LightCurve)
    with connection():
        LightCurve.create_table()
        Period.create_table()
        LightCurve.insert_many([("a'b", 1.0), ("10", 2.0)]).execute()
    (made,) = create_plan(periods_twice)
    run_here(made.plan)
    with connection():
        refused = {(f.key, f.exception, f.refused) for f in Failure.select()}
    assert refused == {(key, "DuplicateResult", True) for key in ("a'b", "10")}
    assert status(made.plan).rows == {"done": 2} and verify(made.plan).sound


class FreeField(Field):
    """Of a type that astra does not know."""

    field_type = "TEXT COLLATE free"

    def ddl_datatype(self, context: object) -> SQL:
        return SQL("TEXT")


class Free(PipelineOutputModel):
    free = FreeField()

    class Meta:
        abstract = True


@task
def frees(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Free]:
    for spectrum in spectra:
        yield Free.from_spectrum(spectrum, free={} if spectrum.spectrum_pk == 2 else "a text")


def test_a_value_that_no_parameter_can_hold_costs_its_row_alone(url):
    fill(4)
    with connection():
        Free.create_table()
    (planned,) = create_plan(frees)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 3, "failed": 1} and verify(planned.plan).sound
    assert "dict" in Failure.get().message


def test_rows_that_can_be_in_no_table_cost_no_other(url, caplog):
    """A direct call may be given rows that a program has made."""
    with connection():
        LightCurve.create_table()
        Period.create_table()
        LightCurve.create(obj_id="a", mag=1.0)
        rows = [LightCurve(obj_id=key, mag=1.0) for key in ("a", [1], None, "a\0")]
    assert [result.light_curve_id for result in periods(rows)] == ["a"]
    assert caplog.text.count("result refused") == 3


class Refilled(PipelineOutputModel):
    real = FloatField()
    pixels = ArrayField()
    document = JSONField()


class Tensor:
    """A part of a tensor of PyTorch's that has a gradient: it shows what the whole contains."""

    def __init__(self, whole: np.ndarray) -> None:
        self.whole = whole

    def __float__(self) -> float:
        return float(self.whole[0])

    item = __float__

    def __deepcopy__(self, memo: object) -> "Tensor":
        raise RuntimeError("only tensors created explicitly support the deepcopy protocol")


class Quantity(np.ndarray):
    """An array that has a hash, as those with a unit of astropy's."""

    __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (lambda pixels: pixels[0, ...], lambda pixels: pixels),
        (Tensor, memoryview),
        (Tensor, lambda pixels: (pixels,)),
        (Tensor, lambda pixels: pixels.view(Quantity)),
    ],
    ids=["array", "memoryview", "tuple", "quantity"],
)
def test_an_array_that_the_task_fills_again_for_each_row_is_stored_as_it_was_yielded(
    url, part, whole
):
    Refilled.create_table()
    fill(3)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Refilled]:
        pixels, document = np.empty(2), {}
        columns = {"real": part(pixels), "pixels": whole(pixels[:1]), "document": document}
        for spectrum in spectra:
            pixels[:] = document["key"] = spectrum.spectrum_pk
            yield Refilled.from_spectrum(spectrum, **columns)

    unwritten = list(analysis(BossVisitSpectrum.select(), write_to_database=False))
    list(analysis(BossVisitSpectrum.select()))
    for results in unwritten, Refilled.select():
        found = {
            r.spectrum_pk: (r.real, np.ravel(r.pixels).tolist(), r.document["key"]) for r in results
        }
        assert found == {key: (key, [key], key) for key in (1, 2, 3)}


@task(many=True)
def changing(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    """Yields one object for all results, and changes it in between."""
    result = None
    for spectrum in spectra:
        result = result or Peak.from_spectrum(spectrum)
        result.spectrum_pk = spectrum.spectrum_pk
        for height in (1.0, 2.0):
            result.height = height
            yield result
            result.height = -1.0


def test_a_result_that_the_task_changes_for_its_next_one_is_stored_as_it_was_yielded(url):
    for _ in range(3):
        fill(1)
    modified = {s.spectrum_pk: s.modified for s in BossVisitSpectrum.select()}
    assert len(set(modified.values())) == 3
    expected = sorted((key, height, modified[key]) for key in modified for height in (1.0, 2.0))

    def of(results: Iterable[Peak]) -> list[tuple[object, ...]]:
        return sorted((r.spectrum_pk, r.height, r.input_modified) for r in results)

    assert of(changing(BossVisitSpectrum.select())) == of(Peak.select()) == expected
    (planned,) = create_plan(changing, BossVisitSpectrum, redo="all")
    run_here(planned.plan)
    assert of(Peak.select()) == expected
