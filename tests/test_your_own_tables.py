"""The page on one's own tables, from top to bottom, on both databases."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import forks
from tests.conftest import ROOT
from tests.pages import blocks, commands
from tests.servers import Postgres

PAGE = ROOT / "docs" / "your-own-tables.md"


def astra(*words: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "ASTRA_DATABASE_URL"}
    done = forks.astra(*words, env=environment, cwd=folder)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def follow(url: str, folder: Path, schema: str | None) -> None:
    said = []
    for _, *words in commands(PAGE):
        typed = [url if word == "URL" else word for word in words]
        if schema is None and "--schema" in typed:
            del typed[typed.index("--schema") : typed.index("--schema") + 2]
        said.append(astra(*typed, folder=folder))
    assert "whole: 3 done = 3 rows" in said[2] and "says when a row was modified" in said[2]
    assert "nothing is pending" in said[3]
    module = blocks(PAGE, "python")[0]
    if schema is None:
        module = module.replace('        schema = "survey"\n', "")
    (folder / "mytasks.py").write_text(module)
    astra("initdb", "mytasks", folder=folder)
    said = [astra("run", "mytasks.luminosity", folder=folder)]
    assert "whole: 2 done + 1 no result = 3 rows" in said[0]


def test_the_page_runs_on_sqlite_as_written(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "survey.db") as made:
        made.executescript(blocks(PAGE, "sql")[0])
    made.close()
    follow(f"sqlite:///{tmp_path}/survey.db", tmp_path, None)


@pytest.mark.postgres
def test_on_postgresql_in_a_schema_that_may_be_read(postgres: Postgres, tmp_path, monkeypatch):
    postgres.create_database("own_tables")
    for statement in [
        "CREATE SCHEMA survey",
        *(s.replace("light_curve", "survey.light_curve", 1)
          for s in blocks(PAGE, "sql")[0].split(";") if s.strip()),
        "GRANT USAGE ON SCHEMA survey TO astra",
        "GRANT SELECT ON ALL TABLES IN SCHEMA survey TO astra",
        "GRANT CREATE ON SCHEMA public TO astra",
    ]:  # fmt: skip
        postgres.sql(statement, "own_tables")
    parts = urlsplit(postgres.url("own_tables", user="astra"))
    monkeypatch.setenv("PGPASSWORD", parts.password or "")
    follow(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@")).geturl(),
           tmp_path, "survey")  # fmt: skip
    postgres.drop_database("own_tables")
