"""Servers of the tests' own, a fresh database for each test, a clean environment."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Postgres, Slurm, folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with folder() as path:
        server = Postgres(path / "postgres")
        try:
            server.sql("CREATE DATABASE astra_template")
            environment = {**os.environ, "ASTRA_DATABASE_URL": server.url("astra_template")}
            subprocess.run(
                [sys.executable, "-m", "astra", "initdb", "tests.tasks"],
                cwd=ROOT, env=environment, check=True, capture_output=True,
            )  # fmt: skip
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    with folder() as path:
        slurm = Slurm(path / "slurm", cpus=16)
        try:
            yield slurm
        finally:
            slurm.stop()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No configuration of the person who runs the tests, and a folder of the test's own."""
    for name in list(os.environ):
        if name.startswith(("ASTRA_", "PG", "SLURM_", "SBATCH_", "SQUEUE_", "SACCT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    _forget_database()
    yield
    _forget_database()


def _forget_database() -> None:
    if "astra.database" in sys.modules:
        importlib.import_module("astra.database").reset()


_numbers = iter(range(10**6))


@pytest.fixture
def pg_url(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"astra_{os.getpid()}_{next(_numbers)}"
    postgres.sql(f"CREATE DATABASE {name} TEMPLATE astra_template")
    url = postgres.url(name)
    monkeypatch.setenv("ASTRA_DATABASE_URL", url)
    yield url
    importlib.import_module("astra.database").reset()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/astra.db"
    monkeypatch.setenv("ASTRA_DATABASE_URL", url)
    from astra.schema import init_database

    init_database(("tests.tasks",))
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Both databases, one after the other."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "pg_url")


@pytest.fixture
def slurm(cluster: Slurm, pg_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Slurm:
    """The cluster, a fresh database, and a run directory: what a submission needs."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("ASTRA_RUN_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield cluster
    cluster.cancel_all()
