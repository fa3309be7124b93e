"""Two clusters for many plans: each seed sees its own jobs alone, and daemons fail for all of them.

The process that began the clusters does what is asked of its daemons, one thing at a time; those
that run the seeds reach it over a socket.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, NamedTuple

from tests.servers import ServerError, Slurm, wait_for
from tests.servers.server import command

_KEY = b"of the tests alone"


class _Manager(BaseManager):
    """The requests that other processes may make."""


class Daemons:
    """The daemons of one or two clusters, of which one is away at a time."""

    def __init__(self, clusters: Sequence[Slurm]) -> None:
        self._clusters, self._turn = clusters, threading.Lock()
        self._forgotten = [0] * len(clusters)

    def confs(self) -> list[str]:
        return [str(cluster.conf) for cluster in self._clusters]

    def nodes(self, home: int) -> list[str]:
        return self._clusters[home].nodes

    def slurmd_away(self, home: int, node: str, for_s: float) -> None:
        with self._turn:
            self._clusters[home].kill_slurmd(node)
            time.sleep(for_s)
            self._clusters[home].start_slurmd(node)

    def slurmctld_away(self, home: int, for_s: float) -> None:
        with self._turn:
            self._clusters[home].stop_controller()
            time.sleep(for_s)
            self._clusters[home].start_controller()

    def forget(self, home: int, first_job_id: int) -> tuple[int, int]:
        """Have a controller lose its state, and submit a stranger's job with one of its job ids.

        Return this job id, and how often the controller has lost its state then.
        """
        with self._turn:
            cluster = self._clusters[home]
            self._forgotten[home] += 1  # before: another seed may look for its stranger meanwhile
            cluster.forget(first_job_id)
            words = "--parsable --hold --job-name=stranger --array=1-2 --output=/dev/null --wrap=:"
            return int(cluster.run("sbatch", *words.split())), self._forgotten[home]

    def forgotten(self, home: int) -> int:
        """Return how often a controller has lost its state, for any seed."""
        return self._forgotten[home]

    def repair(self, home: int) -> None:
        """Restart the daemons of drained nodes, and return the nodes to service.

        A node refuses a job with the id of one that its controller has forgotten, and is drained.
        """
        with self._turn:
            cluster = self._clusters[home]
            for node in cluster.nodes:
                if cluster.node_state(node) in ("drained", "draining"):
                    cluster.kill_slurmd(node)
                    cluster.run("scontrol", "update", f"nodename={node}", "state=resume")
                    cluster.start_slurmd(node)


@contextmanager
def served(*clusters: Slurm) -> Iterator[str]:
    """Serve clusters, and yield the socket at which other processes reach them."""
    daemons, socket = Daemons(clusters), str(clusters[0].folder / "daemons")

    class Serving(_Manager):
        pass

    Serving.register("daemons", callable=lambda: daemons)
    server = Serving(socket, _KEY).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield socket
    finally:
        server.listener.close()  # while its folder is there


class Job(NamedTuple):
    """An element, or a job that is not an array, on one of the clusters."""

    conf: str
    name: str  # such as 17_2
    reason: str = ""  # why it waits

    @property
    def number(self) -> int:
        return int(self.name.partition("_")[0])


class Cluster:
    """Clusters behind one accounting as the seeds see them that share them; a seed is at home on one."""

    def __init__(self, socket: str, home: int = 0) -> None:
        class Asking(_Manager):
            pass

        Asking.register("daemons")
        manager = Asking(socket, _KEY)
        manager.connect()
        self.daemons: Any = manager.daemons()  # type: ignore[attr-defined]
        self.confs: list[str] = self.daemons.confs()
        self.home = home % len(self.confs)
        self.conf, self.nodes = self.confs[self.home], self.daemons.nodes(self.home)

    def run(self, *words: object, conf: str | None = None) -> str:
        return command(*words, env={**os.environ, "SLURM_CONF": conf or self.conf})

    def jobs(self, folder: Path, *words: str) -> list[Job]:
        """Return elements whose logs are in a folder, as selected by options of squeue."""
        ask = ("squeue", "-h", "-r", *words, "-O", "JobArrayID:40,STDOUT:400,Reason:99")
        found: list[Job] = []

        def answered() -> bool:
            found.clear()
            try:
                for conf in self.confs:
                    lines = self.run(*ask, conf=conf).splitlines()
                    found.extend(
                        Job(conf, line.split()[0], line[440:].strip())
                        for line in lines
                        if f" {folder}/" in line
                    )
            except ServerError:  # a seed beside this one has taken slurmctld down
                return False
            return True

        wait_for(answered, "an answer of squeue", 60)
        return found

    def restore(self, folder: Path) -> None:
        """Return whether no job of a folder is left."""
        if self.jobs(folder):
            for job in self.jobs(folder):
                with suppress(ServerError):  # it has just ended
                    self.run("scancel", job.name, conf=job.conf)
            wait_for(lambda: not self.jobs(folder), "the end of the jobs", 90)

    def release(self, jobs: Iterable[Job]) -> None:
        """Release elements that Slurm holds, once no node refuses them."""
        self.daemons.repair(self.home)
        for job in jobs:
            with suppress(ServerError):  # another seed has taken slurmctld down
                self.run("scontrol", "release", job.name, conf=job.conf)

    def forgotten(self) -> int:
        return int(self.daemons.forgotten(self.home))


class Stranger:
    """Return a stranger's job that has the job id of one of ours, and must not be cancelled."""

    def __init__(self, cluster: Cluster, first_job_id: int) -> None:
        self.cluster = cluster
        self.job_id, self._forgotten = cluster.daemons.forget(cluster.home, first_job_id)

    def breaches(self) -> list[str]:
        """Return whether it still waits, unless its controller has lost it.

        Another seed's stranger may have its number then.
        """
        if self._is_lost():
            return []
        words = ("squeue", "-h", "-t", "all", "-r", "-j", self.job_id, "-o", "%j %T")
        try:
            states = self.cluster.run(*words).splitlines()
            self.cluster.run("scancel", "--name=stranger", self.job_id)
        except ServerError as error:
            states = [str(error)]
        if self._is_lost() or states == ["stranger PENDING"] * 2:
            return []
        return [f"the job {self.job_id} of a stranger is {states}"]

    def _is_lost(self) -> bool:
        return self._forgotten != self.cluster.forgotten()
