"""Mistakes that a task's author makes are shown at the author's own line, without a traceback."""

import importlib
import subprocess
import sys
from itertools import product
from pathlib import Path

import peewee
import pytest
from click.testing import CliRunner

from astra.cli.group import main
from astra.config import settings
from astra.database.connection import connection, database
from astra.errors import UsageError
from astra.models import BossVisitSpectrum, OutputModel
from tests import forks
from tests.nights import a_night
from tests.sample_tasks import Measured, fill

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


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("spectra", "no input model is annotated"),
        ("spectra: Iterable[BossVisitSpectrum]", "no output model is annotated"),
        ("spectra: Iterable[int]) -> Iterable[Measured", "int is not a table"),
        ("spectra: Iterable[None]) -> Iterable[Measured", "does not name a table"),
        ("spectra: 'Iterable[Boss]') -> Iterable[Measured", "name 'Boss' is not defined"),
        (
            "spectra: Iterable[BossVisitSpectrum]) -> Iterable[BossVisitSpectrum",
            "not of BossVisitSpectrum; write -> Iterable[MyResult]",
        ),
        (
            "spectra: Iterable[BossVisitSpectrum]) -> Iterable[str | Measured",
            "not of str, Measured",
        ),
    ],
)
def test_a_signature_that_names_no_tables_is_shown_with_its_line(
    module, sqlite_url, signature, message
):
    end = "]" if "->" in signature else ")"
    name = module(f"@task\ndef f({signature}{end}:\n    yield None\n")
    done = astra("run", f"{name}.f")
    assert done.exit_code == 2 and message in done.output
    assert f"{name}.py:7)" in done.output


def test_a_task_that_is_asynchronous(module, sqlite_url):
    text = "@task\nasync def f(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:\n"
    done = astra("run", f"{module(text + '    yield None')}.f")
    assert done.exit_code == 2 and "is asynchronous" in done.output


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
    return forks.astra(*words)


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


@pytest.mark.postgres
def test_a_column_that_left_its_model_does_not_keep_rows_from_being_stored(module, pg_url):
    """As when it was removed from the model of results, or from one of astra's own tables."""
    assert astra("initdb", module(MODEL.format(n=3, columns="value = FloatField()"))).exit_code == 0
    columns = ("former TEXT NOT NULL", "other TEXT NOT NULL DEFAULT 'x'")
    with connection():
        for table, column in product(("mistaken_3", "night"), columns):
            database.execute_sql(f"ALTER TABLE {table} ADD COLUMN {column}")
    output = astra("initdb").output
    assert "column former is no longer in mistake_" in output and "Night; it is kept" in output
    assert output.count("it is kept, empty in new rows. To drop it") == 2
    assert output.count("it is kept. To drop it") == 2
    a_night()
    with connection():
        row = database.execute_sql("SELECT former, other FROM night").fetchone()
    assert row == (None, "x")


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


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("value = FloatField", "Table3.value is the class FloatField: write FloatField()"),
        ("value = FloatField(),", "Table3.value is a tuple: remove the comma"),
    ],
)
def test_what_would_silently_be_no_column_is_refused(column, message, module, sqlite_url):
    name = module(MODEL.format(n=3, columns=column))
    done = astra("initdb", name)
    assert done.exit_code == 2 and message in done.output and f"{name}.py:8)" in done.output


def test_a_mixin_may_not_silently_lack_a_column():
    class Fluxes:
        flux = peewee.FloatField

    with pytest.raises(UsageError, match=r"Fluxes\.flux is the class FloatField"):
        type("Table4", (Fluxes, OutputModel), {})


def test_types_of_fields_and_tuples_of_columns_may_stand_in_a_model():
    class Table5(OutputModel):
        class Flux(peewee.FloatField):
            pass

        red, blue = Flux(), Flux()
        fluxes = (red, blue)

    assert {"red", "blue"} < set(Table5._meta.fields)


def test_the_number_of_a_plan_in_place_of_a_task_is_recognised(sqlite_url):
    done = astra("run", "1")
    assert done.exit_code == 2 and "It is the number of a plan." in done.output


def test_a_model_without_a_table_is_named_with_the_command_that_creates_it(module, sqlite_url):
    fill(1)
    text = MODEL.format(n=7, columns="value = FloatField()")
    text += "@task\ndef f(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Table7]:\n    yield\n"
    name = module(text)
    done = astra("run", f"{name}.f")
    assert done.exit_code == 5 and f"create it: astra initdb {name}" in done.output
    assert BossVisitSpectrum.select().count() == 1


WRONG = {
    "None": "NoneType was yielded, not Measured",
    "{'value': 1.0}": "dict was yielded",
    "Measured": "the class Measured itself was yielded",
    "s": "BossVisitSpectrum was yielded",
    "Measured.from_spectrum(s, vlaue=1.0)": "no column 'vlaue'. Did you mean 'value'?",
    "Measured.from_spectrum(s, save=1.0)": "no column 'save'",
    "nump.sqrt(s.snr)": "name 'nump' is not defined",
}
LOOP = "@task\ndef f(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:\n    for s in spectra:\n"


@pytest.mark.parametrize("yielded", WRONG)
def test_what_is_no_result_is_shown_with_its_line_and_what_to_write(yielded, module, sqlite_url):
    fill(2)
    name = module(f"{LOOP}        yield {yielded}\n")
    done = astra("run", f"{name}.f")
    assert done.exit_code == 4 and WRONG[yielded] in done.output
    assert f"{name}.py:10 in f" in done.output and "astra resume 1 --local" in done.output
    if "was yielded" in WRONG[yielded]:
        assert "create results with from_spectrum() or from_row()" in done.output
    log = astra("logs", "1", "1")  # what `astra run` names for more
    assert log.exit_code == 0 and WRONG[yielded] in log.output
    assert "astra status 1" in astra("failures", "1").output


def test_an_array_for_a_number_is_named(module, url):
    fill(1)
    text = "class Counted(PipelineOutputModel):\n    n = IntegerField()\n"
    loop = LOOP.replace("[Measured]", "[Counted]")
    text += f"{loop}        yield Counted.from_spectrum(s, n=np.array([1, 2]))\n"
    name = module("import numpy as np\nfrom peewee import IntegerField\n" + text)
    assert astra("initdb", name).exit_code == 0
    assert "column n: array([1, 2]) is an array" in astra("try", f"{name}.f", "1").output


def test_a_row_can_be_tried_without_a_table_of_results(module, url, caplog):
    fill(1)
    text = f"class Own(PipelineOutputModel):\n    n = FloatField()\n{LOOP}".replace(
        "Measured]", "Own]"
    )
    name = module(f"{text}        yield Own.from_spectrum(s, n=2.0)\n")
    done = astra("try", f"{name}.f", "1")
    assert done.exit_code == 0 and "n = 2" in done.output
    assert f"create the table: astra initdb {name}" in caplog.text


def test_the_key_of_a_table_is_declared_once(module, pg_url):
    database.execute_sql("CREATE TABLE pair (a int, b int, PRIMARY KEY (a, b))")
    begin = "from astra.models import OutputModel, result_of\nfrom peewee import *\n"
    task = "\n\nclass OfPair(OutputModel):\n    pair = result_of(Pair)\n" + LOOP.replace(
        "BossVisitSpectrum", "Pair"
    ).replace("Measured", "OfPair")
    for fields, said in (
        (
            "a = IntegerField(primary_key=True)\n    b = IntegerField(primary_key=True)",
            'CompositeKey("a", "b")',
        ),
        ("a = IntegerField()\n    b = IntegerField()", "peewee adds id to a model without a key"),
    ):
        name = module(
            f"{begin}class Pair(Model):\n    {fields}{task}        yield OfPair.from_row(s)\n"
        )
        assert said in astra("plan", f"{name}.f").output


def test_an_exception_in_a_library_is_shown_at_the_line_that_calls_it(module, sqlite_url):
    fill(1)
    text = "        import json\n        yield Measured.from_spectrum(s, value=json.loads('{'))\n"
    name = module(LOOP + text)
    assert astra("run", f"{name}.f").exit_code == 8
    assert f"{name}.py:11 in f" in astra("failures", "1").output


def test_a_second_result_of_a_row_names_the_keyword_that_allows_it(module, sqlite_url):
    fill(1)
    name = module(f"{LOOP}        for _ in 'ab': yield Measured.from_spectrum(s, value=1.0)\n")
    assert astra("run", f"{name}.f").exit_code == 0
    assert (
        "if a row may have several, declare the task with @task(many=True)"
        in astra("failures", "1").output
    )


def test_a_row_that_ends_its_process_shows_its_line_when_it_is_tried(module, sqlite_url):
    fill(1)
    name = module(f"{LOOP}        import os\n        os.abort()\n        yield s\n")
    done = in_a_process("try", f"{name}.f", "1")
    assert f'{name}.py", line 11 in f' in done.stderr, done


def test_two_tasks_of_one_name_are_refused_with_their_lines(module, sqlite_url):
    name = module(2 * f"{LOOP}        yield Measured.from_spectrum(s, value=1.0)\n\n\n")
    done = astra("initdb", name)
    assert done.exit_code == 2 and f"two tasks have the name {name}.f, at the lines 7 and 13" in (
        done.output
    )


def test_a_module_that_is_loaded_again_replaces_its_tasks(module, sqlite_url):
    name = module(f"{LOOP}        yield Measured.from_spectrum(s, value=1.0)\n")
    found = importlib.import_module(name)
    assert importlib.reload(found).f is not None


def test_imports_that_fail(module, sqlite_url):
    name = module("import scypy\n")
    for words in (("initdb", name), ("run", f"{name}.f")):
        done = astra(*words)
        assert done.exit_code == 2 and f"{name}.py:7)" in done.output
        assert "install scypy, or correct its name" in done.output
    name = module("f(\n")
    assert f"{name}.py:7)" in astra("initdb", name).output


@pytest.mark.parametrize(
    "text, said",
    [
        ("class Panic(BaseException):\n    pass\nraise Panic('in Rust')\n", "Panic: in Rust"),
        (
            "class E(Exception):\n    def __str__(self):\n        return 5\nraise E\n",
            "TypeError in",
        ),
        ("import sys\nsys.exit('bye')\n", "it ends the process (exit status 'bye')"),
        ("import os\nos._exit(0)\n", "it ends the process (exit status 0)"),
        ("raise GeneratorExit\n", "GeneratorExit"),
    ],
    ids=["panics", "unprintable", "sys.exit", "os._exit", "GeneratorExit"],
)
def test_whatever_an_import_does_the_command_says_so_and_fails(module, sqlite_url, text, said):
    name = module(text)
    for words in (("initdb", name), ("plan", f"{name}.f")):
        done = forks.astra(*words)
        assert done.returncode == 2 and f"importing {name} failed: " in done.stderr, done.stderr
        assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_row_that_ends_the_process_of_a_command_is_its_failure(module, sqlite_url):
    """The status of the process would be that of success, with all rows pending."""
    fill(5)
    text = "        import os\n        if s.spectrum_pk == 3:\n            os._exit(0)\n"
    name = module(f"{LOOP}{text}        yield Measured.from_spectrum(s, value=1.0)\n")
    for words in (("try", f"{name}.f", "3"), ("run", f"{name}.f")):
        done = forks.astra(*words)
        assert done.returncode == 8 and "SystemExit" in done.stdout + done.stderr, done.stderr
    assert Measured.select().count() == 4


def test_two_models_of_one_table_are_named(module, sqlite_url):
    text = (
        "class Table{n}(PipelineOutputModel):\n    class Meta:\n        table_name = 'mistaken_4'\n"
    )
    names = [module(text.format(n=n)) for n in (41, 42)]
    done = astra("initdb", *names)
    assert f"{names[0]}:Table41 and {names[1]}:Table42 share this table" in done.output


def test_a_task_is_found_by_the_end_of_its_name(module, sqlite_url):
    name = module(f"{LOOP}        yield Measured.from_spectrum(s, value=1.0)\n")
    assert f"Did you mean '{name}.f'" in astra("run", "f").output


def test_an_input_table_without_rows_is_said_to_be_empty(sqlite_url):
    done = astra("plan", "tests.sample_tasks.measure", "--input-model", "BossVisitSpectrum")
    assert "nothing is pending in BossVisitSpectrum, which has no rows" in done.output


@pytest.mark.parametrize(
    "words", [("status", "--task"), ("plans", "--task"), ("nights",), ("report",)], ids=" ".join
)
def test_a_name_in_another_encoding_than_utf8_is_refused(url, words):
    done = astra(*words, b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert done.exit_code == 2 and r"'caf\udce9' is not UTF-8" in done.output


def test_a_folder_in_another_encoding_than_utf8_cannot_hold_the_database(tmp_path, monkeypatch):
    folder = tmp_path / b"caf\xe9".decode("utf-8", "surrogateescape")
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ASTRA_DATABASE_URL", raising=False)
    settings.reset()
    done = astra("plans")
    assert done.exit_code == 2 and r"caf\udce9/astra.db', is not UTF-8" in done.output


def test_a_result_of_what_is_no_row_is_refused_at_its_line(module, sqlite_url):
    fill(2)
    text = "@task\ndef f(rows: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:\n"
    name = module(text + "    for r in rows:\n        yield Measured.from_row(r.pk, value=1.0)\n")
    done = astra("run", f"{name}.f")
    assert (
        "Measured: a result is made from its row itself, not from an object of type 'int'"
        in done.output
    )
    assert f"{name}.py:10 in f" in done.output and "_meta" not in done.output


@pytest.mark.parametrize(
    ("raises", "shown"),
    [("next(iter([]))", "StopIteration ("), ("raise KeyError", "raised at row 1: KeyError (")],
)
def test_exceptions_without_text_or_place_are_shown_with_their_line(
    module, sqlite_url, raises, shown
):
    fill(1)
    text = "@task\ndef f(rows: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:\n"
    name = module(f"{text}    for row in rows:\n        {raises}\n        yield\n")
    done = in_a_process("run", f"{name}.f")
    (line,) = (line for line in done.stderr.splitlines() if "raised at row" in line)
    assert shown in line and line.endswith(f"{name}.py:10 in f)")


def test_a_task_that_loops_twice_over_its_rows_is_told_why_no_row_has_a_result(module, url):
    fill(3)
    text = "@task\ndef f(rows: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:\n"
    text += "    mean = sum(r.snr for r in rows)\n    for r in rows:\n"
    name = module(text + "        yield Measured.from_row(r, value=mean)\n")
    done = astra("run", f"{name}.f")
    said = " ".join(done.output.split())
    assert "the task yielded nothing for any row" in said and "rows = list(rows)" in said
    assert f"astra plan {name}.f --again" in said


def test_rows_that_all_have_results_can_be_taken_again(module, url):
    fill(1)
    text = "@task\ndef f(rows: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:\n"
    name = module(text + "    for r in rows:\n        yield Measured.from_row(r, value=1.0)\n")
    assert astra("run", f"{name}.f").exit_code == 0
    assert "--redo all also takes rows" in astra("run", f"{name}.f").output
    assert "1 row in 1 page" in astra("run", f"{name}.f", "--redo", "all").output


@pytest.mark.parametrize(("n", "n_bad", "error"), [(10, 4, "None + 1"), (60, 24, "int('x')")])
def test_rows_that_fail_again_leave_their_plan_as_it_was(module, url, n, n_bad, error):
    """Nothing else is to blame: they failed before, while other rows did not. Of many, one kills
    its processes now, which forget how the others have ended."""
    fill(n)
    text = """import os
from pathlib import Path
from astra.database.connection import connection
from astra.models.failures import Failure
from tests.servers import wait_for

AGAIN, SEEN = Path("again"), []

def are_stored():
    with connection():
        return Failure.select().where(Failure.times > 1).count() > 20

@task
def f(rows: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for r in rows:
        SEEN.append(r)
        if AGAIN.exists() and len(SEEN) == 22 and not AGAIN.read_text():
            wait_for(are_stored, "earlier failures", 20)
            AGAIN.write_text(str(r.spectrum_pk))
        if AGAIN.exists() and AGAIN.read_text() == str(r.spectrum_pk):
            os.kill(os.getpid(), 11)
"""
    text += f"        value = 1.0 if r.spectrum_pk % 5 > 1 else {error}\n"
    name = module(text + "        yield Measured.from_row(r, value=value)\n")
    expected = f"failed rows: {n - n_bad} done + {n_bad} failed"
    assert expected in astra("run", f"{name}.f").output
    Path("again").touch()
    done = astra("retry", "1", "--local")
    assert expected in done.output and done.exit_code == 8, done.output
