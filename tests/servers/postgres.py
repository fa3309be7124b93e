"""A PostgreSQL server of the tests' own."""

import base64
import contextlib
import hashlib
import hmac
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg2

from tests.servers.keeper import KeptProcess
from tests.servers.server import (
    TEMPORARY,
    MissingPackage,
    Server,
    ServerError,
    bare_environment,
    memory,
    tail,
    wait_for,
)

StopMode = Literal["smart", "fast", "immediate"]

#: postgres(1): smart waits for sessions to end, fast ends them, immediate recovers at the next start.
_STOP_SIGNAL = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

#: The data live as long as the tests: nothing need survive the machine.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    "shared_buffers": "16MB",  # each new session maps it
    "jit": "off",
    "synchronous_commit": "off",
    "listen_addresses": "127.0.0.1",
    "dynamic_shared_memory_type": "mmap",  # in the server's folder, not in /dev/shm
}

#: PostgreSQL's defaults: what is committed is on the disk.
_DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_wal_size": "1GB",
}


#: Of the role `astra`, on a server that answers on loopback alone and lives as long as the tests.
_PASSWORD = "astra"


#: A copy of a template is an archive of its own: as `astra initdb --moved` has it.
_MOVED = """
    UPDATE astra_archive SET made_in = format(
        'the database %s of the PostgreSQL server %s, table %s, port %s, timeline 1',
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        (SELECT system_identifier FROM pg_control_system()),
        'astra_archive'::regclass::oid, current_setting('port'))
"""


class Postgres(Server):
    """A server with a superuser ``postgres`` and a plain role ``astra``.

    The superuser comes in by the socket, without a password, and the socket's folder is closed to
    other users; over TCP everybody needs a password (scram-sha-256), and only `astra` has one.

    Parameters
    ----------
    folder : where to live; a folder that does not exist yet. Without one, in memory or under /tmp.
    env : more environment for the server, such as that of :func:`shifted_clock`.
    password : of the role `astra`, so that a test can look for it where it must not be.
    small_disk_mb : size of a disk of its own for the tablespace ``small``, which :meth:`fill_disk`
        fills. Where this machine lets nobody mount one, there is no such tablespace.
    is_durable : whether it lives on the disk, and waits for it with each commit, as by default.
    settings : PostgreSQL's parameters, such as ``max_connections=20``.
    """

    def __init__(
        self,
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
        password: str = _PASSWORD,
        small_disk_mb: int = 0,
        is_durable: bool = False,
        **settings: object,
    ) -> None:
        self.bin = _newest_binaries()
        # A database is 500 files, which memory takes a third of the time for.
        super().__init__(folder, TEMPORARY if is_durable else memory())
        self.password = password
        self.settings = {**_SETTINGS, **(_DURABLE if is_durable else {}), **settings}
        self.owner = "postgres" if os.geteuid() == 0 else None
        self.process: KeptProcess | None = None
        self._administration: Any = None  # a connection that is kept
        self._env = bare_environment(LC_ALL="C", **(env or {}))
        self._log = self.folder / "log"
        self._data = self.folder / "data"
        try:
            self.port = self.ports.one()
            self.folder.chmod(0o700)
            if self.owner:
                shutil.chown(self.folder, self.owner)
            self._init()
            self.small_disk = self._mount(small_disk_mb) if small_disk_mb else None
            self.start()
            self._make_role()
        except BaseException:
            self.close()
            raise

    def _init(self) -> None:
        words = [self.bin / "initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8"]
        words += ["--locale=C", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256"]
        self._run(words)

    def _run(self, words: list[object]) -> None:
        started = self.keeper.start(words, bare_environment(LC_ALL="C"), self._log, self.owner)
        if started.wait() != 0:
            raise ServerError(f"{words[0]} failed:\n{tail(self._log)}")

    def _make_role(self) -> None:
        self.create_role("astra", self.password)
        if self.small_disk:
            self.sql(f"CREATE TABLESPACE small LOCATION {_literal(str(self.small_disk))}")
            self.sql("GRANT CREATE ON TABLESPACE small TO astra")

    def create_role(self, name: str, password: str) -> None:
        """Create a plain role, which may log in over TCP."""
        quoted = name.replace('"', '""')
        self.sql(f'CREATE ROLE "{quoted}" LOGIN PASSWORD {_literal(_scram_secret(password))}')

    def _mount(self, megabytes: int) -> Path | None:
        disk = self.folder / "disk"
        disk.mkdir()
        try:
            self.keeper.ask("mount", folder=str(disk), megabytes=megabytes)
        except RuntimeError:
            return None
        words = ["install", "-d", "-m", "700", "-o", self.owner or str(os.geteuid()), disk / "ts"]
        if self.keeper.start(words, bare_environment(), self._log).wait() != 0:
            raise ServerError(tail(self._log))
        return disk / "ts"

    def fill_disk(self) -> int:
        """Fill the small disk to its last byte; how many that took."""
        assert self.process is not None and self.small_disk is not None
        size = 0
        with self._filler().open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                size += file.write(bytes(4096))
        return size

    def clear_disk(self) -> None:
        self._filler().unlink(missing_ok=True)

    def _filler(self) -> Path:
        # The disk is mounted for the server alone, and seen through one of its processes.
        return Path(f"/proc/{self.process.pid}/root{self.folder}/disk/filler")

    def start(self) -> None:
        words = [self.bin / "postgres", "-D", self._data, "-p", self.port, "-k", self.folder]
        options = [f"-c{name}={value}" for name, value in self.settings.items()]
        self.process = self.keeper.start(
            [*words, *options],
            self._env,
            self._log,
            self.owner,
            # Not SIGKILL, which would leave a segment of System V shared memory behind.
            last_signal=signal.SIGQUIT,
        )
        self.await_start(self.process, self.answers, "PostgreSQL", self._log)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server; its data stay, for :meth:`start`, until :meth:`close`."""
        if self.process is not None:
            self.process.signal(_STOP_SIGNAL[mode])
            self.process.wait()

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the server as by ``kill -9``; its data stay, for :meth:`start`."""
        assert self.process is not None
        self.process.signal(signal.SIGKILL)
        self.process.wait()
        # Its children notice by themselves; it cannot start again while one of them is left.
        wait_for(lambda: not self.keeper.processes(), "the end of PostgreSQL's processes")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._remove_shared_memory()
        super().close()

    def _remove_shared_memory(self) -> None:
        # A killed server leaves its System V segment, of which postmaster.pid's seventh line tells.
        if self.process is not None and self.process.poll() == -signal.SIGKILL:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            subprocess.run(["ipcrm", "-m", lines[6].split()[1]], capture_output=True, check=False)

    @contextlib.contextmanager
    def locked_out(self, role: str) -> Iterator[None]:
        """No connection of this role over TCP is let in, as pg_hba.conf says."""
        file = self._data / "pg_hba.conf"
        before = file.read_text()
        file.write_text(f"host all {role} all reject\n{before}")
        try:
            self.sql("SELECT pg_reload_conf()")
            yield
        finally:
            file.write_text(before)
            self.sql("SELECT pg_reload_conf()")

    def logged(self, words: str) -> int:
        """How often the server's log has said so."""
        return self._log.read_text(errors="replace").count(words)

    def answers(self) -> bool:
        try:
            self.sql("SELECT 1")
        except psycopg2.OperationalError:
            return False
        return True

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        """By the socket for the superuser; over TCP with a password for any other role."""
        if user == "postgres":
            return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of one statement, by the superuser, outside a transaction."""
        connection = psycopg2.connect(self.url(database), connect_timeout=10)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _administer(self, statement: str) -> None:
        """Run a statement by the superuser, on a connection that all of these share."""
        for is_last in (self._administration is None, True):
            try:
                if self._administration is None:
                    self._administration = psycopg2.connect(self.url("postgres"))
                    self._administration.autocommit = True
                with self._administration.cursor() as cursor:
                    return cursor.execute(statement)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                self._administration = None  # the server was restarted meanwhile
                if is_last:
                    raise

    def create_database(
        self, name: str, template: str = "template1", tablespace: str = "pg_default"
    ) -> str:
        """A new database, of the role `astra`, and its URL for the superuser."""
        _check_name(name, template, tablespace)
        # Copying files takes half the processor time of writing all their pages to the log.
        self._administer(
            f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER astra TABLESPACE "{tablespace}" '
            "STRATEGY file_copy"
        )
        if template != "template1":
            self.sql(_MOVED, database=name)
        return self.url(name)

    def copy_database(self, name: str, copy: str, tablespace: str = "pg_default") -> str:
        """A copy as it is made on a site, whose archive is still the original's; its URL."""
        _check_name(name, copy, tablespace)
        self.sql(
            f'CREATE DATABASE "{copy}" TEMPLATE "{name}" OWNER astra TABLESPACE "{tablespace}"'
        )
        return self.url(copy)

    @contextlib.contextmanager
    def closed_database(self, name: str) -> Iterator[int]:
        """Nobody is connected to a database, or can be; how many connections that ended."""
        _check_name(name)
        ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = "
        self.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            yield len(self.sql(ended + _literal(name)))
        finally:
            self.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        _check_name(name)
        self._administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class Copy(Postgres):
    """A server of its own with a copy of another server's files."""

    options: tuple[str, ...] = ()

    def __init__(self, original: Postgres) -> None:
        self.original = original
        super().__init__(password=original.password, **original.settings)

    def _init(self) -> None:
        words = [self.bin / "pg_basebackup", "-D", self._data, "-h", self.original.folder]
        words += ["-p", self.original.port, "-U", "postgres", "-c", "fast", "--no-sync"]
        self._run([*words, *self.options])

    def _make_role(self) -> None:
        """It is there: a copy has what its original has."""


class Standby(Copy):
    """A copy of another server, which follows it until :meth:`promote`."""

    options = ("-R",)

    def leave_behind(self) -> None:
        """It hears no more of its primary."""
        self.sql("ALTER SYSTEM SET primary_conninfo = ''")
        self.sql("SELECT pg_reload_conf()")
        gone = "SELECT count(*) FROM pg_stat_wal_receiver"
        wait_for(lambda: self.sql(gone) == [(0,)], "the end of the replication", 60)

    def promote(self) -> None:
        """Make it the primary, whatever the other one does."""
        assert self.sql("SELECT pg_promote(true, 60)") == [(True,)]


def shifted_clock(hours: float) -> dict[str, str]:
    """The environment in which a program's clock is `hours` ahead of the machine's."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        raise MissingPackage(
            "libfaketime is missing: as root, apt-get install libfaketime (./setup tests does it)"
        )
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME": f"{hours:+g}h",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # or waits with a timeout never end
        "FAKETIME_DISABLE_SHM": "1",  # or a semaphore stays in /dev/shm
    }


def _newest_binaries() -> Path:
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda path: float(path.parts[-3]), default=None)
    if newest is None:
        raise MissingPackage(
            "PostgreSQL is missing: as root, apt-get install postgresql (./setup tests does it)"
        )
    return newest.parent


def _scram_secret(password: str) -> str:
    """Return what the server keeps of a password, hashed once: 4,096 times take 2 ms of each login.

    The format is that of pg_authid(rolpassword), and the keys those of RFC 5803.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    client_key, server_key = (
        hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key")
    )
    parts = (salt, hashlib.sha256(client_key).digest(), server_key)
    encoded = [base64.b64encode(part).decode() for part in parts]
    return "SCRAM-SHA-256$1:{}${}:{}".format(*encoded)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _check_name(*names: str) -> None:
    for name in names:
        assert re.fullmatch(r"\w+", name), f"{name!r} is no plain name of a database"
