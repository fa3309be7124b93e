"""Who is who in Slurm: a job is its cluster, its number and its name, and never its number alone."""

import os
from dataclasses import replace

import pytest

from astra.config import settings
from astra.errors import SlurmError, SlurmUnknown
from astra.slurm import client, limits
from astra.slurm.parse import SACCT, JobId, never_starts, parse_sacct
from astra.states import SlurmState as S
from tests.servers import wait_for

OURS, ANOTHER = "astra-1-0123456789ab", "astra-2-ba9876543210"
RUNNING = r"echo '9_1|RUNNING|0|n1|None|%s|'"
HERE = "echo 'ClusterName             = here'; echo 'PrivateData             = %s'"


@pytest.fixture(autouse=True)
def quick() -> None:
    settings.use(settings.Config(slurm=settings.Slurm(timeout_s=20, retries=0)))
    limits.configuration.cache_clear()


def test_a_strangers_job_of_the_same_number_says_nothing_of_ours(commands):
    commands(
        squeue=RUNNING % "somebody-s|job",
        sacct="echo '9_1|COMPLETED|0:0|n1|None|stranger'",
        scontrol=HERE % "none",
    )
    job = JobId(9, name=OURS, home="here")
    answer = client.elements([job])
    assert answer.of(job.key, 1).state is S.ABSENT
    assert client.elements([JobId(9)]).of(9, 1).state is S.RUNNING  # by number alone


def test_what_the_controller_does_not_know_is_gone_whatever_the_accounting_calls_it(commands):
    """A controller that lost its state gives the number anew, and a runaway job stays booked."""
    booked = f"9_1|PENDING|0:0|None assigned|None|{OURS}\\n9_2|COMPLETED|0:0|n1|None|{OURS}\\n"
    job = JobId(9, name=OURS, home="here")
    commands(squeue=RUNNING % "stranger", sacct=f"printf '{booked}'", scontrol=HERE % "none")
    answer = client.elements([job])
    assert [answer.of(OURS, index).state for index in (1, 2)] == [S.ABSENT, S.COMPLETED]
    for scontrol, state in (
        ("echo 'Invalid job id specified' >&2; exit 1", S.ABSENT),
        (f"echo JobName={OURS}", None),  # squeue was silent, which is no proof
        ("kill -9 $$", None),
    ):
        commands(squeue="true", sacct=f"printf '{booked}'", scontrol=scontrol)
        assert client.elements([job]).of(OURS, 1).state is state


def test_two_jobs_with_one_number_are_distinguished(commands):
    booked = f"9_1|FAILED|1:0|n1|None|{OURS}\\n9_1|COMPLETED|0:0|n2|None|{ANOTHER}\\n"
    commands(squeue="true", sacct=f"printf '{booked}'")
    answer = client.elements([JobId(9, name=OURS), JobId(9, name=ANOTHER)])
    first, second = answer.of(OURS, 1), answer.of(ANOTHER, 1)
    assert (first.state, first.node) == (S.FAILED, "n1")
    assert (second.state, second.node) == (S.COMPLETED, "n2")


def test_a_job_is_absent_only_on_the_cluster_that_took_it(commands, tmp_path):
    there = 'case "$*" in *"-M there"*) %s;; esac'
    commands(squeue=there % (RUNNING % OURS), sacct="true", scontrol=HERE % "none")
    job = JobId(9, name=OURS, home="there")
    assert client.elements([job]).of(job.key, 1).state is S.RUNNING
    denied = there % "echo 'squeue: error: No cluster there known by database.' >&2; exit 1"
    commands(squeue=denied, sacct="true", scontrol=HERE % "none")
    answer = client.elements([job])
    assert answer.of(job.key, 1).state is None
    assert "login node of there" in answer.notes[-1]


def test_who_may_not_see_a_job_does_not_call_it_gone(commands, monkeypatch):
    commands(squeue="true", sacct="true", scontrol=HERE % "jobs,usage")
    theirs, free = JobId(9, name=OURS, home="here", user="operator"), "none"
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    answer = client.elements([theirs])
    assert answer.of(theirs.key, 1).state is None and "PrivateData" in answer.notes[-1]
    mine = JobId(9, name=OURS, home="here", user="12345")
    assert client.elements([mine]).of(mine.key, 1).state is S.ABSENT
    # The accounting shows them all the same. It lags, and has no entry of some elements yet.
    booked = f"echo '9_1|FAILED|1:0|n1|None|{OURS}'; echo '9_2|RUNNING|0:0|n1|None|{OURS}'"
    commands(squeue="true", sacct=booked, scontrol=HERE % "jobs")
    for job in (theirs, replace(theirs, cluster="here", home=None)):
        answer = client.elements([job])
        of = [answer.of(job.key, index) for index in (1, 2, 3)]
        assert [execution.state for execution in of] == [S.FAILED, None, None]
        assert "PrivateData" in answer.notes[-1] and of[1].reason == "sacct calls it RUNNING"
    assert client.elements([mine]).of(mine.key, 3).state is S.ABSENT
    commands(scontrol=HERE % free)
    assert client.elements([theirs]).of(theirs.key, 3).state is S.ABSENT


@pytest.mark.parametrize("indices", [(), (1, 2)])
def test_a_job_that_cannot_be_seen_is_not_called_cancelled(
    commands, monkeypatch, tmp_path, indices
):
    """scancel says that there is no such job."""
    commands(
        squeue="true", scontrol=HERE % "jobs",
        scancel="echo 'scancel: error: Kill job error on job id 9: Invalid job id specified' >&2; exit 1",
    )  # fmt: skip
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    theirs = JobId(9, name=OURS, home="here", user="operator")
    with pytest.raises(SlurmError, match=r"PrivateData.*only operator can cancel job 9"):
        client.cancel(theirs, indices)
    client.cancel(replace(theirs, user="12345"), indices)  # it has ended
    commands(squeue=f"echo '9_1|RUNNING|0|n1|None|{OURS}|'", scancel="true")
    client.cancel(theirs, indices)  # as an administrator of Slurm sees it
    assert "scancel " in (tmp_path / "calls").read_text().splitlines()[-1]


@pytest.mark.parametrize("asked", [{"cluster": "there"}, {"home": "there"}])
@pytest.mark.parametrize(
    ("there", "state"),
    [("echo ClusterName = there; echo PrivateData = jobs", None),
     ("echo ClusterName = there; echo PrivateData = none", S.ABSENT), ("exit 1", None)],
)  # fmt: skip
def test_another_cluster_too_may_hide_the_jobs_of_others(
    commands, monkeypatch, asked, there, state
):
    config = f'case "$*" in *"-M there"*) {there};; *) {HERE % "none"};; esac'
    commands(squeue="true", sacct="true", scontrol=config)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    theirs = JobId(9, name=OURS, user="operator", **asked)
    assert client.elements([theirs]).of(theirs.key, 1).state is state
    if state is S.ABSENT:
        assert client.find(JobId(0, "there", OURS, user="operator")) == []
    else:
        with pytest.raises(SlurmError):
            client.find(JobId(0, "there", OURS, user="operator"))
    mine = JobId(9, name=OURS, user="12345", **asked)
    assert client.elements([mine]).of(mine.key, 1).state is S.ABSENT


def test_where_it_is_not_known_which_cluster_this_is_nothing_is_gone(commands):
    commands(squeue="true", sacct="true", scontrol="exit 1")
    job = JobId(9, name=OURS, home="here")
    answer = client.elements([job])
    assert answer.of(job.key, 1).state is None and "the cluster of this machine" in answer.notes[-1]


def test_without_accounting_another_job_of_the_number_shows_that_ours_is_gone(commands):
    show = 'case "$*" in *"show job"*) echo "JobId=9 JobName=stranger";; *) %s;; esac'
    commands(squeue="true", sacct="exit 1", scontrol=show % (HERE % "none"))
    answer = client.elements([JobId(9, name=OURS, home="here")])
    assert not answer.accounting and OURS not in answer.unsettled


def test_signs_in_reasons_and_in_names_of_others_hide_no_job_of_ours(commands):
    queued = (
        "9_1|PENDING|0||stage in|failed|%s|\\n9_2|RUNNING|0|n1|None|%s|"
        "\\n7|RUNNING|0|n1|None|of two\\n\\nlines|and more|\\n"
    )
    booked = "7|RUNNING|0:0|n1|None|of two\\nlines\\n9_3|FAILED|1:0|n1|None|%s\\n"
    commands(
        squeue=f"printf '{queued % (OURS, OURS)}'",
        sacct=f"printf '{booked % OURS}'",
        scontrol=HERE % "none",
    )
    answer = client.elements([JobId(9, name=OURS, home="here"), JobId(7, name=ANOTHER)])
    assert [answer.of(OURS, index).state for index in (1, 2, 3)] == [S.PENDING, S.RUNNING, S.FAILED]
    assert answer.of(ANOTHER, None).state is S.ABSENT
    commands(squeue="printf '9_1|RUNNING|0\\n'", sacct="true", scontrol=HERE % "none")
    assert client.elements([JobId(9, name=OURS)]).of(OURS, 1).state is None  # cut off


@pytest.mark.parametrize("accounting", ["true", "exit 1"])
def test_a_job_is_looked_for_as_a_job_of_who_submitted_it(
    commands, monkeypatch, tmp_path, accounting
):
    commands(squeue="true", sacct=accounting, scontrol=HERE % "jobs")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SlurmUnknown, match="have operator ask"):
        client.find(JobId(0, name=OURS, user="operator"))
    assert "-u operator" in (tmp_path / "calls").read_text()
    assert client.find(JobId(0, name=OURS)) == []
    commands(squeue="true", sacct="true", scontrol=HERE % "none")
    limits.configuration.cache_clear()
    assert client.find(JobId(0, name=OURS, user="operator")) == []


@pytest.mark.parametrize(
    "reason",
    [
        "job requeued in held state", "(user env retrieval failed requeued held)",
        "JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "(launch failed requeued held)",
        "SPECIAL_EXIT", "REQUEUE_HOLD", "AssocGrpCPUMinutesLimit", "QOSGrpGRESMinutes",
        "AssocGrpWallLimit", "QOSMaxNodePerJobLimit", "AssocMaxCpuPerJobLimit", "QOSMinCpuNotSatisfied",
        "QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "PartitionTimeLimit",
        "BadConstraints", "InvalidQOS", "AccountNotAllowed", "QOSMaxMemoryPerNode", "ReservationDeleted",
        "JobHeldUser,JobHeldAdmin",
    ],
)  # fmt: skip
def test_reasons_that_no_time_removes(reason):
    assert never_starts(reason)


@pytest.mark.parametrize(
    "reason",
    [
        None, "None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit",
        "AssocGrpCpuLimit", "AssocMaxJobsLimit", "QOSMaxCpuPerUserLimit", "QOSMaxJobsPerUserLimit",
        "Resources,JobHeldUser", "AssocGrpCPURunMinutesLimit", "QOSGrpNodeLimit", "ReqNodeNotAvail", "Licenses", "Reservation",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
    ],
)  # fmt: skip
def test_reasons_that_pass_do_not_need_a_person(reason):
    assert not never_starts(reason)


@pytest.mark.slurm
@pytest.mark.parametrize("name", ["astra-3-0123456789ab", "site|astra-4-0123456789ab"])
def test_a_job_that_was_renamed_is_still_ours(cluster, monkeypatch, tmp_path, name):
    """A job is known by the name of its script as well, in squeue, sacct and scancel."""
    monkeypatch.setenv("SLURM_CONF", cluster.env()["SLURM_CONF"])
    limits.configuration.cache_clear()
    own = name.removeprefix("site|")  # a prefix as job_submit/lua gives one
    script = tmp_path / f"{own}.sh"
    script.write_text(f"#!/bin/sh\n#SBATCH -o {tmp_path}/%j.log\nsleep 99\n")
    made = client.submit(script, [f"--job-name={name}", "--array=1-3"])
    if name == own:
        cluster.run("scontrol", "update", f"jobid={made.job_id}", "name=urgent")
    home = limits.this_cluster()
    ours, unknown = (JobId(made.job_id, name=name, home=home) for name in (own, ANOTHER))
    assert client.elements([ours]).of(own, 1).state.alive
    assert client.elements([unknown]).of(ANOTHER, 1).state is S.ABSENT
    assert [job.job_id for job in client.find(replace(ours, job_id=0))] == [made.job_id]
    states = lambda: [client.elements([ours]).of(own, n).state for n in (1, 2, 3)]  # noqa: E731
    # Of a waiting element that is cancelled by itself, Slurm knows nothing afterwards.
    wait_for(lambda: states() == [S.RUNNING] * 3, "the start of all elements")
    client.cancel(unknown)
    client.cancel(ours, [2])
    wait_for(lambda: states()[1] is S.CANCELLED, "the end of element 2")
    assert states()[0].alive and states()[2].alive
    client.cancel(ours)
    wait_for(lambda: states() == [S.CANCELLED] * 3, "the end of all elements")
    booked = ["sacct", "-n", "-X", "-P", "-D", "-j", str(made.job_id), "-o", ",".join(SACCT)]
    wait_for(lambda: len(parse_sacct(client.run(booked), {made.job_id: {own}})) == 3, "sacct")
    assert not parse_sacct(client.run(booked), {made.job_id: {ANOTHER}})


@pytest.mark.slurm
def test_scancel_leaves_a_stranger_of_the_number_alone(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_CONF", cluster.env()["SLURM_CONF"])
    limits.configuration.cache_clear()
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\n#SBATCH -o {tmp_path}/%j.log\nsleep 99\n")
    made = client.submit(script, [f"--job-name={ANOTHER}", "--array=1-3"])
    stranger = JobId(made.job_id, name=ANOTHER, home=limits.this_cluster())
    ours = JobId(made.job_id, name=OURS, home=limits.this_cluster())
    state = lambda index: client.elements([stranger]).of(ANOTHER, index).state  # noqa: E731
    # Between squeue, which has forgotten an element, and sacct, which has not heard of it yet, no state is known.
    ended = lambda index: state(index) is not None and not state(index).alive  # noqa: E731
    client.cancel(ours)
    client.cancel(ours, [1])
    assert client.elements([ours]).of(OURS, 1).state is S.ABSENT
    assert state(1).alive and state(3).alive
    client.cancel(stranger, [3])
    wait_for(lambda: ended(3), "the end of element 3")
    assert state(1).alive
    client.cancel(stranger)
    wait_for(lambda: ended(1), "the end of the job")
