"""Where a scenario takes place: a database, a folder, and the processes that belong to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg2

import astra
from astra.database.connection import bind, database
from astra.plan.plan import create_plan
from tests.faults.cluster import Cluster, Stranger
from tests.faults.scenario import MAX_ROWS, Scenario
from tests.faults.tasks import endure
from tests.sample_tasks import fill
from tests.servers import PgBouncer, Postgres, Proxy, shifted_clock

ROOT = Path(astra.__file__).resolve().parent.parent

#: PostgreSQL as on a site, where an acknowledged commit outlives the server. The operating system
#: lives on, so that fsync may be off.
SERVER = {"synchronous_commit": "on", "deadlock_timeout": "100ms", "max_connections": "60"}

#: Of the disk that may be filled, in MB: three copies of the template.
SMALL_DISK_MB = 40

#: The template has the rows of every scenario, each of which takes the first of them.
TEMPLATE = "faults_template"

#: A record of every result, claim and checkpoint that was ever committed, and a way to hold a
#: checkpoint open.
_TABLES = """
CREATE TABLE audit (key bigint, attempt_pk bigint, input_modified timestamptz, at timestamptz);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit VALUES
        (NEW.spectrum_pk, NEW.attempt_pk, NEW.input_modified, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OF value ON ordeal FOR EACH ROW
    EXECUTE FUNCTION audit();
CREATE TABLE claimed (page_pk bigint, attempt_pk bigint, at timestamptz);
CREATE FUNCTION claimed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO claimed VALUES (NEW.pk, NEW.attempt_pk, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER claimed AFTER UPDATE OF attempt_pk ON page FOR EACH ROW
    WHEN (NEW.attempt_pk <> OLD.attempt_pk OR OLD.attempt_pk IS NULL) EXECUTE FUNCTION claimed();
CREATE TABLE written (page_pk bigint, attempt_pk bigint, at timestamptz);
CREATE FUNCTION written() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO written VALUES (NEW.page_pk, NEW.pk, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER written AFTER UPDATE OF n_checkpoints ON attempt FOR EACH ROW
    WHEN (NEW.n_checkpoints > OLD.n_checkpoints) EXECUTE FUNCTION written();
CREATE TABLE armed (place text, for_s float);
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE pause_s float; BEGIN
    SELECT for_s INTO pause_s FROM armed WHERE place = TG_ARGV[0];
    IF FOUND THEN PERFORM pg_sleep(pause_s); END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER hold AFTER INSERT ON ordeal FOR EACH STATEMENT EXECUTE FUNCTION hold('results');
CREATE TRIGGER hold AFTER UPDATE OF outcomes ON page FOR EACH STATEMENT
    EXECUTE FUNCTION hold('progress');
"""


def prepare(server: Postgres) -> None:
    """Make the database that every scenario's is a copy of."""
    from astra.models.schema import init_database

    server.create_database(TEMPLATE)
    bind(server.url(TEMPLATE, user="astra"))
    init_database(("tests.faults.tasks",))
    database.execute_sql(_TABLES)
    fill(MAX_ROWS)
    database.close()


class World:
    """One scenario's database, folder and processes."""

    def __init__(
        self, server: Postgres, scenario: Scenario, folder: Path, cluster: Cluster | None = None,
        code: Path = ROOT, beside: "World | None" = None, copied: bool = False,
    ) -> None:  # fmt: skip
        """With `beside`, another archive in the folder of that world, or a copy of its own."""
        self.server, self.scenario, self.folder = server, scenario, folder
        self.cluster = cluster  # that runs the elements; without one, this machine does
        self.code = code  # the folder of the astra that commands and elements run
        self.name = f"seed_{scenario.seed}_{os.getpid()}"
        self.tablespace = "small" if scenario.small_disk else "pg_default"
        self.neighbours: list[Neighbour] = []
        self.strangers: list[Stranger] = []
        self.history: dict[int, dict[float, float]] = {}  # key: modified: snr
        self.dropped = 0.0  # when a column was dropped, with the values that it had
        self.is_repaired = False  # tables that were altered are as astra wants them again
        self.excused: dict[int, set[str]] = {}  # rows that may fail, and as what
        if beside is not None:
            self.name += f"_{len(beside.neighbours)}"
            self.scenario = replace(scenario, row_s=min(scenario.row_s, 0.02), faults=())
        if beside is not None and copied:
            self.direct = server.copy_database(beside.name, self.name)
            self.history = deepcopy(beside.history)
            self.dropped, self.excused = beside.dropped, deepcopy(beside.excused)
        else:
            self.direct = server.create_database(self.name, TEMPLATE, self.tablespace)
        self.pool = PgBouncer(server) if scenario.pooled and beside is None else None
        # astra's way to the server, which may fall silent.
        self.proxy = Proxy((self.pool or server).port)
        self.url = self.proxy.way(server.url(self.name, user="astra"))
        self.computed = folder / f"computed-{self.name}"
        self.log = folder / f"log-{self.name}"
        self.n_rounds = 0
        self.computed.touch()
        if beside is None:
            self._write_files()
            self.bind()
        if not copied:
            self.sql("DELETE FROM boss_visit_spectrum WHERE spectrum_pk > %s", scenario.rows)
            self.remember(range(1, scenario.rows + 1))

    def _write_files(self) -> None:
        s = self.scenario
        (self.folder / "fates.json").write_text(json.dumps(s.fates))
        self.set_clock(s.clock_h or 0)
        (self.folder / "astra.toml").write_text(
            f'[run]\ndir = "{self.folder}/runs"\n'
            f"[database]\nretry_for_s = {s.retry_for_s}\nconnect_timeout_s = 3\n"
            f"answer_timeout_s = {s.answer_timeout_s}\n"
            f"[element]\nbatch_size = {s.batch_size}\nwrite_frequency = {s.write_frequency}\n"
            f"lease_s = {s.lease_s}\ngrace_s = {s.grace_s}\nrow_timeout_s = {s.row_timeout_s}\n"
            "max_failures = 1.0\nmax_deaths = 3\n"
        )

    def close(self) -> None:
        for neighbour in self.neighbours:
            neighbour.world.close()
        database.close()
        self.kill_elements()
        self.proxy.close()
        if self.pool is not None:
            self.pool.close()
        self.server.drop_database(self.name)

    def bind(self) -> None:
        """Have this process work with the database, as the role that plans and runs in it."""
        bind(self.server.url(self.name, user="astra"))

    def another(self, copied: bool = False) -> "World":
        """Another archive in the same run directory."""
        return World(self.server, self.scenario, self.folder, self.cluster, self.code, self, copied)

    # -- as a user ----------------------------------------------------------------------------

    def plan(self) -> int | None:
        (planned,) = create_plan(endure, limit=self.scenario.limit, arguments=self.arguments())
        database.close()
        return planned.plan

    def arguments(self) -> dict[str, object]:
        return {
            "fates_in": str(self.folder / "fates.json"),
            "computed": str(self.computed),
            "row_s": self.scenario.row_s,
        }

    def environment(self, conf: str | None = None) -> dict[str, str]:
        # The last makes each process compile astra anew, which takes longer than all else it does.
        foreign = ("ASTRA_", "PG", "SLURM", "SBATCH_", "PYTHONDONTWRITEBYTECODE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        kept |= {
            "ASTRA_CONFIG": str(self.folder / "astra.toml"),
            "ASTRA_DATABASE_URL": self.url,
            "HOME": str(self.folder),
            "PYTHONPATH": f"{self.code}:{ROOT}",
            "PYTHONFAULTHANDLER": "",
        }
        if self.scenario.clock_h is not None:
            kept |= shifted_clock(0)
            del kept["FAKETIME"]
            kept |= {
                "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
                "FAKETIME_NO_CACHE": "1",
            }
        if self.cluster is not None:
            kept["SLURM_CONF"] = conf or self.cluster.conf
        elif self.scenario.elsewhere:
            kept["PRETENDED_HOST"] = f"node{self.n_rounds}"
        if "PRETENDED_HOST" in kept or "FAKETIME_TIMESTAMP_FILE" in kept:
            kept["PYTHONPATH"] = f"{self._pretence()}:{kept['PYTHONPATH']}"
        return kept

    def _pretence(self) -> Path:
        """A folder whose code Python runs first: another name for this machine, and a sleep that
        libfaketime does not refuse, as it does clock_nanosleep with the time of the end."""
        folder = self.folder / "elsewhere"
        folder.mkdir(exist_ok=True)
        told = (
            "import os, select, socket, time\n"
            "if 'PRETENDED_HOST' in os.environ:\n"
            "    socket.gethostname = lambda: os.environ['PRETENDED_HOST']\n"
            "if 'FAKETIME_TIMESTAMP_FILE' in os.environ:\n"
            "    time.sleep = lambda seconds: select.select([], [], [], seconds)\n"
        )
        (folder / "sitecustomize.py").write_text(told)
        return folder

    def start(self, *words: object, conf: str | None = None) -> "subprocess.Popen[bytes]":
        """One of astra's commands, with its output in the log; on the cluster of a slurm.conf."""
        with self.log.open("ab") as log:
            log.write(f"--- {time.time():.3f} astra {' '.join(map(str, words))}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "astra", *map(str, words)],
                env=self.environment(conf), cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def logged(self, since: int) -> str:
        """What commands wrote into the log after its first `since` bytes."""
        return self.log.read_bytes()[since:].decode(errors="replace")

    def resume(
        self, plan: int, *words: object, conf: str | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start astra resume, here or on the cluster."""
        jobs = self.scenario.jobs
        how = ["--throttle", 2 * jobs] if self.cluster else ["--local", "-j", jobs]
        return self.start("resume", plan, *how, *words, conf=conf)

    def command(self, *words: object, timeout_s: float = 120) -> tuple[int, str]:
        """Run one of astra's commands: its exit status, and its output or what it has to say."""
        done = subprocess.run(
            [sys.executable, "-m", "astra", *map(str, words)],
            env=self.environment(), cwd=self.folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr

    def excuse(self, exception: str, which: Callable[[int], bool]) -> None:
        """Let rows fail, from now on, as one exception."""
        for key in filter(which, range(1, self.scenario.rows + 1)):
            self.excused.setdefault(key, set()).add(exception)

    # -- what happens in it -------------------------------------------------------------------

    def set_clock(self, hours: float) -> None:
        """How far the clocks of all that is astra's are ahead of the database's."""
        write = self.folder / "clock.new"
        write.write_text(f"{hours:+g}h")
        write.rename(self.folder / "clock")

    def computings(self) -> list[tuple[str, str, str, str]]:
        """Each computing of a row: key, process, when by the clock of the database, modified."""
        ahead = time.time() - time.monotonic()
        lines = map(str.split, self.computed.read_text().splitlines())
        return [(key, pid, f"{float(at) + ahead:.6f}", made) for key, pid, at, made in lines]

    def share_computed(self) -> float:
        """Of the rows, how many lines there are; above one where rows are computed again."""
        return self.computed.read_bytes().count(b"\n") / self.scenario.rows

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.link() as link, link.cursor() as cursor:
            link.autocommit = True
            cursor.execute("SET default_transaction_read_only = off")
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def link(self) -> "closing[Any]":
        """A connection that is not astra's, and waits for no lock in vain."""
        return closing(
            psycopg2.connect(
                self.direct, connect_timeout=3, application_name="nemesis",
                options="-c lock_timeout=0",
            )
        )  # fmt: skip

    def remember(self, keys: Any) -> None:
        """Note what the rows hold, and their times: each version that there ever is."""
        found = self.sql(
            "SELECT spectrum_pk, extract(epoch FROM modified)::float8, snr "
            "FROM boss_visit_spectrum WHERE spectrum_pk = ANY(%s)", list(keys),
        )  # fmt: skip
        for key, modified, snr in found:
            self.history.setdefault(key, {})[round(modified, 6)] = snr

    def elements(self) -> list[tuple[int, int | None]]:
        """The processes of elements: (who watches, who runs the task), by pid."""
        mine = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is(pid)]
        parent_of = {pid: _parent(pid) for pid in mine}
        children = {parent: pid for pid, parent in parent_of.items() if parent in mine}
        return [(pid, children.get(pid)) for pid in mine if parent_of[pid] not in mine]

    def _is(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"run-page" not in words or _state(pid) in "ZX":
                return False
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"ASTRA_DATABASE_URL={self.url}".encode() in environment

    def wait_for_elements(self, bound_s: float) -> bool:
        """Whether every element has ended in time; those that were stopped go on first."""
        end = time.monotonic() + bound_s
        while found := self.elements():
            if time.monotonic() > end:
                return False
            for pid in (p for pair in found for p in pair if p):
                if _state(pid) == "T":
                    send(pid, signal.SIGCONT)
            time.sleep(0.1)
        return True

    def kill_elements(self) -> None:
        for pair in self.elements():
            for pid in filter(None, pair):
                send(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Neighbour:
    """Another archive in the same run directory, its plan, and the astra resume that began it."""

    world: World
    plan: int | None
    process: "subprocess.Popen[bytes] | None"


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _state(pid: int) -> str:
    return _stat(pid)[0]


def send(pid: int, number: int) -> None:
    """A signal to a process of the scenario's, which may just have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
