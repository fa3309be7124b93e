"""However a run ends, what was yielded is stored."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import pytest
from peewee import OperationalError

from astra import task
from astra.api import run_here
from astra.database.connection import connection
from astra.element import element
from astra.errors import BrokenElement, DatabaseError, Interrupted, NotAllowed
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.plan import spool
from astra.results import writer
from astra.results.rows import Checkpoint
from astra.results.stopping import ActiveRuns, Stop
from astra.status.verdict import Verdict
from astra.status.verify import verify
from tests.configuration import configure
from tests.conftest import ROOT
from tests.pools import plan_of, pool_of, read_only_once
from tests.sample_tasks import Costs, Measured, costly, fill, measure
from tests.servers import wait_for


def test_an_interrupt_between_two_lines_loses_no_batch(pg_url, monkeypatch):
    """Ctrl-C comes when a batch was taken from the buffer, and its transaction has not begun."""
    fill(3)
    with connection():
        spectra = list(BossVisitSpectrum.select())
    interrupts = [KeyboardInterrupt()]

    def perf_counter() -> float:
        if interrupts:
            raise interrupts.pop()
        return time.perf_counter()

    monkeypatch.setattr(writer, "perf_counter", perf_counter)
    with pytest.raises(KeyboardInterrupt):
        list(measure(spectra))
    assert interrupts == []
    with connection():
        assert Measured.select().count() == 3


@task
def cleans_up(spectra: Iterable[BossVisitSpectrum], for_s: int = 0) -> Iterable[Measured]:
    """Is asked to stop in its first row; when it is closed it takes some time, raises or exits."""
    try:
        for spectrum in spectra:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.2)
            yield Measured.from_spectrum(spectrum, value=1.0)
    finally:
        if not for_s:
            raise ValueError("the clean-up fails")
        if for_s < 0:
            sys.exit("the clean-up fails")
        time.sleep(for_s)


@pytest.mark.parametrize("for_s", [0, -1], ids=["raises", "exits"])
def test_a_page_is_not_broken_by_a_task_that_raises_as_it_is_closed(url, for_s):
    plan = plan_of(5, 5, cleans_up, for_s=for_s)
    with pytest.raises(Interrupted):
        run_here(plan.pk)
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["interrupted"]
    found = verify(plan.pk)
    assert found.sound and found.rows["result"] >= 1


@task
def goes_on_in_a_fork(
    spectra: Iterable[BossVisitSpectrum], returns: bool = False
) -> Iterable[Measured]:
    for spectrum in spectra:
        if spectrum.spectrum_pk == 3:
            if (fork := os.fork()) == 0 and returns:
                return
            if fork:
                os.waitpid(fork, 0)
        yield Measured.from_spectrum(spectrum, value=1.0)


@pytest.mark.parametrize("returns", [True, False])
def test_a_fork_that_goes_on_as_the_task_writes_nothing(url, monkeypatch, returns):
    """It would write to the page of the process that forked it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plan = plan_of(6, 6, goes_on_in_a_fork, returns=returns)
    words = ["--plan", str(plan.pk), "--job", pool_of(plan).token, "--element", "1"]
    run_page = [sys.executable, "-m", "astra", "run-page", *words]
    done = subprocess.run(run_page, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "page 1: done; 6 done + 0 failed + 0 no result of 6 rows\n"
    assert verify(plan.pk).whole


def test_all_runs_store_their_results_as_the_process_ends_although_one_cannot(url, monkeypatch):
    """As those of a program that takes some results of several tasks, and exits."""
    fill(3)
    with connection():
        spectra = list(BossVisitSpectrum.select())
    runs = [iter(call(spectra, live=True)) for call in (measure, costly, measure)]
    for run in runs:
        next(run)

    def cannot() -> None:
        raise DatabaseError("a trigger refuses it")

    first, _, last = ActiveRuns.runs
    with monkeypatch.context() as patched, pytest.raises(DatabaseError):
        patched.setattr(first.writer, "write_all", cannot)
        patched.setattr(last.writer, "write_all", cannot)
        ActiveRuns.flush()
    with connection():
        assert (Measured.select().count(), Costs.select().count()) == (0, 1)
    for run in runs:
        run.close()


@task
def forks_as_it_cleans_up(
    spectra: Iterable[BossVisitSpectrum], raises: bool = False
) -> Iterable[Measured]:
    """Is asked to stop in its first row; when it is closed it forks a process that goes on."""
    try:
        for spectrum in spectra:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.2)
            yield Measured.from_spectrum(spectrum, value=1.0)
    finally:
        if (fork := os.fork()) == 0 and raises:
            raise ValueError("the clean-up fails")
        if fork:
            os.waitpid(fork, 0)


@pytest.mark.parametrize("raises", [True, False])
def test_a_fork_that_goes_on_after_the_clean_up_is_ended(url, monkeypatch, raises):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plan = plan_of(6, 6, forks_as_it_cleans_up, raises=raises)
    words = ["--plan", str(plan.pk), "--job", pool_of(plan).token, "--element", "1"]
    run_page = [sys.executable, "-m", "astra", "run-page", *words]
    done = subprocess.run(run_page, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.count("page 1: ")) == (75, 1), done.stdout
    assert verify(plan.pk).rows["result"] == 1


def test_a_clean_up_that_takes_too_long_is_interrupted_like_a_row(url, tmp_path, monkeypatch):
    configure(tmp_path, "[element]\ngrace_s = 0.5\n", monkeypatch)
    plan = plan_of(5, 5, cleans_up, for_s=30)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        run_here(plan.pk)
    assert time.monotonic() - began < 25
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["interrupted"]
    found = verify(plan.pk)
    assert found.sound and found.rows["result"] >= 1


_SLOW_IMPORT = """
from tests.sample_tasks import *
if os.path.exists("slow"):
    signal.raise_signal(signal.SIGTERM)
    time.sleep(20)

@task
def f(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=1.0)
"""


def test_an_element_that_is_asked_to_stop_in_a_long_import_is_interrupted(
    url, tmp_path, monkeypatch
):
    """Its page is not broken: the module is not to blame."""
    configure(tmp_path, "[element]\ngrace_s = 0.2\n", monkeypatch)
    (tmp_path / "slow_import.py").write_text(_SLOW_IMPORT)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = plan_of(5, 5, importlib.import_module("slow_import").f)
    del sys.modules["slow_import"]
    (tmp_path / "slow").touch()
    with pytest.raises(Interrupted):
        run_here(plan.pk)
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["interrupted"]


@task
def loops_over_another(
    spectra: Iterable[BossVisitSpectrum], passes: str = "", for_s: int = 0
) -> Iterable[Measured]:
    """Is asked to stop, and then works for a long time on the result of another task."""
    keywords = {"live": {"live": True}, "stored": {"batch_size": 1}}[passes]
    for result in costly(spectra, **keywords):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(for_s)
        yield Measured(spectrum_pk=result.spectrum_pk, source_pk=result.source_pk, value=1.0)


@pytest.mark.parametrize("passes", ["live", "stored"])
def test_a_task_that_works_on_the_result_of_another_is_interrupted_all_the_same(
    url, tmp_path, monkeypatch, passes
):
    configure(tmp_path, "[element]\ngrace_s = 0.5\n", monkeypatch)
    plan = plan_of(5, 5, loops_over_another, passes=passes, for_s=30)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        run_here(plan.pk)
    assert time.monotonic() - began < 25
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["interrupted"]
        assert Costs.select().count() == 1
    found = verify(plan.pk)
    assert found.sound and found.rows["pending"] == 5


@task
def begins_another(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Is asked to stop, and begins another task after that."""
    for spectrum in spectra:
        signal.raise_signal(signal.SIGTERM)
        wait_for(ActiveRuns.runs[0].writer.is_ending.is_set, "the request to stop")
        for result in costly([spectrum]):
            yield Measured.from_spectrum(spectrum, value=result.value)


@pytest.mark.parametrize(
    "function, arguments", [(loops_over_another, {"passes": "stored"}), (begins_another, {})]
)
def test_the_task_within_a_task_does_not_wait_for_a_database_that_is_away(
    url, tmp_path, monkeypatch, function, arguments
):
    """The results of the outer one are stored or spooled once the inner one has ended."""
    configure(tmp_path, "[database]\nretry_for_s = 20\n", monkeypatch)
    plan, write = plan_of(5, 5, function, **arguments), writer.write

    def is_away(checkpoint, target, claim, judge):
        if claim is None:
            if not ActiveRuns.runs[0].stop.is_wanted:
                signal.raise_signal(signal.SIGTERM)
            raise OperationalError("database is locked")
        return write(checkpoint, target, claim, judge)

    monkeypatch.setattr(writer, "write", is_away)
    began = time.monotonic()
    with pytest.raises((Interrupted, BrokenElement)):
        run_here(plan.pk)
    assert time.monotonic() - began < 10
    assert verify(plan.pk).rows["pending"] == 5


def ends_of_page(n: int, task: Callable[..., object]) -> tuple[list[str], Verdict]:
    """Run a plan of one page of n rows; return the states of its attempts, and what verify says."""
    plan = plan_of(n, n, task)
    run_here(plan.pk)
    with connection():
        states = [attempt.state for attempt in Attempt.select()]
    return states, verify(plan.pk)


@task
def looks_something_up(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Needs the database for its rows, too, and does not reach it at the second one."""
    for number, spectrum in enumerate(spectra):
        if number == 1:
            raise DatabaseError("no connection to the database")
        yield Measured.from_spectrum(spectrum, value=1.0)


def test_no_row_has_failed_because_the_database_was_away(url):
    states, found = ends_of_page(5, looks_something_up)
    assert states == ["broken"]
    assert found.sound and (found.rows["result"], found.rows["pending"]) == (1, 4)


@task
def needs_a_row(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Cannot work without rows, and every row is bad."""
    first = next(iter(spectra))
    raise ValueError(f"row {first.spectrum_pk} is bad")
    yield Measured.from_spectrum(first, value=1.0)


def test_a_page_whose_last_row_failed_is_not_broken_by_a_task_that_needs_rows(url):
    states, found = ends_of_page(3, needs_a_row)
    assert states == ["done"]
    assert found.sound and found.rows["failure"] == 3


def test_a_task_of_which_too_many_rows_fail_is_broken_and_costs_no_row(url, tmp_path, monkeypatch):
    """What was raised last is named, as the failures themselves are not stored."""
    configure(tmp_path, "[element]\nmax_failures = 0.2\nmax_failures_after = 4\n", monkeypatch)
    states, found = ends_of_page(10, needs_a_row)
    assert states == ["broken"] and found.sound and found.rows["pending"] == 10
    with connection():
        assert not Failure.select().exists()
        message = Attempt.get().message
    assert message.startswith("4 of 4 rows of this element failed, more than the share of 0.2 ")
    assert "; the last: ValueError: row 7 is bad" in message


def test_a_task_that_needs_rows_and_gets_none_after_a_request_to_stop_is_not_broken(url):
    plan, stop = plan_of(3, 3, needs_a_row), Stop()
    stop.ask("SIGTERM")
    with element.Element(plan, pool_of(plan), stop) as worker:
        run = worker.run_page(None, 1)
    assert run is not None and run.state == "interrupted"
    assert verify(plan.pk).rows["pending"] == 3


@pytest.mark.parametrize("where", ["claimed_page", "claim_page", "load_file"])
def test_an_element_that_has_to_stop_does_not_wait_for_a_database_that_is_away(
    url, tmp_path, monkeypatch, where
):
    configure(tmp_path, "[database]\nretry_for_s = 20\n", monkeypatch)
    plan, stop = plan_of(3, 3), Stop()
    pool = pool_of(plan)

    def is_away(*_: object, **__: object) -> None:
        stop.ask("SIGTERM")
        raise OperationalError("database is locked")

    if where == "load_file":  # what an earlier attempt left is stored first
        empty = spool.Header(plan.token, 1, "", 0, ""), Checkpoint()
        monkeypatch.setattr(spool, "spool_files", lambda *_: [tmp_path / "page-1.spool"])
        monkeypatch.setattr(spool, where, lambda *_: empty)
        monkeypatch.setattr(spool, "writing", is_away)
    else:
        monkeypatch.setattr(element, where, is_away)
    began = time.monotonic()
    with element.Element(plan, pool, stop) as worker, pytest.raises(DatabaseError):
        worker.pull(1)
    assert time.monotonic() - began < 10


def test_results_that_no_spool_file_can_hold_are_not_called_stored(url, tmp_path, monkeypatch):
    configure(tmp_path, "[database]\nretry_for_s = 0.1\n", monkeypatch)
    plan = plan_of(3, 3)

    def is_away(*_: object) -> None:
        raise OperationalError("database is locked")

    def cannot(*_: object) -> None:
        raise TypeError("a value of this type cannot be written to a spool file")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write", is_away)
        patched.setattr(element, "_end_attempt", is_away)
        patched.setattr(spool, "_line", cannot)
        with element.Element(plan, pool_of(plan), Stop()) as worker:
            run = worker.run_page(1, 1)
    assert run is not None and run.message is not None
    assert "stored:" not in run.message and "will be computed again" in run.message
    assert verify(plan.pk).rows["pending"] == 3


@pytest.mark.parametrize("away", [OperationalError("database is locked"), NotAllowed("denied")])
def test_results_that_neither_the_database_nor_the_disk_takes_are_computed_again(
    url, tmp_path, monkeypatch, away
):
    configure(tmp_path, "[database]\nretry_for_s = 0.1\n", monkeypatch)
    plan = plan_of(3, 3)

    def is_away(*_: object) -> None:
        raise away

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write", is_away)
        patched.setattr(element, "_end_attempt", is_away)
        pool = pool_of(plan)
        spool.spool_folder(plan.folder).write_text("a file in place of the folder")
        with element.Element(plan, pool, Stop()) as worker:
            run = worker.run_page(1, 1)
    assert run is not None and run.message is not None
    assert run.state == ("broken" if isinstance(away, NotAllowed) else "interrupted")
    assert (
        "the spool file cannot be written either, so that the rows will be computed" in run.message
    )
    assert verify(plan.pk).rows["pending"] == 3


@task
def mistaken(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Has a mistake that every row meets."""
    for spectrum in spectra:
        raise TypeError(f"row {spectrum.spectrum_pk} is not to blame")
        yield Measured.from_spectrum(spectrum, value=1.0)


@pytest.mark.parametrize(
    "where, function, state",
    [("_end_attempt", needs_a_row, "interrupted"), ("take_back_failures", mistaken, "broken")],
)
def test_the_end_of_a_page_does_not_wait_for_a_database_that_is_away(
    url, tmp_path, monkeypatch, where, function, state
):
    configure(tmp_path, "[database]\nretry_for_s = 20\n", monkeypatch)
    plan, stop = plan_of(3, 3, function), Stop()

    def is_away(*_: object) -> None:
        stop.ask("SIGTERM")
        raise OperationalError("database is locked")

    monkeypatch.setattr(element, where, is_away)
    began = time.monotonic()
    with element.Element(plan, pool_of(plan), stop) as worker:
        run = worker.run_page(None, 1)
    assert time.monotonic() - began < 10
    assert run is not None and run.state == state
    assert verify(plan.pk).sound


def test_the_end_of_an_attempt_is_recorded_without_interruption(url, monkeypatch):
    """It would be recorded as another end: the attempt as broken, for example."""
    plan, stop, recorded = plan_of(5, 5), Stop(), []
    end = element.Element._record_end

    def load_task(plan):
        stop.ask("SIGTERM")
        raise DatabaseError("the database is away")

    def record(*arguments):
        recorded.append(stop.is_loading)
        end(*arguments)

    monkeypatch.setattr(element, "load_task", load_task)
    monkeypatch.setattr(element.Element, "_record_end", record)
    with element.Element(plan, pool_of(plan), stop) as this:
        run = this.run_page(None, 1)
    assert run is not None and run.state == "interrupted" and recorded == [False]


def test_a_row_that_cannot_be_read_costs_no_result(url, monkeypatch):
    plan = plan_of(6, 6)
    read_only_once(monkeypatch, ValueError("a column holds what its field does not understand"))
    run_here(plan.pk)
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["broken"]
    found = verify(plan.pk)
    assert found.sound and found.rows["result"] == 3


def test_the_middle_of_the_traceback_of_an_endless_recursion_is_left_out(url):
    """To format all entries takes minutes if the task has raised Python's limit by far."""

    @task
    def endless(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        def recurse(depth: int) -> None:
            recurse(depth + 1)

        for spectrum in spectra:
            try:
                recurse(0)
            except RecursionError as error:
                raise RuntimeError(f"at {spectrum.spectrum_pk}") from error
            yield Measured.from_spectrum(spectrum)

    fill(1)
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        rows = BossVisitSpectrum.select()
        assert list(endless(rows, re_raise_exceptions=False)) == []
    finally:
        sys.setrecursionlimit(usual)
    text = Failure.get().traceback
    assert "recurse(0)" in text and text.rstrip().endswith("RuntimeError: at 1")
    (n_left_out,) = re.findall(r"repeated (\d+) more times", text)
    assert int(n_left_out) < 1000
