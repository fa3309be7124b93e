"""Slurm's edge: what its words mean, what no answer means, and the real cluster's own words."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra.config import settings
from astra.errors import SlurmError, SlurmRefused, SlurmUnknown
from astra.slurm import client, command, limits, parse
from astra.slurm.limits import parse_max_array_size
from astra.slurm.parse import expand, merge_answers, parse_sacct, parse_squeue, parse_submission
from astra.slurm.refusals import refusal
from astra.slurm.script import array_spec, directive
from astra.states import SlurmState as S
from tests.servers import Slurm, wait_for

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


@pytest.fixture(autouse=True)
def quick() -> None:
    settings.use(settings.Config(slurm=settings.Slurm(timeout_s=20, retries=0)))
    limits.configuration.cache_clear()


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

    def test_alive_in_accounting_alone_is_unknown(self) -> None:
        found = merge_answers({}, parse_sacct("9_1|RUNNING|0:0|n1||astra\n")).of(9, 1)
        assert found.state is None and "sacct calls it RUNNING" in str(found.reason)

    def test_an_array_that_accounting_does_not_tell_apart_yet(self) -> None:
        answer = merge_answers({}, parse_sacct("9|PENDING|0:0|||astra\n"))
        assert answer.of(9, 1).state is None

    def test_no_answer_is_never_absent(self) -> None:
        assert parse.Answer(queue=False).of(1, 1).state is None
        assert parse.Answer(accounting=False).of(1, 1).state is None
        assert parse.Answer().of(1, 1).state is S.ABSENT


class TestRefusals:
    @pytest.mark.parametrize(
        "words, advice, limit",
        [
            (
                "invalid partition specified: nope; Invalid partition name specified",
                "sinfo -s",
                False,
            ),
            ("Invalid account or account/partition combination specified", "show assoc", False),
            ("Invalid qos specification", "format=account,qos", False),
            ("Invalid job array specification", "MaxArraySize", False),
            (
                "Requested time limit is invalid (missing or exceeds some limit)",
                "time within",
                False,
            ),
            ("Requested node configuration is not available", "sinfo -Nel", False),
            ("More processors requested than permitted", "sinfo -Nel", False),
            ("Invalid --mail-type specification", "change mail_type", False),
            ("Invalid feature specification", "constraint", False),
            ("unrecognized option '--foo=1'", "version of Slurm", False),
            ("AssocMaxSubmitJobLimit; Job violates accounting/QOS policy (job", "ended", True),
            ("QOSMaxSubmitJobPerUserLimit; Job violates accounting/QOS policy", "ended", True),
            ("QOSGrpSubmitJobsLimit; Job violates accounting/QOS policy", "ended", True),
            ("QOSMaxWallDurationPerJobLimit; Job violates accounting/QOS policy", "qos", False),
            ("Job violates accounting/QOS policy (job submit limit, user's size", "ended", True),
            ("Resource temporarily unavailable", "ended", True),
            ("Batch script is empty!", "profile or its template", False),
        ],
    )
    def test_each_refusal_has_a_remedy(self, words: str, advice: str, limit: bool) -> None:
        found = refusal("Batch job submission failed: " + words)
        assert words in str(found) and advice in str(found)
        assert found.limit is limit and found.exit_status == 6 and not found.closed

    @pytest.mark.parametrize(
        "output, job",
        [
            ("17\n", parse.JobId(17)),
            ("17;big\n", parse.JobId(17, "big")),
            ("Welcome!\nbalance 300\n17\n", parse.JobId(17)),
            ("", None),
            ("Submitted batch job\n", None),
        ],
    )
    def test_what_sbatch_prints(self, output: str, job: parse.JobId | None) -> None:
        assert parse_submission(output) == job

    def test_the_size_of_arrays(self) -> None:
        text = "MaxArraySize            = 1001\nSchedulerParameters     = bf_interval=1{}\n"
        assert parse_max_array_size(text.format("")) == 1001
        assert parse_max_array_size(text.format(",max_array_tasks=100")) == 101
        with pytest.raises(SlurmUnknown):
            parse_max_array_size("")


Commands = Callable[..., None]


class TestNoAnswer:
    """Faults that a real cluster does not make to order."""

    @pytest.mark.parametrize(
        "script, words",
        [
            ("echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv "
             "operation' >&2; exit 1", "Socket timed out"),
            ("echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller "
             "(connect failure)' >&2; exit 1", "Unable to contact"),
            ("echo 'sbatch: error: Batch job submission failed: Zero Bytes were transmitted or "
             "received' >&2; exit 1", "Zero Bytes"),
            ("exit 0", "no job id"),
            ("echo hello", "no job id"),
            ("exit 1", "without a message"),
            ("kill -9 $$", "killed by signal 9"),
        ],
    )  # fmt: skip
    def test_it_is_not_known_whether_the_job_exists(
        self, commands: Commands, script: str, words: str, tmp_path: Path
    ) -> None:
        commands(sbatch=script)
        with pytest.raises(SlurmUnknown, match=words):
            client.submit(tmp_path / "x.sh")
        assert len((tmp_path / "calls").read_text().splitlines()) == 1  # never sent again

    def test_a_plugin_of_the_site_refuses_in_any_words(self, commands: Commands) -> None:
        commands(
            sbatch="echo 'sbatch: error: No hours are left; please try again in January' >&2\n"
            "echo 'sbatch: error: Batch job submission failed: Unspecified error' >&2; exit 1"
        )
        with pytest.raises(SlurmRefused, match="refused: No hours are left; please try again"):
            client.submit(Path("x.sh"))

    def test_a_late_answer_and_what_was_said_before(
        self, commands: Commands, tmp_path: Path, time_after_words: None
    ) -> None:
        settings.use(settings.Config(slurm=settings.Slurm(timeout_s=0.5)))
        full = "echo 'sbatch: error: Slurm temporarily unable to accept job' >&2"
        late = f"{full}; touch {tmp_path}/spoke.$$; exec sleep 600"
        commands(sbatch=late)
        with pytest.raises(SlurmUnknown, match=r"within 0.5 s.*temporarily unable"):
            client.submit(Path("x.sh"))

    def test_a_job_that_was_made_counts_whatever_else_is_said(self, commands: Commands) -> None:
        commands(sbatch="echo '17;big'; echo 'spank: a plugin failed' >&2; exit 1")
        assert client.submit(Path("x.sh")) == parse.JobId(17, "big")

    def test_a_missing_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(SlurmError, match="sbatch is not on PATH: load the module") as caught:
            client.submit(Path("x.sh"))
        assert not isinstance(caught.value, SlurmUnknown)
        assert not command.available()

    def test_a_machine_without_slurms_configuration(self, commands: Commands) -> None:
        commands(
            squeue="echo 'squeue: fatal: Could not establish a configuration source' >&2; exit 1"
        )
        with pytest.raises(SlurmError, match="configuration source; work on a login node, or set"):
            command.run(["squeue"])

    def test_queries_are_repeated(
        self,
        commands: Commands,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(command, "time", SimpleNamespace(sleep=pauses.append))
        settings.use(settings.Config(slurm=settings.Slurm(retries=2)))
        commands(
            squeue=f"[ $(grep -c squeue {tmp_path}/calls) -ge 3 ] || "
            "{ echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1; }\n"
            "echo '17|name|test|'"
        )
        assert client.find(parse.JobId(0, name="name")) == [parse.JobId(17)]
        assert len(pauses) == 2 and 0.25 <= pauses[0] <= 0.75 and 0.5 <= pauses[1] <= 1.5
        assert [r.message.partition("; ")[2] for r in caplog.records] == [
            "trying again, 1 of 2",
            "trying again, 2 of 2",
        ], "whoever waits sees why"

    def test_nothing_of_a_surrounding_job_leaks(
        self, commands: Commands, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SQUEUE_FORMAT", "SLURM_CLUSTERS"):
            monkeypatch.setenv(name, "inherited")
        monkeypatch.setenv("SLURM_CONF", "/kept")
        commands(squeue="env", sbatch="env")
        seen = command.run(["squeue"])
        assert "inherited" not in seen
        assert "SLURM_CONF=/kept" in seen and "LC_ALL=C" in seen and "SLURM_BITSTR_LEN=0" in seen
        # sbatch hands its environment on to the job: it gets the caller's own.
        assert "SLURM_BITSTR_LEN" not in command.run(["sbatch"])

    def test_squeue_down_leaves_everything_unknown(
        self, commands: Commands, tmp_path: Path
    ) -> None:
        commands(
            squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
            sacct="echo '9_1|COMPLETED|0:0|n1||astra'",
        )
        answer = client.elements([9])
        assert not answer.queue and answer.of(9, 1).state is None
        assert "nothing is known" in answer.notes[0]
        with pytest.raises(SlurmUnknown):
            client.find(parse.JobId(0, name="name"))

    @pytest.mark.parametrize(
        "sacct",
        [
            "echo 'Slurm accounting storage is disabled' >&2; exit 1",
            "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1",
        ],
    )
    def test_without_accounting_what_squeue_forgot_is_unknown(
        self, commands: Commands, sacct: str
    ) -> None:
        commands(squeue="echo '9_1|RUNNING|0|n1|None|astra|'", sacct=sacct)
        answer = client.elements([9])
        assert answer.queue and not answer.accounting and "sacct" in answer.notes[0]
        assert answer.of(9, 1).state is S.RUNNING
        assert answer.of(9, 2).state is None
        commands(squeue="true")
        assert client.find(parse.JobId(0, name="name")) == []

    def test_a_job_in_a_hidden_partition_is_found(self, commands: Commands) -> None:
        """squeue shows it with -a, or by its number (tried on 22.05)."""
        shown = "case \" $* \" in *' -a '*|*' -j '*) echo '7|name|here|';; esac"
        commands(squeue=shown, sacct="exit 1")
        assert client.find(parse.JobId(0, name="name")) == [parse.JobId(7)]

    @pytest.mark.parametrize("left_memory", [False, True])
    def test_a_name_is_looked_for_on_every_cluster_that_may_have_taken_it(
        self, commands: Commands, tmp_path: Path, left_memory: bool
    ) -> None:
        queue = r"case $* in *-M\ b) printf 'CLUSTER: b\n9|name|b|\n9|name|b|\n';; *) echo '7|other|a|';; esac"
        accounts = r"printf '7|other|a\n9_[1-3]|name|b\n9_4|name|b\n'"
        commands(squeue="true" if left_memory else queue, sacct=accounts)
        assert client.find(parse.JobId(0, "a,b", "name")) == [parse.JobId(9, "b")]
        assert "-M b" in (tmp_path / "calls").read_text()

    def test_a_cluster_that_does_not_answer_may_have_taken_the_job(
        self, commands: Commands
    ) -> None:
        """squeue leaves it out of a list of clusters, without a word, and exits with 0."""
        gone = "squeue: error: 'b' can't be reached now, or it is an invalid entry for --cluster."
        commands(squeue=f'case $* in *-M\\ b) echo "{gone}" >&2; exit 1;; esac', sacct="true")
        with pytest.raises(SlurmUnknown, match="can't be reached now"):
            client.find(parse.JobId(0, "a,b", "name"))

    def test_an_id_that_left_memory_is_an_answer(self, commands: Commands) -> None:
        gone = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
        commands(squeue=gone, sacct="true")
        answer = client.elements([9])
        assert answer.queue and answer.of(9, 1).state is S.ABSENT

    def test_accounting_that_lags_makes_squeue_be_asked_again(
        self, commands: Commands, tmp_path: Path
    ) -> None:
        commands(squeue="true", sacct="echo '9_1|RUNNING|0:0|n1|1|5|||astra'")
        assert client.elements([9]).of(9, 1).state is None
        calls = (tmp_path / "calls").read_text()
        assert calls.count("squeue ") == 2 and calls.count("sacct ") == 1

    def test_one_call_each_for_many_jobs_and_more_where_the_line_is_too_long(
        self, commands: Commands, tmp_path: Path
    ) -> None:
        commands(squeue="true", sacct="true")
        client.elements(range(1, 2001))
        assert len((tmp_path / "calls").read_text().splitlines()) == 2
        client.elements(range(10**9, 10**9 + 20_000))
        assert len((tmp_path / "calls").read_text().splitlines()) == 2 + 6

    def test_each_cluster_is_asked_by_name(self, commands: Commands, tmp_path: Path) -> None:
        commands(squeue="true", sacct="true")
        client.elements([1, parse.JobId(2, "big"), parse.JobId(3, "big")])
        calls = (tmp_path / "calls").read_text().splitlines()
        assert [("-M big" in c, "-j 2,3" in c) for c in calls] == [(False, False)] * 2 + [
            (True, True)
        ] * 2

    def test_cancelling_an_ended_job_is_no_error(self, commands: Commands, tmp_path: Path) -> None:
        gone = "echo 'scancel: error: Kill job error on job id 9: Invalid job id specified' >&2; exit 1"
        commands(scancel=gone)
        client.cancel(parse.JobId(9))
        client.cancel(parse.JobId(8, name="astra-1-x"))
        client.cancel(parse.JobId(8), [3, 4, 7])
        client.cancel(parse.JobId(5, "big"), waiting_only=True)
        calls = [line.split("/bin/")[1] for line in (tmp_path / "calls").read_text().splitlines()]
        assert calls == [
            "scancel 9",
            "scancel --name astra-1-x 8",
            "scancel 8_[3-4,7]",
            "scancel -M big --state=PENDING 5",
        ]
        denied = "echo 'scancel: error: Access/permission denied' >&2; exit 1"
        commands(scancel=denied)
        with pytest.raises(SlurmError, match="permission"):
            client.cancel(parse.JobId(9))

    def test_a_configuration_that_is_missing_is_not_waited_for(
        self, commands: Commands, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commands(sbatch="true")
        monkeypatch.setenv("SLURM_CONF", "/no/such/slurm.conf")
        assert not command.available()


# ----------------------------------------------------------------------------- the real cluster


@pytest.fixture
def real(cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))


def script(folder: Path, body: str, *options: str) -> Path:
    file = folder / "script.sh"
    lines = "\n".join(f"#SBATCH {option}" for option in ("--output=/dev/null", *options))
    file.write_text(f"#!/bin/bash\n{lines}\n{body}\n")
    return file


@pytest.mark.slurm
class TestReal:
    def test_a_cluster_is_available_and_says_its_limits(self, real: None) -> None:
        assert command.available()
        assert limits.max_array_size() > 1

    def test_a_refusal_says_what_to_do(self, real: None, tmp_path: Path) -> None:
        file = script(tmp_path, "true", "--hold")
        for option, words in (
            ("--partition=nope", "sinfo -s"),
            ("--account=nope", "sacctmgr show assoc"),
            (f"--array=1-{limits.max_array_size()}", "MaxArraySize"),
            ("--mem=8X", "change mem"),
            ("--constraint=nope", "constraint"),
            ("--no-such-option", "version of Slurm"),
        ):
            with pytest.raises(SlurmRefused, match=words) as caught:
                client.submit(file, [option])
            assert not caught.value.limit, option
        with pytest.raises(SlurmRefused, match="DOS line breaks"):
            (tmp_path / "dos.sh").write_bytes(b"#!/bin/bash\r\ntrue\r\n")
            client.submit(tmp_path / "dos.sh")

    def test_the_limit_of_submitted_jobs(self, real: None, tmp_path: Path) -> None:
        def set_limit(most: int) -> None:
            words = f"-i modify user root where account=sdss set MaxSubmitJobs={most}"
            command.run(["sacctmgr", *words.split()])

        set_limit(3)
        try:
            with pytest.raises(SlurmRefused, match="SubmitJob") as caught:
                client.submit(script(tmp_path, "true", "--hold"), ["--array=1-9", "--account=sdss"])
            assert caught.value.limit
        finally:
            set_limit(-1)

    def test_found_by_its_exact_name(self, real: None, tmp_path: Path) -> None:
        name = f"astra-test-{time.time_ns()}"
        file = script(tmp_path, "sleep 60", "--array=1-3", "--hold")
        job = client.submit(file, [f"--job-name={name}"])
        client.submit(file, [f"--job-name={name}x"])
        assert client.find(parse.JobId(0, name=name)) == [job]
        assert client.find(parse.JobId(0, "test", name)) == [parse.JobId(job.job_id, "test")]
        assert client.find(parse.JobId(0, name=name + "y")) == []
        for one in (job, *client.find(parse.JobId(0, name=name + "x"))):
            client.cancel(one)
        assert client.find(parse.JobId(0, name=name)) == [job]

    def test_elements_of_a_mixed_array(self, real: None, tmp_path: Path) -> None:
        body = "case $SLURM_ARRAY_TASK_ID in 1) exit 0;; 2) exit 3;; 3) kill -9 $$;; *) sleep 99;; esac"
        job = client.submit(script(tmp_path, body, "--array=1-8%5"))
        states = lambda: {i: client.elements([job]).of(job.job_id, i).state for i in range(1, 9)}  # noqa: E731
        wait_for(lambda: states()[4] is S.RUNNING and states()[3] is S.FAILED, "the ends", 60)
        command.run(["scontrol", "requeue", f"{job.job_id}_4"])
        client.cancel(job, [7, 8, 5])
        wait_for(lambda: states()[5] is S.CANCELLED and states()[4] is S.PENDING, "both", 60)
        answer = client.elements([job, 999_999])
        assert answer.queue and answer.accounting and not answer.notes
        found = {i: answer.of(job.job_id, i) for i in range(1, 10)}
        assert (found[1].state, found[1].exit_code) == (S.COMPLETED, 0)
        assert (found[2].state, found[2].exit_code) == (S.FAILED, 3)
        assert (found[3].state, found[3].signal) == (S.FAILED, 9)
        assert found[4].state is S.PENDING
        # Of elements that were cancelled while they waited, Slurm 24.11 may keep no record.
        assert {found[7].state, found[8].state} <= {S.CANCELLED, S.ABSENT}
        assert found[9].state is S.ABSENT
        assert answer.of(999_999, 1).state is S.ABSENT
        assert client.elements([999_999]).of(999_999, 1).state is S.ABSENT
        client.cancel(job)

    def test_sbatch_reads_directives_as_they_are_written(self, real: None, tmp_path: Path) -> None:
        for text in ("plain", "a b", 'say "a"', "it's", "back\\slash", "a #b", "$HOME `id`", "é%j"):
            file = script(tmp_path, "true", "--hold", f"--comment={directive(text)}")
            job = client.submit(file)
            shown = command.run(["squeue", "-h", "-j", str(job.job_id), "-O", "Comment:|"])
            client.cancel(job)
            assert shown.rstrip("\n") == text + "|"
