"""Tasks with threads of their own, and forks of programs that call tasks."""

import os
import threading
from collections.abc import Iterable
from queue import SimpleQueue

from astra import task
from astra.api import run_here
from astra.database.connection import database
from astra.models import BossVisitSpectrum
from astra.status.verify import verify
from astra.tasks import run
from tests.pools import plan_of
from tests.sample_tasks import Measured, fill, measure

_shares_time, _has_more = threading.Event(), threading.Event()


@task
def fetched_ahead(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Takes its rows in another thread, the last ones while the time of a result is shared out."""
    rows: list[BossVisitSpectrum] = []

    def fetch() -> None:
        _shares_time.wait(60)
        rows.extend(spectra)
        _has_more.set()

    rows += [next(spectra) for _ in range(3)]  # type: ignore[call-overload]
    threading.Thread(target=fetch).start()
    for row in rows:
        yield Measured.from_spectrum(row, value=1.0)


def test_a_row_may_be_taken_while_another_ends(sqlite_url, monkeypatch):
    share_out = run.share_out

    def take_more_meanwhile(spent_s, others):
        for _ in others:
            _shares_time.set()
            assert _has_more.wait(60)
        return share_out(spent_s, others)

    monkeypatch.setattr(run, "share_out", take_more_meanwhile)
    spectra = [BossVisitSpectrum(spectrum_pk=key) for key in range(1, 6)]
    results = list(fetched_ahead(spectra, write_to_database=False))
    assert [result.spectrum_pk for result in results] == [1, 2, 3, 4, 5]


_threads: list[threading.Thread] = []

_called_again, _takes_no_more = threading.Event(), threading.Event()


@task
def read_by_a_thread(spectra: Iterable[BossVisitSpectrum], bad: int = 0) -> Iterable[Measured]:
    """Leaves its thread running when it raises; the next call begins when that has ended."""
    rows: SimpleQueue[BossVisitSpectrum | None] = SimpleQueue()

    def read() -> None:
        for spectrum in spectra:
            rows.put(spectrum)
            if spectrum.spectrum_pk == bad:
                _called_again.wait(60)
        rows.put(None)
        _takes_no_more.set()

    thread = threading.Thread(target=read, daemon=True)
    if _threads:
        _called_again.set()
        assert _takes_no_more.wait(60)
    _threads.append(thread)
    thread.start()
    while (row := rows.get()) is not None:
        if row.spectrum_pk == bad:
            raise ValueError(f"row {bad} is bad")
        yield Measured.from_spectrum(row, value=1.0)


def test_a_thread_that_outlives_its_call_takes_no_rows_of_the_next_one(url):
    """They would have no result, and nobody would know why."""
    _threads.clear()
    _called_again.clear()
    _takes_no_more.clear()
    plan = plan_of(10, 10, read_by_a_thread, bad=4)
    run_here(plan.pk)
    found = verify(plan.pk)
    assert found.sound and (found.rows["result"], found.rows["failure"]) == (9, 1)


@task(re_raise_exceptions=False)
def read_slowly_by_a_thread(
    spectra: Iterable[BossVisitSpectrum], bad: int = 0
) -> Iterable[Measured]:
    """Leaves its thread, which waits for a row, when it raises."""
    rows: SimpleQueue[BossVisitSpectrum | None] = SimpleQueue()

    def read() -> None:
        for spectrum in spectra:
            rows.put(spectrum)
        rows.put(None)

    if _threads:
        _called_again.set()
    _threads.append(threading.Thread(target=read, daemon=True))
    _threads[-1].start()
    while (row := rows.get()) is not None:
        if row.spectrum_pk == bad:
            raise ValueError(f"row {bad} is bad")
        yield Measured.from_spectrum(row, value=1.0)


def test_a_row_that_is_read_for_a_call_that_has_ended_is_for_the_next_one(sqlite_url):
    _threads.clear()
    _called_again.clear()

    def rows() -> Iterable[BossVisitSpectrum]:
        for key in range(1, 5):
            assert key != 3 or _called_again.wait(60)
            yield BossVisitSpectrum(spectrum_pk=key)

    results = read_slowly_by_a_thread(rows(), bad=2, write_to_database=False)
    assert [result.spectrum_pk for result in results] == [1, 3, 4]


def test_a_forked_process_has_a_connection_of_its_own(url):
    """As of multiprocessing: two processes with one connection would get each other's answers."""
    fill(40)
    rows = BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk <= 20)
    others = BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk > 20)
    database.connect(reuse_if_open=True)
    if (fork := os.fork()) == 0:
        try:
            was_closed = database.is_closed()
            n = sum(len(list(measure(others))) for _ in range(20))
            os._exit(0 if was_closed and n == 400 else 1)
        finally:
            os._exit(2)
    assert sum(len(list(measure(rows))) for _ in range(20)) == 400
    assert os.waitpid(fork, 0)[1] == 0
    assert Measured.select().count() == 40
