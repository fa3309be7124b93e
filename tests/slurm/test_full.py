"""Slurm takes no more jobs, or its nodes cannot write their logs: what fits goes, and why is said."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from astra.cli.group import main
from astra.database.connection import connection
from astra.errors import UsageError
from astra.models import BossVisitSpectrum
from astra.models.plans import Page, Submission
from astra.plan.plan import create_plan
from astra.slurm import limits
from astra.status.logs import logs
from astra.status.status import status
from astra.submit.submit import submit
from tests.sample_tasks import fill, measure

CONFIG = "printf 'ClusterName             = here\\nMaxArraySize            = 5\\nPrivateData             = none\\n'"
FULL = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_after_words: None) -> None:
    (tmp_path / "slurm.conf").touch()
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    (tmp_path / "astra.toml").write_text("[slurm]\ntimeout_s = 0.5\nretries = 0\n")
    monkeypatch.setattr("astra.submit.intent._LOOK_AGAIN_S", (0.0,))
    limits.configuration.cache_clear()


def planned(n: int) -> int:
    fill(n)
    found = create_plan(measure, BossVisitSpectrum, limit=1)[0].plan
    assert found is not None
    return found


def test_where_slurmctld_is_full_what_fits_is_submitted(pg_url, commands, tmp_path):
    """Of three arrays of four the first is taken; at the second sbatch sleeps until it is ended."""
    sent = tmp_path / "sent"
    commands(
        scontrol=CONFIG, squeue="true", sacct="true",
        sbatch=f"echo x >>{sent}\n[ $(wc -l <{sent}) = 1 ] && echo 100 && exit\n"
        f"echo '{FULL}' >&2\ntouch {tmp_path}/spoke.$$\nexec sleep 60",
    )  # fmt: skip
    done = submit(planned(12))
    assert (done.pages, done.unsubmitted) == (4, 8)
    assert "MaxJobCount" in done.message and "astra resume" in done.message
    with connection():
        states = [s.state for s in Submission.select().order_by(Submission.pk)]
        free = Page.select().where(Page.submission_pk.is_null()).count()
    assert states[0] == "submitted" and "intent" not in states and free == 8
    assert len(sent.read_text().split()) <= 4  # the second whole, its halves, and no third


@pytest.mark.parametrize("ended", ["0:53", "15:53"])
def test_a_node_that_cannot_write_its_log(ended, pg_url, commands, tmp_path):
    booked = tmp_path / "booked"
    booked.write_text("")
    commands(
        scontrol=CONFIG,
        squeue="true",
        sacct=f"cat {booked}",
        sbatch="echo 100",
        sinfo="true",
        scancel="true",
    )
    plan = planned(1)
    submit(plan)
    (submission,) = Submission.select()
    booked.write_text(f"100_1|FAILED|{ended}|n7|None|{submission.job_name}\n")
    said = rf"node n7 could not write its log in {Path(submission.log_folder)}: set \[run\] dir"
    with pytest.raises(UsageError, match=f"no log of plan {plan}: the {said}"):
        logs(plan)
    with pytest.raises(UsageError, match=f"no log of page 1 of plan {plan}: the {said}"):
        logs(plan, 1)
    (page,) = status(plan).elements
    assert page.state == "lost" and "could not write its log" in (page.reason or "")
    shown = CliRunner().invoke(main, ["status", str(plan)])
    assert "could not write its log" in shown.output and shown.exit_code == 4, shown.output


def test_the_log_of_an_element_that_ended_before_it_claimed_a_page(pg_url, commands, tmp_path):
    """Python is not there on the node, say: the plan's logs are found with and without a page."""
    booked = tmp_path / "booked"
    booked.write_text("")
    commands(scontrol=CONFIG, squeue="true", sacct=f"cat {booked}", sbatch="echo 100", sinfo="true")
    plan = planned(2)
    submit(plan)
    (submission,) = Submission.select()
    ended = [f"100_{n}|FAILED|127:0|n7|None|{submission.job_name}\n" for n in (1, 2)]
    booked.write_text("".join(ended))
    log = Path(submission.log_folder) / "100_2.log"
    log.write_text("python: not found")
    assert [(found.page, found.path) for found in logs(plan)] == [(2, str(log))]
    assert [found.path for found in logs(plan, 2)] == [str(log)]
    with pytest.raises(UsageError, match="no log of page 1"):
        logs(plan, 1)


def test_the_log_of_a_page_beyond_the_elements_of_its_pool(pg_url, commands, tmp_path):
    """Three pages for two elements, which end before they claim one: the last one has page 3."""
    booked = tmp_path / "booked"
    booked.write_text("")
    commands(scontrol=CONFIG, squeue="true", sacct=f"cat {booked}", sbatch="echo 100", sinfo="true")
    plan = planned(3)
    submit(plan, options={"max_elements": 2})
    (submission,) = Submission.select()
    ended = [f"100_{n}|FAILED|127:0|n7|None|{submission.job_name}\n" for n in (1, 2)]
    booked.write_text("".join(ended))
    log = Path(submission.log_folder) / "100_2.log"
    log.write_text("python: not found")
    assert [page.job for page in status(plan).elements] == ["100_1", "100_2", "100_2"]
    assert [found.path for found in logs(plan, 3)] == [str(log)]
