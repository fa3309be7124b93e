"""Commands that only look, with hostile texts in the database and streams that take nothing."""

import io
import json
import os
import pwd
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable

import click
import pytest
from click.testing import CliRunner

from astra import __main__ as entry
from astra import task
from astra.cli import main
from astra.database.connection import bind, connection, reset
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.nights import Night
from astra.models.plans import Plan
from astra.models.schema import init_database
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from tests import forks
from tests.conftest import ROOT
from tests.sample_tasks import Measured, fill

HOSTILE = "\u03bb \U0001f52d \x1b[31m\x07\x00 \ud800 \u202e"


@task
def hostile(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Results and failures whose texts no terminal likes: \u03bb \U0001f52d."""
    for spectrum in spectra:
        if spectrum.spectrum_pk % 3 == 0:
            raise ValueError(HOSTILE)
        yield Measured.from_spectrum(spectrum, value=1.0, text=HOSTILE)


NAME = "tests.cli.test_streams.hostile"

#: Words for each command that changes nothing, or is not asked to.
LOOKS = {
    "clean": [""],
    "completion": ["bash"],
    "config": [""],
    "cron": ["dark --check"],
    "doctor": [""],
    "estimate": [NAME],
    "failures": ["1", "1 --json"],
    "help": ["status"],
    "logs": ["1", "1 1"],
    "metrics": [""],
    "nights": ["", "--json", "dark"],
    "plans": ["", "--json"],
    "report": ["1 -o -"],
    "results": [NAME, f"{NAME} --json"],
    "status": ["", "1", "1 --json", "99"],
    "try": [f"{NAME} 3"],
    "verify": ["1"],
    "why": [f"{NAME} 3", f"{NAME} 1 --json"],
}

#: Those that change something; what they print goes the same way.
ACTS = {
    "cancel", "continue", "demo", "init", "initdb", "nightly", "pause", "plan", "recover", "rename",
    "resume", "retry", "run", "slam", "submit", "throttle",
}  # fmt: skip


def test_every_command_is_tried_or_acts():
    assert isinstance(main, click.Group)
    assert {*LOOKS, *ACTS} == {name for name, c in main.commands.items() if not c.hidden}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """A database with a plan, failures and a night whose texts are hostile."""
    folder = tmp_path_factory.mktemp("streams")
    url = f"sqlite:///{folder}/astra.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASTRA_RUN_DIR", str(folder / "runs"))  # not in the checkout
        bind(url)
    init_database(("tests.sample_tasks",))
    fill(9)
    (made,) = create_plan(hostile, BossVisitSpectrum)
    resume_local(made.plan)
    with connection():
        assert Failure.select().count() >= 3
        Failure.update(message="\u03bb \U0001f52d \x1b[31m", place="\x1b]0;x\x07").execute()
        Attempt.update(message="\u03bb \x1b[2J \U0001f52d").execute()
        Plan.update(pause_reason="\u03bb \x1b[31m").execute()
        Night.create(
            name="dark", date="2026-01-01", cwd="/\u03bb", host="h\x1b[1m", created_by="\u03bb",
            message="not whole: \u03bb \U0001f52d \x1b[5m",
        )  # fmt: skip
    for words in (["status", "1"], ["report", "1", "-o", "-"], ["verify", "1"]):
        CliRunner().invoke(main, words, env={"ASTRA_DATABASE_URL": url})  # imports for the forks
    reset()
    return url


@pytest.fixture
def archive(file, monkeypatch) -> str:
    """The same for every test, which only look at it; no connection is open where they fork."""
    monkeypatch.setenv("ASTRA_DATABASE_URL", file)
    return file


def outcome(words: list[str], arrange: Callable[[], None]) -> tuple[int, str, str]:
    """The exit status, output and errors of a command, in a process whose streams are arranged."""
    readers = []
    writers = []
    for _ in range(2):
        reader, writer = os.pipe()
        readers.append(reader)
        writers.append(writer)
    if (pid := os.fork()) == 0:
        status = 70
        try:
            os.dup2(writers[0], 1)
            os.dup2(writers[1], 2)
            os.closerange(3, 256)
            sys.argv = ["astra", *words]
            sys.stdin, sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(fd, mode), "latin-1", write_through=fd == 2)
                for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
            )
            arrange()
            try:
                entry.run()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    for writer in writers:
        os.close(writer)
    said = [_read(reader) for reader in readers]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *said


def _read(reader: int) -> str:
    with open(reader, "rb") as file:
        return file.read().decode("utf-8")


def _full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def _closed_input() -> None:
    os.close(0)
    sys.stdin = None


def _closed_output() -> None:
    os.close(1)
    sys.stdout = None


def _nobody_reads() -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
    os.close(writer)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it


def _no_entry() -> None:
    def missing(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    pwd.getpwuid = missing
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME"):
        os.environ.pop(name, None)


CASES = [[command, *words.split()] for command, variants in LOOKS.items() for words in variants]


def _poor() -> None:
    """Nobody is known, and nothing can be read."""
    _no_entry()
    _closed_input()


def _as_usual() -> None:
    """Streams that take what they are given."""


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_no_stream_brings_a_command_down(archive, words):
    status, said, errors = outcome(words, _as_usual)
    assert "Traceback" not in errors and "\x1b" not in said and status in range(12)
    for arrange, right in ((_poor, status), (_full, 1 if said else status)):
        found, _, errors = outcome(words, arrange)
        assert "Traceback" not in errors and found == right, (arrange, found, errors)


@pytest.mark.parametrize("words", [["help", "status"], ["completion", "bash"]])
def test_a_file_that_may_not_grow(archive, words, tmp_path):
    def limited() -> None:
        os.dup2(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT), 1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    status, _, errors = outcome(words, limited)
    assert status == 1 and "could not be written: File too large" in errors, errors


def test_a_current_folder_that_was_removed(archive, tmp_path):
    def gone() -> None:
        folder = tmp_path / "gone"
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()

    status, said, errors = outcome(["plans"], gone)
    assert (status, said) == (1, "") and "the current folder was removed" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("arrange", [_closed_output, _nobody_reads])
@pytest.mark.parametrize(
    "words", [["status", "1"], ["plans", "--json"], ["report", "1", "-o", "-"]]
)
def test_output_that_nobody_takes(archive, words, arrange):
    status, _, _ = outcome(words, _as_usual)
    found, _, errors = outcome(words, arrange)
    assert not errors and found in (status, 1)


@task
def talks(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        print("from the task", flush=True)
        subprocess.run(["echo", "from a program"], check=True)
        yield Measured.from_spectrum(spectrum, value=1.0)


@pytest.mark.parametrize(
    "words", [("try", "{}", "1"), ("run", "{}"), ("submit", "{}", "--local", "-j", "2")]
)
def test_what_a_task_prints_is_not_in_the_json(sqlite_url, words):
    fill(1)
    name = "tests.cli.test_streams.talks"
    done = forks.astra(*(word.format(name) for word in words), "--json")
    assert done.returncode == 0 and json.loads(done.stdout), done.stderr
    in_terminal = forks.astra("try", name, "1")
    assert "from the task\nfrom a program\n1: 1 result\n" in in_terminal.stdout


@task
def leaves_a_thread(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    threading.Thread(target=threading.Event().wait).start()
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=1.0)


def test_a_command_ends_although_its_task_left_a_thread_running(sqlite_url):
    """Else a night that cron has started would stay for ever, and so would the next one."""
    fill(1)
    code = "import astra.__main__ as m; m._LINGER_S = 0.2; m.run()"
    words = ["try", "tests.cli.test_streams.leaves_a_thread", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "1: 1 result" in done.stdout, done.stderr
    assert "what its task left running" in done.stderr


def test_a_program_that_calls_a_command_gets_json_alone(sqlite_url):
    fill(1)
    words = ["try", "tests.cli.test_streams.talks", "1"]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert json.loads(done.stdout)[0]["key"] == 1 and "from the task" in done.stderr
    assert "1: 1 result" in CliRunner().invoke(main, words).stdout


def test_a_plan_whose_submission_is_interrupted_is_named(sqlite_url, monkeypatch):
    fill(2)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("astra.resume.resume.resume_local", interrupted)
    done = CliRunner().invoke(main, ["submit", "tests.sample_tasks.measure", "--local"])
    assert done.exit_code == 130
    kept = "astra: interrupted; plan 1 is kept: astra submit 1 --local; what was stored before"
    assert kept in done.stderr
