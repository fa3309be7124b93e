"""A database in which each role has its rights."""

from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

import pytest

from astra.database.connection import bind, reset
from astra.models.schema import init_database
from tests.conftest import MODULES, fresh_database, hide_models
from tests.roles import PASSWORD, ROLES, Url, url_of
from tests.sample_tasks import fill
from tests.servers import Postgres


@pytest.fixture(scope="session")
def granted(postgres: Postgres) -> str:
    """The name of a template, whose owner has given the roles their parts."""
    for role in ROLES.values():
        postgres.create_role(role, PASSWORD)
    postgres.create_database("granted", template="astra_template")
    bind(postgres.url("granted", user="astra"))
    with pytest.MonkeyPatch.context() as patch:
        hide_models(patch)
        init_database(MODULES, tuple(f"{role}:{kind}" for kind, role in ROLES.items()))
    reset()
    return "granted"


@pytest.fixture
def of(postgres: Postgres, granted: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Url]:
    """A database of which each role has its part; URLs over TCP."""
    with fresh_database(postgres, granted, monkeypatch) as pg_url:
        name = urlsplit(pg_url).path[1:]
        bind(postgres.url(name, user="astra"))
        fill(40)
        yield partial(url_of, postgres, name)
