"""Two clusters behind one accounting, whose jobs have the same job ids."""

import re
from datetime import timedelta

import pytest

from astra.config.nights import NightSettings
from astra.config.profiles import choose_profile
from astra.database.connection import connection, dialect
from astra.doctor.slurm import slurm as check_slurm
from astra.errors import SlurmError
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt, Exclusion
from astra.models.nights import Night
from astra.models.plans import Submission
from astra.night import finalizer
from astra.plan.plan import create_plan
from astra.resume.cancel import cancel
from astra.resume.resume import resume
from astra.slurm import client, limits
from astra.slurm.limits import partition_limits
from astra.slurm.parse import JobId
from astra.status.status import status
from astra.status.verify import verify
from astra.submit.submit import nodes_to_exclude, submit
from tests.configuration import configure
from tests.conftest import ROOT
from tests.sample_tasks import fill, measure
from tests.servers import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]


@pytest.fixture
def at_login(slurm, other_cluster, monkeypatch):
    """What goes to a login node: of the first cluster, or of the other."""

    def go(cluster) -> None:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        limits.configuration.cache_clear()

    yield go
    other_cluster.restore()


@pytest.fixture
def small_arrays(other_cluster):
    """The other cluster, with arrays of three elements at most."""
    text = other_cluster.conf.read_text()
    for conf in (re.sub(r"MaxArraySize=\d+", "MaxArraySize=4", text), text):
        other_cluster.stop_controller()
        other_cluster.conf.write_text(conf)
        other_cluster.start_controller()
        if conf != text:
            yield
            other_cluster.cancel_all()


def plan_of(n: int) -> int:
    (made,) = create_plan(measure, BossVisitSpectrum, limit=5, max_rows=n)
    return made.plan


def test_plans_whose_jobs_have_one_number_are_kept_apart(slurm, other_cluster, at_login):
    fill(20)
    here, there = plan_of(10), plan_of(10)
    at_login(slurm)
    (job,) = submit(here, options={"hold": True}).jobs
    other_cluster.forget(job.job_id)
    at_login(other_cluster)
    (twin,) = submit(there, options={"hold": True}).jobs
    assert twin.job_id == job.job_id
    for cluster in (slurm, other_cluster):
        at_login(cluster)
        assert [status(plan).pages for plan in (here, there)] == [{"waiting": 2}] * 2
        assert [resume(plan).pages for plan in (here, there)] == [0, 0]
    # Its answer was lost: it is looked for on the cluster that it was sent to.
    with connection():
        Submission.update(state="intent", job_id=None).where(Submission.plan == here).execute()
    assert resume(here).pages == 0
    with connection():
        assert Submission.get(Submission.plan == here).job_id == job.job_id
    cancel(here)
    wait_for(slurm.idle, "the end of the first plan's job")
    assert set(other_cluster.states(twin.job_id).values()) == {"PENDING"}
    other_cluster.run("scontrol", "release", twin.job_id)
    at_login(slurm)
    wait_for(lambda: status(there).state == "whole", "the other plan", 90)
    assert verify(there).sound and status(here).state == "cancelled"


def test_an_element_that_its_controller_forgot_keeps_its_page_while_it_lives(
    other_cluster, at_login, tmp_path, monkeypatch, pg_url
):
    """The accounting calls it cancelled at once, and its node, whose daemon is away, ends nothing."""
    at_login(other_cluster)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    configure(tmp_path, "[element]\nlease_s = 2\nwrite_frequency = 0.2\n", monkeypatch)
    fill(21)
    fast = tmp_path / "fast"
    slow = {"row_s": 1.5, "slow_until": str(fast)}
    (made,) = create_plan(measure, BossVisitSpectrum, limit=20, arguments=slow)
    (job,) = submit(made.plan, options={"nodelist": "n1"}).jobs
    wait_for(lambda: status(made.plan).pages == {"running": 1, "done": 1}, "one that watches", 60)
    other_cluster.kill_slurmd("n1")
    other_cluster.forget(job.job_id + 1)
    wait_for(lambda: set(other_cluster.accounted(job.job_id).values()) == {"CANCELLED"}, "its end")
    found = status(made.plan)
    assert found.pages == {"unknown": 1, "done": 1} and not resume(made.plan).pages
    assert found.advice == (f"astra status {made.plan}   again, in a few minutes",)
    fast.touch()
    wait_for(lambda: status(made.plan).state == "whole", "the whole plan")
    with connection():
        assert Attempt.select().count() == 2


def test_a_finalizer_is_known_by_its_cluster(slurm, other_cluster, at_login):
    at_login(slurm)
    with connection():
        night = Night.create(name="n", date="2026-01-01", cwd="/", host="h", created_by="root")
    finalizer.queue(night, NightSettings("n", ()), (), wait_s=600)
    other_cluster.forget(night.finalizer_job)
    made = other_cluster.run("sbatch", "--parsable", "--hold", "--wrap=:", "-o", "/dev/null")
    assert int(made) == night.finalizer_job
    at_login(other_cluster)
    assert finalizer.is_alive(night)
    night.finalizer_job = None  # its answer was lost
    assert finalizer.is_alive(night) and night.finalizer_job == int(made)
    slurm.run("scancel", night.finalizer_job)
    wait_for(slurm.idle, "the end of the finalizer")
    wait_for(lambda: not finalizer.is_alive(night), "the end to be accounted", 60)
    assert other_cluster.states(made.strip()) == {made.strip(): "PENDING"}


@pytest.mark.usefixtures("small_arrays")
def test_the_cluster_that_gets_the_jobs_is_asked_what_it_allows(slurm, other_cluster, at_login):
    """Its arrays are smaller, it has fewer nodes, and its partitions have limits of their own."""
    at_login(slurm)
    tomorrow = dialect().now() + timedelta(days=1)
    with connection():
        # The other cluster has no n4, and its n2 is another node.
        for cluster, node in (("other", "n1"), ("other", "n4"), ("test", "n2")):
            Exclusion.insert(cluster=cluster, node=node, reason="", until=tomorrow).execute()
    fill(8)
    (made,) = create_plan(measure, BossVisitSpectrum, limit=2)
    other = {"hold": True, "clusters": "other", "partition": "short", "throttle": 4}
    jobs = submit(made.plan, options=other).jobs
    assert [job.array for job in jobs] == ["1-3%3", "1%1"]
    waits = other_cluster.run("scontrol", "show", "job", jobs[0].job_id)
    assert "ExcNodeList=n1\n" in waits
    other_cluster.run("scontrol", "update", "partition=short", "MaxTime=7")
    assert partition_limits("short", "other").max_time_s == 420
    assert partition_limits("short").max_time_s == 300
    assert nodes_to_exclude(choose_profile(None, {})) == ("n2",)
    assert nodes_to_exclude(choose_profile(None, {**other, "clusters": "other"})) == ("n1",)
    assert limits.max_array_size("other") == 4 < limits.max_array_size()
    with pytest.raises(SlurmError, match="nowhere"):
        limits.max_array_size("nowhere")


def test_limits_of_a_user_on_another_cluster_are_not_those_here(slurm, other_cluster, at_login):
    at_login(slurm)
    limit = "-i modify user where name=root account=sdss cluster=other set MaxSubmitJobs="
    other_cluster.run("sacctmgr", *f"{limit}7".split())
    found = [finding.message for finding in check_slurm([])]
    other_cluster.run("sacctmgr", *f"{limit}-1".split())
    assert [line for line in found if "sdss" in line] == ["account sdss: no limit of jobs"]


def test_what_elements_used_is_known_although_a_stranger_has_their_number(
    slurm, other_cluster, at_login
):
    """Also on a login node of another cluster."""
    at_login(other_cluster)
    words = ("sbatch", "--parsable", "--array=1", "--wrap=sleep 1.5", "-o", "/dev/null")
    ours = int(other_cluster.run(*words, "--job-name=ours"))
    other_cluster.wait_job(ours, accounted=True)
    other_cluster.forget(ours)
    assert int(other_cluster.run(*words, "--job-name=stranger")) == ours
    other_cluster.wait_job(ours, accounted=True)
    at_login(slurm)
    for name in ("ours", "stranger"):
        (used,) = client.usage([JobId(ours, name=name, home="other")])
        assert used.job == f"{ours}_1" and used.elapsed_s > 0


def test_only_the_cluster_that_has_a_job_cancels_an_element(slurm, other_cluster, at_login):
    at_login(slurm)
    words = ("sbatch", "--parsable", "--hold", "--array=1-2", "--wrap=:", "-o", "/dev/null")
    ours = int(slurm.run(*words, "--job-name=ours"))
    other_cluster.forget(ours)
    assert int(other_cluster.run(*words, "--job-name=another")) == ours
    client.cancel(JobId(ours, "other", "ours"))  # where that name has another number
    client.cancel(JobId(ours, name="ours", home="test"), [1, 2])
    wait_for(lambda: "PENDING" not in slurm.states(ours).values(), "the end of ours")
    assert set(other_cluster.states(ours).values()) == {"PENDING"}
    client.cancel(JobId(ours, "other", "another"))
    wait_for(other_cluster.idle, "the end of the other job")
