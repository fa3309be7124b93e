"""A PgBouncer of the tests' own, in transaction mode: a connection is another at each transaction."""

import os
import shutil
import socket
from contextlib import closing

import psycopg2

from tests.servers.postgres import Postgres
from tests.servers.server import Server, bare_environment, program

_INI = """\
[databases]
* = host=127.0.0.1 port={to} user=astra password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
admin_users = astra
pool_mode = transaction
default_pool_size = {pool_size}
server_login_retry = 0.2
max_client_conn = {clients}
{extra}
"""


class PgBouncer(Server):
    """Before a server of the tests; every client is the role ``astra`` there."""

    def __init__(
        self, server: Postgres, pool_size: int = 4, clients: int = 200, extra: str = ""
    ) -> None:
        super().__init__(None)
        owner = "postgres" if os.geteuid() == 0 else None
        try:
            self.port = self.ports.one()
            ini = self.folder / "pgbouncer.ini"
            ini.touch(0o600)
            text = _INI.format(
                to=server.port, password=server.password, port=self.port,
                pool_size=pool_size, clients=clients, extra=extra,
            )  # fmt: skip
            ini.write_text(text)
            if owner:
                shutil.chown(ini, owner)
                shutil.chown(self.folder, owner)
            log = self.folder / "log"
            words = [program("pgbouncer", "pgbouncer"), ini]
            process = self.keeper.start(words, bare_environment(LC_ALL="C"), log, owner)
            self.await_start(process, self._listens, "PgBouncer", log)
        except BaseException:
            self.close()
            raise

    def reconnect(self) -> None:
        """Have each connection to the server closed once it is idle, and opened anew."""
        link = psycopg2.connect(host="127.0.0.1", port=self.port, user="astra", dbname="pgbouncer")
        link.autocommit = True
        with closing(link), link.cursor() as cursor:
            cursor.execute("RECONNECT")

    def _listens(self) -> bool:
        with socket.socket() as link:
            return link.connect_ex(("127.0.0.1", self.port)) == 0
