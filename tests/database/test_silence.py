"""A server, or something on the way to it, that falls silent."""

import time
from urllib.parse import urlsplit

import pytest

from astra.database.connection import bind, connected, connection, database
from astra.errors import DatabaseError
from tests.servers import Proxy

pytestmark = pytest.mark.postgres


def test_a_connection_that_falls_silent_while_it_is_prepared_is_given_up(postgres, pg_url):
    """By commands and by elements: nobody waits for ever, nor keeps other threads waiting."""
    with Proxy(postgres.port, silent_at=b"extra_float_digits") as proxy:
        name = urlsplit(pg_url).path.strip("/")
        bind(proxy.way(postgres.url(name, user="astra")))
        database.bound().connect_params["connect_timeout"] = 1
        began = time.monotonic()
        with pytest.raises(DatabaseError, match="no connection to the database"), connection():
            pass
        assert not connected()
        assert time.monotonic() - began < 10
