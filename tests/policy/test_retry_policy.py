"""How often, and with how much more memory or time, a page is submitted again."""

import json
from datetime import timedelta
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra.config import settings
from astra.config.profiles import choose_profile
from astra.config.retry_rules import RULES, rules
from astra.config.settings import use
from astra.config.units import size_mb
from astra.database.connection import connection, dialect
from astra.errors import SlurmError
from astra.models.attempts import Exclusion
from astra.models.plans import Page, Submission
from astra.policy import next_steps, retry_policy
from astra.policy.retry_policy import End, bad_nodes, end_of, next_step
from astra.slurm import limits
from astra.slurm.limits import PartitionLimits
from astra.states import PageState
from astra.submit.intent import _describe
from astra.submit.submit import nodes_to_exclude


def step(
    state,
    earlier=(),
    base=None,
    used=None,
    allowed=None,
    no_row_ended=True,
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
            lambda partition, _: limits_of[partition], False,
        )  # fmt: skip
        assert made.options == (("time", "01:00:00"),)

    def test_the_time_that_a_partition_gives_is_not_kept_in_another(self):
        short = choose_profile(None, {"partition": "short", "time": False})
        used = json.dumps(_describe(short, "00:05:00"))
        made = {
            partition: next_steps._decide(
                End("TIMEOUT"), Page(), choose_profile(None, {"partition": partition, "time": False}),
                Submission(profile=used), lambda *_: PartitionLimits(), False,
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

    def test_memory_per_cpu_grows_without_the_limit_of_a_node(self):
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
        assert step("OUT_OF_MEMORY", used=had, allowed=at, no_row_ended=False).retry
        assert step("OUT_OF_MEMORY", used=had, allowed=at, on_request=True).retry

    @pytest.mark.parametrize("state", RULES)
    def test_retries_end_unless_rows_end(self, state):
        most = RULES[state].retries
        assert step(state, [state] * (most - 1)).retry
        assert step(state, [state] * most).retry is (state == "PREEMPTED")
        assert step(state, ["TIMEOUT" if state != "TIMEOUT" else "FAILED"] * 9).retry
        assert step(state, [state] * most, no_row_ended=False).retry
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
        ("interrupted", "ABSENT", None, "TIMEOUT"),
        ("interrupted", None, None, "TIMEOUT"),
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


class TestNodes:
    def ends(self, bad: dict[int, str], good: dict[int, str]):
        return [(p, End("FAILED", n), n) for p, n in bad.items()] + [
            (p, None, n) for p, n in good.items()
        ]

    def test_failures_that_gather_at_a_node_exclude_it(self):
        bad = {1: "n1", 2: "n1", 3: "n1", 4: "n2"}
        good = {n: "n2" for n in range(5, 15)}
        assert list(bad_nodes(self.ends(bad, good), 3)) == ["n1"]
        assert bad_nodes(self.ends(bad, good), 4) == {} == bad_nodes(self.ends(bad, good), 0)

    def test_nodes_of_two_clusters_may_share_their_names(self):
        bad = dict.fromkeys((1, 2, 3), ("here", "n1"))
        good = dict.fromkeys(range(5, 15), ("there", "n1"))
        assert list(bad_nodes(self.ends(bad, good), 3)) == [("here", "n1")]

    def test_failures_that_follow_a_page_exclude_no_node(self):
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
            limits, "partition_limits", lambda *_: PartitionLimits(nodes=("n1", "n2", "n3"))
        )
        monkeypatch.setattr(limits, "run", lambda args: listed[args[-1]])
        monkeypatch.setattr(limits, "this_cluster", lambda: "here")
        with connection():
            tomorrow = dialect().now() + timedelta(days=1)
            for node in ("n3", "n9", "n1,n2", "$(id)"):
                Exclusion.insert(cluster="here", node=node, reason="", until=tomorrow).execute()
        assert nodes_to_exclude(choose_profile(None, {"exclude": own})) == excluded
        monkeypatch.setattr(limits, "partition_limits", Mock(side_effect=SlurmError("no answer")))
        assert nodes_to_exclude(choose_profile(None, {})) == ()
