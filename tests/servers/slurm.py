"""A Slurm cluster of the tests' own, on loopback: four nodes, accounting, limits."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Collection, Iterable, Set
from functools import partial
from pathlib import Path

from tests.servers.keeper import KeptProcess
from tests.servers.server import (
    Server,
    ServerError,
    bare_environment,
    command,
    listens,
    program,
    wait_for,
)

_PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
_ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}

#: Slurm wants the host by the name that `hostname -s` gives.
_HOST = socket.gethostname().split(".")[0]

_SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire={requeue_wait_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
# More CPUs than the machine has, and no control groups: it is the bookkeeping that is tested.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
MaxArraySize={max_array_size}
MinJobAge={min_job_age}
KillWait={kill_wait}
ReturnToService=2
"""

_ACCOUNTING_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={munge}
AccountingStorageEnforce=limits
"""

_PARTITIONS = """\
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=00:05:00 State=UP
"""

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass={secret}
StorageLoc=slurm_acct
"""


#: Newer releases look for control groups even where no plugin uses them; a bare root mounts none.
_CGROUP_CONF = "CgroupPlugin=disabled\n"
_CGROUP_SINCE = (23, 2)


class Slurm(Server):
    """A cluster with nodes n1, n2, ...; partitions ``debug`` and ``short`` (five minutes at most).

    With accounting, root's jobs go to the account ``sdss``, whose limits are enforced. It needs
    root, as Slurm's daemons do.

    Parameters
    ----------
    folder : where to live; a folder that does not exist yet. Without one, under /tmp.
    cpus : of each node, more than the machine has if need be.
    min_job_age : seconds for which slurmctld remembers a job that has ended.
    kill_wait : seconds from SIGTERM to SIGKILL.
    requeue_wait_s : seconds until a requeued job may start again (Slurm's own default is 120).
        Credentials of steps expire after as long: a slow machine needs some.
    extra : more lines for slurm.conf; they win over those here.
    beside : another cluster with accounting, whose slurmdbd keeps the accounts of this one as well.
        It is called ``other``, and has to be closed first.
    """

    def __init__(
        self,
        folder: Path | None = None,
        nodes: int = 4,
        cpus: int = 8,
        max_array_size: int = 1001,
        min_job_age: int = 60,
        kill_wait: int = 20,
        requeue_wait_s: int = 10,
        accounting: bool = True,
        extra: Iterable[str] = (),
        beside: "Slurm | None" = None,
    ) -> None:
        if os.geteuid() != 0:
            raise ServerError("the tests' Slurm cluster needs root: sudo ./setup tests")
        self._programs = {
            name: program(name, package)
            for name, package in {
                **_PACKAGES,
                **(_ACCOUNTING_PACKAGES if accounting and beside is None else {}),
            }.items()
        }
        super().__init__(folder)
        self.name, self.beside = "test" if beside is None else "other", beside
        self.accounting, self.nodes = accounting, [f"n{n}" for n in range(1, nodes + 1)]
        self._ports_of = {node: self.ports.one() for node in self.nodes}
        self.conf = self.folder / "etc" / "slurm.conf"
        self._environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/bin:/bin"}
        self._munge = beside._munge if beside else self.folder / "run" / "munge.sock"
        self._daemons: dict[str, KeptProcess] = {}
        self._dbd_port = beside._dbd_port if beside else self.ports.one()
        try:
            self._make_folders()
            self._write_slurm_conf(
                cpus, extra, max_array_size=max_array_size, min_job_age=min_job_age,
                kill_wait=kill_wait, requeue_wait_s=requeue_wait_s,
            )  # fmt: skip
            self._start_all()
        except BaseException:
            self.close()
            raise

    # ---------------------------------------------------------------- what a test does with it

    def env(self) -> dict[str, str]:
        """The environment in which Slurm's commands speak to this cluster.

        It is that of the start of the cluster: a test may bend its own PATH, or set SBATCH_ words.
        """
        return {**self._environment, "LC_ALL": "C", "SLURM_CONF": str(self.conf)}

    def run(self, *words: object) -> str:
        """The output of one of Slurm's commands, which must succeed."""
        return command(*words, env=self.env())

    def stop(self) -> None:
        """End the cluster, its jobs included, and remove its folder."""
        self.close()

    def idle(self) -> bool:
        """Whether no job waits or runs; a squeue without an answer, as on a busy machine, says neither."""
        with contextlib.suppress(ServerError):
            return not self.run("squeue", "-h").strip()
        return False

    def cancel_all(self, timeout_s: float = 60) -> None:
        """Cancel every job and wait until all have ended."""
        if not self.idle():
            self.run("scancel", "--user=root")
            wait_for(self.idle, "the end of all jobs", timeout_s)

    def restore(self) -> None:
        """Undo what a test did: every daemon runs, no limit holds, no job is left."""
        if self._keeps_accounts:
            self._start_if_down("mariadbd", self._start_mariadb)
            self._start_if_down("slurmdbd", self.start_dbd)
        self._start_if_down("slurmctld", self.start_controller)
        for node in self.nodes:
            self._start_if_down(node, partial(self.start_slurmd, node))
        self.cancel_all()
        if self.accounting and self._max_submit() is not None:
            self.set_max_submit(None)

    def states(self, job_id: int | str) -> dict[str, str]:
        """The state of each element, ``{"17_1": "RUNNING"}``, while slurmctld remembers them."""
        words = ["squeue", "-h", "-r", "-t", "all", "-j", str(job_id), "-o", "%i|%T"]
        lines = self.run(*words).splitlines()
        return dict(line.split("|", 1) for line in lines)

    def accounted(self, job_id: int | str) -> dict[str, str]:
        """The last state of each element by the accounting, without ``by 0`` and the like."""
        lines = self.run("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "JobID,State").splitlines()
        return {job: state.split()[0] for job, state in (line.split("|") for line in lines)}

    def wait_job(
        self,
        job_id: int | str,
        states: str | Collection[str] = "COMPLETED",
        timeout_s: float = 60,
        accounted: bool = False,
    ) -> dict[str, str]:
        """Wait until every element is in one of `states`, by slurmctld's word.

        With `accounted`, then also until the accounting says so, of each of these elements.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        found = self._wait_states(self.states, job_id, wanted, frozenset(), timeout_s)
        if accounted:
            found = self._wait_states(self.accounted, job_id, wanted, found.keys(), timeout_s)
        return found

    def _wait_states(
        self,
        ask: Callable[[int | str], dict[str, str]],
        job_id: int | str,
        wanted: set[str],
        elements: Set[str],
        timeout_s: float,
    ) -> dict[str, str]:
        found: dict[str, str] = {}

        def there() -> bool:
            found.clear()
            with contextlib.suppress(ServerError):  # without an answer nothing is known
                found.update(ask(job_id))
            return bool(found) and elements <= found.keys() and set(found.values()) <= wanted

        try:
            wait_for(there, f"job {job_id}", timeout_s)
        except TimeoutError as error:
            raise ServerError(f"{error}: {found}, wanted {', '.join(sorted(wanted))}") from error
        return found

    def set_max_submit(self, n: int | None) -> None:
        """Limit root's jobs, waiting and running ones together, to `n`; None lifts the limit."""
        self._set_max_submit(n)
        # slurmctld counts a requeued element that was cancelled for ever, although it is gone.
        _, counted = self._max_submit()
        gone = counted - len(self.run("squeue", "-h", "-r", "-o", "%i").split())
        if n is not None and gone > 0:
            self._set_max_submit(n + gone)

    def _set_max_submit(self, n: int | None) -> None:
        self.run(
            "sacctmgr", "-i", "modify", "user", "where", "name=root", "account=sdss",
            "set", f"MaxSubmitJobs={-1 if n is None else n}",
        )  # fmt: skip
        wait_for(lambda: self._max_submit()[0] == n, "the limit to reach slurmctld")

    def _max_submit(self) -> tuple[int | None, int]:
        """The limit, None without one, and the jobs that slurmctld counts against it."""
        words = ["scontrol", "show", "assoc_mgr", "users=root", "accounts=sdss", "flags=assoc"]
        # MaxSubmitJobs=5(2) where there is a limit, MaxSubmitJobs= where there is none.
        found = re.search(r"\bMaxSubmitJobs=(\d+)\((\d+)\)", self.run(*words))
        return (int(found[1]), int(found[2])) if found else (None, 0)

    # ---------------------------------------------------------------- its daemons, one by one

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon as by ``kill -9``; its jobs go on, as they do on real nodes."""
        self._end(node, signal.SIGKILL)

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "-h", "-p", "debug", "-n", node, "-o", "%T").strip()

    def start_slurmd(self, node: str) -> None:
        self._start(node, ["slurmd", "-D", "-f", self.conf, "-N", node])
        self._await(node, partial(self._registered, node))

    def stop_controller(self) -> None:
        """Stop slurmctld, which saves its state."""
        self._end("slurmctld", signal.SIGTERM)

    @property
    def version(self) -> tuple[int, int]:
        """The release, ``(22, 5)``."""
        name = command(self._programs["slurmctld"], "-V").split()[-1]  # "slurm-wlm 22.05.8"
        major, minor = name.split(".")[:2]
        return int(major), int(minor)

    @property
    def controller_pid(self) -> int:
        return self._daemons["slurmctld"].pid

    def forget(self, first_job_id: int = 1) -> None:
        """Restart slurmctld without its state: jobs are gone, and job ids begin again."""
        self.stop_controller()
        for file in (self.folder / "state").iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        with self.conf.open("a") as conf:
            conf.write(f"FirstJobId={first_job_id}\n")
        self.start_controller()

    def start_controller(self) -> None:
        self._start("slurmctld", ["slurmctld", "-D", "-f", self.conf])
        self._await("slurmctld", lambda: "is UP" in self.run("scontrol", "ping"))

    def stop_dbd(self) -> None:
        self._end("slurmdbd", signal.SIGTERM)

    def start_dbd(self) -> None:
        self._start("slurmdbd", ["slurmdbd", "-D"])
        self._await("slurmdbd", lambda: self._succeeds("sacctmgr", "-n", "show", "cluster"))

    def _start(self, name: str, words: list[object], user: str | None = None) -> None:
        env = bare_environment(SLURM_CONF=str(self.conf), LC_ALL="C")
        argv = [self._programs[str(words[0])], *words[1:]]
        self._daemons[name] = self.keeper.start(argv, env, self._out(name), user)

    def _out(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.out"

    def _await(self, name: str, ready: Callable[[], object]) -> None:
        self.await_start(self._daemons[name], ready, name, self._out(name))

    def _end(self, name: str, number: int) -> None:
        self._daemons[name].signal(number)
        self._daemons[name].wait()

    def _start_if_down(self, name: str, start: Callable[[], None]) -> None:
        if self._daemons[name].poll() is not None:
            start()

    def _succeeds(self, *words: str) -> bool:
        return (
            subprocess.run(words, env=self.env(), capture_output=True, check=False).returncode == 0
        )

    def _registered(self, node: str) -> bool:
        # slurmctld may not have noticed yet that the node's last daemon ended.
        if not listens(self._ports_of[node]):
            return False
        return self.node_state(node) in ("idle", "mixed", "allocated")

    # ---------------------------------------------------------------- how it starts

    def _make_folders(self) -> None:
        spools = [f"spool/{node}" for node in self.nodes]
        for name in ("etc", "state", "log", "run", *spools):
            (self.folder / name).mkdir(parents=True)
        if self.version >= _CGROUP_SINCE:
            (self.folder / "etc" / "cgroup.conf").write_text(_CGROUP_CONF)
        key = self.folder / "etc" / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))

    def _write_slurm_conf(self, cpus: int, extra: Iterable[str], **settings: int) -> None:
        text = _SLURM_CONF.format(
            name=self.name, host=_HOST, port=self.ports.one(), munge=self._munge,
            folder=self.folder, **settings,
        )  # fmt: skip
        if self.accounting:
            text += _ACCOUNTING_CONF.format(port=self._dbd_port, munge=self._munge)
        if self._keeps_accounts:
            self._write_slurmdbd_conf()
        for node in self.nodes:
            text += (
                f"NodeName={node} NodeHostname={_HOST} NodeAddr=127.0.0.1 Port={self._ports_of[node]} "
                f"CPUs={cpus} RealMemory=16000 State=UNKNOWN\n"
            )
        self.conf.write_text(text + _PARTITIONS + "".join(f"{line}\n" for line in extra))

    def _write_slurmdbd_conf(self) -> None:
        self._sql_port = self.ports.one()
        self._secret = os.urandom(16).hex()
        file = self.folder / "etc" / "slurmdbd.conf"
        file.touch(0o600)
        places = {"host": _HOST, "folder": self.folder, "munge": self._munge}
        ports = {"port": self._dbd_port, "sql_port": self._sql_port}
        file.write_text(_SLURMDBD_CONF.format(secret=self._secret, **places, **ports))

    def _start_all(self) -> None:
        if self.beside is None:
            self._start_munge()
        if self._keeps_accounts:
            self._create_mariadb()
            self.start_dbd()
        if self.accounting:
            of = f"cluster={self.name}"
            self.run("sacctmgr", "-i", "add", "cluster", self.name)
            for words in (f"account sdss {of}", f"user root Account=sdss {of}"):
                self.run("sacctmgr", "-i", "add", *words.split())
            # slurmdbd itself made root's default account, of the name root.
            change = f"user where name=root {of} set DefaultAccount=sdss"
            self.run("sacctmgr", "-i", "modify", *change.split())
        self.start_controller()
        # All at once, and then wait for all: each takes a while to register.
        for node in self.nodes:
            self._start(node, ["slurmd", "-D", "-f", self.conf, "-N", node])
        for node in self.nodes:
            self._await(node, partial(self._registered, node))

    @property
    def _keeps_accounts(self) -> bool:
        return self.accounting and self.beside is None

    def _start_munge(self) -> None:
        etc, run = self.folder / "etc", self.folder / "run"
        self._start(
            "munged",
            ["munged", "--foreground", "--force", f"--key-file={etc}/munge.key",
             f"--socket={self._munge}", f"--pid-file={run}/munged.pid",
             f"--log-file={self.folder}/log/munged.log", f"--seed-file={run}/munged.seed"],
        )  # fmt: skip
        self._await("munged", self._munge.exists)

    def _create_mariadb(self) -> None:
        data = self.folder / "mysql"
        # Temporary files of its own as well: servers that start together clash in /tmp.
        for path in (data, self.folder / "mysql-tmp"):
            path.mkdir(mode=0o700)
            shutil.chown(path, "mysql")
        # Its root comes in by the socket, as the machine's root: no other user of the machine does.
        command(
            program("mariadb-install-db", "mariadb-server"), "--no-defaults", "--user=mysql",
            f"--datadir={data}", f"--tmpdir={data}-tmp", "--auth-root-authentication-method=socket", "--skip-test-db",
        )  # fmt: skip
        self._start_mariadb()
        # slurmdbd would create the database itself, on a handle whose first connection failed: newer
        # libraries of MariaDB's then refuse every result ("maximum allowed number of columns (=0)").
        self._mariadb(
            "CREATE DATABASE slurm_acct;"
            f"CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{self._secret}';"
            f"CREATE USER slurm@localhost IDENTIFIED BY '{self._secret}';"
            "GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1'; GRANT ALL ON slurm_acct.* TO slurm@localhost"
        )

    def _start_mariadb(self) -> None:
        data = self.folder / "mysql"
        self._start(
            "mariadbd",
            ["mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}", f"--tmpdir={data}-tmp",
             f"--socket={data}/mysql.sock", f"--port={self._sql_port}", "--bind-address=127.0.0.1",
             f"--pid-file={data}/mysql.pid", "--innodb-buffer-pool-size=64M",
             "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0",
             "--innodb-lock-wait-timeout=900"],
        )  # fmt: skip
        self._await("mariadbd", lambda: self._mariadb("SELECT 1"))

    def _mariadb(self, statement: str) -> str:
        socket_file = self.folder / "mysql" / "mysql.sock"
        client = program("mariadb", "mariadb-server")
        return command(client, "--no-defaults", "-S", socket_file, "-uroot", "-e", statement)
