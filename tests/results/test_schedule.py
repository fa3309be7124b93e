"""Checkpoints come as often as they are nearly free, and no later than promised."""

import time
from collections.abc import Iterable

import pytest

from astra import task
from astra.api import run_here
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.plan.plan import create_plan
from astra.results import schedule as schedules
from astra.results.schedule import Schedule
from tests.sample_tasks import Measured, fill
from tests.servers import wait_for


def schedule(*took_s: float, longest_s: float = 300.0, by_cost: bool = True) -> Schedule:
    made = Schedule(longest_s, by_cost)
    made.note(60.0)  # the first, which imports what it needs
    for seconds in took_s:
        made.note(seconds)
    return made


@pytest.mark.parametrize(
    ("took_s", "longest_s", "interval_s"),
    [
        ((), 300.0, 1.0),  # nothing is known of the database
        ((0.001,), 300.0, 1.0),  # nearly free: once a second
        ((0.05, 0.05, 0.05), 300.0, 5.0),  # one per cent of the time
        ((9.0, 9.0, 0.02), 300.0, 300.0),  # busy: as rarely as is promised
        ((0.02, 30.0, 0.02), 300.0, 2.0),  # one outage is not what checkpoints take
        ((0.05, 0.05, 0.05), 2.0, 2.0),
    ],
)
def test_a_checkpoint_costs_one_per_cent(took_s, longest_s, interval_s):
    made = schedule(*took_s, longest_s=longest_s)
    since = made.last  # a row is yielded as the last checkpoint ends
    assert made.due(since) - since == pytest.approx(interval_s)


@pytest.mark.parametrize(
    ("ends_in_s", "interval_s"),
    [
        (0.9, 1.0),  # the page ends before
        (1.2, 1.5),  # and here its last checkpoint does for both
        (1.6, 1.0),
    ],
)
def test_a_checkpoint_waits_for_the_end_of_the_page(ends_in_s, interval_s):
    made = schedule(0.001)
    since = made.last
    assert made.due(since, since + ends_in_s) - since == pytest.approx(interval_s)


def test_a_long_row_is_due_as_it_ends():
    made = schedule(0.01)
    assert made.due(made.last + 60.0) == made.last + 60.0


def test_a_task_that_is_called_directly_writes_by_batches():
    made = schedule(0.01, by_cost=False)
    assert made.due(5.0) == 305.0


@task
def long_rows(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Each row takes longer than the least interval; the last waits until the others are stored."""
    for place, spectrum in enumerate(spectra):
        time.sleep(0.1)
        if place == 3:
            wait_for(lambda: Measured.select().count() == 3, "the results of the rows before", 20)
        yield Measured.from_spectrum(spectrum, value=1.0)


def run_page(function, n_rows: int) -> Attempt:
    """Run a plan of one page in this process; return its attempt."""
    fill(n_rows)
    (planned,) = create_plan(function, BossVisitSpectrum)
    run_here(planned.plan)
    assert Measured.select().count() == n_rows
    return Attempt.get()


def test_long_rows_are_stored_as_they_end(url, monkeypatch):
    """Rows are stored much earlier than `write_frequency` demands."""
    monkeypatch.setattr(schedules, "MIN_INTERVAL_S", 0.05)
    monkeypatch.setattr(schedules, "WORK_PER_COST", 0)
    assert run_page(long_rows, 4).n_checkpoints >= 2


@task
def short_rows(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        time.sleep(0.1)
        yield Measured.from_spectrum(spectrum, value=1.0)


def test_where_checkpoints_are_expensive_they_are_rare(url, monkeypatch):
    """The first, one to learn what they cost, and the one at the end of the page."""
    monkeypatch.setattr(schedules, "MIN_INTERVAL_S", 0.05)
    monkeypatch.setattr(schedules, "WORK_PER_COST", 1_000_000)
    assert 2 <= run_page(short_rows, 10).n_checkpoints <= 3
