"""A server that tests may break."""

from collections.abc import Iterator

import pytest

from astra.database.connection import reset
from tests.faults.world import SERVER, SMALL_DISK_MB, prepare
from tests.servers import Postgres


@pytest.fixture(scope="session")
def faulty() -> Iterator[Postgres]:
    """A server into which faults may be injected; other tests use another one."""
    with Postgres(small_disk_mb=SMALL_DISK_MB, **SERVER) as server:
        prepare(server)
        reset()
        yield server
        reset()
