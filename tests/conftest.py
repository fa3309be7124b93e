"""Servers of the tests' own, a fresh database for each test, a clean environment.

The servers start when a test first asks for them, once per run. Under pytest-xdist each worker has
its own: they share no port and no folder, so that nothing need be agreed upon.
"""

import importlib
import itertools
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from psycopg2 import OperationalError

from tests.servers import Postgres, Server, ServerError, Slurm, hear_interrupts

# Before a test imports numpy: the threads of several workers' BLAS wait for each other, spinning.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# An example takes as long as it takes on a busy machine, and a fixture may serve all of a test.
_UNHURRIED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("tests", deadline=None, suppress_health_check=_UNHURRIED)
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent

_TEMPLATE = "astra_template"

#: The modules whose tables the databases of the tests have. A test makes the table of another model
#: by itself (`create_table`).
MODULES = ("tests.sample_tasks", "tests.many_tasks")

S = TypeVar("S", bound=Server)

#: What would make astra, libpq or Slurm's commands behave as the person who runs the tests likes,
#: and what makes each of the many processes that the tests start compile astra anew.
_FOREIGN = ("ASTRA_", "PG", "SLURM_", "SBATCH_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_")
_FOREIGN += ("PYTHONDONTWRITEBYTECODE",)


def prepare_template(url: str) -> None:
    """Fill the database that every test's database is a copy of."""
    done = subprocess.run(
        [sys.executable, "-m", "astra", "initdb", *MODULES],
        cwd=ROOT,
        env={**os.environ, "ASTRA_DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"astra initdb: {done.stdout}{done.stderr}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _no_foreign_environment() -> Iterator[None]:
    """For the servers, which start before a test's own fixtures run."""
    hear_interrupts()
    with pytest.MonkeyPatch.context() as patch:
        _strip(patch)
        yield


def _strip(patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        patch.delenv(name)


@contextmanager
def _started(start: Callable[[], S]) -> Iterator[S]:
    """A server for the length of the run; what it lacks is said in a line, without a traceback."""
    try:
        server = start()
    except ServerError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL, with the template of the tests' databases."""
    with _started(Postgres) as server:
        server.create_database(_TEMPLATE)
        # Its tables are of the plain role, as on a site: the superuser may use them all the same.
        prepare_template(server.url(_TEMPLATE, user="astra"))
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """Slurm with accounting; a test that submits wants the fixture `slurm` instead."""
    with _started(lambda: Slurm(cpus=16)) as server:
        yield server


@pytest.fixture(scope="session")
def other_cluster(cluster: Slurm) -> Iterator[Slurm]:
    """Another cluster, behind the accounting of the first."""
    with _started(lambda: Slurm(nodes=2, beside=cluster)) as server:
        yield server


def hide_models(patch: pytest.MonkeyPatch, module: str = "") -> None:
    """`init_database` makes the tables of all models that are imported, but of no other test module.

    A run of all tests has imported them all.
    """
    if (schema := sys.modules.get("astra.models.schema")) is None:
        return
    tables = schema.tables

    def seen() -> list[type[Any]]:
        names = ((model, model.__module__) for model in tables())
        return [m for m, name in names if name == module or ".test_" not in name]

    patch.setattr(schema, "tables", seen)


@pytest.fixture(autouse=True)
def clean(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[None]:
    """A folder of the test's own, which is its home too, and no database bound before or after."""
    _strip(monkeypatch)
    hide_models(monkeypatch, request.module.__name__)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ASTRA_RUN_DIR", str(tmp_path / "runs"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)  # so that it is below HOME
    monkeypatch.chdir(tmp_path)
    _reset_database()
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)  # a command that the test called may have changed it
    _reset_database()


def _reset_database() -> None:
    if "astra.config.settings" in sys.modules:
        importlib.import_module("astra.config.settings").reset()
    if "astra.database.connection" in sys.modules:
        importlib.import_module("astra.database.connection").reset()
    if "astra.slurm.limits" in sys.modules:  # what another test's cluster said
        importlib.import_module("astra.slurm.limits").configuration.cache_clear()


_numbers = itertools.count(1)


@pytest.fixture
def pg_url(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh PostgreSQL database with astra's tables, configured as astra's."""
    with fresh_database(postgres, _TEMPLATE, monkeypatch) as url:
        yield url


@contextmanager
def fresh_database(
    postgres: Postgres, template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Copy a template, configure the copy as astra's, and drop it in the end."""
    name = f"astra_{next(_numbers)}"
    url = postgres.create_database(name, template=template)
    monkeypatch.setenv("ASTRA_DATABASE_URL", url)
    yield url
    _reset_database()
    try:
        postgres.drop_database(name)
    except OperationalError:  # the test took the server down
        postgres.restart()
        postgres.drop_database(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with astra's tables and those of the tests' modules, for the tests to copy."""
    file = tmp_path_factory.mktemp("template") / "astra.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASTRA_DATABASE_URL", f"sqlite:///{file}")
        from astra.models.schema import init_database

        hide_models(patch)
        _reset_database()  # pytest looks for attributes of all names in a module, `database` too
        init_database(MODULES)
        _reset_database()
    return file


def configured_copy(original: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Copy a SQLite file as an archive of its own, configure the copy as astra's, return its URL."""
    file = Path(shutil.copy(original, folder))
    url = f"sqlite:///{file}"
    monkeypatch.setenv("ASTRA_DATABASE_URL", url)
    from astra.database.connection import dialect

    with closing(sqlite3.connect(file)) as copy, copy:  # as `astra initdb --moved` does
        copy.execute("UPDATE astra_archive SET made_in = ?", (dialect().location(),))
    return url


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh SQLite file with astra's tables, configured as astra's."""
    return configured_copy(sqlite_template, tmp_path, monkeypatch)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Both databases, one after the other."""
    found: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "pg_url")
    return found


@pytest.fixture
def slurm(
    cluster: Slurm, pg_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Slurm]:
    """The cluster, a fresh database, and a run directory: what a submission needs."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield cluster
    cluster.restore()


@pytest.fixture
def job_limit(slurm: Slurm) -> Iterator[Callable[[int | None], None]]:
    """Limit the jobs of the user, and wait until the limit applies; None lifts it."""
    yield slurm.set_max_submit
    slurm.set_max_submit(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the modules to the workers: those that wait for Slurm or for faults beside the others.

    pytest-xdist gives each worker an equal share of the list, in its order, and later the end of a
    busier one's share. The end of each share is short tests, so that the workers end together.
    """
    n_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if n_workers == 1:
        return
    modules = [list(group) for _, group in itertools.groupby(items, key=lambda item: item.path)]
    waiting, others = [m for m in modules if _waits(m)], [m for m in modules if not _waits(m)]
    placed = [
        (share * place / len(group), module)
        for share, group in ((0.8, waiting), (1.0, others))
        for place, module in enumerate(group)
    ]
    dealt = [module for _, module in sorted(placed, key=lambda pair: pair[0])]
    items[:] = [item for n in range(n_workers) for module in dealt[n::n_workers] for item in module]


def _waits(module: list[pytest.Item]) -> bool:
    """Whether the tests of a module mostly wait."""
    return "faults" in module[0].path.parts or any(i.get_closest_marker("slurm") for i in module)


#: Hostile strings that a whole run sends through astra, at least, over all its workers.
_HOSTILE = 100_000
_tried: list[int] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    hostile = sys.modules.get("tests.test_hostile")
    tried = sum(hostile.TRIED.values()) if hostile is not None else 0
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["tried"] = tried
        return
    _tried.append(tried)
    narrowed = config.option.file_or_dir or config.option.keyword or config.option.markexpr
    if not narrowed and session.exitstatus == 0 and sum(_tried) < _HOSTILE:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The end of a worker of pytest-xdist."""
    _tried.append(getattr(node, "workeroutput", {}).get("tried", 0))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if sum(_tried):
        terminalreporter.write_line(f"hostile strings tried: {sum(_tried):,}")
