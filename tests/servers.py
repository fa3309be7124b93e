"""PostgreSQL and Slurm for the tests: private ports and folders, started once, and ended again.

Only processes that were started here are ended, each by its own pid file or handle.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2

HOST = socket.gethostname().split(".")[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Ask again until `condition` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"gave up waiting for {what}")
        time.sleep(0.05)


def command(*arguments: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(a) for a in arguments], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stdout}{done.stderr}")
    return done.stdout


def needs(program: str, package: str) -> str:
    found = shutil.which(program)
    assert found, f"{program} is missing: install Debian's package {package} (./setup tests)"
    return found


def _end(pid: int, timeout_s: float = 15) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        try:
            wait_for(lambda: not _lives(pid), f"the end of {pid}", timeout_s)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Postgres:
    """A PostgreSQL server of its own; superuser ``postgres``, no password on loopback."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None, **settings: object) -> None:
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        assert versions, "PostgreSQL is missing: install Debian's package postgresql"
        self.bin = versions[-1].parent
        self.folder, self.port = folder, free_port()
        self.env = {**os.environ, "LC_ALL": "C"}
        self.extra = env or {}  # for the server alone, once it is its own user
        self.settings = {"fsync": "off", "max_connections": 100, **settings}
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        command(
            *self._as_owner(), self.bin / "initdb", "-D", folder / "data", "-U", "postgres",
            "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", env=self.env,
        )  # fmt: skip
        self.start()

    def _as_owner(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]

    def start(self) -> None:
        options = [f"-c{k}={v}" for k, v in self.settings.items()]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*self._as_owner(), "env", *(f"{k}={v}" for k, v in self.extra.items()),
                 str(self.bin / "postgres"), "-D", str(self.folder / "data"),
                 "-p", str(self.port), "-k", str(self.folder), "-clisten_addresses=127.0.0.1",
                 *options],
                env=self.env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for(self._answers, "PostgreSQL")

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url("postgres")).close()
        except psycopg2.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple]:
        connection = psycopg2.connect(self.url(database))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # "fast": connections are ended
            self.process.wait(30)


class Slurm:
    """A Slurm cluster with accounting, on loopback; needs root, as Slurm's daemons do."""

    def __init__(
        self, folder: Path, nodes: int = 4, cpus: int = 4, max_array_size: int = 1001
    ) -> None:
        assert os.geteuid() == 0, "the tests' Slurm cluster needs root"
        for program, package in (
            ("slurmctld", "slurm-wlm"), ("slurmd", "slurm-wlm"), ("slurmdbd", "slurmdbd"),
            ("munged", "munge"), ("mariadbd", "mariadb-server"),
        ):  # fmt: skip
            needs(program, package)
        self.folder, self.nodes = folder, nodes
        self.environment = dict(os.environ)  # as it is now: a test may bend PATH
        self.daemons: list[Path] = []
        self.database: subprocess.Popen[bytes] | None = None
        for name in (
            "etc",
            "state",
            "log",
            "run",
            "mysql",
            *(f"spool/n{n + 1}" for n in range(nodes)),
        ):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        self.conf = folder / "etc" / "slurm.conf"
        self.socket = folder / "run" / "munge.sock"
        ports = [free_port() for _ in range(4 + nodes)]
        try:
            self._start_munge()
            self._start_mariadb(ports[0])
            self._write_configuration(ports, cpus, max_array_size)
            self._start_slurm()
        except BaseException:
            self.stop()
            raise

    def env(self) -> dict[str, str]:
        return {**self.environment, "SLURM_CONF": str(self.conf), "LC_ALL": "C"}

    def _start_munge(self) -> None:
        key = self.folder / "etc" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        run = self.folder / "run"
        command(
            "munged", "--force", f"--key-file={key}", f"--socket={self.socket}",
            f"--pid-file={run}/munged.pid", f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={run}/munged.seed",
        )  # fmt: skip
        self.daemons.append(run / "munged.pid")

    def _start_mariadb(self, port: int) -> None:
        data = self.folder / "mysql"
        shutil.chown(data, "mysql")
        command(
            "mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}",
            "--auth-root-authentication-method=normal",
        )  # fmt: skip
        with open(self.folder / "log" / "mysql.log", "ab") as log:
            self.database = subprocess.Popen(
                ["mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}",
                 f"--socket={data}/mysql.sock", f"--port={port}", "--bind-address=127.0.0.1",
                 f"--pid-file={data}/mysql.pid", "--innodb-buffer-pool-size=64M",
                 "--innodb-lock-wait-timeout=900"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

        def sql(statement: str) -> bool:
            client = ["mariadb", "--no-defaults", "-S", f"{data}/mysql.sock", "-uroot"]
            return subprocess.run([*client, "-e", statement], capture_output=True).returncode == 0

        wait_for(lambda: sql("select 1"), "MariaDB")
        for origin in ("%", "localhost"):
            assert sql(f"create user slurm@'{origin}' identified by 'slurm'")
            assert sql(f"grant all on slurm_acct.* to slurm@'{origin}'")

    def _write_configuration(self, ports: list[int], cpus: int, max_array_size: int) -> None:
        R, sql_port, dbd_port, ctl_port = self.folder, ports[0], ports[1], ports[2]
        dbd = R / "etc" / "slurmdbd.conf"
        dbd.write_text(f"""AuthType=auth/munge
AuthInfo=socket={self.socket}
DbdHost={HOST}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
LogFile={R}/log/slurmdbd.log
PidFile={R}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
""")
        dbd.chmod(0o600)
        nodes = "\n".join(
            f"NodeName=n{n + 1} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={ports[4 + n]} "
            f"CPUs={cpus} RealMemory=4000 State=UNKNOWN"
            for n in range(self.nodes)
        )
        self.conf.write_text(f"""ClusterName=test
SlurmctldHost={HOST}(127.0.0.1)
SlurmctldPort={ctl_port}
AuthType=auth/munge
AuthInfo=socket={self.socket}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={R}/state
SlurmdSpoolDir={R}/spool/%n
SlurmctldPidFile={R}/run/slurmctld.pid
SlurmdPidFile={R}/run/slurmd.%n.pid
SlurmctldLogFile={R}/log/slurmctld.log
SlurmdLogFile={R}/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,max_rpc_cnt=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={self.socket}
AccountingStorageEnforce=limits
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
MaxArraySize={max_array_size}
MinJobAge=60
KillWait=5
ReturnToService=2
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=00:05:00 State=UP
""")

    def _start_slurm(self) -> None:
        run, env = self.folder / "run", self.env()
        command("slurmdbd", env={**env, "SLURM_CONF": str(self.conf)})
        self.daemons.append(run / "slurmdbd.pid")
        wait_for(lambda: self._works("sacctmgr", "-n", "show", "cluster"), "slurmdbd")
        for words in ("cluster test", "account sdss Description=t Organization=t"):
            command("sacctmgr", "-i", "add", *words.split(), env=env)
        command("sacctmgr", "-i", "add", "user", "root", "Account=sdss", env=env)
        command("slurmctld", "-f", self.conf, env=env)
        self.daemons.append(run / "slurmctld.pid")
        for n in range(self.nodes):
            command("slurmd", "-f", self.conf, "-N", f"n{n + 1}", env=env)
            self.daemons.append(run / f"slurmd.n{n + 1}.pid")
        idle = f"{self.nodes} idle"
        wait_for(lambda: idle in self.run("sinfo", "-h", "-o", "%D %T"), "idle nodes", 60)

    def _works(self, *arguments: str) -> bool:
        return subprocess.run(arguments, env=self.env(), capture_output=True).returncode == 0

    def run(self, *arguments: object) -> str:
        return command(*arguments, env=self.env())

    def idle(self) -> bool:
        """Whether no job is queued or running."""
        return not self.run("squeue", "-h").strip()

    def cancel_all(self) -> None:
        self.run("scancel", "--user=root")
        wait_for(self.idle, "the end of all jobs", 60)

    def stop(self) -> None:
        for pid_file in reversed(self.daemons):
            with contextlib.suppress(OSError, ValueError):
                _end(int(pid_file.read_text()))
        if self.database is not None:
            self.database.terminate()
            self.database.wait(30)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A short path that other users may enter, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="astra-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
