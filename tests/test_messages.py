"""What a person meets who names a wrong thing: a message that says what to do, no traceback."""

import functools
import os
import re
import subprocess
import sys
import types
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import pytest
from peewee import FloatField

from astra import generate_queries_for_task, task
from astra.api import run_here
from astra.database.connection import bind, connection, database, dialect
from astra.element.loaded_task import load_outer_exceptions
from astra.errors import DatabaseError, TaskError, UsageError
from astra.models import BossVisitSpectrum, PipelineOutputModel, Source
from astra.models.schema import init_database
from astra.models.table_checks import VERSION, Schema
from astra.plan.pending import checked_ids
from astra.plan.plan import create_plan
from astra.resume.cancel import cancel
from astra.status.verify import verify
from astra.tasks.signature import find_task, input_models, output_model
from tests import forks
from tests.conftest import ROOT
from tests.sample_tasks import Measured, fill, measure


def astra(*words: str, **environ: str) -> subprocess.CompletedProcess:
    return forks.astra(*words, env={**os.environ, **environ})


MODULES = {
    "unparsed": "def f(:",
    "divided": "1/0",
    "leaving": "import sys; sys.exit('bye')",
    "needing": "import nonexistent_dep",
    "profile": "",
    "using": "from mt import f\nlist(f([]))",
    "zeros": "\0",
}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("initdb", "unparsed"), "SyntaxError"),
        (("initdb", "divided"), "ZeroDivisionError: division by zero"),
        (("initdb", "leaving"), "ends the process (exit status 'bye')"),
        (("initdb", "needing"), "No module named 'nonexistent_dep'"),
        (("initdb", "profile"), "rename that file"),
        (("initdb", "using"), 'belongs under `if __name__ == "__main__":` ('),
        (("initdb", "zeros"), "cannot contain null bytes"),
        (("initdb", ""), "not the name of a module"),
        (("initdb", "./divided"), "without folders and without .py: divided"),
        (("initdb", "mt.py"), "without .py: mt"),
        (("initdb", "mt.f"), "astra initdb mt"),
        (("plan", "unparsed.f"), "SyntaxError"),
        (("plan", "divided.f"), "divided.py:1"),
        (("plan", "leaving.f"), "ends the process"),
        (("plan", "mt"), "its tasks: mt.f, mt.g"),
        (("plan", "mt.h"), "Did you mean 'mt.g' or 'mt.f'"),
        (("plan", "slam.slm"), "Did you mean 'slam.slam'"),
        (("plan", "nowhere.f"), "is it installed, or in this folder"),
        (("plan", "builtins.int"), "not a task, but of type 'type'"),
        (("plan", "mt.f"), "create it: astra initdb mt"),
        (("plan", "slam", "--limit", str(2**70)), "is more than 9,223,372,036,854,775,807"),
    ],
)
def test_wrong_modules_and_tasks_are_named(sqlite_url, tmp_path, words, said):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "mt.py").write_text(
        "from collections.abc import Iterable\nfrom astra import task\n"
        "from astra.models import BossVisitSpectrum, PipelineOutputModel\n"
        "class Out(PipelineOutputModel):\n    pass\n"
        "@task\ndef f(rows: Iterable[BossVisitSpectrum]) -> Iterable[Out]:\n    yield ...\n"
        "g = f\n"
    )
    done = astra(*words)
    assert done.returncode == (5 if "create it" in said else 2)
    assert said in done.stderr and "Traceback" not in done.stderr
    assert "is it installed" not in done.stderr or "nowhere" in words[1] or "need" in words[1]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://astra.db", "sqlite:///file.db"),
        ("sqlite:astra.db", "sqlite:///file.db"),
        ("sqlite:", "sqlite:///file.db"),
        ("sqlite:///", "sqlite:///file.db"),
        ("sqlite:///x.db?mode=ro", "options after a ?"),
        ("postgresql://[::1/base", "malformed"),
        ("postgresql://h:abc/base", "malformed"),
        ("postgresql://h:5432,other:65536/base", "malformed"),
        ("postgresql:/base", "malformed"),
        ("postgresql://h/base?schema=other", "malformed"),
        ("mysql://x", "begins with 'mysql'"),
        ("stars.db", "or sqlite:///stars.db"),
        ("sqlite:///no.db", "file is not a database"),
        ("sqlite:////", "sqlite:///file.db"),
        ("sqlite:////proc", "check that its folder is there"),
    ],
)
def test_wrong_database_urls_are_named(tmp_path, url, said):
    Path("no.db").write_bytes(b"no database at all " * 300)
    before = set(tmp_path.iterdir())
    for words in (("plans",), ("initdb",)):
        done = astra(*words, ASTRA_DATABASE_URL=url)
        assert said in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (2, 5)
    assert set(tmp_path.iterdir()) == before


def test_a_url_of_postgresql_may_have_the_shorter_name_of_the_scheme(pg_url):
    bind(pg_url.replace("postgresql://", "postgres://"))
    with connection():
        assert BossVisitSpectrum.select().count() == 0


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite://:memory:"])
def test_sqlite_in_memory_is_still_understood(url):
    bind(url)
    with connection():
        init_database(("tests.sample_tasks",))
        BossVisitSpectrum.create(snr=1.0)
        (planned,) = create_plan(measure, BossVisitSpectrum)
        run_here(planned.plan)
        assert Measured.select().count() == 1 and verify(planned.plan).sound
        (again,) = create_plan(measure, BossVisitSpectrum, redo="all")
        cancel(again.plan)


def test_a_refused_login_is_not_a_server_that_does_not_run(postgres):
    url = postgres.url("postgres", user="astra", password="wrong")
    done = astra("plans", ASTRA_DATABASE_URL=url)
    assert "refused the login" in done.stderr and "check that the server runs" not in done.stderr
    done = astra("plans", ASTRA_DATABASE_URL=postgres.url("nowhere_at_all"))
    assert "createdb" in done.stderr


@pytest.mark.parametrize(
    "said", ["FATAL:  Passwort-Authentifizierung fehlgeschlagen", "ВАЖНО:  no"]
)
def test_a_login_that_is_refused_in_another_language_is_one_too(pg_url, said):
    """Servers write such messages in the language of their administrator (lc_messages)."""
    advice = dialect().advice(f'connection to server at "127.0.0.1", port 5432 failed: {said}')
    assert "refused the login" in advice
    advice = dialect().advice('connection to server at "a", port 5432 failed: Connection refused')
    assert "check that the server runs" in advice


@pytest.mark.parametrize("schema", ["public", "own"])
def test_a_role_that_may_create_no_table_is_told_who_can_allow_it(postgres, tmp_path, schema):
    name = f"fresh_{schema}"
    postgres.create_database(name)
    postgres.create_role(name, "secret")
    postgres.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)
    url, grant = postgres.url(name, name, "secret"), f'GRANT CREATE ON SCHEMA "public" TO "{name}"'
    text = f'[database]\nurl = "{url}"\n'
    if schema == "own":
        text, grant = f'{text}schema = "own"\n', f'GRANT CREATE ON DATABASE "{name}" TO "{name}"'
    (tmp_path / "astra.toml").write_text(text)
    done = forks.astra("initdb", cwd=tmp_path)
    assert done.returncode == 5 and f"can allow it: {grant}\n" in done.stderr, done.stderr
    postgres.sql(grant, name)
    done = forks.astra("initdb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_server_that_gives_no_connection_is_not_one_that_does_not_run(postgres):
    def said(url: str) -> str:
        done = astra("plans", ASTRA_DATABASE_URL=url)
        assert done.returncode == 5 and "check that the server runs" not in done.stderr
        return done.stderr

    postgres.create_role("limited", "limited")
    postgres.create_database("closed")
    postgres.sql("ALTER ROLE limited CONNECTION LIMIT 0")
    postgres.sql("ALTER DATABASE closed ALLOW_CONNECTIONS false")
    assert "has no free connection" in said(postgres.url("postgres", "limited", "limited"))
    assert "try again later" in said(postgres.url("closed", "astra"))


def test_values_that_are_too_large_or_of_no_kind(sqlite_url):
    for options in (
        {"limit": 2**70},
        {"limit": 10, "page": 2**63},
        {"limit": 2**40, "page": 2**40},
    ):
        with pytest.raises(TaskError, match=r"limit|page"):
            generate_queries_for_task(measure, **options)
    for ids in (np.array(5), 5, "123"):
        with pytest.raises(TaskError, match="give an iterable"):
            checked_ids(ids)
        with pytest.raises(TaskError, match="give an iterable"):
            create_plan(measure, keys=ids)
    with pytest.raises(TaskError, match="group_by=5"):
        task(group_by=5)(measure.__wrapped__)
    assert task(group_by=None)(measure.__wrapped__).__astra__.group_by == ()


def test_what_is_no_plain_function(sqlite_url):
    with pytest.raises(
        TaskError, match=r"applied to .*method: a task is a function with @task at the top"
    ):

        class Holder:
            @task
            def method(self, spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
                yield from ()

    with pytest.raises(TaskError, match="measure is a task already"):
        task(batch_size=5)(measure)
    with pytest.raises(TaskError, match=r"functools\.partial.*: a task is a function"):
        task(functools.partial(measure.__wrapped__, row_s=0))
    with pytest.raises(TaskError, match=r"of type 'partial'; a task is a function.*by --set"):
        generate_queries_for_task(functools.partial(measure, row_s=0))
    with pytest.raises(TaskError, match="of type 'type'"):
        find_task(int)
    with pytest.raises(TaskError, match="of type 'method'"):
        find_task(Path().exists)
    with pytest.raises(TaskError, match="a task is a function or its name, not 3"):
        find_task(3)
    with pytest.raises(TaskError, match=r"@task takes keywords only, as in .*, not 'boss'"):
        task("boss")
    with pytest.raises(TaskError, match=r"measure is not a task: decorate it with @task"):
        create_plan(measure.__wrapped__, BossVisitSpectrum)


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [({"many": 1}, "True or False"), ({"revision": 1.5}, "a number or a t")],
)
def test_keywords_that_only_the_decorator_takes(keyword, expected):
    with pytest.raises(TaskError, match=f"=1.*: give {expected}"):
        task(**keyword)(measure.__wrapped__)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.Error", "No module named 'nowhere'"), ("os.Error", "no attribute 'Error'"),
        ("os.path", "is not an exception class"), ("int", "is not an exception class"),
    ],
)  # fmt: skip
def test_an_outer_exception_that_does_not_exist_is_named(path, said):
    with pytest.raises(UsageError, match=rf"\[element\] outer_exceptions: {path}.*{said}"):
        load_outer_exceptions(["OSError", path])


@pytest.mark.parametrize("rows", [3, "abc", b"abc"])
def test_what_are_no_rows(sqlite_url, rows):
    with pytest.raises(TaskError, match=f"rows={rows!r}: give a query, a list, or any other"):
        list(measure(rows))


def test_a_task_without_a_parameter_for_rows():
    def of_several(*spectra):
        yield from spectra

    def by_name(*, spectra):
        yield from spectra

    for function in (of_several, by_name):
        with pytest.raises(TaskError, match=rf"{function.__name__}\(\*.* no parameter for rows"):
            task(function)


@pytest.mark.parametrize(
    "results", [Generator[Measured, None, None], Generator[Measured, int, str], Iterator[Measured]]
)
def test_a_task_may_be_annotated_as_a_generator(results):
    def generates(spectra: Annotated[Iterable[BossVisitSpectrum], "of a night"]):
        yield from ()

    generates.__annotations__["return"] = results
    assert output_model(task(generates)) is Measured
    assert input_models(task(generates)) == [BossVisitSpectrum]


def test_an_ellipsis_in_annotations_is_understood(sqlite_url):
    @task
    def one(s: Iterable[BossVisitSpectrum]) -> Iterable[Measured | types.EllipsisType]:
        yield ...

    @task
    def two(s: Iterable[BossVisitSpectrum] | None) -> Iterator[Measured | None]:
        yield ...

    for each in (one, two):
        assert output_model(each) is Measured and input_models(each) == [BossVisitSpectrum]


class Nova(Source):
    extra = FloatField(null=True)


class OfNova(PipelineOutputModel):
    value = FloatField()


@task
def on_novae(stars: Iterable[Nova]) -> Iterable[OfNova]:
    for star in stars:
        yield OfNova.from_source(star, value=1)


def test_an_input_model_that_is_a_source(url):
    Nova.create_table()
    OfNova.create_table()
    Nova.create(sdss_id=5)
    Nova.create(sdss_id=6)
    ((_, query),) = generate_queries_for_task(on_novae, sdss_ids=[5])
    assert [star.sdss_id for star in query] == [5]
    list(on_novae(query))
    ((_, query),) = generate_queries_for_task(on_novae)
    assert [star.sdss_id for star in query] == [6]


MODEL = """
from collections.abc import Iterable
from peewee import FloatField, IntegerField, TextField
from astra import task
from astra.models import BossVisitSpectrum, PipelineOutputModel

class Mine(PipelineOutputModel):
    value = FloatField()
{columns}

@task
def mine(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Mine]:
    for spectrum in spectra:
        yield Mine.from_spectrum(spectrum, value=2, {values})

for made in mine(BossVisitSpectrum.select()) if {run} else ():
    made = Mine.get(task_pk=made.task_pk)
    print([made.value, {shown}])
"""
LATER = {
    "columns": "    more = FloatField(null=True, index=True)\n    number = IntegerField(default=7)\n"
    '    text = TextField(default="it\'s 5%")',
    "values": "more=3",
    "shown": "made.more, made.number, made.text",
}


def model(run: bool = False, columns: str = "", values: str = "", shown: str = "") -> None:
    text = MODEL.format(run=run, columns=columns, values=values, shown=shown)
    Path("mine.py").write_text(text)


def run_module() -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "import mine"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:."},
    )  # fmt: skip


def test_initdb_adds_columns_that_a_model_was_given_later(url):
    fill(2)
    model()
    assert astra("initdb", "mine").returncode == 0
    model(run=True)
    assert run_module().stdout.split() == ["[2.0]"] * 2
    model(run=True, **LATER)
    done = run_module()
    assert "has no column 'more', 'number', 'text'" in done.stderr
    assert "create it: astra initdb mine" in done.stderr
    model(**LATER)
    for _ in range(2):
        done = astra("initdb", "mine")
        assert done.returncode == 0, done.stderr
    found = database.execute_sql("SELECT value, more, number, text FROM mine").fetchall()
    assert found == [(2.0, None, 7, "it's 5%")] * 2
    model(run=True, **LATER)
    assert run_module().stdout.splitlines() == ['[2.0, 3.0, 7, "it\'s 5%"]'] * 2


def test_a_column_without_a_value_for_old_rows_is_refused(url):
    model()
    assert astra("initdb", "mine").returncode == 0
    model(columns="    must = FloatField()")
    done = astra("initdb", "mine")
    assert done.returncode == 5 and "Traceback" not in done.stderr
    assert "'mine' has no column 'must'" in done.stderr and "null=True" in done.stderr


def test_a_missing_table_is_said_before_a_row_is_computed(url, monkeypatch):
    Measured.drop_table()
    fill(1)
    with pytest.raises(DatabaseError, match=r"astra initdb tests\.sample_tasks"):
        list(measure(list(BossVisitSpectrum.select())))
    with pytest.raises(DatabaseError, match=r"astra initdb tests\.sample_tasks"):
        create_plan(measure)
    monkeypatch.setattr(Measured, "__module__", "__main__")
    in_notebook = 'astra.api.init_database(["__main__"])'
    for main, remedy in (({"__file__": "/x/script.py"}, "astra initdb script"), ({}, in_notebook)):
        monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(**main))
        with pytest.raises(DatabaseError, match=f"{re.escape(remedy)}$"):
            create_plan(measure)


def test_a_call_without_the_tables_of_astra_says_how_to_create_them(url):
    fill(1)
    database.execute_sql("DROP TABLE astra_archive")
    database.execute_sql("DROP TABLE astra_schema")
    with pytest.raises(DatabaseError, match="has no tables of astra; create them: astra initdb"):
        list(measure(BossVisitSpectrum.select()))


def test_a_module_that_is_not_given_by_its_name_is_refused(sqlite_url):
    Measured.drop_table()
    assert Measured._meta.table_name in init_database("tests.sample_tasks")
    with pytest.raises(UsageError, match=r"modules: <Model: Measured> is not a name"):
        init_database((Measured,))


def test_initdb_by_a_role_that_owns_nothing_names_the_owner(
    postgres, pg_url, monkeypatch, tmp_path
):
    name = urlsplit(pg_url).path[1:]
    postgres.sql("DROP ROLE IF EXISTS bob")
    postgres.sql("CREATE ROLE bob LOGIN PASSWORD 'of the tests'")
    bind(postgres.url(name))
    for what in ("USAGE, CREATE ON SCHEMA public", "ALL ON ALL TABLES IN SCHEMA public",
                 "ALL ON ALL SEQUENCES IN SCHEMA public"):  # fmt: skip
        database.execute_sql(f"GRANT {what} TO bob")
    (tmp_path / "mine.py").write_text(
        "from astra.models import PipelineOutputModel\nclass Mine(PipelineOutputModel):\n    pass\n"
    )
    url = postgres.url(name, "bob", "of the tests")
    done = astra("initdb", "mine", ASTRA_DATABASE_URL=url)
    assert done.returncode == 0 and "1 new table: mine" in done.stdout, done.stderr
    database.execute_sql("UPDATE astra_schema SET version = 0")
    done = astra("initdb", ASTRA_DATABASE_URL=url)
    assert "belongs to the role 'astra'" in done.stderr and "Traceback" not in done.stderr
    postgres.sql("REASSIGN OWNED BY bob TO astra; DROP OWNED BY bob", name)
    postgres.sql("DROP ROLE bob")


def test_tables_of_a_later_astra_and_names_that_postgresql_would_cut_are_refused(url):
    with connection():
        Schema.update(version=99).execute()
    for words in (("plans",), ("initdb",)):
        done = astra(*words)
        assert done.returncode == 5 and "are of version 99" in done.stderr, done.stderr
        assert "upgrade astra" in done.stderr
    model(columns=f"    {'x' * 64} = FloatField(null=True)")
    with connection():
        Schema.update(version=VERSION).execute()
    done = astra("initdb", "mine")
    assert done.returncode == 5 and "exceeds 63 bytes: shorten it" in done.stderr, done.stderr
