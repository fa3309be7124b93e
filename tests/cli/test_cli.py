"""The command line: what is refused, what is printed, and the exit status."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from astra.cli.group import main
from astra.cli.options import slurm_pairs
from astra.config.run_folder import run_folder
from astra.database.connection import connection
from astra.errors import SlurmUnknown, UsageError
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.plans import Plan
from astra.plan.lookup import get_plan
from astra.plan.pages import PageStatus
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from astra.slurm import parse
from astra.states import PageState, PlanState, worst
from astra.status.page_states import never_starts
from astra.status.status import plan_state
from astra.submit.local import _failed_elements
from tests.sample_tasks import fill, measure

TASK = "tests.sample_tasks.measure"


def astra(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def a_plan(n: int = 4) -> int:
    fill(n)
    return create_plan(measure, BossVisitSpectrum, limit=2)[0].plan


@pytest.mark.parametrize(
    "words, said",
    [
        (("submit", "{plan}", "--local", "--dry-run"), "--dry-run shows Slurm's scripts"),
        (("submit", TASK, "--local", "--dry-run"), "--dry-run shows Slurm's scripts"),
        (("resume", "{plan}", "--local", "--dry-run"), "--dry-run shows Slurm's scripts"),
        (("resume", "{plan}", "--local", "--only", "TIMEOUT"), "--local has none"),
        (("resume", "{plan}", "--only", " , "), "list Slurm states"),
        (("submit", "{plan}", "--limit", "5", "--local"), "plan {plan} is frozen: --page-size can"),
        (("submit", "{plan}", "--max-rows", "5", "--set", "a=1"), "--set, --max-rows can be"),
        (("submit", "²", "--local"), "²"),
        (("plan", TASK, "--page-size", "0"), "'--page-size' / '--limit': 0 is not at least 1"),
        (("run", TASK, "--limit", "0"), "'--limit' / '--max-rows': 0 is not at least 1"),
        (("submit", TASK, "--pages-per-element", "0"), "'--pages-per-element': 0 is not at least"),
        (("plan", TASK, "--sdss-ids", 2**63), "9223372036854775808, which does not fit"),
        (("plan", TASK, "--sdss-ids", ""), "it is empty"),
        (("plan", TASK, "--keys", " "), "it is empty"),
        (("results", TASK, "--keys", ""), "it is empty"),
        (("plan", TASK, "row_s=3"), f"astra plan {TASK} --set row_s=3"),
        (("run", TASK, "--row-s", "3"), "--set row_s=VALUE"),
        (("plan", TASK, "--time", "-1"), "'-1' is not a time"),
        (("status", 2**70), "is not the number of a plan; astra plans lists them"),
        (("throttle", "{plan}", 2**31), "2147483648 is more than 2,147,483,647"),
        (("clean", "--keep-days", "1e9"), "1e9 is more than 36,500"),
        (("plan", TASK, "--page-size", "ten"), "'ten' is not a whole number"),
        (("submit", 1, TASK, "--local"), "takes one plan, or one task: astra submit 1"),
        (("report", "-o", ""), ". cannot be written"),
        (("try", "{plan}", "1", "--input-model", "Source"), "leave --input-model and --set out"),
        (("plans", "--state", "no-such"), "no state 'no-such'"),
        (("plans", "--since", "999999999999d"), "'999999999999d' is not a time"),
        (("nights", "survey", 2**70), "no night 'survey' has begun yet"),
    ],
)
def test_what_cannot_be_meant_is_refused(url, words, said):
    plan = a_plan()
    done = astra(*(str(word).format(plan=plan) for word in words))
    assert done.exit_code == 2 and said.format(plan=plan) in done.output
    assert Plan.select().count() == 1 and "Traceback" not in done.output


def test_words_that_miss_or_exclude_each_other_are_refused(sqlite_url):
    assert a_plan() == 1
    for words, said in (
        (("plan", TASK, "--set", "row_s"), "--set 'row_s': write NAME=VALUE"),
        (("throttle", "1"), "write astra throttle 1 N, or astra throttle 1 --off"),
        (("pause",), "name one PLAN, or --all"),
        (("continue", "1", "--all"), "name one PLAN, or --all"),
        (("report", "survey", "2026-09-01", "x"), "give a night by its name and a date"),
        (("report", "survey", "2026-09-01"), "no night 'survey' has begun yet"),
        (("initdb", "--copied", "--moved"), "leave one of them out"),
        (("initdb", "--sql", "--json"), "leave --copied, --moved and --json out"),
        (("doctor", "--profile", "long"), "add --job, or leave --profile out"),
        (("help", "status", "x"), "astra status has no subcommand 'x': astra help status"),
        (("logs", "1", "3"), "plan 1 has pages 1 to 2, not 3"),
        (("logs", "1"), "no element has begun plan 1 yet: astra status 1"),
        (("logs", "1", "2"), "no element has begun page 2 of plan 1 yet"),
        (("--sent", "status"), "No such option '--sent'"),
    ):
        done = astra(*words)
        assert done.exit_code == 2 and said in done.output, done.output


def test_a_list_without_lines_says_whether_there_are_plans(url):
    assert "there is no plan yet" in astra("plans").output
    assert "no night has begun yet: astra nightly NAME" in astra("nights").output
    for command in ("pause", "continue"):
        assert "no plan has pending rows: nothing was changed" in astra(command, "--all").output
    a_plan()
    for command in ("plans", "status"):
        assert "no plan matches these options" in astra(command, "--task", "other").output


def test_without_an_attempt_sizes_are_those_of_the_profile(sqlite_url):
    fill(4)
    said = astra("estimate", TASK, "--input-model", "BossVisitSpectrum").output
    assert "1,000: 4 rows pending in 1 page, 1 element\n  --time, --mem  as the profile has" in said


def test_a_local_run_reports_the_state_of_the_plan(url):
    plan = a_plan()
    done = astra("submit", plan, "--local")
    assert done.exit_code == 0 and "whole: 4 done = 4 rows" in done.output
    again = astra("resume", plan, "--local")
    assert again.exit_code == 0 and "nothing to submit" in again.output
    assert "whole: 4 done" in again.output


def test_nothing_pending_looks_like_a_submission_of_nothing(url):
    fill(2)
    assert astra("submit", TASK, "--local", "--input-model", "BossVisitSpectrum").exit_code == 0
    done = astra("submit", TASK, "--local", "--input-model", "BossVisitSpectrum", "--json")
    found = json.loads(done.output)
    assert (found["plan"], found["pages"], found["rows"], found["jobs"]) == (None, 0, 0, [])


def test_options_of_sbatch_have_the_types_of_a_configuration():
    given = ("exclusive", "requeue=false", "nice=100", "comment=a b", "mail-user=x@y")
    assert slurm_pairs(given) == {
        "exclusive": True, "requeue": False, "nice": 100, "comment": "a b", "mail_user": "x@y",
    }  # fmt: skip


@pytest.mark.parametrize("job", ["1_[,,]", "1_[-]", "1_[1:]x", "1_[2-]"])
def test_what_squeue_cannot_mean_is_no_answer(job):
    line = f"{job}|RUNNING|0|n1|None|"
    try:
        assert parse.parse_squeue(line)
    except SlurmUnknown as error:
        assert job in str(error)


def page(state: PageState, reason: str | None = None) -> PageStatus:
    return PageStatus(1, state, 10, 0, 0, 0, 10, reason=reason)


@pytest.mark.parametrize(
    "reason, state",
    [
        ("Resources", PlanState.RUNNING),
        (None, PlanState.RUNNING),
        ("PartitionTimeLimit", PlanState.ATTENTION),
        ("JobHeldUser", PlanState.ATTENTION),
        ("launch failed requeued held", PlanState.ATTENTION),
    ],
)
def test_a_page_that_can_never_start_needs_attention(reason, state):
    waits = page(PageState.WAITING, reason)
    assert plan_state({waits.state}, never_starts(waits)) is state


def test_failed_elements_are_named_with_their_exit_status():
    message = _failed_elements({3: 77}, "logs/local-a1")
    assert message == "1 element failed: element 3 (exit status 77); see logs/local-a1_3.log"
    assert "2 elements failed, first element 3 (killed by SIGKILL)" in _failed_elements(
        {3: -9, 4: 77}, "logs/local-a1"
    )


def test_the_help_shows_every_command():
    shown = astra("--help").output
    for name, command in main.commands.items():
        assert (f"\n  {name} " in shown) is not command.hidden, name


def test_a_plan_whose_rows_failed_is_not_called_whole(url):
    """The state, the exit status and the next command say so, and which rows are retried."""
    fill(10)
    (planned,) = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 5})
    done = CliRunner().invoke(main, ["resume", str(planned.plan), "--local"])
    assert done.exit_code == 8 and "failed rows: 8 done + 2 failed = 10 rows" in done.output
    assert "astra failures 1" in done.output and "astra retry 1 --local" in done.output
    again = CliRunner().invoke(main, ["retry", "1", "--local"])
    assert again.exit_code == 8 and Attempt.select().count() == 2
    assert json.loads(CliRunner().invoke(main, ["status", "1", "--json"]).stdout)["state"] == (
        "failed rows"
    )


def test_identifiers_of_sources_are_read_from_a_list_a_file_or_a_pipe(tmp_path):
    file = tmp_path / "stars.txt"
    file.write_text("# chosen by hand\n\n101, 102 # a binary\r\n-7\n")
    option = next(o for o in main.commands["plan"].params if o.name == "sdss_ids")

    def read(text: object) -> list[int]:
        return option.callback(None, option, str(text))

    assert read(file) == [101, 102, -7] and read("101, 102\n-7") == [101, 102, -7]
    os.mkfifo(pipe := tmp_path / "pipe")  # as of the shell's --sdss-ids <(psql ...)
    with subprocess.Popen(["cp", file, pipe]):
        assert read(pipe) == [101, 102, -7]
    for wrong in (tmp_path / "missing.txt", "101,x"):
        with pytest.raises(UsageError, match="neither a number nor a readable file"):
            read(wrong)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match=r"--sdss-ids .*binary: the file cannot be read"):
        read(tmp_path / "binary")


def test_the_worst_state_of_several_plans_is_theirs():
    assert worst([PlanState.WHOLE, PlanState.FAILED_ROWS]) is PlanState.FAILED_ROWS
    assert worst([PlanState.FAILED_ROWS, PlanState.ATTENTION]) is PlanState.ATTENTION
    assert worst([PlanState.RUNNING, PlanState.FAILED_ROWS]) is PlanState.RUNNING
    assert worst([]) is PlanState.WHOLE


def a_log(url: str, path: Path | None = None, text: str = "") -> int:
    """A plan whose one attempt says that its log is this file, or one in the plan's folder."""
    plan = a_plan(2)
    resume_local(plan)
    mine = run_folder(get_plan(plan).folder) / "logs" / "1_1.log"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(text)
    Attempt.update(log=str(path or mine)).execute()
    return plan


def test_a_log_is_read_from_the_folder_of_its_plan_alone(url, tmp_path):
    """A role that writes results also writes the path of its log, and may name any file."""
    secret = tmp_path / "secret"
    secret.write_text("of the operator")
    link = tmp_path / "runs" / "link"
    for path in (secret, link, tmp_path / "runs" / ".." / "secret"):
        plan = a_log(url, path)
        if path is link:
            link.symlink_to(secret)
        done = astra("logs", plan, 1)
        assert done.exit_code == 2 and "operator" not in done.output
        assert "is not opened" in " ".join(done.output.split())


def test_control_characters_do_not_reach_a_terminal(url):
    plan = a_log(url, text="\x1b]0;title\x07 \x9b2J plain\n")
    assert astra("logs", plan, 1).output == "\\x1b]0;title\\x07 \\x9b2J plain\n"
    assert "\x1b" in astra("logs", plan, 1, "--raw").output
    with connection():
        Failure.create(
            task="t", input_table="x", key="1", v_astra_major_minor=0, exception="Bad\x1b[2J",
            message="\x1b[31mred", traceback="\x1b", plan_pk=plan, page=1,
        )  # fmt: skip
    for words in (["failures", plan], ["failures", plan, "--traceback"]):
        shown = astra(*words).output
        assert "Bad" in shown and "\x1b" not in shown
