"""Crontab entries: in a bare environment, beside the lines of others, and with Debian's cron."""

import os
import re
import shutil
import sys
import time
from pathlib import Path
from shlex import quote

import pytest

from astra.config import settings
from astra.database.connection import connection, reset
from astra.errors import UsageError
from astra.models.nights import Night
from astra.night.cron import entry, has_entry, install, remove, without_entry
from tests import forks
from tests.conftest import ROOT
from tests.sample_tasks import Measured, fill
from tests.servers import can_unshare, cron_daemon, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]

needs_cron = pytest.mark.skipif(
    shutil.which("crontab") is None or os.geteuid() != 0 or not can_unshare(),
    reason="needs Debian's cron, root, and a root folder that is mounted (not a bare chroot)",
)


@pytest.fixture
def night(slurm, pg_url, tmp_path, monkeypatch) -> Path:
    """A configuration that holds all, as cron gives nothing."""
    file = tmp_path / "astra.toml"
    file.write_text(
        f'[database]\nurl = "{pg_url}"\n[run]\ndir = "runs 100%"\n[nights.survey]\n'
        'tasks = [{ task = "tests.sample_tasks.measure", input_model = "BossVisitSpectrum" }]\n'
    )
    for name in ("ASTRA_DATABASE_URL", "ASTRA_RUN_DIR"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("ASTRA_CONFIG", str(file))
    settings.reset()
    return file


def astra(*words: str, status: int = 0) -> str:
    done = forks.astra(*words, cwd=ROOT)
    assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_an_entry_has_all_that_cron_does_not_give(night, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = entry("survey", "0 20 * * *", "me@example.org")
    begin, mailto, line, _ = text.splitlines()
    assert begin.startswith("# astra night survey") and mailto == "MAILTO=me@example.org"
    python, root = quote(sys.executable), quote(str(ROOT))
    for part in (python, f"ASTRA_CONFIG={night}", "SLURM_CONF=", r"100\%", root):
        assert part in line
    assert "postgresql://" not in line  # it stays in the configuration
    assert "#SCRON --time=" in entry("survey", "@daily", scron=True)
    with pytest.raises(UsageError, match="five fields"):
        entry("survey", "20:00")
    assert "--at" in astra("cron", "survey", status=2)
    monkeypatch.setenv("ASTRA_DATABASE_URL", "postgresql://me:geheim@h/db")
    reset()
    with pytest.raises(UsageError, match="pgpass") as error:
        entry("survey", "@daily")
    assert "geheim" not in str(error.value)


def test_the_check_says_what_is_missing(night, monkeypatch):
    assert "ready" in astra("cron", "survey", "--check")
    with connection():
        assert not Night.select().exists()
    text = night.read_text()
    wrong = re.sub('url = ".*"', 'url = "postgresql://astra@127.0.0.1:1/x"', text)
    night.write_text(wrong.replace("measure", "mesure"))
    assert "no connection" in astra("cron", "survey", "--check", status=4)
    night.write_text(text)
    monkeypatch.setenv("SLURM_CONF", "/nonexistent/slurm.conf")
    assert "SLURM_CONF names /nonexistent/slurm.conf, which is no file" in astra(
        "cron", "survey", "--check", status=4
    )


def test_other_lines_stay_as_they_are(night, monkeypatch):
    monkeypatch.chdir(ROOT)
    others = "# mine\n0 1 * * * /bin/true\n"
    made = entry("survey", "0 20 * * *")
    assert without_entry(f"{others}{made}X=1\n", "survey") == f"{others}X=1\n"
    assert without_entry(others, "survey") == others
    assert without_entry(made, "surve") == made
    with pytest.raises(UsageError, match="mailto"):
        entry("survey", "@daily", "a\nb")


def test_lines_in_another_encoding_stay_as_they_are(night, tmp_path, monkeypatch):
    table, program = tmp_path / "table", tmp_path / "bin" / "crontab"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = -l ] && exec cat {table}\nexec cat >{table}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    scrontab = program.with_name("scrontab")
    scrontab.write_text(
        "#!/bin/sh\necho scrontab: fatal: scrontab is disabled on this cluster >&2; exit 1\n"
    )
    scrontab.chmod(0o755)
    others = "# für mich\n".encode("latin-1")
    table.write_bytes(others)
    assert not has_entry("survey")
    install("survey", entry("survey", "@daily"))
    assert table.read_bytes().startswith(others) and has_entry("survey")
    assert remove("survey") and table.read_bytes() == others and not remove("survey")
    program.write_text("#!/bin/sh\n[ $1 = -l ] || { echo 'not allowed' >&2; exit 1; }\n")
    with pytest.raises(UsageError, match="refused the entry, and nothing was changed: not allowed"):
        install("survey", entry("survey", "@daily"))


_BEFORE = """
echo '# mine' | crontab -
{python} -m astra cron survey --at '* * * * *' --install >{out}/printed &&
{python} -m astra cron survey --at '*/1 * * * *' --install >{out}/printed &&
crontab -l >{out}/installed
"""
_AFTER = """
{python} -m astra cron survey --remove >{out}/removed
crontab -l >{out}/left
"""


@needs_cron
def test_debians_cron_runs_a_night_to_its_end(night, slurm, tmp_path):
    fill(60)
    before, after = (
        s.format(python=quote(sys.executable), out=tmp_path) for s in (_BEFORE, _AFTER)
    )
    with cron_daemon(tmp_path, before, after, cwd=ROOT) as daemon:

        def ended() -> bool:
            time.sleep(0.5)
            assert daemon.poll() is None, daemon.stdout.read()
            with connection():
                return Night.select().where(Night.ended.is_null(False)).exists()

        wait_for(ended, "the night that cron began", 200)
    with connection():
        night_ = Night.select().get()
        assert night_.state == "whole" and Measured.select().count() == 60
    installed = (tmp_path / "installed").read_text()
    assert "# mine" in installed and installed.count("nightly survey") == 1
    assert (tmp_path / "printed").read_text() in installed
    assert (tmp_path / "left").read_text() == "# mine\n"
    log = (tmp_path / "runs 100%" / "cron" / "survey.log").read_text()
    assert "begun" in log and "Traceback" not in log


def test_an_entry_that_is_too_long_names_what_makes_it_so(night, monkeypatch):
    folders = ":".join(f"/some/long/folder/number/{n:04d}" for n in range(40))
    monkeypatch.setenv("PYTHONPATH", folders)
    with pytest.raises(UsageError, match="longest of its words, PYTHONPATH=/some/long/folder"):
        entry("survey", "@daily")
