"""A server, or something on the way to it, that falls silent."""

import time
from urllib.parse import urlsplit

import peewee
import psycopg2
import pytest

from astra.database.connection import bind, connected, connection, database, retrying
from astra.errors import DatabaseError
from tests.servers import Proxy

pytestmark = pytest.mark.postgres


def test_a_lost_connection_that_the_driver_reports_as_a_bare_error(pg_url):
    """A server that shuts down immediately sometimes does this; the work is repeated."""
    calls = iter([psycopg2.DatabaseError("server closed the connection unexpectedly"), None])

    def work() -> str:
        with peewee.ExceptionWrapper(peewee.EXCEPTIONS):
            if (error := next(calls)) is not None:
                raise error
        return "done"

    assert retrying(work) == "done"


def test_a_connection_that_falls_silent_while_it_is_prepared_is_given_up(postgres, pg_url):
    """Neither commands nor elements wait for ever, or keep other threads waiting."""
    with Proxy(postgres.port, silent_at=b"extra_float_digits") as proxy:
        name = urlsplit(pg_url).path.strip("/")
        bind(proxy.way(postgres.url(name, user="astra")))
        database.bound().connect_params["connect_timeout"] = 1
        began = time.monotonic()
        with pytest.raises(DatabaseError, match="no connection to the database"), connection():
            pass
        assert not connected()
        assert time.monotonic() - began < 10
