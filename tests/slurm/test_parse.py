"""What the text of Slurm's commands means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra.errors import SlurmUnknown
from astra.slurm import parse
from astra.slurm.limits import parse_partitions
from astra.slurm.parse import expand, merge_answers, parse_sacct, parse_squeue
from astra.slurm.script import array_spec
from astra.states import SlurmState as S

# What Slurm 22.05 printed for an array of eight: whole, status 3, killed by signal 9, requeued,
# killed by signal 15, cancelled, running, and one that kept the array's own job id.
SQUEUE = """\
30_1|COMPLETED|0|n1|None|astra|
30_5|FAILED|15|n3|JobLaunchFailure|astra|
30_3|FAILED|9|n2|JobLaunchFailure|astra|
30_2|FAILED|768|n1|NonZeroExitCode|astra|
30_8|CANCELLED|15|n1|None|astra|
30_4|PENDING|0||BeginTime|astra|
30_7|RUNNING|0|n2|None|astra|
"""

SACCT = """\
30_1|COMPLETED|0:0|n1|None|astra
30_2|FAILED|3:0|n1|None|astra
30_3|FAILED|0:9|n2|None|astra
30_4|REQUEUED|0:0|n2|None|astra
30_6|CANCELLED by 0|0:0|n3|None|astra
30_7|RUNNING|0:0|n2|JobArrayTaskLimit|astra
30_8|CANCELLED by 0|0:0|n1|JobArrayTaskLimit|astra
30_4|PENDING|0:0|None assigned|BeginTime|astra
38_[2-5%2]|CANCELLED by 0|0:0|None assigned|JobHeldUser|astra
"""


class TestSqueue:
    def test_states_and_ends(self) -> None:
        found = parse_squeue(SQUEUE)
        assert {key[1]: (e.state, e.exit_code, e.signal) for key, e in found.items()} == {
            1: (S.COMPLETED, 0, None),
            2: (S.FAILED, 3, None),
            3: (S.FAILED, 0, 9),
            4: (S.PENDING, None, None),
            5: (S.FAILED, 0, 15),
            7: (S.RUNNING, None, None),
            8: (S.CANCELLED, 0, 15),
        }

    def test_a_waiting_element_has_a_reason_and_a_running_one_a_node(self) -> None:
        found = parse_squeue(SQUEUE)
        assert (found[30, 4].reason, found[30, 4].node) == ("BeginTime", None)
        assert (found[30, 7].reason, found[30, 7].node) == (None, "n2")

    def test_a_running_element_waits_for_nothing_and_a_suspended_one_says_so(self) -> None:
        states = parse_squeue(
            "1_1|RUNNING|0|n1|JobHeldAdmin|a|\n1_2|SUSPENDED|0|n1|None|a|\n1_3|PENDING|0||JobHeldUser|a|"
        )
        found = [(states[1, n].state, states[1, n].reason) for n in (1, 2, 3)]
        assert found == [
            (S.RUNNING, None), (S.RUNNING, "SUSPENDED"), (S.PENDING, "JobHeldUser")
        ]  # fmt: skip

    def test_an_element_whose_node_is_switched_on_has_not_begun(self) -> None:
        """It runs nothing for minutes, and is requeued if its node does not come up."""
        found = parse_squeue("1_1|CONFIGURING|0|c1|None|a|")[1, 1]
        assert (found.state, found.node, found.reason) == (S.PENDING, "c1", "CONFIGURING")

    def test_output_that_cannot_be_parsed_is_no_answer(self) -> None:
        text = "30_1|POWER_UP_NODE|0|n1|None|astra|"
        found = parse_squeue(text + "\n" + SQUEUE.splitlines()[-1])
        assert found[30, 1].state is None and "POWER_UP_NODE" in str(found[30, 1].reason)
        assert found[30, 7].state is S.RUNNING  # what is understood of the answer counts
        booked = parse_sacct("9_1|DREAMING|0:0|n1||astra\n9_2|COMPLETED|0:0|n1||astra\n")
        assert (booked[9, 1].state, booked[9, 2].state) == (None, S.COMPLETED)
        with pytest.raises(SlurmUnknown, match="columns"):
            parse_squeue("slurm is being updated today")
        assert parse_squeue("\nCLUSTER: test\n") == {}


class TestSacct:
    def test_the_last_execution_counts_and_brackets_are_expanded(self) -> None:
        found = parse_sacct(SACCT)
        assert found[30, 4].state is S.PENDING
        assert {i for job, i in found if job == 38} == {2, 3, 4, 5}
        assert found[38, 3].state is S.CANCELLED and found[38, 3].node is None
        assert (found[30, 3].exit_code, found[30, 3].signal) == (0, 9)
        assert (found[30, 2].exit_code, found[30, 2].reason) == (3, None)

    def test_an_entry_of_its_own_beats_the_brackets(self) -> None:
        later = "9_2|RUNNING|0:0|n1||astra\n9_[1-2]|PENDING|0:0|None assigned||astra\n"
        found = parse_sacct(later)
        assert (found[9, 1].state, found[9, 2].state) == (S.PENDING, S.RUNNING)

    @pytest.mark.parametrize("word", ["OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "PREEMPTED"])
    def test_an_end_is_a_state_with_its_signal(self, word: str) -> None:
        found = parse_sacct(f"9_1|{word}|0:125|n1||astra\n")
        assert found[9, 1].state is S(word) and found[9, 1].signal == 125

    @given(st.sets(st.integers(0, 500), min_size=1), st.none() | st.integers(1, 9))
    def test_brackets_name_what_was_asked_for(self, indices: set[int], most: int | None) -> None:
        assert expand(f"7_[{array_spec(indices, most)}]") == [(7, i) for i in sorted(indices)]

    @pytest.mark.parametrize("job", ["7", "7+0"])
    def test_a_job_without_elements_has_none(self, job: str) -> None:
        assert expand(job) == [(7, None)]

    @pytest.mark.parametrize("job", ["", "x", "7_[1-3...]", "7_", "7_[1,]x"])
    def test_a_job_that_is_not_understood_is_no_answer(self, job: str) -> None:
        with pytest.raises(SlurmUnknown):
            expand(job)


class TestTogether:
    def test_squeue_decides_and_sacct_adds(self) -> None:
        answer = merge_answers(parse_squeue(SQUEUE), parse_sacct(SACCT))
        assert answer.of(30, 4).state is S.PENDING
        assert answer.of(30, 6).state is S.CANCELLED
        assert answer.of(30, 99).state is S.ABSENT
        assert answer.of(30, 2).reason == "NonZeroExitCode"

    def test_squeues_exit_code_counts(self) -> None:
        # sacct showed `exit 143` as 15:0, squeue as 36608.
        live = parse_squeue("9_1|FAILED|36608|n1|NonZeroExitCode|astra|")
        booked = parse_sacct("9_1|FAILED|15:0|n1|None|astra\n")
        assert merge_answers(live, booked).of(9, 1).exit_code == 143

    def test_alive_in_accounting_alone_is_absent(self) -> None:
        found = merge_answers({}, parse_sacct("9_1|RUNNING|0:0|n1||astra\n")).of(9, 1)
        assert found.state is S.ABSENT and "sacct calls it RUNNING" in str(found.reason)

    def test_an_array_that_accounting_does_not_tell_apart_yet(self) -> None:
        answer = merge_answers({}, parse_sacct("9|PENDING|0:0|||astra\n"))
        assert answer.of(9, 1).state is S.ABSENT

    def test_no_answer_is_never_absent(self) -> None:
        assert parse.Answer(queue=False).of(1, 1).state is None
        assert parse.Answer(accounting=False).of(1, 1).state is None
        assert parse.Answer().of(1, 1).state is S.ABSENT


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
