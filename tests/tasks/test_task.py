"""@task: what each keyword changes, on both databases; nothing that was yielded is lost."""

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from astra import generate_queries_for_task, task
from astra.database.connection import database
from astra.errors import TaskError
from astra.models import BossVisitSpectrum
from astra.models.failures import Failure, NoResult
from astra.tasks.signature import find_task
from tests.conftest import ROOT
from tests.sample_tasks import Measured, collect, fill, measure
from tests.servers import wait_for


def spectra() -> list:
    return list(BossVisitSpectrum.select().order_by(BossVisitSpectrum.pk))


def stored() -> list[int]:
    return sorted(m.spectrum_pk for m in Measured.select())


def test_the_published_examples_run(url, capsys):
    fill(20)
    rows = BossVisitSpectrum.select()
    for result in measure(rows, batch_size=500, write_frequency=60):
        print(result)
    assert len(capsys.readouterr().out.splitlines()) == 20
    for input_model, query in generate_queries_for_task("slam.slam", limit=100):
        print(f"{input_model}: {query.count()} spectra to process")
    assert "BossVisitSpectrum>: 20 spectra to process" in capsys.readouterr().out


def test_keywords_are_given_bare_with_arguments_or_at_the_call(url):
    fill(10)

    @task(batch_size=4)
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        """What it does."""
        for spectrum in spectra:
            seen.append(len(stored()))
            yield Measured.from_spectrum(spectrum, value=1)

    seen: list[int] = []
    assert (analysis.__name__, analysis.__doc__) == ("analysis", "What it does.")
    results = list(analysis(spectra()))
    assert seen == [0] * 4 + [4] * 4 + [8] * 2
    assert len({r.task_pk for r in results}) == 10
    seen.clear()
    list(analysis(spectra(), batch_size=5))
    assert len(seen) == 10
    Measured.delete().execute()
    seen.clear()
    list(analysis(spectra(), batch_size=5))
    assert seen == [0] * 5 + [5] * 5


def test_live_comes_before_it_is_written(url):
    fill(3)
    run = measure(spectra(), live=True)
    assert next(run).task_pk is None and stored() == []
    run.close()
    assert len(stored()) == 1
    assert all(r.task_pk for r in measure(spectra(), live=False))


def test_results_are_not_stored_where_nobody_wants_it(url):
    fill(3)
    assert len(list(measure(spectra(), write_to_database=False))) == 3
    assert stored() == []


def test_a_failure_is_not_kept_for_a_database_that_nobody_wants_it_in(url):
    """It would wait for ever, and a thread would try to write it again and again."""
    fill(3)
    keywords = {"write_to_database": False, "re_raise_exceptions": False}
    threads = []
    for _ in measure(spectra(), raise_every=2, **keywords, write_frequency=0):
        threads += [thread.name for thread in threading.enumerate()]
    assert threads and "astra writer" not in threads


def test_a_parameter_of_the_same_name_is_passed(url):
    fill(1)
    got = []

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum], batch_size=3) -> Iterable[Measured]:
        got.append(batch_size)
        yield from ()

    list(analysis(spectra()))
    list(analysis(spectra(), batch_size=9))
    assert got == [3, 9]


def test_ellipsis_is_only_a_chance_to_write(url):
    fill(2)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for spectrum in spectra:
            yield Measured.from_spectrum(spectrum, value=1)
            yield ...

    assert [type(r) for r in analysis(spectra())] == [Measured, Measured]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"write_frequency": -1}, "write_frequency=-1"),
        ({"live": 1}, "live=1"),
        ({"batch_sise": 5}, "Did you mean 'batch_size'"),
    ],
)
def test_wrong_values_are_refused_before_a_row_is_computed(sqlite_url, keywords, words):
    fill(1)
    with pytest.raises(TaskError, match=words):
        measure(spectra(), **keywords)
    with pytest.raises(TaskError, match=words):
        task(**keywords)(measure.__wrapped__)


def test_numbers_of_numpy_are_numbers(sqlite_url):
    fill(3)
    assert len(list(measure(spectra(), batch_size=np.int64(2), write_frequency=np.int32(9)))) == 3


def test_a_function_that_does_not_yield_is_refused():
    with pytest.raises(TaskError, match="does not yield"):

        @task
        def analysis(spectra):
            return spectra


def test_exceptions_are_raised_after_writing_or_recorded(url):
    fill(10)
    with pytest.raises(ValueError, match="row 4 is bad"):
        list(measure(spectra(), raise_every=4))
    assert stored() == [1, 2, 3]
    done = list(measure(spectra(), raise_every=4, nothing_every=3, re_raise_exceptions=False))
    assert sorted(r.spectrum_pk for r in done) == [1, 2, 5, 7, 10]
    assert sorted(int(f.key) for f in Failure.select()) == [4, 8]
    failure = Failure.get(Failure.key == 4)
    assert failure.exception == "ValueError" and "tests/sample_tasks.py" in failure.traceback
    assert sorted(int(n.key) for n in NoResult.select()) == [3, 6, 9]
    assert stored() == [1, 2, 3, 5, 7, 10]  # what was stored before stays


def test_the_row_is_found_that_a_collecting_task_stumbles_on(url):
    fill(40)
    done = list(collect(spectra(), bad=17, re_raise_exceptions=False))
    assert len(done) == 39
    assert [int(f.key) for f in Failure.select()] == [17]


def test_a_row_that_the_task_has_changed_is_tried_again_as_it_was(sqlite_url):
    fill(3)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        rows = list(spectra)
        for row in rows:
            row.stored_flux *= 2
        if any(row.spectrum_pk == 2 for row in rows):
            raise ValueError
        for row in rows:
            yield Measured.from_spectrum(row, value=row.stored_flux[0])

    rows = spectra()
    for row in rows:
        row.stored_flux = np.ones(1)
    list(analysis(rows, re_raise_exceptions=False))
    assert {r.spectrum_pk: r.value for r in Measured.select()} == {1: 2.0, 3: 2.0}


def test_bad_results_fail_alone(url: str):
    fill(12)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            match s.spectrum_pk:
                case 2:
                    yield Measured.from_spectrum(s, value=None)
                case 3:
                    yield Measured.from_spectrum(s, value="no number")
                case 4:
                    yield Measured.from_spectrum(s, value=1)
                    yield Measured.from_spectrum(s, value=2)
                case 5:
                    yield 5
                case 6:
                    yield Measured.from_spectrum(s, value=1, number=10**30)
                case 7:
                    yield Measured.from_spectrum(s, value=1, text="x")
                case 8:
                    yield Measured.from_spectrum(s, value=1, number=3)
                case _:
                    yield Measured.from_spectrum(s, value=1)

    list(analysis(spectra()))
    assert stored() == [1, 4, 7, 8, 9, 10, 11, 12]
    failures = {int(f.key): f for f in Failure.select()}
    assert set(failures) == {2, 3, 4, 5, 6}
    assert "value" in failures[2].message and "ull" in failures[2].message.lower()
    assert failures[4].refused
    assert Measured.get(spectrum_pk=4).value == 1
    assert Measured.get(spectrum_pk=7).text == "x" and Measured.get(spectrum_pk=7).number == 7
    assert Measured.get(spectrum_pk=8).number == 3 and Measured.get(spectrum_pk=8).text is None


def test_postgresql_refuses_a_nul_and_a_number_out_of_range(pg_url):
    fill(4)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            bad = {2: {"text": "a\0b"}, 3: {"small": 70_000}}.get(s.spectrum_pk, {})
            yield Measured.from_spectrum(s, value=1, **bad)

    list(analysis(spectra()))
    assert stored() == [1, 4]
    messages = {int(f.key): f.message for f in Failure.select()}
    assert "out of range" in messages[3] and 2 in messages


def test_a_result_is_replaced_and_keeps_its_key(url):
    fill(3)
    first = {r.spectrum_pk: r.task_pk for r in measure(spectra())}
    created = {m.spectrum_pk: m.created for m in Measured.select()}
    again = {r.spectrum_pk: r.task_pk for r in measure(spectra())}
    assert first == again
    assert created == {m.spectrum_pk: m.created for m in Measured.select()}


def test_hostile_texts_arrive_unchanged(url):
    texts = [
        "'",
        '"',
        "\\",
        "{}",
        "{,}",
        "NULL",
        "null",
        "",
        " ",
        "a,b",
        "\n\t",
        "é☃🌠",
        "%s",
        "$1",
    ]
    fill(len(texts))

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s, text in zip(spectra, texts, strict=True):
            yield Measured.from_spectrum(s, value=1, text=text)

    list(analysis(spectra()))
    assert [m.text for m in Measured.select().order_by(Measured.spectrum_pk)] == texts


def test_written_while_the_next_row_takes_long(url):
    fill(2)
    go_on = threading.Event()
    found = []

    @task(write_frequency=0.2)
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            if s.spectrum_pk == 2:
                wait_for(stored, "the first result", 60)
                found.append(stored())
                go_on.set()
            yield Measured.from_spectrum(s, value=1)

    list(analysis(spectra()))
    assert found == [[1]] and go_on.is_set() and stored() == [1, 2]


def test_input_is_lazy_and_an_early_stop_loses_nothing(url):
    fill(50)
    asked = []

    def endless():
        for s in spectra() * 100:
            asked.append(s.spectrum_pk)
            yield s

    for result in measure(endless(), batch_size=5):
        if result.spectrum_pk == 3:
            break
    del result
    assert len(asked) == 5 and stored() == [1, 2, 3, 4, 5]


@pytest.fixture
def passes(monkeypatch) -> Callable[[float], None]:
    """Let so many seconds pass, by the clock of the rows."""
    now = 1.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("astra.tasks.row_clock.perf_counter", lambda: now)
    return passes


def test_a_result_bears_its_rows_time_and_a_share_of_the_loading(url, passes):
    fill(4)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        passes(0.2)
        for s in spectra:
            passes(0.1 if s.spectrum_pk == 2 else 0.01)
            if s.spectrum_pk != 2:
                yield Measured.from_spectrum(s, value=1)

    for _ in analysis(spectra(), batch_size=1):
        passes(0.05)  # the consumer's time is not the task's
    rows = list(Measured.select())
    assert len(rows) == 3
    assert [m.t_elapsed for m in rows] == pytest.approx([0.01] * 3)
    assert [m.t_overhead for m in rows] == pytest.approx([0.05] * 3)


SCRIPT = """
import sys, time
from tests.sample_tasks import measure, fill
from astra.models import BossVisitSpectrum
fill(5)
for r in measure(BossVisitSpectrum.select(), live=True):
    print(r.spectrum_pk, flush=True)
    while r.spectrum_pk == 3:
        time.sleep(0.1)  # a signal just before one long sleep would be handled after it
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_every_yielded_result_written(url, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=dict(os.environ),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.strip() == "3":
            break
    process.send_signal(number)
    process.wait(60)
    process.stdout.close()
    assert process.returncode != 0
    assert stored() == [1, 2, 3]


def times_of(results: list) -> list[tuple[float, float]]:
    """The times of results, which their rows in the database agree with."""
    found = {r.spectrum_pk: (r.t_elapsed, r.t_overhead) for r in results}
    for m in Measured.select():
        assert (m.t_elapsed, m.t_overhead) == pytest.approx(found[m.spectrum_pk], abs=0.002)
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_work_after_a_yield_belongs_to_that_row_until_it_is_stored(url, passes, batch_size):
    fill(4)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        passes(0.2)
        for s in spectra:
            passes(0.02)
            yield Measured.from_spectrum(s, value=1)
            passes(0.05)

    found = times_of(list(analysis(spectra(), batch_size=batch_size)))
    for number, (elapsed, overhead) in enumerate(found, 1):
        after_s = 0.0 if number % batch_size == 0 else 0.05  # the last of a batch is stored at once
        assert (elapsed, overhead) == pytest.approx((0.02 + after_s, 0.05))


@pytest.mark.parametrize("n_collected", [2, 4])
def test_work_on_several_rows_is_shared_by_them(url, passes, n_collected):
    fill(4)

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        rows = []
        for s in spectra:
            rows.append(s)
            if len(rows) == n_collected:
                passes(0.1 * n_collected)
                for row in rows:
                    yield Measured.from_spectrum(row, value=1)
                rows.clear()

    for elapsed, overhead in times_of(list(analysis(spectra()))):
        assert (elapsed, overhead) == pytest.approx((0.1, 0))


def test_rows_that_a_task_still_holds_are_tried_again(url):
    """Bright rows have a result at once, faint ones ten at a time."""
    fill(40)

    @task(re_raise_exceptions=False)
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        faint = []
        for s in spectra:
            if s.spectrum_pk < 5:
                yield Measured.from_spectrum(s, value=1)
                continue
            faint.append(s)
            if len(faint) == 10:
                yield from fitted(faint)
                faint.clear()
        yield from fitted(faint)

    def fitted(rows):
        if any(row.spectrum_pk == 9 for row in rows):
            raise ValueError("nine")
        for row in rows:
            yield Measured.from_spectrum(row, value=1)

    for rows in (spectra(), iter(spectra())):
        list(analysis(rows))
        assert stored() == [k for k in range(1, 41) if k != 9]
        assert [int(f.key) for f in Failure.select()] == [9]
        assert NoResult.select().count() == 0
        Measured.delete().execute()
        Failure.delete().execute()


def test_rows_without_results_are_not_kept(url):
    fill(50)
    alive = weakref.WeakSet()

    @task
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        for s in spectra:
            alive.add(s)
            assert len(alive) < 5
        yield from ()

    list(analysis(BossVisitSpectrum.get_by_id(pk) for pk in range(1, 51)))


def test_within_a_transaction_of_the_caller_one_warning_is_logged(url, caplog):
    fill(20)
    with database.atomic():
        list(measure(spectra(), write_frequency=1, batch_size=5))
    said = [r for r in caplog.records if "write_frequency has no effect" in r.getMessage()]
    assert len(said) == 1 and len(stored()) == 20
    list(measure(spectra(), write_frequency=1))
    assert sum("write_frequency" in r.getMessage() for r in caplog.records) == 1


def test_a_transaction_that_the_task_rolls_back_has_no_results_of_astras(url):
    fill(6)

    @task(batch_size=2)
    def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        with database.atomic():
            for s in spectra:
                yield Measured.from_spectrum(s, value=1 if s.spectrum_pk < 6 else 1 / 0)

    with pytest.raises(ZeroDivisionError):
        list(analysis(spectra()))
    assert stored() == [1, 2, 3, 4, 5]


def test_a_short_name_is_found_unless_a_module_has_a_function_of_that_name(tmp_path, monkeypatch):
    """A package offers two names: a short one, and one that is the path of another function."""
    info = tmp_path / "offered-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    path = "tests.sample_tasks:measure"
    names = f"offered.width = {path}\ntests.sample_tasks.collect = {path}\n"
    (info / "entry_points.txt").write_text(f"[astra.tasks]\n{names}")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_task("offered.width") is measure
    assert find_task("tests.sample_tasks.collect") is collect
