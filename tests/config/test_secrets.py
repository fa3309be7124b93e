"""A marked password, wherever it can be configured, is nowhere where it could be seen."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from astra.config import profiles, secrets
from astra.config import settings as config
from astra.config.profiles import choose_profile
from astra.database.connection import bind, connection, reset
from astra.errors import AstraError, ConfigError, ScriptError, TaskError, UsageError
from astra.plan.plan import create_plan
from astra.slurm import script
from astra.submit.intent import _describe
from astra.submit.render import check_export
from astra.tasks.arguments import parse_arguments
from tests import forks
from tests.conftest import ROOT, prepare_template
from tests.sample_tasks import echo, fill, measure
from tests.scripts import SCRIPT
from tests.servers import Postgres, Slurm, wait_for

#: In every password of these tests, in each of its forms.
MARK = "GeheimeMarke"
PLAIN, SPECIAL = f"{MARK}7421", f"{MARK}@7/%?# &:\\'é"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of its own, whose role `astra` has the marked password."""
    with Postgres(password=SPECIAL) as server:
        server.create_database("template_marked")
        prepare_template(server.url("template_marked", user="astra"))
        yield server


@pytest.fixture
def bare(server: Postgres) -> Iterator[str]:
    """The URL of a fresh database, without the password."""
    server.create_database("marked", template="template_marked")
    yield f"postgresql://astra@127.0.0.1:{server.port}/marked"
    reset()
    server.drop_database("marked")


# ------------------------------------------------------------------------- ways of configuring


def _url(bare: str, home: Path) -> dict[str, str]:
    return {"ASTRA_DATABASE_URL": bare.replace("astra@", f"astra:{quote(SPECIAL, safe='')}@")}


def _query(bare: str, home: Path) -> dict[str, str]:
    return {"ASTRA_DATABASE_URL": f"{bare}?password={quote(SPECIAL, safe='')}"}


def _toml(bare: str, home: Path) -> dict[str, str]:
    found = _url(bare, home)["ASTRA_DATABASE_URL"]
    (home / "astra.toml").write_text(f"[database]\nurl = '{found}'\n")
    return {}


def _pgpassword(bare: str, home: Path) -> dict[str, str]:
    return {"ASTRA_DATABASE_URL": bare, "PGPASSWORD": SPECIAL}


def _pgpass(bare: str, home: Path) -> dict[str, str]:
    file = home / ".pgpass"
    file.touch(0o600)
    escaped = SPECIAL.replace("\\", "\\\\").replace(":", "\\:")
    file.write_text(f"127.0.0.1:*:*:astra:{escaped}\n")
    return {"ASTRA_DATABASE_URL": bare}


def _service(bare: str, home: Path) -> dict[str, str]:
    parts, file = urlsplit(bare), home / "services.conf"
    file.touch(0o600)
    file.write_text(
        f"[archive]\nhost={parts.hostname}\nport={parts.port}\nuser=astra\ndbname=marked\n"
        f"password={SPECIAL}\n"
    )
    services = {"PGSERVICEFILE": str(file), "PGSERVICE": "archive"}
    return {"ASTRA_DATABASE_URL": "postgresql://", **services}


WAYS: dict[str, Callable[[str, Path], dict[str, str]]] = {
    "ASTRA_DATABASE_URL": _url, "query of the URL": _query, "astra.toml": _toml,
    "PGPASSWORD": _pgpassword, "~/.pgpass": _pgpass, "PGSERVICEFILE": _service,
}  # fmt: skip


def astra(*words: object) -> str:
    """All that a command says; it must not fail."""
    return said_by(forks.astra(*words), words)


def astra_in_a_process(*words: object) -> str:
    """The same of a command whose command line is that of a process."""
    done = subprocess.run(
        [sys.executable, "-m", "astra", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return said_by(done, words)


def said_by(done: subprocess.CompletedProcess[str], words: tuple[object, ...]) -> str:
    assert "Traceback" not in done.stderr or "-v" in words or "ERROR" in done.stderr, done.stderr
    assert done.returncode not in (1, 2, 5), (words, done.stdout, done.stderr)
    return done.stdout + done.stderr


def every_command(plan: int, briefly: bool) -> str:
    if briefly:
        return astra("config") + astra("failures", plan, "--traceback") + astra("logs", plan, 1)
    said = [astra("config"), astra("config", "--json"), astra("-v", "initdb", "--json")]
    for words in (
        ("plans",), ("status", plan), ("failures", plan, "--traceback"), ("logs", plan),
        ("logs", plan, 1),
    ):  # fmt: skip
        said.append(astra(*words))
        if words[-1] != 1:
            said.append(astra("-v", *words, "--json"))
    said.append(astra("status", plan, "--pages"))
    return "\n".join(said)


def texts_of_tables(server: Postgres) -> str:
    tables = server.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", "marked")
    rows = [server.sql(f'SELECT t::text FROM "{name}" AS t', "marked") for (name,) in tables]
    return "\n".join(text for table in rows for (text,) in table)


def texts_of_files(folder: Path) -> str:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return "\n".join(f"{file}\n{file.read_text(errors='replace')}" for file in files)


@contextmanager
def command_lines() -> Iterator[list[str]]:
    """The command lines of all processes that live meanwhile."""
    seen: dict[str, None] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen[file.read_bytes().replace(b"\0", b" ").decode(errors="replace")] = None
                except OSError:
                    pass

    thread = threading.Thread(target=look)
    thread.start()
    found: list[str] = []
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found += seen


def has_mark(text: str) -> list[str]:
    """The lines with the mark, which is part of every form of the password."""
    return [line for line in text.split("\n") if MARK in line]


# ------------------------------------------------------------------------------- a whole night


@pytest.fixture(params=WAYS)
def configured(
    request: pytest.FixtureRequest, bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _configure(WAYS[request.param](bare, tmp_path), monkeypatch, tmp_path)


def _configure(names: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"ASTRA_RUN_DIR": str(tmp_path / "runs"), **names}.items():
        monkeypatch.setenv(name, value)
    reset()


@pytest.mark.postgres
def test_a_local_run_shows_no_password(
    configured: None, server: Postgres, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fill(6)
    said = [astra("plan", "tests.leaky.leak", "--limit", 3)]
    with command_lines() as lines:
        said.append(astra_in_a_process("submit", 1, "--local"))
        said.append(astra_in_a_process("run", "tests.leaky.broken", "--again"))
    assert any("run-page" in line for line in lines)
    tables = texts_of_tables(server)
    assert "cannot connect" in tables and "no route to" in tables
    said.append(every_command(1, briefly="PGPASSWORD" not in request.node.name))
    assert "cannot connect" in said[-1]
    for text in (*said, *lines, tables, texts_of_files(tmp_path / "runs")):
        assert not has_mark(text)


@pytest.mark.postgres
@pytest.mark.slurm
@pytest.mark.parametrize("way", ["ASTRA_DATABASE_URL", "PGPASSWORD", "~/.pgpass"])
def test_a_run_on_slurm_shows_no_password(
    way: str, cluster: Slurm, server: Postgres, bare: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    _configure(WAYS[way](bare, tmp_path), monkeypatch, tmp_path)
    fill(6)
    said = [astra("submit", "tests.leaky.leak", "--limit", 3, "--dry-run", "--json")]
    with command_lines() as lines:
        words = ("submit", "tests.leaky.leak", "--limit", 3, "-o", "comment=nightly")
        said.append(astra_in_a_process(*words))
        wait_for(cluster.idle, "the end of the array", 60)
    assert any("run-page" in line for line in lines)
    plan = int(server.sql("SELECT max(pk) FROM plan", "marked")[0][0])
    ((job,),) = server.sql("SELECT job_id FROM submission", "marked")
    # The password reached the elements: they worked, and told all they knew.
    assert server.sql("SELECT sum(n_done), sum(n_failed) FROM page", "marked") == [(3, 3)]
    tables = texts_of_tables(server)
    assert "cannot connect" in tables
    said.append(cluster.run("scontrol", "show", "job", "-dd", job))
    said.append(cluster.run("scontrol", "write", "batch_script", f"{job}_1", "-"))
    said.append(
        cluster.run("sacct", "-P", "-j", job, "-o", "JobID,JobName,SubmitLine,WorkDir,Comment")
    )
    assert "run-page" in said[-2]
    said += [
        every_command(plan, way != "ASTRA_DATABASE_URL"),
        astra("resume", plan, "--failed", "--dry-run"),
    ]
    said.append(astra("cancel", plan, "--json"))
    for text in (*said, *lines, tables, texts_of_files(tmp_path / "runs")):
        assert not has_mark(text)
    for file in (tmp_path / "runs").rglob("*"):
        assert file.lstat().st_mode & 0o022 == 0 and file.parent.stat().st_mode & 0o777 == 0o700


# ------------------------------------------------------------------------------------ profiles

_LINES = [
    f"export AWS_SECRET_ACCESS_KEY={PLAIN}",
    f"export API_KEY={PLAIN}",
    f"curl -H 'Authorization: Bearer {PLAIN}' https://a",
    f"curl -s -u me:{PLAIN} https://a",
    f"fetch --api-key {PLAIN}",
    f"export AWS_SESSION_TOKEN={PLAIN}",
    f"export GH_PAT={PLAIN} SLURM_JWT=x",
    f"export DB_PWD={PLAIN}",
    f"export STORAGE_KEY={PLAIN}",
    f"export DB_PASS={PLAIN} SMTP_PASS=x",
    f"aws configure set aws_secret_access_key {PLAIN}",
    f"curl -fsSu me:{PLAIN} https://a",
    f"curl --proxy-user me:{PLAIN} https://a",
    f"curl -H 'Authorization: Bearer {MARK[:6]}' https://a",
    f"setenv PGPASSWORD {PLAIN}",
    f"curl -H 'X-Api-Key: {PLAIN}' https://a",
    f"curl -H 'Authorization: token {PLAIN}' https://a",
    f"git clone https://me:{PLAIN}@host/repository",
    f"git clone https://ghp_{MARK}abcdefghijklmnopqrst@host/repository",
    f"echo glpat-{MARK}-0123456789",
    f"sshpass -p {PLAIN} ssh h",
    f"mysql -u me -p{PLAIN} db",
    f"apptainer remote login -u me -p {PLAIN} oras://h",
    f"export PGPASSWORD={PLAIN}",
    f"export PGPASSWORD='{SPECIAL}'".replace("\\'", ""),
    f'export PGPASSWORD="{MARK} with blanks"',
    f"export PGPASSWORD={MARK}\\ with\\ blanks",
    f"MY_SECRET=a'{MARK}'\"b\" true",
    f"export ASTRA_DATABASE_URL=postgresql://me:{PLAIN}@h/db",
    f"export ASTRA_DATABASE_URL='postgresql:///db?user=me&password={PLAIN}'",
    f"psql 'host=h user=me password={PLAIN}'",
]


class TestProfiles:
    @pytest.mark.parametrize("line", _LINES)
    def test_a_line_of_the_set_up_with_one_is_refused_and_hidden(
        self, line: str, tmp_path: Path
    ) -> None:
        (tmp_path / "astra.toml").write_text(f"[profiles.night]\nsetup = [{_toml_text(line)}]\n")
        settings = config.load(tmp_path / "astra.toml")
        night = profiles.get("night", settings)
        with pytest.raises(
            ScriptError, match=r"line 1 of the set-up holds a password.*pgpass"
        ) as it:
            script.render("element.sh.j2", replace(SCRIPT, setup=night.setup))
        assert not has_mark(f"{it.value} {_describe(night)} {settings.rows()}")

    @pytest.mark.parametrize("key", ["export", "comment", "wckey", "extra"])
    def test_an_option_that_holds_a_password_is_refused(self, key: str) -> None:
        night = profiles.get("general", config.Config()).with_options(
            **{key: f"PGPASSWORD={PLAIN}"}
        )
        with pytest.raises(ScriptError, match=f"--{key} holds a password") as caught:
            script.render(
                "element.sh.j2", replace(SCRIPT, directives=tuple(profiles.directives(night)))
            )
        assert not has_mark(f"{caught.value} {_describe(night)}")

    @pytest.mark.parametrize(
        "line",
        [
            'export PGPASSWORD="$(cat ~/.secret)"', "export TOKEN=$TOKEN_OF_NIGHT",
            "export PGPASSWORD=`cat ~/.secret`", "export PGPASSFILE=/home/me/.pgpass",
            "psql postgresql://me@h/db", "module load python/3.11", "export TOKEN_FILE=/x",
            "export TOKENIZERS_PARALLELISM=false", "cd $OLDPWD; export PWD=/tmp KEY=spectrum_pk",
            "git clone https://me@host/x", "mysql -u me -p db", "curl -u me:$PW https://a", "date -u +%H:%M",
            "export HIGH_PASS=3 BYPASS=1", "set -o pipefail", "curl -H 'Authorization: Bearer $T' https://a",
        ],
    )  # fmt: skip
    def test_a_line_that_names_its_place_is_taken(self, line: str) -> None:
        assert line in script.render("element.sh.j2", replace(SCRIPT, setup=[line]))

    def test_a_template_that_writes_a_password_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGPASSWORD", PLAIN)
        (tmp_path / "own.sh.j2").write_text(
            '{% extends "element.sh.j2" %}{% block finish %}' + f"mail {PLAIN}\n" + "{% endblock %}"
        )
        with pytest.raises(ScriptError, match=r"own.sh.j2 makes holds a password") as caught:
            script.render("own.sh.j2", SCRIPT, tmp_path)
        assert not has_mark(str(caught.value))


def _toml_text(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ------------------------------------------------------------------------------------ messages


class TestMessages:
    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://me:{SPECIAL}@127.0.0.1:1/db",  # not quoted
            f"postgresql://me:{quote(SPECIAL, safe='')}@127.0.0.1:1/db",
            f"postgresql://me:{PLAIN}@127.0.0.1:port/db",
            f"postgresql://me:{PLAIN}@127.0.0.1:1/db?nonsense={PLAIN}",
            f"postgresql://me:{PLAIN}%zz@127.0.0.1:1/db",
            f"postgresql://me:a@{PLAIN}@127.0.0.1:1/db",
            f"postgresql://me@127.0.0.1:1/db?password={PLAIN}",
            f"postgresql://me@127.0.0.1:1/db?sslpassword={PLAIN}&port=x",
            f"mysql://me:{PLAIN}@h/db",
        ],
    )
    def test_urls_that_cannot_be_used(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASTRA_DATABASE_URL", url)
        with pytest.raises(AstraError) as caught:
            bind()
            with connection():
                pass
        assert not has_mark(str(caught.value))
        done = forks.astra("plans")
        assert done.returncode in (1, 2, 5) and "Traceback" not in done.stderr
        said = done.stdout + done.stderr
        assert "astra:" in said and not has_mark(said)

    def test_values_that_must_be_quoted_are_reported(self) -> None:
        with pytest.raises(ConfigError, match=r"@ is %40, / is %2F"):
            bind(f"postgresql://me:{SPECIAL}@127.0.0.1:1/db")

    def test_arguments_of_tasks_hold_none(self, sqlite_url: str) -> None:
        for value in (f"postgresql://me:{PLAIN}@h/db", f"host=h password={PLAIN}"):
            with pytest.raises(TaskError, match="computed holds a password") as caught:
                create_plan(measure, arguments={"computed": value})
            assert not has_mark(str(caught.value))
        for nested in ({"database": {"token": PLAIN}}, [f"PGPASSWORD={PLAIN}"]):
            with pytest.raises(TaskError, match="more holds a password") as caught:
                parse_arguments(echo, {"more": nested})
            assert not has_mark(str(caught.value))
        assert parse_arguments(measure, {"computed": "postgresql://me@h/db"})

    def test_the_traceback_of_a_bug_hides_passwords(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGPASSWORD", SPECIAL)
        (tmp_path / "bug.py").write_text(
            "from astra import cli\n"
            "from astra.config import settings\n"
            'def fail(*a): raise RuntimeError(f\'bug {__import__("os").environ["PGPASSWORD"]}\')\n'
            "settings.current = fail\n"
            "cli.main(['config'])\n"
        )
        done = subprocess.run(
            [sys.executable, "bug.py"], env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert "Traceback" in done.stderr and "RuntimeError: bug ***" in done.stderr
        assert not has_mark(done.stderr)

    @pytest.mark.parametrize(
        "text",
        [
            f"password={PLAIN}", f"'password': '{PLAIN}'", f'{{"password": "{PLAIN}"}}',
            f'PGPASSWORD="{MARK} x"', f"connect(password='{MARK} x', user='me')",
            f"dbpasswd = {PLAIN}", f"postgresql://me:{PLAIN}@h/db and postgresql://x:{PLAIN}@y/z",
            f"MY_API_TOKEN={PLAIN}", f"AWS_SECRET_ACCESS_KEY: {PLAIN}", f"password: {PLAIN}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{PLAIN}\n-----END RSA PRIVATE KEY-----",
            f'{{"database": {{"token": "{PLAIN}"}}}}', f"eyJ{MARK}.eyJ{MARK}.{MARK}",
        ],
    )  # fmt: skip
    def test_a_password_is_hidden_however_it_is_written(self, text: str) -> None:
        assert not has_mark(secrets.hide_password(text))

    @pytest.mark.parametrize("piece", ["x", "-", "token", "a-", "eyJ-", "http://", "=", "set "])
    def test_a_long_text_is_searched_in_a_time_that_grows_as_its_length(self, piece: str) -> None:
        """The text of an exception may be megabytes of numbers, or of a file in base64."""
        began = time.process_time()
        found = secrets.hide(piece * (100_000 // len(piece)) + f"\npassword={PLAIN}")
        assert not has_mark(found) and time.process_time() - began < 12


@pytest.mark.parametrize(
    "options, missing",
    [
        ({"export": "NONE"}, "ASTRA_DATABASE_URL"),
        ({"export": "HOME,PATH"}, "ASTRA_DATABASE_URL"),
        ({"export_file": "env"}, "ASTRA_DATABASE_URL"),
        ({"export": "ALL"}, None),
        ({"export": "ASTRA_DATABASE_URL,HOME"}, None),
        ({}, None),
    ],
)
def test_elements_get_the_password_or_nothing_is_submitted(monkeypatch, options, missing):
    monkeypatch.setenv("ASTRA_DATABASE_URL", "postgresql://astra:secret@127.0.0.1:1/archive")
    chosen = choose_profile(None, options)
    if missing is None:
        check_export(chosen)
        return
    with pytest.raises(UsageError, match=rf"keeps {missing} from the elements.*pgpass") as refused:
        check_export(chosen)
    assert "secret" not in str(refused.value)


def test_a_password_of_its_own_variable_is_needed_too(monkeypatch):
    monkeypatch.setenv("ASTRA_DATABASE_URL", "postgresql://astra@127.0.0.1:1/archive")
    check_export(choose_profile(None, {"export": "NONE"}))
    monkeypatch.setenv("PGPASSWORD", "secret")
    with pytest.raises(UsageError, match="keeps PGPASSWORD from"):
        check_export(choose_profile(None, {"export": "NONE"}))
