"""Servers of the tests' own: private ports and folders, and nothing left of them afterwards."""

from tests.servers.cron import can_unshare, cron_daemon
from tests.servers.keeper import Keeper, KeptProcess
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Copy, Postgres, Standby, shifted_clock
from tests.servers.proxy import Proxy
from tests.servers.server import (
    MissingPackage,
    Server,
    ServerError,
    folder,
    hear_interrupts,
    wait_for,
)
from tests.servers.slurm import Slurm

__all__ = [
    "Copy",
    "Keeper",
    "KeptProcess",
    "MissingPackage",
    "PgBouncer",
    "Postgres",
    "Proxy",
    "Server",
    "ServerError",
    "Slurm",
    "Standby",
    "can_unshare",
    "cron_daemon",
    "folder",
    "hear_interrupts",
    "shifted_clock",
    "wait_for",
]
