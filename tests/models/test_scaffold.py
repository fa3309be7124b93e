"""The module that `astra init` writes, of tables with awkward names and types."""

import pytest

from astra.config import settings
from astra.database.connection import connection, dialect, reset
from astra.errors import UsageError
from astra.models.scaffold import module_text, start_here
from tests.forks import astra

TABLES = {
    "postgresql": """CREATE TABLE "2mass" (
        "class" text NOT NULL DEFAULT 'star', "2mass id" integer NOT NULL, "J mag" real DEFAULT 1,
        "50%% of ""%%s" real DEFAULT 1, flags integer[] NOT NULL DEFAULT '{}',
        notes jsonb, PRIMARY KEY ("class", "2mass id"))""",
    "sqlite": """CREATE TABLE "2mass" (
        "class" nvarchar(9) NOT NULL DEFAULT 'star', "2mass id" INT8 NOT NULL, "J mag" real DEFAULT 1,
        "50% of ""%s" real DEFAULT 1, PRIMARY KEY ("class", "2mass id"))""",
}


def test_a_module_of_awkward_names_and_types_can_be_used(url, tmp_path, monkeypatch):
    with connection():
        dialect().run(TABLES[dialect().name])
        last = 2**60 if dialect().name == "sqlite" else 2  # whose integers have 64 bits
        dialect().run(f"""INSERT INTO "2mass" ("2mass id") VALUES (1), ({last})""")
    (tmp_path / "sky.py").write_text(module_text("sky", None, ["2mass"]))
    for words in (["initdb", "sky"], ["run", "sky.measure__2mass"]):
        done = astra(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "whole: 2 done = 2 rows" in done.stdout


@pytest.mark.parametrize(
    "kind, value",
    [
        ("mood", "'sad'"),
        ("elsewhere.citext", "'Abc'"),
        ("char(8)", "'ab'"),
        ('"char"', "'a'"),
        ("inet", "'10.0.0.1'"),
        ("interval", "'1 day'"),
        ("bit(8)", "'00000010'"),
        ("timestamptz", "'2024-01-01 12:00+05'"),
        ("positive", "1.25"),
        ("numeric", "27021600491023544.1234567"),
        ("numeric(12, 4)", "1.2345"),
    ],
)
def test_a_key_of_a_type_that_peewee_has_no_field_for_can_be_used(
    pg_url, tmp_path, monkeypatch, kind, value
):
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")
    with connection():
        dialect().run("CREATE SCHEMA elsewhere; CREATE EXTENSION citext SCHEMA elsewhere")
        dialect().run("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        dialect().run("CREATE DOMAIN positive AS numeric(5, 2) CHECK (value > 0)")
        dialect().run(
            f"CREATE TABLE tag (k {kind}, filter text, alias interval, PRIMARY KEY (k, filter))"
        )
        dialect().run(f"INSERT INTO tag VALUES ({value}, 'r', '1 month')")
    (tmp_path / "sky.py").write_text(module_text("sky", None, ["tag"]))
    for words in (["initdb", "sky"], ["run", "sky.measure_tag_"], ["plan", "sky.measure_tag_"]):
        done = astra(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is pending" in done.stdout


def test_names_that_a_model_has_already_and_names_alike(pg_url, tmp_path):
    with connection():
        dialect().run(
            'CREATE TABLE sky ("a b" text, "a-b" int, "select" int, PRIMARY KEY ("a b", "a-b"))'
        )
        dialect().run("INSERT INTO sky VALUES ('x', 1, 2)")
    (tmp_path / "mine.py").write_text(module_text("mine", None, ["sky"]))
    for words in (["initdb", "mine"], ["run", "mine.measure_sky"]):
        done = astra(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "whole: 1 done = 1 row" in done.stdout


@pytest.mark.parametrize("kind", ["jsonb", "integer[]", "tsvector"])
def test_a_column_of_a_type_that_peewee_has_only_for_postgresql(pg_url, kind):
    with connection():
        dialect().run(f"CREATE TABLE sky (id integer PRIMARY KEY, it {kind})")
    assert "it = BareField(null=True)" in module_text("mine", None, ["sky"])


def test_a_table_without_a_key_is_said_to_have_no_task(url, tmp_path):
    with connection():
        dialect().run("CREATE TABLE sky (a integer)")
        dialect().run("CREATE TABLE keyed (a integer PRIMARY KEY)")
    for table, is_said in (("sky", True), ("keyed", False)):
        done = astra("init", table, "--module", f"of_{table}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("without a primary key" in done.stdout) == is_said
    is_big = "a = BigAutoField()" in (tmp_path / "of_keyed.py").read_text()
    assert is_big == (dialect().name == "sqlite")


@pytest.mark.parametrize(
    "create",
    [
        "MATERIALIZED VIEW seen AS SELECT 1 AS id, 'a'::text AS name",
        "FOREIGN TABLE seen (id integer, name text) SERVER elsewhere OPTIONS (filename '/dev/null')",
    ],
)
def test_what_is_read_like_a_table_gets_a_model(pg_url, create):
    with connection():
        dialect().run("CREATE EXTENSION file_fdw")
        dialect().run("CREATE SERVER elsewhere FOREIGN DATA WRAPPER file_fdw")
        dialect().run(f"CREATE {create}")
    text = module_text("sky", None, ["seen"])
    assert "id = IntegerField(null=True)" in text and "name = TextField(null=True)" in text


@pytest.mark.parametrize("create", ["VIEW seen AS SELECT", "TABLE seen AS SELECT"])
def test_a_key_can_be_named_that_the_table_does_not_declare(pg_url, tmp_path, create):
    with connection():
        dialect().run("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        dialect().run(f"CREATE {create} 'sad'::mood AS mood, 7 AS night")
    text = module_text("sky", None, ["seen"])
    assert "mood = OwnMoodField(null=True)" in text
    text = text.replace("primary_key = False", "primary_key = CompositeKey('night', 'mood')")
    text += (
        "\nclass SeenResult(OutputModel):\n    seen = result_of(Seen)\n\n@task\n"
        "def look(rows: Iterable[Seen]) -> Iterable[SeenResult]:\n"
        "    yield from map(SeenResult.from_row, rows)\n"
    )
    (tmp_path / "sky.py").write_text(text)
    for words in (["initdb", "sky"], ["run", "sky.look"]):
        done = astra(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "whole: 1 done = 1 row" in done.stdout


def test_a_key_that_no_page_can_hold_is_named(pg_url, tmp_path):
    with connection():
        dialect().run("CREATE TABLE sky (it jsonb PRIMARY KEY)")
    (tmp_path / "mine.py").write_text(module_text("mine", None, ["sky"]))
    done = astra("initdb", "mine", cwd=tmp_path)
    assert done.returncode == 2 and "is a key of type JSONB, which no page can hold" in done.stderr


def test_no_password_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("postgresql://me:geheim-1@host/db", "postgresql://host/db?password=geheim-2"):
        with pytest.raises(UsageError, match="holds a password"):
            start_here((), url, None, "sky")
        monkeypatch.setenv("ASTRA_DATABASE_URL", url)
        settings.reset()
        (file,) = start_here((), None, None, "sky")
        assert file.name == "sky.py" and "geheim" not in file.read_text()
        file.unlink()


def test_the_name_of_a_file_may_hold_quotes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = 'sqlite:///s\\k"y.db'
    start_here((), url, None, "sky")
    assert settings.load(tmp_path / "astra.toml").database.url.endswith("s%5Ck%22y.db")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("class", "write the name of a Python module"),
        ("my-tasks", "of letters, digits and underscores"),
        ("json", "an installed module has this name"),
        ("astra", "an installed module has this name"),
        ("this", "an installed module has this name"),
    ],
)
def test_a_module_that_could_not_be_imported_is_not_written(module, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        start_here([], "sqlite:///stars.db", None, module)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_configuration_is_no_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASTRA_DATABASE_URL", raising=False)
    reset()
    start_here([], None, None, "mytasks")
    assert "No database is configured" not in capsys.readouterr().err


def test_a_folder_of_the_same_name_does_not_hide_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "survey").mkdir()
    start_here([], None, None, "survey")
    assert (tmp_path / "survey.py").exists()


def test_tables_that_are_not_there_are_refused(url, tmp_path):
    with connection():
        dialect().run("CREATE TABLE stars (a integer PRIMARY KEY)")
    done = astra("init", "star", cwd=tmp_path)
    assert done.returncode == 2 and "no table 'star'. Did you mean 'stars'" in done.stderr
    done = astra("init", "stars", "--schema", "nowhere", cwd=tmp_path)
    no_schemas = "--schema nowhere: SQLite has no schemas"
    said = no_schemas if dialect().name == "sqlite" else "no table 'stars' in the schema 'nowhere'"
    assert done.returncode == 2 and said in done.stderr, done.stderr


@pytest.mark.parametrize("table", ["star list", "survey.star list"])
def test_a_table_of_another_schema_is_named_with_its_schema(pg_url, tmp_path, table):
    with connection():
        dialect().run('CREATE SCHEMA survey; CREATE TABLE survey."star list" (a int PRIMARY KEY)')
    done = astra("init", table, cwd=tmp_path)
    assert done.returncode == 2 and "write 'star list' --schema survey" in done.stderr, done.stderr


def test_tables_in_a_file_that_does_not_exist_are_refused(tmp_path, monkeypatch):
    """Connecting would create the file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"stras\.db does not exist"):
        start_here(["light_curve"], "sqlite:///stras.db", None, "mytasks")
    assert list(tmp_path.iterdir()) == []
