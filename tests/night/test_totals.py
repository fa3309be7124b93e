"""The totals of a night."""

from astra.database.connection import connection
from astra.element.element import Element
from astra.models import BossVisitSpectrum
from astra.models.nights import NightPlan
from astra.night.totals import n_left, refresh_totals, totals_of
from astra.plan.plan import create_plan
from astra.results.stopping import Stop
from astra.resume.cancel import cancel
from tests.nights import a_night
from tests.pools import plan_of, pool_of
from tests.sample_tasks import measure, on_sources


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
    assert totals_of([entry, *later])["n_rows"] == 30
