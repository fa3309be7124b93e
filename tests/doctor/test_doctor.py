"""``astra doctor``: one thing after the other is broken, and each is found with what to type."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from astra.cli.group import main
from astra.config import settings
from astra.config.profiles import choose_profile
from astra.database import connection
from astra.database.connection import connection as database_connection
from astra.database.connection import database
from astra.database.inspection import server
from astra.doctor import environment
from astra.doctor.database import _settings
from astra.doctor.database import database as database_check
from astra.doctor.finding import Finding
from astra.doctor.job import from_a_node
from astra.doctor.slurm import slurm as slurm_check
from astra.errors import DatabaseError
from astra.models.schema import init_database
from astra.night.doctor import examine
from tests.conftest import ROOT
from tests.nights import plan_of
from tests.sample_tasks import Measured

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]

NIGHT = """
[nights.survey]
tasks = [{ task = "tests.sample_tasks.measure", input_model = "BossVisitSpectrum" }]
"""


@pytest.fixture
def place(slurm, pg_url, tmp_path, monkeypatch) -> Path:
    """A place that is ready, as its configuration says it."""
    file = tmp_path / "astra.toml"
    file.write_text(f'[database]\nurl = "{pg_url}"\n[run]\ndir = "runs"\n{NIGHT}')
    for name in ("ASTRA_DATABASE_URL", "ASTRA_RUN_DIR"):
        monkeypatch.delenv(name)
    connection.reset()
    return file


def add(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def sql(statement: str) -> Callable[..., None]:
    return lambda file, **_: database.execute_sql(statement)


def setting(text: str) -> Callable[..., None]:
    """A setting of the test's own database."""
    text = text.replace("'", "''")
    return sql(
        "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || "
        f"' SET {text}'; END $$"
    )


def user(name: str) -> Callable[..., None]:
    """Somebody else's role: the server trusts whoever names one."""

    def work(file: Path, **_: object) -> None:
        database.execute_sql(f"DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN")
        if name == "onlooker":
            text = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO onlooker"
            database.execute_sql(text)
        file.write_text(re.sub(r"//\w+@", f"//{name}@", file.read_text()))

    return work


def unreachable(file: Path, **_: object) -> None:
    file.write_text(
        re.sub('url = ".*"', 'url = "postgresql://astra@127.0.0.1:1/x"', file.read_text())
    )


def empty(file: Path, **_: object) -> None:
    database.execute_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def path_without_sbatch(file: Path, patch: pytest.MonkeyPatch) -> None:
    folder = file.parent / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct", "scontrol", "sinfo", "scancel"):
        (folder / name).symlink_to("/bin/true")
    patch.setenv("PATH", str(folder))


def foreign_run_folder(file: Path, **_: object) -> None:
    (file.parent / "runs").mkdir()
    (file.parent / "runs").chmod(0o777)


def toml(text: str) -> Callable[..., None]:
    return lambda file, **_: add(file, text)


def in_section(section: str, text: str) -> Callable[..., None]:
    return lambda file, **_: file.write_text(
        file.read_text().replace(f"[{section}]\n", f"[{section}]\n{text}\n")
    )


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def told(text: str) -> Callable[..., None]:
    return toml(f"[nights.survey.notify]\n{text.replace('PORT', str(closed_port()))}\n")


def ascii_database(file: Path, **_: object) -> None:
    """Another database of the server, which cannot store other characters."""
    name = "doctor_ascii"
    database.execute_sql("COMMIT")
    database.execute_sql(f"DROP DATABASE IF EXISTS {name}")
    made = f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    database.execute_sql(made)
    file.write_text(re.sub(r'(url = "[^"?]*/)\w+', rf"\1{name}", file.read_text()))
    connection.reset()
    init_database(("tests.sample_tasks",))


def few_connections(file: Path, **_: object) -> None:
    """A role that may have fewer connections than the work needs."""
    user("visitor_of_few")(file)
    database.execute_sql("ALTER ROLE visitor_of_few CONNECTION LIMIT 3")
    init_database(grant=("visitor_of_few",))


def failing(command: str) -> Callable[..., None]:
    """A command of Slurm's, or of cron's, that answers with an error."""

    def work(file: Path, patch: pytest.MonkeyPatch) -> None:
        folder = file.parent / "bin"
        folder.mkdir()
        stand_in = folder / command
        stand_in.write_text("#!/bin/sh\necho 'Connection refused' >&2\nexit 1\n")
        stand_in.chmod(0o755)
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return work


def file_for_a_folder(file: Path, **_: object) -> None:
    (file.parent / "runs").write_text("")


BROKEN = {
    "an unknown key": (in_section("run", 'dirr = "x"'), "failed configuration: ", "no key 'dirr'"),
    "a variable": (
        lambda patch, **_: patch.setenv("ASTRA_DATABASE_URI", "x"),
        "warning configuration: ", "Did you mean 'ASTRA_DATABASE_URL'",
    ),
    "a key of a profile": (
        toml('[profiles.mine]\nparttion = "x"\n'), "failed configuration: ", "Did you mean 'partition'",
    ),
    "the database away": (unreachable, "failed database: ", "check that the server runs"),
    "no tables": (empty, "failed database: ", "astra initdb"),
    "a column": (
        sql("ALTER TABLE attempt DROP COLUMN host"), "failed database: ", "no column 'host' in the table 'attempt'",
    ),
    "a role without rights": (user("nobody_here"), "failed database: ", "--grant nobody_here:reads"),
    "a role that reads": (user("onlooker"), "warning database: ", "--grant onlooker:plans"),
    "a trigger": (
        sql("DROP TRIGGER astra_keep_modified ON boss_visit_spectrum"), "failed database: ", "no trigger",
    ),
    "a disabled trigger": (
        sql("ALTER TABLE boss_visit_spectrum DISABLE TRIGGER astra_keep_modified"),
        "failed database: ", "no trigger",
    ),
    "an encoding": (ascii_database, "warning database: ", "its encoding is SQL_ASCII"),
    "few connections": (few_connections, "warning database: ", "raise max_connections"),
    "a unique index": (
        lambda **_: drop_unique_index(), "failed night survey: ", "astra initdb tests.sample_tasks",
    ),
    "an index": (sql("DROP INDEX page_free"), "failed database: ", "lacks its index page_free"),
    "an index of rows": (
        sql("DROP INDEX page_plan_pk_number"), "failed database: ", "no unique index on (plan_pk, number)",
    ),
    "a read-only role": (
        setting("default_transaction_read_only = on"), "failed database: ", "BEGIN READ WRITE; ALTER ROLE",
    ),
    "a hasty server": (
        setting("statement_timeout = '2s'"), "warning database: ", "statement_timeout is 2 s",
    ),
    "no sbatch": (path_without_sbatch, "failed slurm: ", "sbatch is not on PATH"),
    "a partition": (
        toml('[profiles.mine]\npartition = "nowhere"\n'), "failed slurm: profile mine", "sinfo -s",
    ),
    "an account": (
        toml('[profiles.mine]\naccount = "nobodys"\n'), "failed slurm: profile mine", "choose an account",
    ),
    "an option in the environment": (
        lambda patch, **_: patch.setenv("SBATCH_ACCOUNT", "mine"),
        "warning slurm: SBATCH_ACCOUNT is set", "unset SBATCH_ACCOUNT",
    ),
    "a time": (
        toml('[profiles.mine]\nextends = "debug"\npartition = "short"\ntime = "00:20:00"\n'),
        "warning slurm: profile mine", "partition short",
    ),
    "a controller": (failing("scontrol"), "failed slurm: ", "Connection refused"),
    "accounting": (failing("sacct"), "warning slurm: ", "no accounting"),
    "no run directory": (file_for_a_folder, "failed run directory: ", "set [run] dir"),
    "no crontab": (failing("crontab"), "warning night survey: ", "it is unknown whether cron starts it"),
    "the run directory": (foreign_run_folder, "failed run directory: ", "chmod go-w"),
    "a task": (
        lambda file, **_: file.write_text(file.read_text().replace("measure", "mesure")),
        "failed night survey: ", "Did you mean 'tests.sample_tasks.measure'",
    ),
    "headroom": (
        in_section("nights.survey", "headroom = 500"), "failed night survey: ", "lower headroom",
    ),
    "nobody notified": (lambda **_: None, "warning night survey: ", "set mail, webhook or command"),
    "mail": (told('mail = "me@x.org"\nsmtp = "smtp://127.0.0.1:PORT"'), "warning night survey: mail: 127.0.0.1:", "cannot be reached"),
    "no sendmail": (told('mail = "me@x.org"'), "warning night survey: mail", "this machine has no sendmail"),
    "a webhook": (told('webhook = "http://127.0.0.1:PORT/x"'), "warning night survey: webhook", "cannot be reached"),
    "a command": (told('command = "nonexistent-pager"'), "warning night survey: command", "not on PATH"),
    "cron": (lambda **_: None, "warning night survey: ", "astra cron survey --at"),
}  # fmt: skip


def drop_unique_index() -> None:
    found = database.get_indexes(Measured._meta.table_name)
    for index in found:
        if index.unique and "v_astra_major_minor" in index.columns:
            database.execute_sql(f'DROP INDEX "{index.name}"')


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_found_with_what_to_type(what, place, monkeypatch):
    break_it, where, said = BROKEN[what]
    names = break_it.__code__.co_varnames[: break_it.__code__.co_argcount]
    given = {"file": place, "patch": monkeypatch}
    if what == "no sendmail":
        monkeypatch.setattr(
            "shutil.which",
            lambda name, path=None: None if name == "sendmail" else f"/usr/bin/{name}",
        )
    break_it(**{name: given[name] for name in names})
    connection.reset()
    found = list(examine())
    lines = [f"{f.state} {f.part}: {f.message}; {f.remedy}" for f in found if f.state != "ok"]
    mine = [line for line in lines if line.startswith(where)]
    assert any(said in line for line in mine), "\n".join(lines)
    assert all(f.remedy for f in found if f.state != "ok")
    if where.startswith("failed"):  # and nothing else is said to be broken
        assert {line.split(":")[0] for line in lines if line.startswith("failed")} <= {
            where.split(":")[0], "failed night survey" if "database" in where else where.split(":")[0],
        }  # fmt: skip


def test_each_task_of_a_night_that_cannot_be_planned_is_found_once(place):
    file = place.read_text()
    wrong = '{ task = "nowhere.task" }, { task = "tests.sample_tasks.measure", set = { nme = 1 } }'
    place.write_text(file.replace("tasks = [", f"tasks = [{wrong}, "))
    settings.reset()
    found = [f.message for f in examine() if f.state == "failed"]
    assert [m.split(":")[0] for m in found] == [
        "[nights.survey] nowhere.task", "[nights.survey] tests.sample_tasks.measure",
    ]  # fmt: skip


def test_a_place_that_is_ready(place):
    done = CliRunner().invoke(main, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and {f["state"] for f in found} <= {"ok", "warning"}, done.output
    parts = {f["part"] for f in found}
    assert parts == {
        "python", "configuration", "database", "slurm", "run directory", "night survey",
    }  # fmt: skip
    text = CliRunner().invoke(main, ["doctor"]).output
    for words in ("max_connections", "encoding UTF8", "MaxArraySize", "accounting", "is used"):
        assert words in text, words
    assert "\nready, with " in text


def test_the_check_of_a_night_is_the_same_narrowed_to_it(place):
    add(place, '[nights.other]\ntasks = ["nowhere.task"]\n[profiles.mine]\npartition = "nowhere"\n')
    settings.reset()
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 4
    done = CliRunner().invoke(main, ["nightly", "survey", "--check"])
    assert done.exit_code == 0 and "night survey: ready" in done.output
    assert "nowhere" not in done.output
    assert CliRunner().invoke(main, ["nightly", "other", "--check", "--quiet"]).exit_code == 4
    assert CliRunner().invoke(main, ["nightly", "another", "--check"]).exit_code == 2


def test_a_job_looks_from_a_node(place, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ASTRA_CONFIG", str(place))
    done = subprocess.run(
        [sys.executable, "-m", "astra", "doctor", "--job", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    nodes = [f for f in found if f["part"].startswith("node")]
    assert done.returncode == 0 and "sees the run directory" in nodes[0]["message"], done.stdout
    assert {"node", "node: database", "node: run directory"} <= {f["part"] for f in nodes}
    left = list((place.parent / "runs" / "doctor").glob("*.json"))
    assert left == []


@pytest.mark.parametrize(
    ("profile", "wait_s", "problem", "remedy"),
    [
        ("hold = true", 1, "within 1 s (Slurm: JobHeldUser), and was cancelled", "--profile"),
        (
            'extends = "debug"\nsetup = ["echo no such module >&2; exit 3"]',
            60, "ended before it found anything: no such module", "correct the profile mine",
        ),
        (
            'extends = "debug"\nsetup = ["exit 3"]',
            60, "what it found cannot be seen in ", "a folder that the nodes share",
        ),
    ],
)  # fmt: skip
def test_a_job_that_finds_nothing_says_why(place, slurm, profile, wait_s, problem, remedy):
    add(place, f"[profiles.mine]\n{profile}\n")
    settings.reset()
    (found,) = from_a_node(choose_profile("mine", None), wait_s)
    assert found.state == "failed" and problem in found.message and remedy in found.remedy
    assert not slurm.run("squeue", "-h")


def found_by(check: Callable[[], Iterable[Finding]]) -> dict[str, str]:
    """The messages of a check that do not say "ok", with what to type."""
    return {f.message: str(f.remedy) for f in check() if f.state != "ok"}


def test_packages_that_are_missing_or_old_are_named(monkeypatch):
    version = metadata.version

    def installed(name: str) -> str:
        if name == "peewee":
            raise metadata.PackageNotFoundError(name)
        return "6.0" if name == "click" else version(name)

    monkeypatch.setattr(metadata, "version", installed)
    assert found_by(environment.python) == {
        "peewee is not installed": "pip install 'peewee>=4.0'",
        "version 8.1 of click is needed, and 6.0 is installed": "pip install --upgrade 'click>=8.1'",
    }


def test_files_that_are_not_used_and_a_folder_that_is_missing_are_named(tmp_path, monkeypatch):
    files = [tmp_path / name / "astra.toml" for name in ("used", "here", "home/astra")]
    for file, text in zip(
        files, ('[run]\ntemplates = "t"\n', "[plan]\nlimt = 3\n", ""), strict=True
    ):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    monkeypatch.setenv("ASTRA_CONFIG", str(files[0]))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(files[1].parent)
    settings.reset()
    (unused, why), (missing, make) = found_by(environment.configuration).items()
    assert f"{files[1]} is not used" in unused and "'limit'" in unused and str(files[1]) in why
    folder = files[0].parent / "t"
    assert missing == f"[run] templates = {folder} is not a folder" and str(folder) in make
    said = [f.message for f in environment.configuration()]
    assert f"{files[2]} exists, and is not used" in said


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTRA_RUN_DIR", str(tmp_path / "runs"))
    settings.reset()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5e8))
    assert found_by(environment.run_directory) == {
        f"0.5 GB are free in {tmp_path}/runs": "astra clean, or set [run] dir to a folder with more room"
    }
    assert not (tmp_path / "runs").exists()


def test_a_database_file_that_is_missing_or_only_read(tmp_path, monkeypatch):
    file = tmp_path / "astra.db"
    monkeypatch.setenv("ASTRA_DATABASE_URL", f"sqlite:///{file}")
    connection.reset()
    with pytest.raises(DatabaseError, match=r"there is no file .*; create it: astra initdb"):
        list(database_check())
    init_database()
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    found = found_by(database_check)
    for place in file, tmp_path:
        assert place.name in found[f"{place} cannot be written: you can read, and store nothing"]
    connection.reset()


def test_a_task_whose_module_is_gone(place):
    plan_of(3, 3)
    database.execute_sql("UPDATE plan SET output_model = 'gone:Result', cwd = '/nowhere'")
    (found,) = [f for f in database_check() if "gone" in f.message]
    assert found.message.startswith("tests.sample_tasks.measure, of plan 1: ")
    assert found.state == "warning" and "in the folder of the module" in str(found.remedy)


def test_a_server_that_is_too_old_or_a_standby_is_named(place):
    with database_connection():
        facts = replace(server(), least="PostgreSQL 13", is_standby=True)
        found = found_by(lambda: _settings(facts))
    assert "use PostgreSQL 13 or later" in found.values()
    assert "name the primary" in found["the server is a standby, which stores nothing"]


def test_without_slurm_and_without_a_usable_configuration_slurm_is_missing(tmp_path, monkeypatch):
    (tmp_path / "astra.toml").write_text("[plan]\nlimt = 3\n")
    monkeypatch.setenv("ASTRA_CONFIG", str(tmp_path / "astra.toml"))
    monkeypatch.delenv("ASTRA_DATABASE_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    connection.reset()
    (found,) = slurm_check(())
    assert found.state == "failed" and "sbatch, squeue" in found.message
