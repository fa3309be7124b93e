"""Results at the edge: values of every kind, bad keys, foreign classes, cursors, signals."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest
from peewee import (
    BinaryUUIDField,
    BlobField,
    CharField,
    DateField,
    DateTimeField,
    FloatField,
    IntegerField,
    JSONField,
)
from playhouse.postgres_ext import ArrayField as Elements

from astra import generate_queries_for_task, task
from astra.api import run_here
from astra.database import postgresql_writing
from astra.database.connection import connection, database
from astra.fields import ArrayField
from astra.models import BossCombinedSpectrum, BossVisitSpectrum, PipelineOutputModel
from astra.models.failures import Failure, NoResult
from astra.models.plans import Page
from astra.plan.plan import create_plan
from astra.results.claim import Claim
from astra.status.verify import verify
from tests.conftest import ROOT
from tests.sample_tasks import Measured, fill, keyed, measure


class Wide(PipelineOutputModel):
    blob = BlobField(null=True)
    pixels = ArrayField(null=True)
    name = BinaryUUIDField(null=True)
    document = JSONField(null=True)
    short = CharField(max_length=3, null=True)
    day = DateField(null=True)
    real = FloatField(null=True)


class Matrix(PipelineOutputModel):
    flat = Elements(FloatField, null=True, index=False)
    grid = Elements(IntegerField, dimensions=2, null=True, index=False)
    moments = Elements(DateTimeField, null=True, index=False)
    blobs = Elements(BlobField, null=True, index=False)


class Quality(str, Enum):  # noqa: UP042 - a StrEnum writes itself as its value
    GOOD = "good"


class Narrow(Measured):
    """A subclass is another table."""


def spectra() -> list:
    return list(BossVisitSpectrum.select().order_by(BossVisitSpectrum.pk))


def stored(model: type = Measured) -> list[int]:
    return sorted(m.spectrum_pk for m in model.select())


def failures() -> dict[int, Failure]:
    return {int(f.key): f for f in Failure.select()}


def yielding(model: type, values: list[dict]) -> list:
    """Store these values, one result for a spectrum each, by a task."""
    fill(len(values))

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[model]:
        for spectrum, value in zip(spectra, values, strict=True):
            yield model.from_spectrum(spectrum, **value)

    return list(analysis(spectra()))


def test_bytes_arrays_and_documents_come_back_as_they_were(url):
    Wide.create_table()
    values = [
        {"blob": b"a\x00\xff\\", "pixels": np.arange(3.0), "name": uuid.UUID(int=5)},
        {"document": {"a": ['x"\\', 1.5, None]}, "blob": bytearray(b"x")},
        {"document": [], "pixels": np.array([[np.nan, 1.0]])},
        {"blob": b""},
    ]
    yielding(Wide, values)
    assert failures() == {}
    found = list(Wide.select().order_by(Wide.spectrum_pk))
    assert [None if m.blob is None else bytes(m.blob) for m in found] == [
        b"a\x00\xff\\", b"x", None, b"",
    ]  # fmt: skip
    assert found[0].name == uuid.UUID(int=5)
    assert found[1].document == {"a": ['x"\\', 1.5, None]} and found[2].document == []
    assert np.array_equal(found[0].pixels, np.arange(3.0))
    assert np.array_equal(found[2].pixels, [[np.nan, 1.0]], equal_nan=True)


@pytest.mark.postgres
def test_the_items_of_arrays_are_of_their_type(pg_url):
    Matrix.create_table()
    moments = [datetime(2024, 2, 3, microsecond=5), None]
    values = [
        {"moments": moments, "blobs": [b"\\\x00", None]},
        {"moments": [datetime(2024, 2, 3, tzinfo=timezone(timedelta(hours=1)))]},
        {"blobs": ["\\x41"]},
        {"moments": ["now"]},
    ]
    yielding(Matrix, values)
    assert sorted(map(int, failures())) == [2, 3, 4]
    with connection():
        (found,) = Matrix.select()
    assert found.moments == moments
    assert [item and bytes(item) for item in found.blobs] == [b"\\\x00", None]


@pytest.mark.parametrize("n", [3, 60])
def test_a_member_of_an_enumeration_is_stored_as_its_value(url, n):
    yielding(Measured, [{"value": 1.0, "text": Quality.GOOD}] * n)
    with connection():
        assert failures() == {}
        assert [m.text for m in Measured.select()] == ["good"] * n


@pytest.mark.postgres
def test_results_that_are_too_long_for_a_statement_are_written_by_several(pg_url, monkeypatch):
    """A longer one ends the connection, and what is repeated on another one ends that, too."""
    monkeypatch.setattr(postgresql_writing, "_MAX_CHARACTERS", 5000)
    monkeypatch.setattr(postgresql_writing, "_MAX_BYTES", 15_000)
    lengths: list[int] = []
    literals = postgresql_writing._literals

    def noted(columns):
        arrays = literals(columns)
        lengths.append(sum(map(len, arrays)))
        return arrays

    monkeypatch.setattr(postgresql_writing, "_literals", noted)
    sizes = [100] * 30 + [4000, 10_000]  # alone, the first is not too long, and the second is
    Wide.create_table()
    yielding(Wide, [{"blob": bytes(size)} for size in sizes])
    with connection():
        assert sorted(len(wide.blob) for wide in Wide.select()) == sizes[:-1]
    assert sorted(lengths)[-2] < 5000 < max(lengths) < 15_000
    (failure,) = failures().values()
    assert "PostgreSQL takes no statement of 2" in failure.message


def test_arrays_of_one_and_two_dimensions_are_stored(pg_url):
    Matrix.create_table()
    yielding(
        Matrix,
        [
            {"flat": [1.0, float("nan"), None], "grid": [[1, 2], [3, 4]]},
            {"flat": np.array([1.0, 2.0]), "grid": np.array([[1], [2]])},
            {"flat": [], "grid": [[1, 2], [3]]},
            {"flat": [object()]},
        ],
    )
    found = {m.spectrum_pk: m for m in Matrix.select()}
    assert found[1].grid == [[1, 2], [3, 4]] and found[1].flat[2] is None
    assert found[2].flat == [1.0, 2.0] and found[2].grid == [[1], [2]]
    assert set(failures()) == {3, 4}
    assert "builtins.object cannot be stored" in failures()[4].message


def test_values_of_the_wrong_kind_fail_alone_on_both_databases(url):
    Wide.create_table()
    bad = [
        {"short": "abcd"},
        {"short": "a\0b"},
        {"day": "no day"},
        {"real": 1e300},
        {"real": "x"},
        {"blob": 5},
        {"document": {"a": float("nan")}},
        {"pixels": np.array([object()])},
        {"name": "no uuid"},
        {"real": BossVisitSpectrum},
    ]
    yielding(Wide, [*bad, {"short": "abc", "real": 1.0, "day": "2020-01-02"}])
    assert stored(Wide) == [len(bad) + 1]
    assert sorted(failures()) == list(range(1, len(bad) + 1))


def test_nan_is_kept_or_refused_but_never_made_null(url):
    yielding(Measured, [{"value": float("nan")}, {"value": float("inf")}])
    assert Measured.get(spectrum_pk=2).value == float("inf")
    if url.startswith("sqlite"):
        assert "yield None" in failures()[1].message
    else:
        assert np.isnan(Measured.get(spectrum_pk=1).value)


BAD = {
    "huge": lambda s: Measured(spectrum_pk=2**70, value=1),
    "text": lambda s: Measured(spectrum_pk="abc", value=1),
    "digits": lambda s: Measured(spectrum_pk="2", value=1),
    "list": lambda s: Measured(spectrum_pk=[1], value=1),
    "nan": lambda s: Measured(spectrum_pk=float("nan"), value=1),
    "truth": lambda s: Measured(spectrum_pk=True, value=1),
    "none": lambda s: Measured(value=1),
    "class": lambda s: Measured,
    "dictionary": lambda s: {},
    "namespace": lambda s: SimpleNamespace(spectrum_pk=2),
    "spectrum": lambda s: s,
    "nothing": lambda s: None,
    "subclass": lambda s: Narrow.from_spectrum(s, value=1),
    "version": lambda s: Measured.from_spectrum(s, value=1, v_astra=7001),
}


def test_a_bad_result_fails_alone_as_the_row_in_progress(url):
    bad = dict(enumerate(BAD, 2))
    fill(len(bad) + 2)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            kind = bad.get(s.spectrum_pk)
            yield BAD[kind](s) if kind else Measured.from_spectrum(s, value=1)

    list(analysis(spectra()))
    assert stored() == [1, len(bad) + 2]
    assert sorted(failures()) == list(bad)
    assert NoResult.select().count() == 0


@pytest.mark.parametrize("kind", ["class", "namespace", "spectrum", "dictionary"])
def test_a_bad_result_of_a_task_without_a_return_annotation(url, kind):
    fill(3)

    @task
    def analysis(spectra):
        for s in spectra:
            yield BAD[kind](s) if s.spectrum_pk == 2 else Measured.from_spectrum(s, value=1)

    list(analysis(spectra()))
    assert stored() == [1, 3]
    assert "OutputModel" in failures()[2].message


def test_a_subclass_of_the_output_model_is_refused_by_name(sqlite_url):
    Narrow.create_table()
    yielding(Measured, [{"value": 1.0}])

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            yield Narrow.from_spectrum(s, value=2)

    list(analysis(spectra()))
    assert failures()[1].message == "Narrow was yielded, not Measured"
    assert stored(Narrow) == []


def test_a_bad_key_does_not_end_the_page(url):
    fill(20)
    made = create_plan(keyed, "BossVisitSpectrum", arguments={"bad": 5})[0]
    run_here(made.plan)
    page = Page.get(Page.plan == made.plan)
    assert (page.n_done, page.n_failed) == (19, 1)
    assert failures()[5].exception == "BadKey" and "64 bits" in failures()[5].message


def test_later_results_of_a_row_replace_earlier_ones(url):
    fill(100)

    @task
    def of_dicts(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            yield Measured(spectrum_pk=s["spectrum_pk"], value=1)

    # Not the first row of the batch, nor one of those that are looked up before it is copied.
    list(of_dicts(BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk == 3).dicts()))
    assert stored() == [3]
    assert all(m.input_read for m in Measured.select())

    @task
    def of_groups(groups) -> Iterable[Measured]:
        for group in groups:
            for s in group:
                yield Measured.from_spectrum(s, value=2)

    list(of_groups([spectra()[:2], spectra()[2:]]))
    assert [m.value for m in Measured.select()] == [2] * 100


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_a_second_result_of_a_row_is_refused_whatever_the_batches(url, batch_size):
    fill(3)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            yield Measured.from_spectrum(s, value=1)
            yield Measured.from_spectrum(s, value=2)

    assert len(list(analysis(spectra(), batch_size=batch_size))) == 3
    assert [m.value for m in Measured.select()] == [1, 1, 1]
    assert all(f.refused for f in Failure.select()) and len(failures()) == 3


def test_failures_are_of_the_table_that_their_row_stands_in(url):
    fill(2)
    fill(2, BossCombinedSpectrum)
    rows = [*BossVisitSpectrum.select(), *BossCombinedSpectrum.select()]
    keys = {r.spectrum_pk: type(r)._meta.table_name for r in rows}

    @task(re_raise_exceptions=False)
    def union(
        spectra: Iterable[BossVisitSpectrum | BossCombinedSpectrum],
    ) -> Iterable[Measured]:
        for s in spectra:
            if s.spectrum_pk % 2:
                raise ValueError(s.spectrum_pk)
            if good:
                yield Measured.from_spectrum(s, value=1)

    good = False
    list(union(iter(rows)))
    assert {int(f.key): f.input_table for f in Failure.select()} == {
        k: t for k, t in keys.items() if k % 2
    }
    assert {int(n.key): n.input_table for n in NoResult.select()} == {
        k: t for k, t in keys.items() if k % 2 == 0
    }
    good = True
    list(union(iter(rows)))
    assert NoResult.select().count() == 0


def test_an_exception_without_a_text_is_recorded(url):
    fill(3)

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    @task(re_raise_exceptions=False)
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            if s.spectrum_pk == 2:
                raise Mute
            yield Measured.from_spectrum(s, value=1)

    list(analysis(spectra()))
    assert stored() == [1, 3]
    assert failures()[2].exception == "Mute" and "is unavailable" in failures()[2].message


def test_a_cursor_of_the_caller_is_read_on_while_results_are_written(url):
    fill(30)

    def rows():
        yield from BossVisitSpectrum.select().order_by(BossVisitSpectrum.pk).iterator()

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            time.sleep(0.02)
            yield Measured.from_spectrum(s, value=1)

    began = time.monotonic()
    assert len(list(analysis(rows(), write_frequency=0.1, batch_size=7))) == 30
    assert stored() == list(range(1, 31)) and time.monotonic() - began < 10


def test_a_query_is_read_lazily_and_what_was_written_is_seen(url, monkeypatch):
    fill(1000)
    made = []
    begin = BossVisitSpectrum.__init__

    def counted(self, *args, **values):
        made.append(1)
        begin(self, *args, **values)

    monkeypatch.setattr(BossVisitSpectrum, "__init__", counted)
    for n, result in enumerate(measure(BossVisitSpectrum.select(), batch_size=10)):
        # The caller's connection sees what is stored, and may write.
        assert Measured.get(task_pk=result.task_pk).value == result.value
        BossVisitSpectrum.update(snr=1).where(BossVisitSpectrum.pk == 1000).execute()
        if n == 15:
            break
    assert len(made) <= 300
    assert len(stored()) == 20
    database.close()


SCRIPT = """
import time
from collections.abc import Iterable
from astra import task
from astra.models import BossVisitSpectrum
from tests.sample_tasks import Measured, fill
fill(400)

@task(re_raise_exceptions=False)
def slow(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for s in spectra:
        try:
            time.sleep(0.05)
        except BaseException:
            if {greedy}:
                continue
            raise
        yield Measured.from_spectrum(s, value=1)
        print(s.spectrum_pk, flush=True)

for r in slow(list(BossVisitSpectrum.select())):
    pass
print("finished")
"""


@pytest.mark.parametrize("greedy", [False, True])
def test_sigterm_ends_a_run_that_records_exceptions(url, greedy):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(greedy=greedy)], cwd=ROOT, env=dict(os.environ),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.strip() == "3":
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    process.wait(60)
    process.stdout.close()
    assert process.returncode == 143 and "finished" not in rest
    assert 3 <= len(stored()) < 400 and failures() == {}


def test_a_plan_of_a_task_is_whole_when_its_rows_are_up_to_date(url):
    fill(3)
    list(measure(spectra()))
    (_, query), *_ = generate_queries_for_task(measure, "BossVisitSpectrum")
    assert query.count() == 0


def test_the_end_of_an_attempt_keeps_what_was_stored_without_being_acknowledged(url, monkeypatch):
    def lose(claim: Claim, progress: object) -> None:
        raise OSError("the answer to the commit is lost")

    fill(5)
    (planned,) = create_plan(measure, BossVisitSpectrum)
    monkeypatch.setattr(Claim, "advance", lose)
    run_here(planned.plan)
    checked = verify(planned.plan)
    assert checked.whole and not checked.breaches


@pytest.mark.parametrize("raise_every", [0, 7])
def test_the_last_rows_of_a_page_and_the_end_of_its_attempt_are_one_transaction(
    pg_url, raise_every
):
    """Unless rows have failed: what they raised may still turn out to be the task's fault."""
    fill(20)
    (planned,) = create_plan(
        measure, "BossVisitSpectrum", limit=20, arguments={"raise_every": raise_every}
    )
    with connection():
        database.execute_sql("CREATE TABLE seen (n int, transaction bigint)")
        database.execute_sql(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO seen VALUES (NEW.n_done + NEW.n_failed, txid_current()); RETURN NEW; END $$"
        )
        database.execute_sql(
            "CREATE TRIGGER note AFTER UPDATE ON page FOR EACH ROW EXECUTE FUNCTION note()"
        )
    run_here(planned.plan)
    with connection():
        (is_same,) = database.execute_sql(
            "SELECT xmin::text = (SELECT min(transaction)::text FROM seen WHERE n = 20) "
            "FROM attempt WHERE state = 'done'"
        ).fetchone()
    assert is_same == (not raise_every)
