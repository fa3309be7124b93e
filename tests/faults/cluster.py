"""One cluster for many plans: each seed sees its own jobs alone, and daemons fail for all of them.

The process that began the cluster does what is asked of its daemons, one thing at a time; those
that run the seeds reach it over a socket.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from tests.servers import ServerError, Slurm, wait_for
from tests.servers.server import command

_KEY = b"of the tests alone"


class _Manager(BaseManager):
    """What the other processes may ask for."""


class Daemons:
    """The daemons of a cluster, of which one is away at a time."""

    def __init__(self, cluster: Slurm) -> None:
        self._cluster, self._turn = cluster, threading.Lock()

    def conf(self) -> str:
        return str(self._cluster.conf)

    def nodes(self) -> list[str]:
        return self._cluster.nodes

    def slurmd_away(self, node: str, for_s: float) -> None:
        with self._turn:
            self._cluster.kill_slurmd(node)
            time.sleep(for_s)
            self._cluster.start_slurmd(node)

    def slurmctld_away(self, for_s: float) -> None:
        with self._turn:
            self._cluster.stop_controller()
            time.sleep(for_s)
            self._cluster.start_controller()


@contextmanager
def served(cluster: Slurm) -> Iterator[str]:
    """Serve a cluster, and yield the socket by which others find it."""
    daemons, socket = Daemons(cluster), str(cluster.folder / "daemons")

    class Serving(_Manager):
        pass

    Serving.register("daemons", callable=lambda: daemons)
    server = Serving(socket, _KEY).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield socket
    finally:
        server.listener.close()  # while its folder is there


class Cluster:
    """A cluster as the seeds see it that share it."""

    def __init__(self, socket: str) -> None:
        class Asking(_Manager):
            pass

        Asking.register("daemons")
        manager = Asking(socket, _KEY)
        manager.connect()
        self.daemons: Any = manager.daemons()  # type: ignore[attr-defined]
        self.conf, self.nodes = Path(self.daemons.conf()), self.daemons.nodes()

    def run(self, *words: object) -> str:
        return command(*words)  # SLURM_CONF is of this process

    def jobs(self, folder: Path, *words: str) -> list[str]:
        """Elements whose logs are in a folder, by the options of squeue that choose."""
        ask = ("squeue", "-h", "-r", *words, "-O", "JobArrayID:40,STDOUT:400")
        lines: list[str] = []

        def answered() -> bool:
            try:
                lines[:] = self.run(*ask).splitlines()
            except ServerError:  # a seed beside this one has taken slurmctld down
                return False
            return True

        wait_for(answered, "an answer of squeue", 60)
        return [line.split()[0] for line in lines if f" {folder}/" in line]

    def restore(self, folder: Path) -> None:
        """No job of a folder's is left."""
        if jobs := self.jobs(folder):
            self.run("scancel", *jobs)
            wait_for(lambda: not self.jobs(folder), "the end of the jobs", 90)
