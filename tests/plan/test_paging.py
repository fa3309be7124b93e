"""Property tests: however rows are cut, each stands in one page, and each page in one array."""

from hypothesis import given, settings
from hypothesis import strategies as st

from astra.config.profiles import choose_profile
from astra.models import BossVisitSpectrum
from astra.models.plans import Page, Plan
from astra.plan.plan import create_plan
from astra.resume.resume import checked_states
from astra.states import SlurmState
from astra.submit.arrays import reduced, slices
from tests.sample_tasks import fill, measure


@given(
    numbers=st.sets(st.integers(1, 5000), min_size=1),
    each=st.integers(1, 20),
    most=st.integers(1, 1000),
)
def test_every_page_is_in_one_array_at_an_index_that_it_takes(numbers, each, most):
    chosen = choose_profile(None, {"pages_per_element": each, "pull": False})
    found = slices(numbers, chosen, most)
    assert [page for piece in found for page in piece.pages] == sorted(numbers)
    elements = [e for piece in found for e in piece.elements]
    assert len(elements) == len(set(elements))
    for piece in found:
        assert all(1 <= index <= most for index in piece.indices())
        for page in piece.pages:
            element = (page - 1) // each + 1
            assert element in piece.elements
            assert element - piece.offset in piece.indices()
        if len(piece.elements) > 1:  # as where Slurm takes no more at once
            first, second = reduced(piece, chosen)
            assert first.pages + second.pages == piece.pages
            assert first.elements + second.elements == piece.elements
            assert len(second.elements) - len(first.elements) in (0, 1)


@given(n_pages=st.integers(2, 5000), most=st.integers(1, 1000))
def test_a_pool_that_slurm_refuses_gets_fewer_elements_and_then_fewer_pages(n_pages, most):
    chosen = choose_profile(None, {"max_elements": most})
    (piece,) = slices(range(1, n_pages + 1), chosen, 10_000)
    n_elements = len(piece.elements)
    wanted = n_elements
    while n_elements > 1:
        parts = reduced(piece, chosen)
        assert [page for part in parts for page in part.pages] == piece.pages
        assert all(part.elements == part.pages[: len(part.elements)] for part in parts)
        halved = [len(part.elements) for part in parts]
        assert all(1 <= n <= max(n_elements // 2, 1) for n in halved)
        allowed = [part.max_elements for part in parts]  # once the limit is lifted
        assert sum(allowed) - piece.max_elements in (0, len(parts) - 1)
        assert len(parts) == 1 or n_elements // 2 < min(len(piece.pages), wanted) / 8
        piece, n_elements = parts[0], halved[0]


def test_a_plan_holds_each_pending_row_once(sqlite_url):
    fill(137)

    @settings(max_examples=40)
    @given(limit=st.integers(1, 200), most=st.one_of(st.none(), st.integers(1, 200)))
    def check(limit, most):
        (planned, _) = create_plan(measure, limit=limit, max_rows=most)
        try:
            pages = list(Page.select().where(Page.plan == planned.plan).order_by(Page.number))
            keys = [key for page in pages for key in page.keys]
            wanted = min(137, most or 137)
            newest_first = list(range(137, 137 - wanted, -1))
            assert keys == newest_first and planned.rows == wanted
            assert [page.number for page in pages] == list(range(1, planned.pages + 1))
            assert all(len(page.keys) == page.n_rows == len(page.outcomes) for page in pages)
            assert all(page.n_rows == limit for page in pages[:-1])
        finally:
            Plan.delete().where(Plan.pk == planned.plan).execute()

    check()
    assert Page.select().count() == 0 and BossVisitSpectrum.select().count() == 137


def test_states_are_read_in_either_case():
    assert checked_states(["out_of_memory", "TIMEOUT"]) == {
        SlurmState.OUT_OF_MEMORY,
        SlurmState.TIMEOUT,
    }
