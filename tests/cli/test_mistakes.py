"""Mistakes that a task's author makes are shown at the author's own line, without a traceback."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from astra.cli.group import main
from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum
from tests.conftest import ROOT
from tests.sample_tasks import fill

BEGIN = """\
from collections.abc import Iterable
from peewee import FloatField, TextField
from astra import task
from astra.models import BossVisitSpectrum, PipelineOutputModel
from tests.sample_tasks import Measured

"""


@pytest.fixture
def module(tmp_path, request):
    """Writes a module of the test's own."""
    names = []

    def write(text: str) -> str:
        name = f"mistake_{abs(hash((str(tmp_path), text))):x}"
        Path(f"{name}.py").write_text(BEGIN + text)
        importlib.invalidate_caches()
        names.append(name)
        return name

    sys.path.insert(0, str(tmp_path))
    yield write
    sys.path.remove(str(tmp_path))
    for name in names:
        sys.modules.pop(name, None)


def astra(*words: str):
    return CliRunner().invoke(main, list(words))


def test_a_task_that_does_not_yield(module, url):
    name = module(
        "@task\ndef f(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:\n    return []\n"
    )
    done = astra("run", f"{name}.f")
    assert done.exit_code == 2 and "does not yield" in done.output
    assert f"{name}.py:7)" in done.output and "decorator.py" not in done.output


def test_rows_that_are_taken_for_one(module, url):
    fill(2)
    text = "@task\ndef f(spectrum: BossVisitSpectrum) -> Measured:\n"
    name = module(text + "    yield Measured.from_spectrum(spectrum, value=1.0)\n")
    done = astra("run", f"{name}.f")
    assert done.exit_code == 4 and "annotate it as Iterable[...]" in done.output
    assert f"{name}.py:9 in f" in done.output and "pipeline.py" not in done.output
    assert "Traceback" not in done.output


def in_a_process(*words: str) -> subprocess.CompletedProcess[str]:
    """A command with the log of its own, which is that of pytest otherwise."""
    return subprocess.run(
        [sys.executable, "-m", "astra", *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_row_that_raises_is_a_line_with_its_key_and_place(module, sqlite_url):
    fill(3)
    text = "@task\ndef f(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:\n    for s in spectra:\n"
    name = module(text + "        yield Measured.from_spectrum(s, value=1 / (s.spectrum_pk - 2))\n")
    done = in_a_process("run", f"{name}.f")
    (line,) = (word for word in done.stderr.splitlines() if "ZeroDivisionError" in word)
    assert "at row 2" in line and f"{name}.py:10 in f" in line and done.returncode == 8
    assert "Traceback" not in done.stderr + done.stdout
    again = in_a_process("run", f"{name}.f", "--again", "--traceback")
    assert "Traceback" in again.stderr and "ZeroDivisionError" in again.stderr


MODEL = """
class Table{n}(PipelineOutputModel):
    {columns}

    class Meta:
        table_name = "mistaken_{n}"
"""


def test_initdb_says_what_it_added_and_what_is_no_longer_in_the_model(module, url):
    assert (
        astra(
            "initdb", module(MODEL.format(n=1, columns="value = FloatField(null=True)"))
        ).exit_code
        == 0
    )
    with connection():
        database.execute_sql("ALTER TABLE mistaken_1 ADD COLUMN former TEXT")
        database.execute_sql("ALTER TABLE mistaken_1 DROP COLUMN value")
    done = astra("initdb")
    assert "mistaken_1: added the column value" in done.output
    assert "the column former is no longer in mistake_" in done.output
    assert "DROP COLUMN" in done.output
    assert "added the" not in astra("initdb").output


def test_a_column_that_was_renamed_or_changed(module, url):
    assert astra("initdb", module(MODEL.format(n=2, columns="value = FloatField()"))).exit_code == 0
    with connection():
        database.execute_sql("ALTER TABLE mistaken_2 RENAME COLUMN value TO former")
    done = astra("initdb")
    assert done.exit_code == 5 and 'RENAME COLUMN "former" TO "value"' in done.output
    with connection():
        database.execute_sql("ALTER TABLE mistaken_2 DROP COLUMN former")
        database.execute_sql("ALTER TABLE mistaken_2 ADD COLUMN value TEXT")
    assert "is of the type text, and mistake_" in astra("initdb").output


def test_a_model_without_a_table(module, sqlite_url):
    fill(1)
    text = MODEL.format(n=3, columns="value = FloatField()")
    text += "@task\ndef f(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Table3]:\n    yield\n"
    name = module(text)
    done = astra("run", f"{name}.f")
    assert done.exit_code == 5 and f"make it: astra initdb {name}" in done.output
    assert BossVisitSpectrum.select().count() == 1
