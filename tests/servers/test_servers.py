"""The tests' own servers: they do what the other tests take for granted, and leave nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import ROOT
from tests.servers import Postgres, ServerError, Slurm, folder, shifted_clock, wait_for

_SUBMIT = ("sbatch", "--parsable", "--output=/dev/null")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def segments() -> dict[str, int]:
    """The machine's System V shared memory: the process that made each segment."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {line.split()[1]: int(line.split()[4]) for line in lines}


@pytest.mark.postgres
class TestPostgres:
    def test_each_test_has_a_database_of_its_own(self, postgres: Postgres, pg_url: str) -> None:
        other = postgres.create_database("another", template="astra_template")
        try:
            for url in (pg_url, other):
                with psycopg2.connect(url) as connection, connection.cursor() as cursor:
                    cursor.execute("INSERT INTO source (pk) VALUES (1)")
                connection.close()
            assert postgres.sql("SELECT pk FROM source", "another") == [(1,)]
        finally:
            postgres.drop_database("another")
        assert postgres.sql("SELECT count(*) FROM pg_database WHERE datname = 'another'") == [(0,)]

    def test_it_comes_back_with_its_rows(self) -> None:
        with Postgres() as server:
            server.sql("CREATE TABLE kept AS SELECT 7 AS n")
            for down in (server.stop, lambda: server.stop("immediate"), server.kill):
                down()
                assert not server.answers()
                server.start()
                assert server.sql("SELECT n FROM kept") == [(7,)]
            server.restart()
            assert server.answers()

    def test_parameters_are_honoured(self) -> None:
        with Postgres(max_connections=5, superuser_reserved_connections=1) as server:
            held: list[Any] = []

            def holds_another() -> (
                bool
            ):  # the server may still end those that looked whether it runs
                with contextlib.suppress(psycopg2.OperationalError):
                    held.append(psycopg2.connect(server.url("postgres", user="astra")))
                return len(held) == 4

            wait_for(holds_another, "four connections")
            with pytest.raises(psycopg2.OperationalError, match=r"(?i)superuser"):
                psycopg2.connect(server.url("postgres", user="astra"))
            for connection in held:
                connection.close()

    def test_only_the_right_password_comes_in(self) -> None:
        with Postgres(password="p@ss/w'ord%") as server:
            psycopg2.connect(server.url("postgres", user="astra")).close()
            with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
                psycopg2.connect(server.url("postgres", user="astra", password="wrong"))
            with pytest.raises(psycopg2.OperationalError, match="password"):
                psycopg2.connect(f"postgresql://postgres@127.0.0.1:{server.port}/postgres")

    def test_its_clock_can_be_an_hour_ahead(self) -> None:
        with Postgres(env=shifted_clock(hours=1)) as server:
            ((ahead_s,),) = server.sql(f"SELECT extract(epoch FROM now()) - {time.time()}")
            assert 3590 < ahead_s < 3610

    def test_nothing_is_left(self) -> None:
        with Postgres() as server:
            pids = [*server.keeper.processes(), server.keeper.pid]
            assert len(pids) > 5 and server.folder.is_dir()
            assert set(segments().values()) & set(pids)
        assert not [pid for pid in pids if lives(pid)]
        assert not server.folder.exists() and not set(segments().values()) & set(pids)

    def test_nothing_is_left_of_one_that_was_killed(self) -> None:
        with Postgres() as server:
            pids = server.keeper.processes()
            server.kill()
        assert not server.folder.exists() and not set(segments().values()) & set(pids)

    def test_nothing_is_left_of_one_that_did_not_start(self) -> None:
        with folder() as path:
            with pytest.raises(ServerError, match="max_connections"):
                Postgres(path / "postgres", max_connections=-1)
            assert not list(path.iterdir())

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_nothing_is_left_when_the_tests_are_ended(self, number: int) -> None:
        program = (
            "import time; from tests.servers import Postgres; server = Postgres();"
            "print(server.folder, *server.keeper.processes(), flush=True)\n"
            "while True: time.sleep(0.05)"  # one long wait can miss a signal that comes just before
        )
        with subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        ) as tests:  # fmt: skip
            assert tests.stdout is not None
            home, *pids = tests.stdout.readline().split()
            assert pids
            tests.send_signal(number)
        wait_for(lambda: not [pid for pid in pids if lives(int(pid))], "the end of PostgreSQL")
        wait_for(lambda: not Path(home).exists(), "the end of its folder")


@pytest.fixture
def restored(cluster: Slurm) -> Iterator[Slurm]:
    yield cluster
    cluster.restore()


@pytest.mark.slurm
class TestSlurm:
    def submit(self, cluster: Slurm, command: str, *options: str) -> str:
        return cluster.run(*_SUBMIT, *options, f"--wrap={command}").strip()

    def test_an_array_runs_and_is_accounted(self, restored: Slurm) -> None:
        job = self.submit(restored, "true", "--array=1-20")
        assert len(restored.wait_job(job)) == 20
        elements = restored.wait_job(job, accounted=True)
        assert elements == {f"{job}_{i}": "COMPLETED" for i in range(1, 21)}

    def test_a_failure_is_accounted(self, restored: Slurm) -> None:
        job = self.submit(restored, "exit 3", "--partition=short")
        restored.wait_job(job, "FAILED")
        assert restored.wait_job(job, "FAILED", accounted=True) == {job: "FAILED"}

    def test_more_cpus_than_the_machine_has(self, restored: Slurm) -> None:
        job = self.submit(restored, "sleep 60", "--cpus-per-task=8", "--array=1-4")
        restored.wait_job(job, "RUNNING")
        restored.cancel_all()
        assert set(restored.states(job).values()) == {"CANCELLED"}

    def test_a_requeued_job_runs_again(self, restored: Slurm) -> None:
        job = self.submit(restored, 'test "$SLURM_RESTART_COUNT" || sleep 60')
        restored.wait_job(job, "RUNNING")
        restored.run("scontrol", "requeue", job)
        restored.wait_job(job, "COMPLETED")

    def test_the_limit_on_submitted_jobs_holds(self, restored: Slurm) -> None:
        restored.set_max_submit(3)
        with pytest.raises(ServerError, match="AssocMaxSubmitJobLimit"):
            self.submit(restored, "true", "--array=1-4")
        restored.set_max_submit(None)
        restored.wait_job(self.submit(restored, "true", "--array=1-4"))

    def test_jobs_outlive_the_daemons(self, restored: Slurm, tmp_path: Path) -> None:
        # It ends when all are back: word of an end that slurmctld misses is repeated but slowly.
        wait = f"touch '{tmp_path}/began'; until [ -e '{tmp_path}/go' ]; do sleep 0.1; done"
        job = self.submit(restored, wait, "--nodelist=n2")
        # slurmctld says RUNNING before slurmd has started the job, which would die with it.
        wait_for((tmp_path / "began").exists, "the job", 60)
        restored.kill_slurmd("n2")
        restored.stop_controller()
        with pytest.raises(ServerError, match="is DOWN"):
            restored.run("scontrol", "ping")
        restored.start_controller()
        restored.start_slurmd("n2")
        assert restored.states(job) == {job: "RUNNING"}
        (tmp_path / "go").touch()
        restored.wait_job(job, timeout_s=180)

    def test_accounting_catches_up(self, restored: Slurm) -> None:
        restored.stop_dbd()
        job = self.submit(restored, "true")
        restored.wait_job(job)
        with pytest.raises(ServerError):
            restored.accounted(job)
        restored.start_dbd()
        restored.wait_job(job, accounted=True)

    def test_a_cluster_without_accounting_leaves_nothing(self, tmp_path: Path) -> None:
        with Slurm(nodes=1, max_array_size=11, accounting=False, extra=["KillWait=2"]) as small:
            config = small.run("scontrol", "show", "config")
            assert "MaxArraySize            = 11\n" in config
            assert "KillWait                = 2 sec" in config
            marker = tmp_path / "pid"
            # In a session of its own, which Slurm's own tracking of processes would lose.
            small.run(*_SUBMIT, f"--wrap=setsid sleep 600 & echo $! >'{marker}'; sleep 600")
            wait_for(lambda: marker.exists() and marker.read_text().strip(), "the job")
            pids = [int(marker.read_text()), small.keeper.pid, *small.keeper.processes()]
            assert len(pids) > 6
        assert not [pid for pid in pids if lives(pid)] and not small.folder.exists()

    def test_nothing_is_left_of_one_that_did_not_start(self) -> None:
        with folder() as path:
            with pytest.raises(ServerError, match="NoSuchKeyword"):
                Slurm(path / "slurm", nodes=1, accounting=False, extra=["NoSuchKeyword=1"])
            assert not list(path.iterdir())

    def test_without_root_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(ServerError, match="sudo"):
            Slurm()

    def test_a_missing_program_is_named_with_its_package(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shutil.which", lambda *_, **__: None)
        with pytest.raises(ServerError, match="apt-get install slurm-wlm"):
            Slurm()
