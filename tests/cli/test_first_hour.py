"""What people try first: a dry run, a local run with a profile, a look at somebody else's plans."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from astra.cli.group import main
from astra.config import settings
from astra.config.run_folder import run_folder
from astra.database.connection import connection, database, reset
from astra.errors import NotAllowed
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Plan
from astra.models.schema import init_database
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from tests.conftest import ROOT
from tests.sample_tasks import fill, measure

TASK = "tests.sample_tasks.measure"


def astra(*words: str):
    return CliRunner().invoke(main, list(words))


def write(text: str) -> None:
    Path("astra.toml").write_text(text)
    settings.reset()


def test_a_dry_run_shows_the_script_of_a_sqlite_file_where_there_is_no_slurm(
    sqlite_url, monkeypatch, caplog
):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    fill(4)
    words = ("--input-model", "BossVisitSpectrum", "--limit", "2", "--mem", "3G")
    done = astra("submit", TASK, *words, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "#SBATCH --mem=3G" in done.output and "#SBATCH --array=1-2" in done.output
    assert Plan.select().count() == 0 and "MaxArraySize is assumed to be 1001" in caplog.text
    (planned,) = create_plan(measure, BossVisitSpectrum)
    done = astra("submit", str(planned.plan), "--dry-run")
    assert done.exit_code == 0 and "#SBATCH --array=1" in done.output
    assert astra("submit", str(planned.plan)).exit_code == 2


def test_a_local_run_takes_the_set_up_of_a_profile_and_says_what_it_ignores(sqlite_url, caplog):
    write(
        '[profiles.mine]\nsetup = ["export MARK=here", "echo set up $MARK"]\npartition = "p"\nmem = "2G"\n'
    )
    fill(2)
    words = ("--input-model", "BossVisitSpectrum", "--local")
    assert astra("submit", TASK, *words, "--profile", "mine", "--throttle", "3").exit_code == 0
    assert "--local ignores what is for Slurm: " in caplog.text
    assert {"partition", "mem", "throttle"} <= set(re.findall(r"\w+", caplog.text))
    logs = run_folder(get_plan(1).folder) / "logs"
    assert "set up here" in "".join(path.read_text() for path in logs.glob("*.log"))
    unknown = astra("submit", TASK, *words, "--profile", "mien")
    assert unknown.exit_code == 2 and "Did you mean 'mine'" in unknown.output
    assert "Did you mean" in astra("resume", "1", "--local", "--profile", "mien").output


def test_a_set_up_that_fails_ends_its_process(sqlite_url):
    write('[profiles.mine]\nsetup = "false"\n')
    fill(1)
    (planned,) = create_plan(measure, BossVisitSpectrum)
    done = astra("submit", str(planned.plan), "--local", "--profile", "mine")
    assert done.exit_code == 4 and "exit status 1" in done.output
    assert Attempt.select().count() == 0


def test_config_checks_profiles_as_submit_does(sqlite_url):
    write('[profiles.mine]\nparttion = "p"\n')
    done = astra("config")
    assert done.exit_code == 2 and "Did you mean 'partition'" in done.output
    assert "database.url" in done.output
    write('[profiles.mine]\npartition = "p"\n')
    assert astra("config").exit_code == 0


def test_logs_that_are_followed_end_with_the_page(url):
    fill(2)
    (planned,) = create_plan(measure, BossVisitSpectrum)
    resume_local(planned.plan)
    done = astra("logs", str(planned.plan), "1", "--follow")
    assert done.exit_code == 0 and "page 1: done" in done.output


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, and setpriv"
)


def by_nobody(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return subprocess.run(
        [*drop, sys.executable, "-m", "astra", *words], capture_output=True, text=True, check=False,
        cwd=folder, env={**os.environ, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1",
                         "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@needs_root
def test_a_colleague_who_may_only_read_the_file_sees_all_and_changes_nothing(monkeypatch):
    """Pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory(prefix="astra-test-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setenv("ASTRA_DATABASE_URL", f"sqlite:///{folder}/astra.db")
        reset()
        init_database(("tests.sample_tasks",))
        fill(4)
        (planned,) = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 4})
        resume_local(planned.plan)
        database.close()
        if by_nobody("--version", folder=folder).returncode:
            pytest.skip("this checkout is closed to other users")
        assert not Path(f"{folder}/astra.db-wal").exists()
        status = by_nobody("status", "1", folder=folder)
        assert status.returncode == 8 and "3 done + 1 failed" in status.stdout, status.stderr
        for words in (["plans"], ["failures"], ["report", "-o", "-"], ["verify"]):
            done = by_nobody(*words, folder=folder)
            assert done.returncode == 0 and done.stdout, (words, done.stderr)
        closed = by_nobody("logs", "1", "1", folder=folder)
        assert closed.returncode == 2 and "only its owner may read it" in closed.stderr
        refused = by_nobody("retry", "1", "--local", folder=folder)
        assert refused.returncode in (2, 5) and "Traceback" not in refused.stderr
        demo = by_nobody("demo", str(folder / "mine"), folder=folder)
        assert demo.returncode == 2 and "name another: astra demo FOLDER" in demo.stderr
        reset()


@pytest.mark.postgres
def test_a_role_that_may_only_read_sees_all_and_is_refused_the_rest(pg_url, monkeypatch):
    fill(4)
    (planned,) = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 4})
    resume_local(planned.plan)
    database.execute_sql("DROP ROLE IF EXISTS visitor; CREATE ROLE visitor LOGIN")
    database.execute_sql("CREATE SCHEMA survey; CREATE TABLE survey.stars ()")
    database.execute_sql("GRANT SELECT ON survey.stars TO visitor")
    init_database(grant=("visitor:reads",))
    monkeypatch.setenv("ASTRA_DATABASE_URL", re.sub(r"//\w+@", "//visitor@", pg_url))
    reset()
    assert astra("status").exit_code == 8
    assert "add --trust" in astra("verify").output  # the plan's code is another role's
    reading = (["plans"], ["failures"], ["report", "-o", "-"], ["verify", "--trust"], ["logs"])
    for words in (
        *reading,
        ["results", TASK],
        ["why", TASK, "1", "--input-model", "BossVisitSpectrum"],
    ):
        done = astra(*words)
        assert done.exit_code == 0 and done.output, (words, done.output)
    refused = astra("plan", TASK)
    assert refused.exit_code == 5 and "--grant visitor:plans" in refused.output
    remedy = 'GRANT USAGE ON SCHEMA "survey" TO "visitor"'
    with pytest.raises(NotAllowed, match=remedy), connection():
        database.execute_sql("SELECT * FROM survey.stars")
    german = "RAISE insufficient_privilege USING MESSAGE = 'keine Berechtigung für Schema survey'"
    with pytest.raises(NotAllowed, match=remedy), connection():
        database.execute_sql(f"DO $$BEGIN {german}; END$$")
    reset()
    monkeypatch.setenv("ASTRA_DATABASE_URL", pg_url)
    database.execute_sql("DROP OWNED BY visitor; DROP ROLE visitor")


def test_the_demonstration_and_the_commands_that_it_names(tmp_path, monkeypatch):
    """Also where another database and another run directory are set."""
    monkeypatch.setenv("ASTRA_DATABASE_URL", "postgresql://nowhere/astra")
    words = [sys.executable, "-m", "astra", "demo", "mine", "--rows", "96"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    demo = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    run, _, following = demo.stdout.partition("what to type next:\n")
    assert "kill -9 " in run and " of the killed one" in run and "96 results" in run, run
    assert run.count("whole: 96 done = 96 rows") == 2 and "nothing to submit" in run, run
    assert "\n  unset ASTRA_DATABASE_URL ASTRA_RUN_DIR\n" in following
    script = "set -e\n" + following
    said = subprocess.run(["bash"], input=script, capture_output=True, text=True, env=env)
    assert said.returncode == 0 and "pages: 8 done of 8" in said.stdout, said.stderr
    assert "nothing is pending in BossVisitSpectrum" in said.stdout


@pytest.mark.parametrize("name", ["astra.toml", "astra.db"])
def test_the_demonstration_leaves_another_archive_alone(tmp_path, name):
    file = tmp_path / name
    file.write_text("[run]\n")
    done = astra("demo", str(tmp_path))
    assert done.exit_code == 2 and "name another: astra demo FOLDER" in done.output
    assert file.read_text() == "[run]\n" and os.listdir(tmp_path) == [name]
