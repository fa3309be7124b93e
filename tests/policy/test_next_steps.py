"""What is done about pages whose elements ended before their rows had."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from astra.cli import show
from astra.config import settings
from astra.config.profiles import choose_profile
from astra.config.retry_rules import RULES
from astra.config.units import written_moment
from astra.database.connection import connection, dialect, writing
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt, Exclusion
from astra.models.plans import Page, Submission
from astra.plan.plan import create_plan
from astra.policy import next_steps, retry_policy
from astra.policy.next_steps import ends_of
from astra.policy.retry_policy import End, next_step
from astra.resume import resume as resume_module
from astra.resume.resume import resume
from astra.slurm.limits import default_time, partition_limits
from astra.slurm.parse import Answer, Execution
from astra.states import PageState, SlurmState
from astra.status.page_states import Pages
from astra.status.status import status
from astra.submit.intent import commit_intent, new_submission
from astra.submit.submit import submit
from tests.conftest import ROOT
from tests.nights import run_out
from tests.pools import array_of, plan_of
from tests.sample_tasks import Measured, fill, hungry, measure
from tests.servers import Slurm, wait_for


@pytest.mark.parametrize("accounting", [True, False])
def test_a_page_that_nobody_began_uses_up_no_retry_if_slurm_cannot_say_its_end(url, accounting):
    """The accounting was purged, or gives no answer, and squeue has forgotten the array."""
    plan = plan_of(20, 10)
    array_of(plan, [1, 2], {2: 2}, created="2026-01-01")
    with connection(), writing():
        Attempt.update(seen="2026-01-01").execute()
    pages = Pages(plan, Answer(accounting=accounting))
    assert pages.states == [PageState.LOST] * 2
    queued, begun = next_steps.next_steps(plan, pages)
    assert (begun.end.no_row_ended, queued.end.no_row_ended) == (True, False)
    assert queued.decision.explanation == "next as before (uses up no retry)"


@pytest.mark.parametrize("end_of_queued", [SlurmState.CANCELLED, SlurmState.DEADLINE])
def test_a_page_that_nobody_began_uses_up_no_retry(url, end_of_queued):
    """Its element was cancelled, or met its deadline, while it waited; or it ended at another page, whatever ended it."""
    plan = plan_of(40, 10)
    array_of(plan, [1, 2, 3], {2: 1})
    ends = SlurmState.TIMEOUT, SlurmState.FAILED, end_of_queued
    answer = Answer({("j", n): Execution(end) for n, end in enumerate(ends, 1)})
    pages = Pages(plan, answer)
    assert [page.element for page in pages] == [1, 1, 3, 3]
    assert pages.states == [PageState.UNSUBMITTED] + [PageState.LOST] * 3
    left, ended, *queued = next_steps.next_steps(plan, pages)
    assert left.end is None and not left.decision.options  # no more time than before
    assert ended.end is not None and ended.end.state == "TIMEOUT" and ended.end.no_row_ended
    assert [(n.end.state, n.end.no_row_ended) for n in queued] == [(end_of_queued, False)] * 2
    assert queued[0].decision.explanation == "next as before (uses up no retry)"
    with connection(), writing():
        Page.update(n_done=Page.n_rows).where(Page.number == 2).execute()
    answer.executions["j", 3] = Execution(SlurmState.COMPLETED)
    tally = Pages(plan, answer).tally
    assert tally == {PageState.DONE: (1, 0), PageState.UNSUBMITTED: (3, 30)}


def test_an_element_that_fails_in_its_start_is_counted_at_its_page(url):
    plan = plan_of(30, 10)
    array_of(plan, [1, 2], {1: 1})
    ends = SlurmState.COMPLETED, SlurmState.FAILED
    answer = Answer({("j", n): Execution(end) for n, end in enumerate(ends, 1)})
    pages = Pages(plan, answer)
    assert pages.states[1:] == [PageState.LOST] * 2
    steps = next_steps.next_steps(plan, pages)[1:]
    assert [n.end for n in steps] == [End("FAILED")] * 2


def test_pages_that_are_given_up_are_selected_by_the_state_that_the_remedy_names(url):
    """Slurm's own words are COMPLETED for a page with rows missing, FAILED for a warned element."""
    plan = plan_of(40, 10)
    array_of(plan, [1, 2, 3, 4], {number: number for number in (1, 2, 3, 4)})
    with connection(), writing():
        Attempt.update(state="interrupted").where(Attempt.element == 3).execute()
    warned = Execution(SlurmState.FAILED, exit_code=75)
    ends = Execution(SlurmState.COMPLETED), Execution(SlurmState.OUT_OF_MEMORY), warned
    answer = Answer({("j", n): end for n, end in enumerate(ends, 1)}, queued=frozenset({"j"}))
    pages = Pages(plan, answer)
    for page, step in zip(pages, next_steps.next_steps(plan, pages), strict=True):
        state = retry_policy.remedy(plan.pk, step.decision.state).split()[4]
        chosen, _, _ = resume_module._choose(
            plan, False, resume_module.checked_states([state]), True, answer
        )
        assert page.page in [p.number for p in chosen]


@pytest.mark.parametrize("kind, state", [("slurm", "TIMEOUT"), ("local", "STOPPED")])
def test_an_element_that_was_asked_to_stop_lacked_time_if_it_had_a_limit(url, kind, state):
    """Slurm's accounting is unavailable, or was purged since; another end would be retried for ever."""
    plan = plan_of(10, 10)
    array_of(plan, [1], {1: 1}, kind=kind)
    with connection(), writing():
        Attempt.update(state="interrupted", message="asked to stop (SIGTERM)").execute()
    answer = Answer(queued=frozenset({"j"}))
    pages = Pages(plan, answer)
    (step,) = next_steps.next_steps(plan, pages)
    assert pages.states == [PageState.INTERRUPTED]
    assert step.end.state == state and step.decision.retry
    assert ("uses up no retry" in step.decision.explanation) == (state == "STOPPED")
    only = resume_module.checked_states([step.end.state.lower()])
    assert len(resume_module._choose(plan, False, only, True, answer)[0]) == 1


@pytest.mark.parametrize("ends", [{"signal": 9}, {"exit_code": 9}, {"exit_code": 137}])
def test_a_script_that_reports_the_kill_by_a_memory_limit(url, tmp_path, ends):
    """Where Slurm killed the element before it killed the script, its state is FAILED."""
    plan = plan_of(10, 10)
    array_of(plan, [1], {1: 1}, log_folder=str(tmp_path))
    answer = Answer({("j", 1): Execution(SlurmState.FAILED, **ends)})
    assert Pages(plan, answer)[0].slurm_state == "FAILED"
    (tmp_path / "7_1.log").write_text("slurmstepd-n1: error: Exceeded job memory limit\n")
    assert Pages(plan, answer)[0].slurm_state == "OUT_OF_MEMORY"


def test_a_page_that_slurm_took_no_element_for_gets_the_profile_of_the_others(url):
    """As at a limit of Slurm, after which `astra resume` submits the rest."""
    plan = plan_of(40, 10)
    chosen = choose_profile("debug", {"mem": "123M"})
    commit_intent(new_submission(plan, [1, 2], 0, 1, "slurm", chosen), [1, 2], {})
    steps = next_steps.next_steps(plan, Pages(plan, Answer()))
    profiles = [n.profile for n in steps if n.page.number > 2]
    assert [(p.name, p.options["mem"]) for p in profiles] == [("debug", "123M")] * 2


@pytest.fixture(scope="module")
def strict():
    """A cluster that ends what takes more memory than it asked for."""
    extra = ("SelectTypeParameters=CR_CPU_Memory", "JobAcctGatherParams=OverMemoryKill")
    with Slurm(cpus=4, nodes=2, extra=(*extra, "DefMemPerNode=150")) as server:
        yield server


@pytest.mark.slurm
@pytest.mark.postgres
class TestOnSlurm:
    def test_memory_grows_until_it_is_enough(self, strict, pg_url, monkeypatch):
        monkeypatch.setenv("SLURM_CONF", str(strict.conf))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        fill(30)
        # The first row of its page: none before it is stored, which would make the retry free.
        (planned,) = create_plan(hungry, BossVisitSpectrum, limit=10,
                                 arguments={"mb": 250, "at": 20})  # fmt: skip
        plan = planned.plan
        submit(plan, options={"mem": "200M", "pull": False})
        run_out(strict)
        found = status(plan)
        assert found.pages == {"done": 2, "lost": 1}
        (next_,) = found.steps
        assert (next_.pages, next_.state, next_.retry) == ((2,), "OUT_OF_MEMORY", True)
        assert next_.explanation == "next with mem 300M instead of 200M (retry 1 of 3)"
        for mem in ("300M", "450M"):
            made = resume(plan)
            assert made.pages == 1 and f"--mem={mem}" in Path(made.jobs[0].script).read_text()
            run_out(strict)
        assert status(plan).state == "whole" and Measured.select().count() == 30
        page = Page.get(Page.number == 2)
        # At the second end the row was looked for already, among those of the first.
        ends = [(e.state, e.no_row_ended) for e in ends_of(page)]
        assert ends == [("OUT_OF_MEMORY", True), ("OUT_OF_MEMORY", False)]
        attempts = Attempt.select().where(Attempt.page == page.pk).order_by(Attempt.number)
        words = [attempt.slurm_state for attempt in attempts]
        assert words == ["OUT_OF_MEMORY", "OUT_OF_MEMORY", None]

    @pytest.mark.parametrize("nodes", [1, 2])
    def test_a_node_where_failures_gather_is_left_out(self, slurm, nodes):
        """Of an element with several nodes, it is the one on which its script runs."""
        fill(32)
        (planned,) = create_plan(hungry, BossVisitSpectrum, limit=2, arguments={"die_on": "n1"})
        plan = planned.plan
        # One page for each element: those that pull would leave the node few to kill.
        options = {"cpus_per_task": 8, "pages_per_element": 1, "nodes": nodes, "ntasks": nodes}
        submit(plan, options=options)
        run_out(slurm)
        lost = status(plan).pages["lost"]
        assert lost >= 3
        made = resume(plan)
        script = Path(made.jobs[0].script).read_text()
        assert made.pages == lost and "--exclude=n1\n" in script and "--cpus-per-task=8" in script
        until = written_moment(Exclusion.get().until)
        assert any(
            f"node n1 of cluster test is excluded until {until}:" in note
            for note in status(plan).notes
        )
        run_out(slurm)
        assert status(plan).state == "whole" and resume(plan).pages == 0
        # It expires, and a node that Slurm does not know is never named.
        Exclusion.update(until=Exclusion.since).execute()
        with connection():
            tomorrow = dialect().now() + timedelta(days=1)
            Exclusion.insert(cluster="test", node="elsewhere", reason="", until=tomorrow).execute()
        fill(2)
        (more,) = create_plan(hungry, BossVisitSpectrum)
        assert "--exclude" not in submit(more.plan, dry_run=True).jobs[0].text

    def test_retries_end_and_are_taken_again_on_purpose(self, slurm, tmp_path, capsys):
        (tmp_path / "astra.toml").write_text("[policy.CANCELLED]\nretries = 1\n")
        settings.reset()
        fill(4)
        (planned, _) = create_plan(measure, limit=2, arguments={"row_s": 600})
        plan = planned.plan

        def cancelled() -> None:
            wait_for(lambda: Attempt.select().where(Attempt.state == "running").count() == 2,
                     "both pages to run", 60)  # fmt: skip
            slurm.run("scancel", status(plan).elements[0].job.partition("_")[0])
            run_out(slurm)

        submit(plan)
        cancelled()
        assert resume(plan).pages == 2
        cancelled()
        made = resume(plan)
        assert (made.pages, made.skipped, made.jobs) == (0, {"given up": 2}, ())
        (left,) = made.left
        assert (left.pages, left.state) == ((1, 2), "CANCELLED")
        assert left.explanation == "1 of 1 retries used up"
        assert left.remedy == f"astra resume {plan} --only CANCELLED"
        show.submitted(made)
        assert capsys.readouterr().out == (
            f"2 pages CANCELLED: 1 of 1 retries used up; {left.remedy}\n"
            f"plan {plan}: nothing to submit\n  not touched: 2 given up\n"
        )
        found = status(plan)
        assert found.state == "attention" and found.advice[0].startswith(left.remedy)
        assert not any(line.startswith(f"astra resume {plan}   ") for line in found.advice)
        assert json.loads(json.dumps([s.retry for s in found.steps])) == [False]
        assert resume(plan, only=["CANCELLED"]).pages == 2
        slurm.cancel_all()
        wait_for(lambda: status(plan).pages.get("lost") == 2, "Slurm's word on both", 60)
        assert resume(plan, options={"time": "10"}).pages == 2
        slurm.cancel_all()

    def test_what_a_partition_has(self, slurm):
        short, default = partition_limits("short"), partition_limits(None)
        assert (short.max_time_s, default.max_time_s, partition_limits("short,debug").max_time_s) == (
            300, None, None,
        )  # fmt: skip
        assert short.nodes == ("n1", "n2", "n3", "n4") and short.max_mem_mb == 16000

    def test_elements_without_a_time_have_that_of_their_partition(self, slurm):
        """They leave before it ends, and are not repeated for nothing where it cannot grow."""
        fill(4)
        (planned, _) = create_plan(measure, limit=2)
        options = {"partition": "short", "time": False}
        late = submit(planned.plan, options={**options, "signal": "B:TERM@150"}, dry_run=True)
        assert "#SBATCH --signal" not in late.jobs[0].text  # it would come as the element begins
        (job,) = submit(planned.plan, options=options).jobs
        script = Path(job.script).read_text()
        assert "--time" not in script and "#SBATCH --signal" in script
        submission = Submission.get()
        assert submission.options["time"] == "00:05:00"
        allowed = partition_limits("short")
        made = next_step(End("TIMEOUT"), [], RULES, {}, submission.options, allowed)
        assert not made.retry and "time 00:05:00 was not enough" in made.explanation
        several = choose_profile(None, {**options, "partition": "short,debug"})
        assert default_time(several) is None


@pytest.mark.parametrize("why", ["its profile was renamed", "it is another role's"])
def test_a_submission_whose_profile_cannot_be_used_is_repeated_with_the_default_one(
    sqlite_url, monkeypatch, caplog, why
):
    plan = plan_of(10, 10)
    name = "gone" if why == "its profile was renamed" else "debug"
    given = {"name": name, "options": {}, "given": {"mem": "123M", "template": "x.sh.j2"}}
    array_of(plan, [1], {}, profile=json.dumps(given))
    submission = Submission.get()
    if name == "debug":
        monkeypatch.setattr(next_steps, "is_trusted", lambda *of_role: False)
    chosen = next_steps._profile(submission, None, {"cpus_per_task": 3})
    assert chosen.name == "general" and chosen.options["cpus_per_task"] == 3
    is_own = name == "gone"
    assert chosen.options.get("mem") == (
        "123M" if is_own else choose_profile(None, None).options.get("mem")
    )
    assert (chosen.template == "x.sh.j2") == is_own
    next_steps._profile(submission, None, {})
    (said,) = caplog.messages  # once for a plan
    reason = "no profile 'gone'" if is_own else "its role is not trusted"
    assert said.startswith(
        f"plan 1 was submitted with profile '{name}', which is not used: {reason}"
    )
    assert "submitted again with profile 'general'; for another: " in said
    assert said.endswith("astra resume 1 --profile NAME")
    next_steps._profile(submission, "debug", {})  # chosen on purpose
    assert caplog.messages == [said]
