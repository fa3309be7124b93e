"""Tasks with threads of their own."""

import threading
from collections.abc import Iterable

from astra import task
from astra.models import BossVisitSpectrum
from astra.tasks import run
from tests.sample_tasks import Measured

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
