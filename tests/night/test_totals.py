"""The totals of a night."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from astra.api import run_here
from astra.config.nights import NightSettings
from astra.database.connection import connection, database
from astra.element.element import Element
from astra.models import BossVisitSpectrum
from astra.models.nights import Night, NightPlan
from astra.night import nightly
from astra.night.clean import clean
from astra.night.history import last_nights, night_of, nights
from astra.night.nightly import _missing
from astra.night.plans import NightStep, begin_tasks
from astra.night.totals import entries_of, n_left, plan_pks, refresh_totals, totals_of
from astra.plan.plan import create_plan
from astra.results.stopping import Stop
from astra.resume.cancel import cancel
from tests.nights import a_night, settings_of_tasks
from tests.pools import plan_of, pool_of
from tests.sample_tasks import Measured, fill, measure, on_sources


def test_the_rows_of_a_cancelled_plan_count_once(url):
    """Those that the night plans again are those of the later plan; the others are missing."""
    plan, night = plan_of(30, 10), a_night()

    def add(pk: int) -> None:
        with connection():
            NightPlan.create(night=night.pk, task="measure", plan_pk=pk)

    add(plan.pk)
    with Element(plan, pool_of(plan), Stop()) as this:
        this.run_page(1, 1)
    cancel(plan.pk)
    (entry,) = refresh_totals(night)
    assert (entry.n_rows, n_left(entry), entry.has_ended) == (30, 20, False)
    (line,) = _missing([entry], NightSettings("survey", ()), "")
    assert line == "plan 1 of measure: 20 rows are left (it was cancelled): astra plans"
    (of_sources,) = create_plan(on_sources)
    add(of_sources.plan)  # its rows have the same keys
    (again,) = create_plan(measure, BossVisitSpectrum, max_rows=15)
    add(again.plan)
    (others,) = create_plan(measure, BossVisitSpectrum)  # not by the night
    entry, _, later = refresh_totals(night)
    assert (n_left(entry), entry.has_ended, n_left(later)) == (5, False, 15)
    add(others.plan)
    entry, _, *later = refresh_totals(night)
    assert (entry.n_rows, entry.has_ended, entry.message) == (10, True, "was cancelled")
    assert totals_of([entry, *later]).n_rows == 30


def test_a_closed_nights_rows_that_ended_since_count_as_ended_also_when_their_plan_is_gone(url):
    plan, night = plan_of(30, 10), a_night()
    with connection():
        NightPlan.create(night=night.pk, task="measure", plan_pk=plan.pk)
    refresh_totals(night)
    with connection():
        Night.update(ended="2026-01-03 05:00:00", state="not whole").execute()
    run_here(plan.pk)

    def results_and_left() -> list[tuple[int, int]]:
        seen = [*nights("survey"), night_of("survey"), *last_nights()]
        return [(shown.results, shown.pending) for shown in seen]

    assert results_and_left() == [(30, 0)] * 3
    later = datetime.now(UTC) + timedelta(days=91)
    assert clean(now=later, dry_run=False).plans == (plan.pk,)
    assert results_and_left() == [(30, 0)] * 3 and night_of("survey").plans[0].whole


def test_a_task_that_can_be_planned_later_is_no_longer_reported(url):
    """As when its table is created, and the night is joined."""
    settings, night, table = settings_of_tasks("measure"), a_night(), Measured._meta.table_name
    fill(1)
    for names in ((table, "elsewhere"), None, ("elsewhere", table)):
        if names:
            database.execute_sql('ALTER TABLE "{}" RENAME TO "{}"'.format(*names))
        step = NightStep()
        begin_tasks(night, settings, step, again=True)
        (entry,) = entries_of(night)
        assert bool(step.problems) == (entry.plan_pk is None) == (names != ("elsewhere", table))
        if step.problems:
            (line,) = _missing([entry], settings, "")
            assert "measure could not be planned: the database" in line and "initdb" in line
    assert entry.n_rows == 1 and entry.message is None and _missing([entry], settings, "") == [
        f"plan {entry.plan_pk} of {entry.task}: 1 row is left: astra status {entry.plan_pk}"
    ]  # fmt: skip


def test_rows_in_a_plan_of_no_night_are_told_and_taken_once_it_is_cancelled(url):
    fill(6)
    forgotten = create_plan(measure, BossVisitSpectrum, max_rows=4)[0].plan
    night, settings, step = a_night(), settings_of_tasks("measure"), NightStep()
    begin_tasks(night, settings, step)
    (mine,) = plan_pks(night)
    task = "tests.sample_tasks.measure"
    told = (
        f"plan {forgotten}, which belongs to no night, has 4 pending rows of {task}: astra status"
    )
    assert step.problems == [f"{told} {forgotten}"]
    run_here(mine)
    assert _missing(refresh_totals(night), settings, "") == step.problems
    assert [plan.whole for plan in night_of("survey").plans] == [True, False]
    cancel(forgotten)
    begin_tasks(night, settings, later := NightStep())
    assert later.problems == [] and [rows for _, rows in later.new] == [4]
    run_here(later.new[0][0])
    closed = nightly._advance(night, settings)
    assert (closed.state, closed.message) == ("whole", None)


def test_rows_that_an_earlier_night_left_for_good_keep_a_night_from_being_whole(url):
    """Their retries are used up, so this night has not taken their plan; nobody else will."""
    settings, earlier = settings_of_tasks("measure"), a_night()
    fill(6)
    begin_tasks(earlier, settings, NightStep())
    with connection():
        Night.update(ended="2026-01-03 05:00:00", state="not whole").execute()
    fill(2)
    night = a_night()
    begin_tasks(night, settings, step := NightStep())
    assert [rows for _, rows in step.new] == [2] and step.problems == [
        "plan 1, of the night survey, has 6 pending rows of tests.sample_tasks.measure: "
        "astra status 1"
    ]
    run_here(step.new[0][0])
    begin_tasks(night, replace(settings, leftovers="leave"), left := NightStep(), again=True)
    assert left.problems == [] and _missing(refresh_totals(night), settings, "") == []
    begin_tasks(night, settings, NightStep(), again=True)
    closed = nightly._advance(night, settings)
    assert (closed.state, closed.message) == ("not whole", step.problems[0])


def test_a_night_whose_rows_are_all_in_a_forgotten_plan_says_so(sqlite_url):
    fill(6)
    forgotten = create_plan(measure, BossVisitSpectrum)[0].plan
    begun = nightly._begin(settings_of_tasks("measure"))
    assert (
        begun.state == "nothing new"
        and f"plan {forgotten}, which belongs to no" in begun.problems[0]
    )


def test_rows_in_a_plan_of_another_night_are_left_to_it(url):
    fill(6)
    other, night, settings = a_night("other"), a_night(), settings_of_tasks("measure")
    begin_tasks(other, settings, NightStep())
    begin_tasks(night, settings, step := NightStep())
    assert (step.problems, step.new) == ([], [])
    begun = nightly._begin(settings)
    text = "plan 1, of the night other, has 6 pending rows of tests.sample_tasks.measure: astra"
    assert (begun.state, begun.message) == ("nothing new", f"{text} status 1")
