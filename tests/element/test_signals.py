"""Told to end: by signals, at any moment."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from astra.api import run_here
from astra.config import settings
from astra.database.connection import LAST_WAIT_S, connection, database
from astra.element.signals import stop_on_signals
from astra.errors import Interrupted, Terminated
from astra.models.attempts import Attempt, Suspect
from astra.models.plans import Plan
from astra.results import checkpoint
from astra.results.stopping import Stop
from astra.status.verify import verify
from tests.conftest import ROOT
from tests.pools import plan_of, pool_of
from tests.sample_tasks import (
    catch_everything,
    close_and_print,
    close_descriptors,
    close_output,
    own_handler,
)
from tests.servers import wait_for


@pytest.fixture
def get_out():
    """A main thread that waits for ever is told so."""

    def give_up(number, frame):
        raise TimeoutError("the process is kept by the thread that hears its signals")

    previous = signal.signal(signal.SIGPROF, give_up)
    watch = threading.Timer(20, signal.pthread_kill, (threading.get_ident(), signal.SIGPROF))
    watch.daemon = True
    watch.start()
    yield
    watch.cancel()
    signal.signal(signal.SIGPROF, previous)


_STORM = """
import os, signal, subprocess, sys, time
from astra.results.stopping import Stop
from astra.element.signals import stop_on_signals
stop = Stop()
knock = f"import os\\nfor _ in range(100_000): os.kill({os.getpid()}, {signal.SIGTERM:d})"
with stop_on_signals(stop):
    others = [subprocess.Popen([sys.executable, "-c", knock]) for _ in range(2)]
    while any(other.poll() is None for other in others):
        time.sleep(0.0005)
    assert stop.wanted.wait(60)
print(stop.reason)
"""


def test_signals_that_come_while_others_are_handled():
    """One from Slurm, one passed on by the parent, one from the shell: none waits for another."""
    done = subprocess.run(
        [sys.executable, "-c", _STORM], cwd=ROOT, timeout=120, capture_output=True, text=True
    )
    assert done.stdout == "SIGTERM\n", done.stderr


def test_a_signal_at_the_very_end_does_not_keep_the_process(get_out):
    """What the C handler wrote may be read together with the message that the block has ended."""

    def end_with_a_signal() -> None:
        with stop_on_signals(Stop()):
            for _ in range(3):
                signal.raise_signal(signal.SIGUSR1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1)  # so that the other thread comes late to its reading
    try:
        for _ in range(30):
            end_with_a_signal()
    finally:
        sys.setswitchinterval(before)


def test_a_signal_that_does_not_wake_the_main_thread_is_stop_on_signals():
    """A signal may arrive between the interpreter's last check for signals and a long sleep."""
    settings.use(settings.Config(element=settings.Element(grace_s=0.2)))
    stop = Stop()

    def knock_elsewhere() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    elsewhere = threading.Timer(0.2, knock_elsewhere)
    began = time.monotonic()
    stop.is_loading = True  # the main thread may be interrupted
    with pytest.raises(Terminated), stop_on_signals(stop):
        elsewhere.start()
        time.sleep(20)
    assert time.monotonic() - began < 10 and "SIGTERM" in stop.reason


def test_a_process_that_is_forked_at_import_does_not_have_the_handlers():
    """As those of a pool, which are ended by SIGTERM, and not asked to stop."""
    processes, stop = multiprocessing.get_context("fork"), Stop()
    with stop_on_signals(stop):
        begun = processes.Event()
        other = processes.Process(target=lambda: begun.set() or time.sleep(600))
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            other.start()  # Python 3.12 warns of a fork beside threads
        assert begun.wait(60)
        other.terminate()
        other.join(10)
        ended = other.exitcode
        other.kill()
    assert (ended, stop.is_wanted) == (-signal.SIGTERM, False)


def test_a_process_that_is_ended_as_soon_as_it_is_forked_does_not_stop_the_element():
    """As a pool ends workers that have not begun: the signal is for them alone."""
    stop, ends = Stop(), set()
    with stop_on_signals(stop):
        for _ in range(100):
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                pid = os.fork()  # Python 3.12 warns of a fork beside threads
            if pid == 0:
                time.sleep(2)
                os._exit(0)
            os.kill(pid, signal.SIGTERM)
            ends.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            if stop.is_wanted or ends != {-signal.SIGTERM}:
                break
    assert (ends, stop.is_wanted) == ({-signal.SIGTERM}, False)


@pytest.mark.parametrize("pending_s", [0, 600])
def test_a_task_that_limits_the_time_of_its_rows_by_alarms_is_interrupted_all_the_same(pending_s):
    """And by no exception of its own, which would be a failure of the row."""

    def too_slow(number, frame):
        raise TimeoutError("this row takes too long")

    settings.use(settings.Config(element=settings.Element(grace_s=0.2)))
    stop = Stop()
    stop.is_loading = True  # the main thread may be interrupted
    previous = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    try:
        with pytest.raises(Terminated), stop_on_signals(stop):
            signal.signal(signal.SIGALRM, too_slow)
            signal.alarm(pending_s)
            signal.raise_signal(signal.SIGTERM)
            time.sleep(20)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - began < 10


def test_an_element_whose_task_closed_its_output_is_asked_to_stop(url, tmp_path, monkeypatch):
    """It records that it was interrupted, and not that its process died."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    begun = tmp_path / "begun"
    plan = plan_of(5, 5, close_output, begun=str(begun))
    words = ["--plan", str(plan.pk), "--job", pool_of(plan).token, "--element", "1"]
    run_page = [sys.executable, "-m", "astra", "run-page", *words]
    with subprocess.Popen(run_page, stdout=subprocess.DEVNULL) as element:
        wait_for(begun.exists, "the first row", 60)
        element.terminate()
    assert element.returncode == 75
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["interrupted"]


def test_a_plan_is_run_in_a_thread_which_hears_no_signals(sqlite_url):
    plan = plan_of(5, 5)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(run_here, plan.pk).result()
    assert verify(plan.pk).whole


def stop_in_first_row(plan: Plan, begun: Path) -> None:
    """Ask the element of a plan of five rows to stop during its first row: all stay pending."""
    words = ["--plan", str(plan.pk), "--job", pool_of(plan).token, "--element", "1"]
    with subprocess.Popen([sys.executable, "-m", "astra", "run-page", *words]) as element:
        wait_for(begun.exists, "the first row", 60)
        element.terminate()
    assert element.returncode == 75
    assert verify(plan.pk).rows["pending"] == 5


@pytest.mark.parametrize("then", ["goes on", "raises", "yields"])
def test_a_row_that_is_interrupted_stays_pending_although_its_task_catches_that(
    url, tmp_path, monkeypatch, then
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "astra.toml").write_text("[element]\ngrace_s = 0.3\n")
    monkeypatch.setenv("ASTRA_CONFIG", str(tmp_path / "astra.toml"))
    begun = tmp_path / "begun"
    plan = plan_of(5, 5, catch_everything, begun=str(begun), then=then)
    stop_in_first_row(plan, begun)
    with connection():
        assert [attempt.state for attempt in Attempt.select()] == ["interrupted"]


@pytest.mark.parametrize("then", ["exits", "interrupts", "raises", "dies"])
def test_no_row_is_to_blame_if_the_task_handles_the_signal_itself(url, tmp_path, monkeypatch, then):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    begun = tmp_path / "begun"
    plan = plan_of(5, 5, own_handler, begun=str(begun), then=then)
    stop_in_first_row(plan, begun)
    with connection():
        assert not Suspect.select().exists()
        (attempt,) = Attempt.select()
    assert attempt.state == ("died" if then == "dies" else "interrupted")


@pytest.mark.postgres
def test_a_handler_of_the_tasks_own_does_not_interrupt_the_end_of_a_page(pg_url, monkeypatch):
    """Rows that were committed at that moment would be counted twice."""

    def write_and_be_asked_to_stop(*arguments):
        written = checkpoint.write(*arguments)
        signal.raise_signal(signal.SIGTERM)
        return written

    monkeypatch.setattr("astra.results.writer.write", write_and_be_asked_to_stop)
    plan = plan_of(5, 5, own_handler, then="exits")
    with suppress(Interrupted):  # unless the run is over before the signal is heard
        run_here(plan.pk)
    assert verify(plan.pk).whole
    with connection():
        assert [(attempt.state, attempt.n_done) for attempt in Attempt.select()] == [("done", 5)]


@pytest.mark.parametrize("function", [close_descriptors, close_and_print])
def test_an_element_whose_task_closed_the_descriptors_of_its_streams_succeeds(
    url, monkeypatch, function
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plan = plan_of(5, 5, function)
    words = ["--plan", str(plan.pk), "--job", pool_of(plan).token, "--element", "1"]
    run_page = [sys.executable, "-m", "astra", "run-page", *words]
    done = subprocess.run(run_page, check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with connection():
        (attempt,) = Attempt.select()
    assert (attempt.state, attempt.n_done) == ("done", 5)


def status_of(code: str, *words: str) -> int:
    """Run a program of Python; return its exit status."""
    run = [sys.executable, "-c", code, *words]
    return subprocess.run(run, cwd=ROOT, timeout=60, check=False).returncode


_LINGERING = """
import sys, threading, time
from astra.config import settings
from astra.element.supervisor import supervised
settings.use(settings.Config(element=settings.Element(grace_s=0.1)))

def work(board):
    threading.Thread(target=time.sleep, args=(600,)).start()
    return 75

sys.exit(supervised(work))
"""


def test_a_thread_that_the_task_leaves_running_does_not_keep_the_element():
    assert status_of(_LINGERING) == 75


_LINGERING_TWICE = """
import os, signal, sys, threading, time
from astra.config import settings
from astra.element.supervisor import supervised
settings.use(settings.Config(element=settings.Element(grace_s=0.1)))

def work(board):
    threading.Thread(target=time.sleep, args=(600,)).start()
    if not os.path.exists(sys.argv[1]):
        open(sys.argv[1], "w").close()
        signal.signal(signal.SIGTERM, lambda *_: None)
        board.begin_page(0, 0, "", 1)
        board.flags[0], board.since = 1, time.perf_counter()
        signal.pause()  # until the row timeout
    return 75

sys.exit(supervised(work, row_timeout_s=0.2))
"""


def test_such_a_thread_does_not_keep_the_next_process_either(tmp_path):
    """The first process ends by the row timeout, and leaves a thread, as the next one does."""
    assert status_of(_LINGERING_TWICE, str(tmp_path / "timed out")) == 75


_FULL = """
import sys
from astra.element.supervisor import supervised

def work(board):
    with open(sys.argv[1], "a") as begun:
        begun.write("x")
    print("the last words of a page")
    return 7

sys.stdout = open("/dev/full", "w")
status = supervised(work)
sys.stdout = None
sys.exit(status)
"""


def test_an_element_whose_log_is_on_a_full_disk_has_ended_all_the_same(tmp_path):
    assert status_of(_FULL, str(tmp_path / "begun")) == 7
    assert (tmp_path / "begun").read_text() == "x"


_CRASHES_AT_EXIT = """
import atexit, os, signal, sys
from astra.element.supervisor import supervised

def work(board):
    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
    return 7

sys.exit(supervised(work))
"""


def test_a_process_that_crashes_after_its_work_has_ended_it():
    assert status_of(_CRASHES_AT_EXIT) == 7


_WITHOUT_SIGCHLD = """
import signal, sys
from astra.element.supervisor import supervised
sys.exit(supervised(lambda board: 7))
"""


def test_an_element_notices_the_end_of_its_process_whoever_started_it():
    """Who ignores SIGCHLD leaves that to the processes that it starts."""
    ignore = "trap '' CHLD; exec \"$@\""
    run = ["bash", "-c", ignore, "bash", sys.executable, "-c", _WITHOUT_SIGCHLD]
    assert subprocess.run(run, cwd=ROOT, timeout=60, check=False).returncode == 7


_HANGING_CLEAN_UP = """
import signal, sys, time
from astra.config import settings
from astra.element.supervisor import supervised
settings.use(settings.Config(element=settings.Element(grace_s=0.1, max_deaths=2)))

def work(board):
    with open(sys.argv[1], "a") as begun:
        n_before = begun.tell()
        begun.write("x")
    if n_before == int(sys.argv[2]):
        return 0
    signal.signal(signal.SIGTERM, lambda *_: None)
    board.begin_page(0, 0, "", 1)
    board.flags[0], board.since = 1, time.perf_counter()
    signal.pause()  # until the row timeout; then the row ends
    board.flags[0], board.since = 0, time.perf_counter()
    time.sleep(600)  # the clean-up, which no signal interrupts

sys.exit(supervised(work, row_timeout_s=0.2))
"""


@pytest.mark.parametrize("n_hanging, status", [(1, 0), (2, 77)])
def test_a_clean_up_that_hangs_after_a_row_timeout_is_ended(tmp_path, n_hanging, status):
    """The row itself has ended meanwhile. Where it hangs again and again, the page is broken."""
    run = [sys.executable, "-c", _HANGING_CLEAN_UP, str(tmp_path / "begun"), str(n_hanging)]
    assert subprocess.run(run, cwd=ROOT, timeout=60, check=False).returncode == status


_BETWEEN_PROCESSES = """
import os, signal, sys, time
from astra.config import settings
from astra.element import deaths
from astra.element.supervisor import supervised
settings.use(settings.Config(
    database=settings.Database(url=f"sqlite:///{sys.argv[1]}.db", retry_for_s=30), element=settings.Element()
))

def writing():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    raise peewee.OperationalError("database is locked")

def work(board):
    with open(sys.argv[1], "a") as begun:
        begun.write("x")
    board.begin_page(1, 1, "", 1)
    board.flags[0] = 1
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)

import peewee
deaths.writing = writing
began = time.monotonic()
status = supervised(work)
assert time.monotonic() - began < 20
sys.exit(status)
"""


def test_an_element_is_asked_to_stop_while_no_process_of_it_runs(tmp_path):
    """It records the crash before, does not wait for a database that is away, and begins no more."""
    run = [sys.executable, "-c", _BETWEEN_PROCESSES, str(tmp_path / "begun")]
    done = subprocess.run(run, cwd=ROOT, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert "the suspect rows could not be recorded" in done.stderr
    assert (tmp_path / "begun").read_text() == "x"


_ORPHANED = """
import os, signal, sys, time
from astra.element.supervisor import supervised
fork = os.fork

def fork_and_die():
    parent = os.getpid()
    if (pid := fork()):
        os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
    return pid

def work(board):
    print("works without a parent", flush=True)
    return 0

os.fork = fork_and_die
supervised(work)
"""


def test_a_process_whose_parent_died_at_once_does_not_begin():
    orphaned = [sys.executable, "-c", _ORPHANED]
    done = subprocess.run(orphaned, cwd=ROOT, timeout=60, check=False, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


def test_a_signal_is_heard_after_the_task_has_replaced_the_descriptor():
    """As asyncio's ``add_signal_handler`` and ``remove_signal_handler`` do."""
    stop = Stop()
    with stop_on_signals(stop):
        ours = signal.set_wakeup_fd(-1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.wanted.wait(60)
        signal.set_wakeup_fd(ours)


def test_a_process_that_goes_on_after_its_run_waits_for_statements_as_before(pg_url):
    stop = Stop()
    with stop_on_signals(stop):
        signal.raise_signal(signal.SIGTERM)
        assert stop.wanted.wait(60)
    with connection():
        longer_s = max(settings.current().element.grace_s, LAST_WAIT_S) + 0.5
        assert database.execute_sql("SELECT 1 FROM pg_sleep(%s)", (longer_s,)).fetchone() == (1,)
