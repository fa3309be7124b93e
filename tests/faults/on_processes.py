"""Faults of processes and of Slurm."""

from __future__ import annotations

from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import TYPE_CHECKING

from tests.faults.cluster import Job, Stranger
from tests.faults.kinds import Fault, kind
from tests.faults.world import send

if TYPE_CHECKING:
    from tests.faults.nemesis import Nemesis


@kind(4, inside=True, kills=True)
def kill_child(nemesis: Nemesis, fault: Fault) -> str | None:
    """Kill the process that runs the task."""
    killed = [child for _, child in nemesis.chosen(fault) if child]
    return nemesis.kill(killed)


@kind(3, inside=True, kills=True)
def kill_parent(nemesis: Nemesis, fault: Fault) -> str | None:
    """Kill the process that supervises the one that runs the task."""
    return nemesis.kill([parent for parent, _ in nemesis.chosen(fault)])


@kind(2, on_slurm=0)
def kill_resume(nemesis: Nemesis, fault: Fault) -> str | None:
    """Kill astra resume; its elements continue."""
    pid = nemesis.resume()
    if pid is not None:
        send(pid, SIGKILL)
    return f"process {pid}" if pid else None


@kind(1, on_slurm=0)
def stop_resume(nemesis: Nemesis, fault: Fault) -> str | None:
    """Send SIGINT or SIGTERM to astra resume."""
    pid = nemesis.resume()
    if pid is not None:
        send(pid, SIGINT if fault.number == SIGINT else SIGTERM)
    return f"process {pid}" if pid else None


@kind(4, inside=True)
def signal(nemesis: Nemesis, fault: Fault) -> str | None:
    """Send SIGTERM, SIGINT or SIGUSR1 to an element."""
    chosen = nemesis.chosen(fault)
    for parent, _ in chosen:
        send(parent, fault.number)
    return f"{Signals(fault.number).name} to {chosen}" if chosen else None


@kind(3, inside=True, kills=True)
def zombie(nemesis: Nemesis, fault: Fault) -> str | None:
    """Stop an element for longer than its lease, so that others take over, then continue it."""
    chosen = [pid for pair in nemesis.chosen(fault) for pid in pair if pid]
    for pid in chosen:
        send(pid, SIGSTOP)
    nemesis.n_deaths += bool(chosen)
    wakes_s = nemesis.world.scenario.lease_s + 1 + fault.lasts_s
    nemesis.after(wakes_s, lambda: [send(pid, SIGCONT) for pid in chosen])
    # Who waits for its elements does not see that one is a zombie: somebody resumes elsewhere.
    resume = nemesis.resume()
    if chosen and resume is not None:
        send(resume, SIGKILL)
    return f"processes {chosen} for {wakes_s:.1f} s" if chosen else None


@kind(0)
def suspend(nemesis: Nemesis, fault: Fault) -> str | None:
    """Stop all processes of an element and continue them, as Slurm suspends a job."""
    chosen = [pid for pair in nemesis.chosen(fault) for pid in pair if pid]
    for pid in chosen:
        send(pid, SIGSTOP)
    nemesis.after(fault.lasts_s, lambda: [send(pid, SIGCONT) for pid in chosen])
    return f"processes {chosen} for {fault.lasts_s} s" if chosen else None


@kind(0, on_slurm=5)
def scancel(nemesis: Nemesis, fault: Fault) -> str | None:
    """Cancel an element, or send it a signal."""
    if (job := _job(nemesis)) is None:
        return None
    words = ["--batch", f"--signal={fault.number}"] if fault.number != SIGTERM else []
    nemesis.cluster.run("scancel", *words, job.name, conf=job.conf)
    return f"{job.name}, signal {fault.number}"


@kind(0, on_slurm=3)
def requeue(nemesis: Nemesis, fault: Fault) -> str | None:
    """Requeue an element."""
    if (job := _job(nemesis)) is None:
        return None
    nemesis.cluster.run("scontrol", "requeue", job.name, conf=job.conf)
    return job.name


@kind(0, on_slurm=2)
def slurmd(nemesis: Nemesis, fault: Fault) -> str:
    """Kill a node's daemon."""
    node = nemesis.dice.choice(nemesis.cluster.nodes)
    nemesis.cluster.daemons.slurmd_away(nemesis.cluster.home, node, fault.lasts_s)
    return f"{node} away for {fault.lasts_s} s"


@kind(0, on_slurm=2)
def slurmctld(nemesis: Nemesis, fault: Fault) -> str:
    """Stop the controller for a while."""
    nemesis.cluster.daemons.slurmctld_away(nemesis.cluster.home, fault.lasts_s)
    return f"away for {fault.lasts_s} s"


@kind(0, on_slurm=3)
def forget(nemesis: Nemesis, fault: Fault) -> str:
    """Restart the controller without its state, and give a stranger the job id of ours."""
    cluster = nemesis.cluster
    ours = [job for job in cluster.jobs(nemesis.world.folder) if job.conf == cluster.conf]
    stranger = Stranger(cluster, min((job.number for job in ours), default=1))
    nemesis.world.strangers.append(stranger)
    return f"the job {stranger.job_id} is a stranger's"


@kind(0, on_slurm=3)
def other_login(nemesis: Nemesis, fault: Fault) -> str | None:
    """Resume the plan from a login node of the other cluster behind the same accounting."""
    others = [conf for conf in nemesis.cluster.confs if conf != nemesis.cluster.conf]
    if not others:
        return None
    process = nemesis.world.resume(nemesis.plan, conf=others[0])
    return f"status {process.wait(120)}"


def _job(nemesis: Nemesis) -> Job | None:
    """Return an element that runs, as Slurm names it."""
    running = nemesis.cluster.jobs(nemesis.world.folder, "-t", "R")
    return nemesis.dice.choice(running) if running else None
