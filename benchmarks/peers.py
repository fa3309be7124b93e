"""The same work with astra and with its peers, on one Slurm cluster and one PostgreSQL.

    python -m benchmarks.peers [--quick] [--json]

Each peer is installed into a virtual environment of its own (``.benchmarks/peers``), and its
program is written as its documentation teaches (benchmarks/peer_programs). A row sleeps for a while
and has one result. Measured are the seconds from the command until the last result is in the
database, the processor time of all Slurm jobs by Slurm's accounting, and, where elements are
killed, how much work was computed twice. A kill takes all processes of a job, as the death of a
node does.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.lines import ROOT, Line, main, say
from tests.servers import wait_for

PROGRAMS = ROOT / "benchmarks" / "peer_programs"
VENVS = ROOT / ".benchmarks" / "peers"

#: What is installed for each, beside psycopg2.
PEERS = {
    "submitit": "submitit==1.5.4",
    "procrastinate": "procrastinate==3.10.0",
    "dask": "dask-jobqueue==0.9.0",
    "datajoint": "datajoint==2.3.5",
}

_RESULTS = {"astra": "peer_result", "datajoint": 'peers."__done__row"'}

#: How long a peer may take, at most.
PATIENCE_S = 300.0

#: Seconds between two questions to Slurm whether anybody still works: a command costs 10 ms of a
#: core, which those that work need.
ASKED_EVERY_S = 0.5


@dataclass(frozen=True)
class Work:
    """What is to be done: rows in pages, of so many seconds each, by so many at once."""

    name: str
    n_rows: int
    per_page: int
    row_s: float
    slots: int = 4
    n_kills: int = 0
    n_rounds: int = 1


W1 = Work("20,000 rows of 1 ms in 20 pages", 20_000, 1000, 0.001, n_rounds=3)
W2 = Work("1,000 rows of 1 ms in 100 pages", 1000, 10, 0.001)
W3 = Work("4,000 rows of 5 ms in 20 pages, three elements killed", 4000, 200, 0.005, n_kills=3)


@dataclass(frozen=True)
class Measured:
    """What one peer needed for one work."""

    wall_s: float
    cpu_s: float
    twice_s: float
    again: int  # times that a person had to submit once more


@dataclass
class Kills:
    """Elements to be killed, each when its share of the rows has been computed."""

    work: Work
    folder: Path
    killed: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Kill the job that computed the last row, if it is time for the next kill."""
        work = self.work
        if len(self.killed) == work.n_kills:  # and the log is not read for nothing
            return
        lines = _computed(self.folder)
        # In the middle of pages, of which as many begin together as there are slots.
        due = work.n_rows * (len(self.killed) + 1) / (work.n_kills + 2)
        due += work.per_page * work.slots / 2
        if len(lines) < due:
            return
        job = _environment(int(lines[-1].split()[0])).get("SLURM_JOB_ID")
        if job is None or job in self.killed:
            return
        self.killed.add(job)
        for pid, of in _jobs(self.folder):
            if of == job:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _jobs(folder: Path) -> Iterator[tuple[int, str]]:
    """Each process of the jobs that work in a folder, with the id of its job."""
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        known = _environment(pid)
        if known.get("PEERS_FOLDER") == str(folder) and "SLURM_JOB_ID" in known:
            yield pid, known["SLURM_JOB_ID"]


def _cpu_of(pid: int) -> float:
    """Processor time of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _environment(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def _computed(folder: Path) -> list[str]:
    try:
        return (folder / "computed").read_text().splitlines()
    except FileNotFoundError:
        return []


def python_of(name: str) -> str:
    """The interpreter of a peer's virtual environment, which is made if need be."""
    if name == "astra":
        return sys.executable
    venv = VENVS / name
    if not (venv / "made").exists():
        say(f"installing {PEERS[name]}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [str(venv / "bin" / "pip"), "install", "-q", PEERS[name], "psycopg2-binary"]
        subprocess.run(pip, check=True)
        (venv / "made").touch()
    return str(venv / "bin" / "python")


class Side:
    """One peer at one work, with a database and a folder of its own."""

    def __init__(self, name: str, work: Work, cluster: Any, server: Any, folder: Path) -> None:
        self.name, self.work, self.cluster, self.folder = name, work, cluster, folder
        self.database = f"{name}_{folder.name}".lower()
        self.url = url = server.create_database(self.database)
        self.sql = lambda statement: server.sql(statement, self.database)
        self.env = cluster.env() | {
            "PEERS_FOLDER": str(folder),
            "PEERS_DSN": url,
            "PEERS_ROWS": str(work.n_rows),
            "PEERS_PER_PAGE": str(work.per_page),
            "PEERS_ROW_S": str(work.row_s),
            "PEERS_SLOTS": str(work.slots),
            "PYTHONPATH": f"{ROOT}:{PROGRAMS}" if name == "astra" else str(PROGRAMS),
            "ASTRA_DATABASE_URL": url,
            "ASTRA_RUN_DIR": str(folder / "runs"),
            "DJ_HOST": "127.0.0.1",
            "DJ_PORT": str(server.port),
            "DJ_USER": "astra",
            "DJ_PASS": server.password,
            "DJ_BACKEND": "postgresql",
            "DJ_USE_TLS": "false",
            "DJ_DATABASE_NAME": self.database,
        }
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def prepare(self) -> None:
        """Make the tables: that is not measured."""
        if self.name == "astra":
            self.sql("CREATE TABLE peerrow (key integer PRIMARY KEY)")
            self.sql(f"INSERT INTO peerrow SELECT generate_series(0, {self.work.n_rows - 1})")
            self._astra("initdb", "with_astra")
            return
        self.sql("CREATE TABLE result (row integer PRIMARY KEY, value double precision)")
        if self.name in ("procrastinate", "datajoint"):
            self._run("prepare").wait()

    def _astra(self, *words: str) -> None:
        command = [sys.executable, "-m", "astra", *words]
        subprocess.run(command, env=self.env, check=True, stdout=subprocess.DEVNULL)

    def _run(self, verb: str) -> "subprocess.Popen[bytes]":
        words = [python_of(self.name), str(PROGRAMS / f"with_{self.name}.py"), verb]
        if self.name == "astra":
            words = [sys.executable, "-m", "astra", "resume", "1"]
            if verb == "submit":
                words[3:] = ["submit", "with_astra.halves", "--limit", str(self.work.per_page)]
                words += ["--throttle", str(self.work.slots)]
        with (self.folder / "out").open("ab") as out:
            return subprocess.Popen(words, env=self.env, stdout=out, stderr=out, cwd=self.folder)

    @contextlib.contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        """What counts the results, on one connection: new ones would take a good part of a core."""
        count = f"SELECT count(*) FROM {_RESULTS.get(self.name, 'result')}"
        with contextlib.closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()

            def n_stored() -> int:
                cursor.execute(count)
                return int(cursor.fetchall()[0][0])

            yield n_stored

    def measure(self) -> Measured:
        self.prepare()
        last = max(map(int, self._jobs("all")), default=0)
        with self.counting() as n_stored:
            began = time.time()
            running, again = self._until_stored(n_stored, began)
            wall_s = time.time() - began
        living: dict[str, float] = defaultdict(float)
        for pid, job in _jobs(self.folder):
            living[job] += _cpu_of(pid)
        running.wait(60)
        while not self.cluster.idle():
            time.sleep(0.1)
        counts = Counter(line.split()[1] for line in _computed(self.folder))
        twice_s = (counts.total() - len(counts)) * self.work.row_s
        return Measured(wall_s, self._cpu_s(last, living), twice_s, again)

    def _until_stored(
        self, n_stored: Callable[[], int], began: float
    ) -> tuple["subprocess.Popen[bytes]", int]:
        """Submit the work, and again whenever all jobs have ended too early; how often again."""
        kills, again, asked = Kills(self.work, self.folder), 0, began
        running = self._run("submit")
        while n_stored() < self.work.n_rows:
            kills.look()
            if time.time() - began > PATIENCE_S:
                raise SystemExit(f"{self.name}: too slow: {(self.folder / 'out').read_text()}")
            if running.poll() is not None and time.time() > asked + ASKED_EVERY_S:
                asked = time.time()
                if self.cluster.idle() and n_stored() < self.work.n_rows:
                    again += 1
                    running = self._run("again")
            time.sleep(0.02)
        return running, again

    def _jobs(self, states: str) -> set[str]:
        """The ids of the jobs and elements in some states, as slurmctld remembers them."""
        return set(self.cluster.run("squeue", "-h", "-r", "-t", states, "-o", "%A").split())

    def _cpu_s(self, last: int, living: dict[str, float]) -> float:
        """Processor time of the jobs after the job `last`, as Slurm accounts for it.

        Slurm does not know that of a job that was killed, as dask's are in the end: what they
        had used when the last result was there counts.
        """
        words = ["sacct", "-n", "-P", "-a", "-S", "now-1hour", "-o", "JobIDRaw,State,TotalCPU"]
        completed = {job for job in self._jobs("CD") if int(job) > last}
        cpu_s: dict[str, float] = {}

        def accounted() -> bool:
            # A job's own line has the sum of its steps, which arrive after its end.
            for text in self.cluster.run(*words).splitlines():
                job, state, cpu = text.split("|")
                if (
                    job.isdecimal()
                    and int(job) > last
                    and (seconds(cpu) > 0 or state != "COMPLETED")
                ):
                    cpu_s[job] = seconds(cpu)
            return cpu_s.keys() >= completed

        wait_for(accounted, "the accounting")
        return sum(max(used, living.get(job, 0.0)) for job, used in cpu_s.items())


def seconds(text: str) -> float:
    """The seconds of a duration in Slurm's words: ``[[days-]hours:]minutes:seconds[.part]``."""
    days, _, rest = text.rpartition("-")
    total = 0.0
    for part in rest.split(":"):
        total = total * 60 + float(part)
    return total + 86400 * float(days or 0)


def sides(work: Work, names: tuple[str, ...]) -> dict[str, Measured]:
    """Each peer at one work, one after the other and in several rounds; the least of each value."""
    from tests.servers import Postgres, Slurm

    rounds: dict[str, list[Measured]] = defaultdict(list)
    with Postgres(is_durable=True) as server, Slurm(nodes=2, cpus=4, min_job_age=3600) as cluster:
        # The first job of a new cluster waits for a second longer than all others.
        cluster.run("sbatch", "--wait", "--array=1-4", "--output=/dev/null", "--wrap=true")
        for name in names * work.n_rounds:
            python_of(name)
            with tempfile.TemporaryDirectory(prefix="peers") as folder:
                say(f"{name}: {work.name}")
                one = Side(name, work, cluster, server, Path(folder)).measure()
                say(f"{name}: {one}")
                rounds[name].append(one)
            cluster.cancel_all()
    return {name: _least(measured) for name, measured in rounds.items()}


def _least(rounds: list[Measured]) -> Measured:
    return Measured(*(min(values) for values in zip(*map(astuple, rounds), strict=True)))


def line(what: str, ours: float, theirs: float, peer: str, wanted: str, note: str = "") -> Line:
    return Line(what, ours, theirs, "s", wanted, peer, note=note)


def others(measured: dict[str, Measured], value: str) -> str:
    return ", ".join(f"{name} {getattr(one, value):.1f}" for name, one in measured.items())


def measure(quick: bool) -> Iterator[Line]:
    works = [W1, W2, W3]
    names = ("astra", *PEERS)
    if quick:
        works = [
            Work(w.name, w.n_rows // 5, w.per_page // 5, w.row_s, n_kills=w.n_kills) for w in works
        ]
        names = ("astra",)
    first, tiny, killed = (sides(work, names) for work in works)
    ours = first["astra"]
    against = first.get("procrastinate", ours)
    note = f"wall time: {others(first, 'wall_s')} s"
    yield line(
        f"{W1.name}, wall time", ours.wall_s, against.wall_s, "procrastinate", "<= 1.0", note
    )
    note = f"processor time: {others(first, 'cpu_s')} s"
    yield line(
        f"{W1.name}, processor time", ours.cpu_s, against.cpu_s, "procrastinate", "<= 1.3", note
    )
    ours, against = tiny["astra"], tiny.get("submitit", tiny["astra"])
    note = f"wall time: {others(tiny, 'wall_s')} s"
    yield line(f"{W2.name}, wall time", ours.wall_s, against.wall_s, "submitit", "<= 0.25", note)
    note = f"{others(killed, 'twice_s')} s; submitted again: {others(killed, 'again')} times"
    yield line(
        f"{W3.name}: computed twice for each kill", killed["astra"].twice_s / W3.n_kills, 1.0,
        "a second", "<= 3.0", note,
    )  # fmt: skip
    note = f"wall time: {others(killed, 'wall_s')} s"
    theirs = killed.get("procrastinate", killed["astra"])
    yield line(
        f"{W3.name}, wall time", killed["astra"].wall_s, theirs.wall_s, "procrastinate", "", note
    )


if __name__ == "__main__":
    main(measure, __doc__)
