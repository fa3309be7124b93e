"""Pending rows: which, in what order, and how names and annotations say so."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Optional, Union

import numpy as np
import peewee
import pytest
from peewee import SQL

from astra import generate_queries_for_task, task
from astra.api import run_here, status, verify
from astra.database.connection import connection, dialect
from astra.errors import TaskError
from astra.models import (
    ApogeeVisitSpectrum,
    BaseModel,
    BossCombinedSpectrum,
    BossVisitSpectrum,
    OutputModel,
    Source,
    SpectrumMixin,
    result_of,
)
from astra.models.keys import bound_to_database
from astra.plan.plan import create_plan
from astra.tasks.signature import find_task, input_models, output_model
from tests.sample_tasks import Measured, OfSource, fill, measure, on_sources, per_source


def query_of(function=measure, **options):
    ((_, query),) = generate_queries_for_task(function, BossVisitSpectrum, **options)
    return query


def test_all_rows_then_none_then_the_modified_one(url):
    fill(30)
    query = query_of()
    assert query.count() == 30 and len(list(query)) == 30
    assert sum(row.source is None for row in query) == 3
    list(measure(query))
    assert query_of().count() == 0
    BossVisitSpectrum.update(snr=1).where(BossVisitSpectrum.pk == 7).execute()
    assert [row.spectrum_pk for row in query_of()] == [7]
    assert query_of().where(BossVisitSpectrum.pk < 5).count() == 0


def test_the_source_comes_in_the_same_query(pg_url):
    fill(20)
    from astra.database.connection import database

    rows = list(query_of())
    statements = []
    original = database.obj.execute_sql
    database.obj.execute_sql = lambda *a, **k: statements.append(a) or original(*a, **k)
    try:
        assert {row.source.sdss_id for row in rows if row.source} == set(range(100, 105))
    finally:
        del database.obj.execute_sql
    assert statements == []


def test_a_change_during_processing_is_seen_whatever_the_clocks_say(url):
    fill(3)

    def rows():
        for row in BossVisitSpectrum.select().order_by(BossVisitSpectrum.pk):
            if row.pk == 2:
                # An hour behind: written by a node whose clock is wrong.
                BossVisitSpectrum.update(modified=row.modified - timedelta(hours=1)).where(
                    BossVisitSpectrum.pk == 2
                ).execute()
            yield row

    list(measure(list(rows())))
    assert [row.pk for row in query_of()] == [2]


def test_order_is_total(url):
    fill(20)
    at = datetime(2100, 1, 1, tzinfo=UTC)
    BossVisitSpectrum.update(modified=at).execute()
    BossVisitSpectrum.update(modified=at + timedelta(days=1)).where(
        BossVisitSpectrum.pk == 4
    ).execute()
    expected = [4, *(k for k in range(20, 0, -1) if k != 4)]
    assert [r.pk for r in query_of()] == expected
    pages = [[r.pk for r in query_of(limit=6, page=p)] for p in (1, 2, 3, 4, 5)]
    assert [pk for page in pages for pk in page] == expected and pages[4] == []


def test_one_row_of_each_group_is_pending(url):
    fill(30)
    rows = list(query_of(per_source))
    assert len([r for r in rows if r.source_pk]) == 5
    assert len([r for r in rows if r.source_pk is None]) == 3  # each stands alone
    list(per_source(rows))
    assert query_of(per_source).count() == 0

    @task(group_by=("sauce_pk",))
    def wrong(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        yield from ()

    with pytest.raises(TaskError, match="source_pk"):
        list(generate_queries_for_task(wrong))


def test_only_rows_of_the_given_sdss_ids_are_pending(url):
    fill(30)
    assert query_of(sdss_ids=[100, 101]).count() == 12
    assert query_of(sdss_ids=np.array([100])).count() == 6
    assert query_of(sdss_ids=range(100_000)).count() == 27
    assert query_of(sdss_ids=[]).count() == 0
    for wrong in ("5439", [1.5], [True], ["1"], 5, [2**63]):
        with pytest.raises(TaskError):
            query_of(sdss_ids=wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"page": 1},
        {"limit": 0},
        {"limit": -1},
        {"limit": 5, "page": 0},
        {"limit": "5"},
        {"limit": True},
    ],
)
def test_a_wrong_limit_or_page_is_refused(sqlite_url, options):
    with pytest.raises(TaskError):
        generate_queries_for_task(measure, **options)


def test_tasks_on_sources_have_pending_sources(url):
    fill(10)
    ((model, query),) = generate_queries_for_task(on_sources)
    assert model is Source and query.count() == 5
    list(on_sources(query))
    assert OfSource.select().count() == 5
    ((_, query),) = generate_queries_for_task(on_sources)
    assert query.count() == 0
    list(on_sources(Source.select()))
    assert OfSource.select().count() == 5


def test_a_task_is_found_by_its_names_and_a_wrong_name_is_refused(sqlite_url):
    slam = find_task("slam.slam")
    assert find_task("slam") is slam and find_task("astra.pipelines.slam.slam") is slam
    assert find_task("tests.sample_tasks.measure") is measure and find_task(measure) is measure
    with pytest.raises(TaskError, match=r"slam\.slam"):
        find_task("slam.slan")
    with pytest.raises(TaskError, match="measure"):
        find_task("tests.sample_tasks.mesure")
    with pytest.raises(TaskError, match="nosuchpackage"):
        find_task("nosuchpackage.tasks.f")
    with pytest.raises(TaskError, match="BossVisitSpectrum, BossCombinedSpectrum"):
        generate_queries_for_task(measure, "ApogeeVisitSpectrum")
    ((model, _),) = generate_queries_for_task(measure, "BossCombinedSpectrum")
    assert model is BossCombinedSpectrum


def test_annotations_name_the_input_models():
    a, b = BossVisitSpectrum, ApogeeVisitSpectrum
    for annotation, expected in (
        (Iterable[a], [a]),
        (Iterable[Union[a, b]], [a, b]),  # noqa: UP007 - both ways of writing count
        (Iterable[a | b], [a, b]),
        (Optional[Iterable[a]], [a]),  # noqa: UP045
        (a | b, [a, b]),
        ("Iterable[BossVisitSpectrum]", [a]),
        (Iterable[Source], [Source]),
    ):

        def f(rows):
            yield

        f.__annotations__ = {"rows": annotation, "return": Iterable[Measured]}
        assert input_models(f) == expected
        assert output_model(f) is Measured


class OwnSpectrum(BaseModel, SpectrumMixin):
    """A table of the tests' own."""


def test_all_spectrum_models_with_those_of_ones_own():
    def f(rows: Iterable[SpectrumMixin]) -> Measured:
        yield

    assert OwnSpectrum in input_models(f) and BossVisitSpectrum in input_models(f)
    assert OwnSpectrum._meta.table_name == "own_spectrum"
    assert BossVisitSpectrum._meta.table_name == "boss_visit_spectrum"


def test_unusable_annotations_show_the_signature():
    def bare(rows):
        yield

    def wrong(rows: Iterable[int]) -> Iterable[Measured]:
        yield

    def no_output(rows: Iterable[BossVisitSpectrum]):
        yield

    for function in (bare, wrong):
        with pytest.raises(TaskError, match=r"def \w+\(rows.*write for example"):
            input_models(function)
    with pytest.raises(TaskError, match="Iterable"):
        output_model(no_output)


def test_a_row_that_was_loaded_before_and_saved_after_a_change_hides_none(url):
    fill(1)
    loaded = BossVisitSpectrum.get()
    list(measure([loaded]))
    BossVisitSpectrum.update(snr=5.0).execute()
    changed = BossVisitSpectrum.get().modified
    loaded.snr = 99.0
    loaded.save()
    assert BossVisitSpectrum.get().modified > changed
    assert query_of().count() == 1
    for text in (changed.isoformat(), "2020-01-02T03:04:05", "2020-01-02 03:04:05.000001"):
        before = BossVisitSpectrum.get().modified
        BossVisitSpectrum.update(modified=SQL("'" + text + "'")).execute()
        assert BossVisitSpectrum.get().modified > before
    BossVisitSpectrum.update(modified="2100-01-02 03:04:05").execute()
    assert BossVisitSpectrum.get().modified.year == 2100


def test_rows_of_astras_own_tables_at_infinity_are_processed_once(pg_url):
    fill(3)
    with connection():
        for pk, at in ((1, "infinity"), (2, "20000-01-01")):
            dialect().run("UPDATE boss_visit_spectrum SET modified = %s WHERE pk = %s", (at, pk))
    Source.insert(sdss_id=7, modified="-infinity").execute()
    for function, n in ((measure, 3), (on_sources, 6)):
        (planned, *_) = create_plan(function)
        assert planned.rows == n
        run_here(planned.plan)
        assert status(planned.plan).rows == {"done": n} and verify(planned.plan).sound
        assert all(again.plan is None for again in create_plan(function))


class Stamped(peewee.Model):
    written = peewee.TextField(null=True)

    class Meta:
        table_name = "others_stamped"
        modified = "written"


class OfStamped(OutputModel):
    stamped = result_of(Stamped)


@task
def of_stamped(rows: Iterable[Stamped]) -> Iterable[OfStamped]:
    for row in rows:
        yield OfStamped.from_row(row)


def test_texts_of_sqlite_may_say_when_a_row_was_modified(sqlite_url):
    with connection():
        bound_to_database(Stamped).create_table()
        OfStamped.create_table()
        Stamped.insert_many(
            [("2024-01-02",), ("2024-01-02 03:04:05",), (None,)], ["written"]
        ).execute()
        rows = list(Stamped.select())
    assert len(list(of_stamped(rows[:2]))) == 2
    (planned,) = create_plan(of_stamped)
    assert planned.rows == 1
    run_here(planned.plan)
    assert verify(planned.plan).sound and create_plan(of_stamped)[0].plan is None
    with connection():
        Stamped.update(written="2024-01-03").where(Stamped.id == 1).execute()
    assert create_plan(of_stamped)[0].rows == 1
    with pytest.raises(TaskError, match="rows of Stamped have no source; select rows by --keys"):
        create_plan(of_stamped, sdss_ids=[1])
