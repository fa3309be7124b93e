"""``astra try``: rows computed here, of which nothing is stored."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable

import pytest
from click.testing import CliRunner

from astra import task
from astra.cli.group import main
from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.plans import Plan
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from tests.conftest import ROOT
from tests.sample_tasks import Measured, fill, measure

TASK = "tests.sample_tasks.measure"


def astra(*words: str):
    return CliRunner().invoke(main, list(words))


def n_stored() -> int:
    with connection():
        return sum(model.select().count() for model in (Measured, Failure, Attempt))


def test_just_these_rows_are_computed_and_nothing_is_stored(url):
    fill(6)
    done = astra("try", TASK, "4", "2", "--input-model", "BossVisitSpectrum")
    assert done.exit_code == 0, done.output
    assert "4: 1 result\n" in done.stdout and "value = 2\n" in done.stdout
    assert "2: 1 result" in done.stdout and n_stored() == 0
    done = astra(
        "try", TASK, "2", "3", "--set", "raise_every=3", "--set", "nothing_every=2", "--json"
    )
    found = json.loads(done.stdout)
    assert done.exit_code == 8 and [f["exception"] for f in found] == [None, "ValueError"]
    assert found[0]["results"] == [] and "row 3 is bad" in found[1]["traceback"]
    assert "tests/sample_tasks.py" in found[1]["traceback"].splitlines()[1]
    assert "astra/tasks" not in found[1]["traceback"]
    assert n_stored() == 0


def test_the_keywords_of_a_task_change_nothing(url):
    """Nothing is stored, and a row that raises is shown."""
    fill(3)
    words = ["try", TASK, "3", "--set", "raise_every=3"]
    done = astra(*words, "--set", "re_raise_exceptions=false", "--set", "write_to_database=true")
    assert done.exit_code == 8 and "ValueError: row 3 is bad" in done.stdout, done.output
    assert n_stored() == 0


@task
def is_interrupted(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for _ in spectra:
        signal.raise_signal(signal.SIGINT)
    yield from ()


def test_ctrl_c_ends_a_trial_and_is_no_failure_of_its_row(sqlite_url):
    fill(2)
    done = astra("try", "tests.element.test_trial.is_interrupted", "1", "2")
    assert done.exit_code == 130 and done.stderr.startswith("astra: interrupted; what was stored")
    assert "1:" not in done.stdout


def test_a_failure_of_a_plan_is_reproduced_by_the_command_that_failures_shows(url):
    fill(6)
    (planned,) = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 5})
    resume_local(planned.plan)
    before = n_stored()
    (shown,) = (w for w in astra("failures").stdout.splitlines() if "astra try" in w)
    words = shown.strip().partition("   ")[0].split()
    assert words == ["astra", "try", "1", "5"]
    done = astra(*words[1:])
    assert done.exit_code == 8 and "ValueError: row 5 is bad" in done.stdout
    assert n_stored() == before
    assert astra("try", "1", "5", "--set", "raise_every=2").exit_code == 2


def test_the_debugger_stops_where_the_row_raised(sqlite_url):
    fill(2)
    words = ["try", TASK, "2", "--set", "raise_every=2", "--pdb"]
    done = subprocess.run(
        [sys.executable, "-m", "astra", *words], input="p key\nq\n", capture_output=True,
        text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 8 and "(Pdb) 2" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((TASK, "99"), "BossVisitSpectrum has no row with the key 99"),
        ((TASK, "x"), "is not a key (spectrum_pk)"),
        (("tests.sample_tasks.mesure", "1"), "Did you mean"),
        (("7", "1"), "no plan 7"),
    ],
)
def test_missing_plans_tasks_and_keys_are_reported(sqlite_url, words, said):
    fill(1)
    done = astra("try", *words)
    assert done.exit_code == 2 and said in done.output


def test_damaged_arguments_are_a_clear_error_and_nothing_is_computed_with_others(url):
    fill(6)
    (planned,) = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 5})
    with connection():
        Plan.update(arguments='{"raise_every":').execute()
    resume_local(planned.plan)
    with connection():
        (attempt,) = Attempt.select()
        assert attempt.state == "broken"
        assert "the stored arguments of plan 1 are damaged" in attempt.message
        assert Measured.select().count() == 0
    done = astra("try", "1", "5")
    assert done.exit_code == 2 and "are damaged" in done.output


@task
def refused(spectra: Iterable[BossVisitSpectrum], how: str = "") -> Iterable[Measured]:
    for spectrum in spectra:
        result = Measured.from_spectrum(spectrum, value=1.0)
        match how:
            case "model":
                yield {"value": 1.0}
                continue
            case "column":
                result.valeu = 1.0
            case "number":
                result.value = [1.0]
            case "missing":
                result.value = None
            case "second":
                yield Measured.from_spectrum(spectrum, value=2.0)
            case "row":
                result.spectrum_pk += 1
        yield result


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("", "1: 1 result\n"),
        ("model", "WrongModel: dict was yielded"),
        ("column", "NoColumn: Measured has no column 'valeu'"),
        ("number", "refused: "),
        ("missing", "IntegrityError: "),
        ("second", "DuplicateResult: a second result"),
        ("row", "ForeignRow: a result was yielded for 2"),
    ],
)
def test_a_result_that_would_not_be_stored_is_a_failure(url, how, shown):
    fill(2)
    words = ["tests.element.test_trial.refused", "--set", f"how={how}"]
    done = astra("try", words[0], "1", *words[1:])
    assert shown in done.stdout, done.output
    assert done.exit_code == (8 if how else 0)
    found = json.loads(astra("try", words[0], "1", *words[1:], "--json").stdout)
    assert bool(found[0]["exception"]) == bool(how) and len(found[0]["results"]) >= 1
    assert n_stored() == 0


def test_results_are_shown_where_they_cannot_be_stored(url):
    fill(1)
    with connection():
        database.execute_sql("ALTER TABLE measured RENAME TO gone")
    done = astra("try", "tests.element.test_trial.refused", "1")
    assert done.exit_code == 0 and "1: 1 result\n" in done.stdout and "value = 1" in done.stdout
