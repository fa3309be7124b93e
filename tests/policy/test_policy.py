"""What is done about pages whose elements ended before their rows had."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra.config import settings
from astra.config.profiles import choose_profile, get
from astra.config.retry_rules import RULES, rules
from astra.config.settings import load, use
from astra.config.units import size_mb
from astra.database.connection import connection, dialect, writing
from astra.element.claiming import claim_page, this_process
from astra.errors import ConfigError
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt, Exclusion
from astra.models.plans import Page, Submission
from astra.plan.plan import create_plan
from astra.policy import next_steps, retry_policy
from astra.policy.next_steps import ends_of
from astra.policy.retry_policy import End, bad_nodes, end_of, next_step
from astra.resume import resume as resume_module
from astra.resume.resume import resume
from astra.slurm import limits
from astra.slurm.limits import PartitionLimits, default_time, parse_partitions, partition_limits
from astra.slurm.parse import Answer, Execution
from astra.states import PageState, SlurmState
from astra.status.page_states import read_pages
from astra.status.status import status
from astra.submit.intent import NOBODY, _describe, commit_intent, new_submission
from astra.submit.submit import nodes_to_exclude, submit
from tests.conftest import ROOT
from tests.nights import run_out
from tests.pools import plan_of, pool_of
from tests.sample_tasks import Measured, fill, hungry, measure
from tests.servers import Slurm, wait_for

NO_ROW_ENDED, SOME_ROWS_ENDED = True, False


def step(
    state,
    earlier=(),
    base=None,
    used=None,
    allowed=None,
    no_row_ended=NO_ROW_ENDED,
    rule=None,
    **more,
):
    return next_step(
        End(state, "n1", no_row_ended),
        [End(s, "n1") for s in earlier],
        rules({state: rule} if rule else {}),
        base or {},
        used or {},
        allowed or PartitionLimits(),
        **more,
    )


class TestRules:
    def test_memory_grows_from_what_the_last_element_had(self):
        made = step("OUT_OF_MEMORY", base={"mem": "2G"}, used={"mem": "2G"})
        assert made.options == (("mem", "3G"),) and made.retry
        assert made.explanation == "next with mem 3G instead of 2G (retry 1 of 3)"
        made = step("OUT_OF_MEMORY", ["OUT_OF_MEMORY"], base={"mem": "2G"}, used={"mem": "3G"})
        assert made.options == (("mem", "4608M"),) and "retry 2 of 3" in made.explanation

    def test_the_partition_bounds_what_any_rule_raises(self):
        use(settings.Config(rules={"FAILED": {"time_growth": 4.0}}))
        options = {"time": "00:30:00", "partition": "short"}
        limits_of = {"short": PartitionLimits(max_time_s=3600)}
        made = next_steps._decide(
            End("FAILED"), Page(), choose_profile(None, options), Submission(profile=json.dumps({"options": options})),
            limits_of.__getitem__, False,
        )  # fmt: skip
        assert made.options == (("time", "01:00:00"),)

    def test_the_time_that_a_partition_gives_is_not_kept_in_another(self):
        short = choose_profile(None, {"partition": "short", "time": False})
        used = json.dumps(_describe(short, "00:05:00"))
        made = {
            partition: next_steps._decide(
                End("TIMEOUT"), Page(), choose_profile(None, {"partition": partition, "time": False}),
                Submission(profile=used), lambda name: PartitionLimits(), False,
            ).options
            for partition in ("short", "long")
        }  # fmt: skip
        assert made == {"short": (("time", "00:10:00"),), "long": ()}

    def test_time_doubles_and_memory_that_had_grown_stays(self):
        made = step("TIMEOUT", base={"mem": "2G", "time": "01:00:00"},
                    used={"mem": "3G", "time": "01:00:00"})  # fmt: skip
        assert dict(made.options) == {"mem": "3G", "time": "02:00:00"}

    def test_a_profile_that_asks_for_more_by_now_is_obeyed(self):
        made = step("OUT_OF_MEMORY", base={"mem": "8G"}, used={"mem": "2G"})
        assert made.options == () and "mem 8G instead of 2G" in made.explanation

    def test_memory_per_cpu(self):
        had = {"mem_per_cpu": "500M"}
        made = step("OUT_OF_MEMORY", base=had, used=had, allowed=PartitionLimits(max_mem_mb=100))
        assert made.options == (("mem_per_cpu", "750M"),)

    def test_nobody_asked_for_memory(self):
        assert step("OUT_OF_MEMORY").explanation == "next as before (retry 1 of 3)"
        made = step("OUT_OF_MEMORY", allowed=PartitionLimits(default_mem_mb=100))
        assert made.options == (("mem", "150M"),)
        assert step("TIMEOUT", base={"time": "UNLIMITED"}, used={"time": "60"}).options == ()

    def test_memory_and_time_grow_to_the_limits_and_no_further(self):
        had = {"mem": "2G", "time": "60"}
        near = PartitionLimits(max_mem_mb=2500, max_time_s=5400)
        assert step("OUT_OF_MEMORY", used=had, allowed=near).options[0] == ("mem", "2500M")
        assert ("time", "01:30:00") in step("TIMEOUT", used=had, allowed=near).options
        assert step("OUT_OF_MEMORY", used=had, rule={"max_mem": "2200M"}).options[0][1] == "2200M"
        assert ("time", "01:10:00") in step("TIMEOUT", used=had, rule={"max_time": "70"}).options
        at = PartitionLimits(max_mem_mb=2048, max_time_s=3600)
        stuck = step("OUT_OF_MEMORY", used=had, allowed=at)
        assert not stuck.retry and stuck.explanation == "mem 2G was not enough, and the limit is 2G"
        assert "time 01:00:00 was not enough" in step("TIMEOUT", used=had, allowed=at).explanation
        assert step("OUT_OF_MEMORY", used=had, allowed=at, no_row_ended=SOME_ROWS_ENDED).retry
        assert step("OUT_OF_MEMORY", used=had, allowed=at, on_request=True).retry

    @pytest.mark.parametrize("state", RULES)
    def test_retries_end_unless_rows_end(self, state):
        most = RULES[state].retries
        assert step(state, [state] * (most - 1)).retry
        assert step(state, [state] * most).retry is (state == "PREEMPTED")
        assert step(state, ["TIMEOUT" if state != "TIMEOUT" else "FAILED"] * 9).retry
        assert step(state, [state] * most, no_row_ended=SOME_ROWS_ENDED).retry
        assert step(state, [state] * most, on_request=True).retry
        assert not step(state, rule={"retries": 0}).retry

    def test_no_retry_is_used_up_by(self):
        for state in ("PREEMPTED", "OUTAGE"):
            assert "uses up no retry" in next_step(
                End(state), [End(state)] * 50, rules(), {}, {}, PartitionLimits()
            ).explanation  # fmt: skip

    @pytest.mark.parametrize("last", [None, End("OUTAGE"), End("HOURS"), End("PREEMPTED")])
    def test_what_a_retry_had_is_kept_after_an_end_without_a_rule(self, last):
        had = {"mem": "3G", "time": "02:00:00"}
        base = {"mem": "2G", "time": "01:00:00"}
        made = next_step(last, [End("OUT_OF_MEMORY")], rules(), base, had, PartitionLimits())
        assert dict(made.options) == had
        fresh = next_step(last, [], rules(), base, base, PartitionLimits())
        assert fresh.retry and not fresh.options

    @given(st.lists(st.sampled_from([*RULES, "OUTAGE"]), max_size=40), st.integers(1, 10**6))
    def test_no_page_is_retried_for_ever_and_growth_is_bounded(self, states, limit):
        ends, used, allowed = [], {"mem": "1M", "time": "1"}, PartitionLimits(limit * 60, limit)
        for state in states:
            made = next_step(End(state), ends, rules(), {}, used, allowed)
            if not made.retry:
                continue
            ends.append(End(state))
            new = {**used, **dict(made.options)}
            assert size_mb(used["mem"]) <= size_mb(new["mem"]) <= max(limit, 1)
            used = new
        for state, rule in RULES.items():
            assert (
                state in retry_policy.USES_NO_RETRY
                or sum(e.state == state for e in ends) <= rule.retries
            )


@pytest.mark.parametrize(
    "page, word, code, state",
    [
        ("lost", "TIMEOUT", 0, "TIMEOUT"),
        ("lost", "OUT_OF_MEMORY", 0, "OUT_OF_MEMORY"),
        ("interrupted", "FAILED", 75, "TIMEOUT"),  # warned by --signal
        ("interrupted", "CANCELLED", 0, "CANCELLED"),
        ("interrupted", "PREEMPTED", 0, "PREEMPTED"),
        ("lost", "FAILED", 75, "OUTAGE"),  # it could not even say so
        ("lost", "FAILED", 1, "FAILED"),
        ("lost", "ABSENT", None, "FAILED"),
        ("incomplete", "COMPLETED", 0, "FAILED"),
        ("broken", "FAILED", 77, "FAILED"),
        ("unsubmitted", None, None, None),
    ],
)
def test_what_ended_an_element(page, word, code, state):
    found = end_of(PageState(page), word, code, True, "n1")
    assert (found.state if found else None) == state


@pytest.mark.parametrize("end_of_queued", [SlurmState.CANCELLED, SlurmState.DEADLINE])
def test_a_page_that_nobody_began_uses_up_no_retry(url, end_of_queued):
    """Its element was cancelled, or met its deadline, while it waited; or it ended at another page, whatever ended it."""
    plan = plan_of(40, 10)
    pool_of(plan)
    with connection(), writing():
        claim_page(plan, 2, Submission.get(), 1, this_process("local", Path()))
        Submission.update(kind="slurm", job_id=7, job_name="j", elements=[1, 2, 3]).execute()
    ends = SlurmState.TIMEOUT, SlurmState.FAILED, end_of_queued
    answer = Answer({("j", n): Execution(end) for n, end in enumerate(ends, 1)})
    pages = read_pages(plan, answer, True)
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
    tally = read_pages(plan, answer, True).tally
    assert tally == {PageState.DONE: (1, 0), PageState.UNSUBMITTED: (3, 30)}


def test_an_element_that_fails_in_its_start_is_counted_at_its_page(url):
    plan = plan_of(30, 10)
    pool_of(plan)
    with connection(), writing():
        claim_page(plan, 1, Submission.get(), 1, this_process("local", Path()))
        Submission.update(kind="slurm", job_id=7, job_name="j", elements=[1, 2]).execute()
    ends = SlurmState.COMPLETED, SlurmState.FAILED
    answer = Answer({("j", n): Execution(end) for n, end in enumerate(ends, 1)})
    pages = read_pages(plan, answer, True)
    assert pages.states[1:] == [PageState.LOST] * 2
    steps = next_steps.next_steps(plan, pages)[1:]
    assert [n.end for n in steps] == [End("FAILED", None, NO_ROW_ENDED)] * 2


def test_pages_that_are_given_up_are_selected_by_the_state_that_the_remedy_names(url):
    """Slurm's own words are COMPLETED for a page with rows missing, FAILED for a warned element."""
    plan = plan_of(40, 10)
    pool_of(plan)
    with connection(), writing():
        for number in (1, 2, 3, 4):
            claim_page(plan, number, Submission.get(), number, this_process("local", Path()))
        Submission.update(kind="slurm", job_id=7, job_name="j", elements=[1, 2, 3, 4]).execute()
        Attempt.update(state="interrupted").where(Attempt.element == 3).execute()
    warned = Execution(SlurmState.FAILED, exit_code=75)
    ends = Execution(SlurmState.COMPLETED), Execution(SlurmState.OUT_OF_MEMORY), warned
    answer = Answer({("j", n): end for n, end in enumerate(ends, 1)}, queued=frozenset({"j"}))
    pages = read_pages(plan, answer, True)
    for page, step in zip(pages, next_steps.next_steps(plan, pages), strict=True):
        _, state, *_ = retry_policy.remedy(step.decision.state).split()
        chosen, _, _ = resume_module._choose(
            plan, False, resume_module.checked_states([state]), True, (answer, [])
        )
        assert page.page in [p.number for p in chosen]


@pytest.mark.parametrize("ends", [{"signal": 9}, {"exit_code": 9}, {"exit_code": 137}])
def test_a_script_that_reports_the_kill_by_a_memory_limit(url, tmp_path, ends):
    """Where Slurm killed the element before it killed the script, its state is FAILED."""
    plan = plan_of(10, 10)
    pool_of(plan)
    with connection(), writing():
        claim_page(plan, 1, Submission.get(), 1, this_process("local", Path()))
        Submission.update(
            kind="slurm", job_id=7, job_name="j", elements=[1], log_folder=str(tmp_path)
        ).execute()
    answer = Answer({("j", 1): Execution(SlurmState.FAILED, **ends)})
    assert read_pages(plan, answer, True)[0].slurm_state == "FAILED"
    (tmp_path / "7_1.log").write_text("slurmstepd-n1: error: Exceeded job memory limit\n")
    assert read_pages(plan, answer, True)[0].slurm_state == "OUT_OF_MEMORY"


def test_a_page_that_slurm_took_no_element_for_gets_the_profile_of_the_others(url):
    """As at a limit of Slurm, after which `astra resume` submits the rest."""
    plan = plan_of(40, 10)
    chosen = choose_profile("debug", {"mem": "123M"})
    commit_intent(new_submission(plan, [1, 2], 0, 1, "slurm", chosen), [1, 2], NOBODY)
    steps = next_steps.next_steps(plan, read_pages(plan, Answer(), True))
    profiles = [n.profile for n in steps if n.page.number > 2]
    assert [(p.name, p.options["mem"]) for p in profiles] == [("debug", "123M")] * 2


class TestNodes:
    def ends(self, bad: dict[int, str], good: dict[int, str]):
        return [(p, End("FAILED", n), n) for p, n in bad.items()] + [
            (p, None, n) for p, n in good.items()
        ]

    def test_failures_that_gather_at_a_node(self):
        bad = {1: "n1", 2: "n1", 3: "n1", 4: "n2"}
        good = {n: "n2" for n in range(5, 15)}
        assert list(bad_nodes(self.ends(bad, good), 3)) == ["n1"]
        assert bad_nodes(self.ends(bad, good), 4) == {} == bad_nodes(self.ends(bad, good), 0)

    def test_failures_that_go_with_the_page(self):
        ends = [(p, End("FAILED", n), n) for p in (1, 2, 3) for n in ("n1", "n2")]
        assert bad_nodes([*ends, *self.ends({}, {9: "n3", 8: "n1", 7: "n2"})], 3) == {}

    def test_a_task_that_fails_everywhere(self):
        everywhere = {p: f"n{p % 3}" for p in range(30)}
        assert bad_nodes(self.ends(everywhere, {}), 3) == {}

    def test_a_node_that_mostly_does_well(self):
        good = {n: f"n{1 + n % 2}" for n in range(10, 60)}
        assert bad_nodes(self.ends({1: "n1", 2: "n1", 3: "n1"}, good), 3) == {}

    def test_what_the_memory_or_the_time_ended_is_no_nodes_fault(self):
        ends = [(p, End("TIMEOUT", "n1"), "n1") for p in range(9)]
        assert bad_nodes([*ends, (20, None, "n2")], 3) == {}

    def test_a_node_that_gets_all_elements_because_they_die_there_at_once(self):
        ends = self.ends(dict.fromkeys(range(1, 5), "n1"), {})
        assert list(bad_nodes(ends, 3, never_claimed={1, 2, 3, 4})) == ["n1"]
        # A row or the task may be the cause.
        assert bad_nodes(ends, 3, never_claimed={1, 2, 3}) == {}
        both = [*ends, *((page, end, "n2") for page, end, _ in ends)]
        assert bad_nodes(both, 3, never_claimed={1, 2, 3, 4}) == {}

    @pytest.mark.parametrize(
        ("own", "excluded"), [("n[1-2]", ()), ("n1", ("n3",)), (None, ("n3",))]
    )
    def test_only_nodes_that_are_there_and_never_all_that_the_profile_leaves(
        self, url, monkeypatch, own, excluded
    ):
        listed = {"n[1-2]": "n1\nn2\n", "n1": "n1\n"}
        monkeypatch.setattr(
            limits, "partition_limits", lambda _: PartitionLimits(nodes=("n1", "n2", "n3"))
        )
        monkeypatch.setattr(limits, "run", lambda args: listed[args[-1]])
        with connection():
            tomorrow = dialect().now() + timedelta(days=1)
            for node in ("n3", "n9", "n1,n2", "$(id)"):
                Exclusion.insert(node=node, reason="", until=tomorrow).execute()
        assert nodes_to_exclude(choose_profile(None, {"exclude": own})) == excluded


def test_partitions_as_slurm_writes_them():
    text = (
        "PartitionName=a Default=YES DefaultTime=02:00:00 MaxTime=1-00:00:00 Nodes=n[1-4] DefMemPerNode=100 "
        "MaxMemPerNode=UNLIMITED\nPartitionName=b Default=NO DefaultTime=NONE MaxTime=UNLIMITED "
        "DefMemPerCPU=50 MaxMemPerNode=4000 TRES=cpu=16,mem=62.50G"
    )
    a, b = parse_partitions(text)
    assert (a.max_time_s, a.max_mem_mb, a.default_mem_mb, a.is_default) == (86400, None, 100, True)
    assert (b.max_time_s, b.max_mem_mb, b.default_mem_mb, b.is_default) == (None, 4000, 50, False)
    assert (a.default_time_s, b.default_time_s) == (7200, None)
    (only_max,) = parse_partitions("PartitionName=c DefaultTime=NONE MaxTime=00:30:00")
    assert only_max.default_time_s == 1800


class TestConfiguration:
    def load(self, tmp_path, text):
        (tmp_path / "astra.toml").write_text(text)
        use(load())
        return settings.current()

    def test_it_is_read_shown_and_stands_before_the_defaults(self, tmp_path):
        found = self.load(
            tmp_path,
            "[policy]\nexclude_after = 5\n[policy.TIMEOUT]\nretries = 1\n"
            "[profiles.big.policy.TIMEOUT]\ntime_growth = 4\n"
            "[profiles.bigger]\nextends = 'big'\n[profiles.bigger.policy.FAILED]\nretries = 0\n",
        )
        made = rules(found.rules, get("bigger", found).policy)
        assert (made["TIMEOUT"].retries, made["TIMEOUT"].time_growth) == (1, 4)
        assert made["FAILED"].retries == 0 and made["NODE_FAIL"] == RULES["NODE_FAIL"]
        shown = {key: value for key, value, _ in found.rows()}
        assert shown["policy.TIMEOUT.retries"] == "1" and shown["policy.exclude_after"] == "5"

    @pytest.mark.parametrize(
        "text, words",
        [
            ("[policy.TIMOUT]\nretries = 1", ["TIMOUT", "'TIMEOUT'"]),
            ("[policy.TIMEOUT]\nretry = 1", ["[policy.TIMEOUT] retry:", "'retries'"]),
            ("[policy.TIMEOUT]\nretries = -1", ["from 0"]),
            ("[policy.TIMEOUT]\nretries = true", ["whole number"]),
            ("[policy.TIMEOUT]\ntime_growth = 0.5", ["from 1 to 100"]),
            ("[policy.OUT_OF_MEMORY]\nmax_mem = 'much'", ['such as "64G"']),
            ("[policy.TIMEOUT]\nmax_time = '2h'", ["time limit"]),
            ("[policy]\nTIMEOUT = 3", ["TIMEOUT"]),
            ("[policy]\nexclude_aftr = 3", ["'exclude_after'"]),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, text, words):
        with pytest.raises(ConfigError) as caught:
            self.load(tmp_path, text)
        assert all(word in str(caught.value) for word in [*words, "astra.toml"])

    def test_in_a_profile_too(self, tmp_path):
        found = self.load(tmp_path, "[profiles.x.policy.TIMEOUT]\nretrys = 1")
        with pytest.raises(ConfigError, match=r"\[profiles.x.policy.TIMEOUT\] retrys.*'retries'"):
            get("x", found)


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

    def test_a_node_where_failures_gather_is_left_out(self, slurm):
        fill(32)
        (planned,) = create_plan(hungry, BossVisitSpectrum, limit=2, arguments={"die_on": "n1"})
        plan = planned.plan
        # One page for each element: those that pull would leave the node few to kill.
        submit(plan, options={"cpus_per_task": 8, "pages_per_element": 1})
        run_out(slurm)
        lost = status(plan).pages["lost"]
        assert lost >= 3
        made = resume(plan)
        script = Path(made.jobs[0].script).read_text()
        assert made.pages == lost and "--exclude=n1\n" in script and "--cpus-per-task=8" in script
        assert any("node n1 is excluded until" in note for note in status(plan).notes)
        run_out(slurm)
        assert status(plan).state == "whole" and resume(plan).pages == 0
        # It expires, and a node that Slurm does not know is never named.
        Exclusion.update(until=Exclusion.since).execute()
        with connection():
            tomorrow = dialect().now() + timedelta(days=1)
            Exclusion.insert(node="elsewhere", reason="", until=tomorrow).execute()
        fill(2)
        (more,) = create_plan(hungry, BossVisitSpectrum)
        assert "--exclude" not in submit(more.plan, dry_run=True).jobs[0].text

    def test_retries_end_and_are_taken_again_on_purpose(self, slurm, tmp_path):
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
        made = step("TIMEOUT", used=submission.options, allowed=partition_limits("short"))
        assert not made.retry and "time 00:05:00 was not enough" in made.explanation
        several = choose_profile(None, {**options, "partition": "short,debug"})
        assert default_time(several) is None
