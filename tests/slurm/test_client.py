"""Slurm's commands: what a refusal and a missing answer mean, and the real cluster."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from astra.config import settings
from astra.config.profiles import choose_profile
from astra.errors import SlurmError, SlurmRefused, SlurmUnknown
from astra.slurm import client, command, limits, parse
from astra.slurm.parse import parse_submission
from astra.slurm.refusals import refusal
from astra.slurm.script import directive
from astra.states import SlurmState as S
from astra.submit import intent
from tests.servers import Slurm, shifted_clock, wait_for


@pytest.fixture(autouse=True)
def quick() -> None:
    settings.use(settings.Config(slurm=settings.Slurm(timeout_s=20, retries=0)))
    limits.configuration.cache_clear()


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
            ("Invalid feature specification", "change the profile", False),
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
            ("17\n4711\n", None),
            ("Submitted batch job\n", None),
        ],
    )
    def test_what_sbatch_prints(self, output: str, job: parse.JobId | None) -> None:
        assert parse_submission(output) == job

    def test_the_size_of_arrays_is_read_from_the_configuration(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def size(text: str) -> int:
            monkeypatch.setattr(limits, "run", lambda args: text)
            limits.configuration.cache_clear()
            return limits.max_array_size()

        text = "MaxArraySize            = 1001\nSchedulerParameters     = bf_interval=1{}\n"
        assert size(text.format("")) == 1001
        assert size(text.format(",max_array_tasks=100")) == 101
        with pytest.raises(SlurmUnknown):
            size("")
        for few in ("0", "1", "INFINITE"):
            with pytest.raises(SlurmError, match=f"no array of jobs: MaxArraySize is {few}"):
                size(text.format("").replace("1001", few))


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

    def test_a_missing_command_is_named_with_its_remedy(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(SlurmError, match="sbatch is not on PATH: load the module") as caught:
            client.submit(Path("x.sh"))
        assert not isinstance(caught.value, SlurmUnknown)
        assert not command.available()

    def test_a_machine_without_slurms_configuration_is_recognised(self, commands: Commands) -> None:
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
        ("squeue", "n_calls", "said"),
        [("true", 2, "answer twice .*"), ("exit 1", 1, "answer .*may or may not exist: squeue.*")],
    )
    def test_a_job_of_which_nothing_is_known_is_not_submitted_a_third_time(
        self, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        squeue: str, n_calls: int, said: str,
    ) -> None:  # fmt: skip
        calls = tmp_path / "sbatches"
        commands(sbatch=f"echo x >>{calls}; exit 1", squeue=squeue, sacct="true")
        monkeypatch.setattr(intent, "_LOOK_AGAIN_S", (0,))
        script = tmp_path / "script"
        script.touch()
        with pytest.raises(SlurmUnknown, match=f"sbatch gave no clear {said}; look again$"):
            intent.submit_once(script, parse.JobId(0, name="j"), "look again", lambda jobs: jobs[0])
        assert calls.read_text() == n_calls * "x\n"

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
    def test_a_name_is_looked_for_on_the_cluster_that_may_have_taken_it(
        self, commands: Commands, tmp_path: Path, left_memory: bool
    ) -> None:
        queue = r"case $* in *-M\ b*) printf 'CLUSTER: b\n9|name|\n9|name|\n';; esac"
        accounts = r"printf '7|other\n9_[1-3]|name\n9_4|name\n'"
        commands(squeue="true" if left_memory else queue, sacct=accounts)
        assert client.find(parse.JobId(0, "b", "name")) == [parse.JobId(9, "b")]
        assert "-M b" in (tmp_path / "calls").read_text()

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

    def test_what_lags_is_unknown_if_squeue_gives_no_second_answer(
        self, commands: Commands, tmp_path: Path
    ) -> None:
        first = (
            f"mkdir {tmp_path}/asked 2>/dev/null || {{ echo 'Connection refused' >&2; exit 1; }}"
        )
        commands(squeue=first, sacct="echo '9_1|RUNNING|0:0|n1|1|5|||astra'")
        answer = client.elements([9])
        assert not answer.queue and "no second answer" in answer.notes[0]
        assert answer.of(9, 1).state is None and answer.of(9, 2).state is None

    def test_a_job_is_not_gone_of_which_nobody_says_so(self, commands: Commands) -> None:
        commands(squeue="true", sacct="exit 1", scontrol="kill -9 $$")
        answer = client.elements([parse.JobId(9, name="ours")])
        assert answer.queue and answer.of(9, 1).state is None

    def test_a_command_that_cannot_be_run_has_submitted_nothing(
        self, commands: Commands, tmp_path: Path
    ) -> None:
        commands(sbatch="")
        (tmp_path / "bin" / "sbatch").write_text("#!/nonexistent/shell\n")
        with pytest.raises(SlurmError, match="bin/sbatch cannot be run: No such file") as caught:
            client.submit(tmp_path / "x.sh")
        assert not isinstance(caught.value, SlurmUnknown)

    def test_without_an_answer_the_time_of_a_partition_is_unknown(
        self, commands: Commands, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "available", lambda: True)
        commands(scontrol="exit 1")
        assert limits.default_time(replace(choose_profile(None, None), options={})) is None

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
        commands(scancel=gone, squeue="echo '8_1|RUNNING|0|n1|None|astra-1-x||'")
        client.cancel(parse.JobId(9))
        client.cancel(parse.JobId(8, name="astra-1-x"))
        client.cancel(parse.JobId(8), [3, 4, 7])
        client.cancel(parse.JobId(5, "big"), waiting_only=True)
        calls = [line.split("/bin/")[1] for line in (tmp_path / "calls").read_text().splitlines()]
        assert [call for call in calls if call.startswith("scancel")] == [
            "scancel 9",
            "scancel 8",
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
            ("--constraint=nope", "change the profile"),
            ("--no-such-option", "change the profile"),
        ):
            with pytest.raises(SlurmRefused, match=words) as caught:
                client.submit(file, [option])
            assert not caught.value.limit, option
        with pytest.raises(SlurmRefused, match="DOS line breaks"):
            (tmp_path / "dos.sh").write_bytes(b"#!/bin/bash\r\ntrue\r\n")
            client.submit(tmp_path / "dos.sh")

    def test_a_refusal_at_the_limit_of_submitted_jobs_is_recognised(
        self, real: None, tmp_path: Path
    ) -> None:
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

    def test_a_machine_whose_clock_is_behind_knows_the_ends_of_jobs(
        self, real: None, tmp_path: Path, monkeypatch
    ) -> None:
        job = client.submit(script(tmp_path, "exit 3", "--array=1"))
        key = job.job_id, 1
        booked = lambda: client._sacct([job.job_id], {}, None, 0).get(key)  # noqa: E731
        wait_for(lambda: (end := booked()) and end.state is S.FAILED, "the accounting", 60)
        for name, value in shifted_clock(-1).items():
            monkeypatch.setenv(name, value)
        assert (end := booked()) is not None and end.exit_code == 3

    def test_elements_of_a_mixed_array_each_have_their_state(
        self, real: None, tmp_path: Path
    ) -> None:
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
