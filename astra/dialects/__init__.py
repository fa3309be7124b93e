"""All that differs between PostgreSQL and SQLite: these modules, and no other.

A dialect makes the connection, and says in its own SQL what peewee cannot say for both: the
clock, the triggers that keep ``modified``, sets of keys, locks, freezing, and writing a batch.
"""

import peewee

from astra.dialects.common import Batch, Denied, dialects
from astra.dialects.postgresql import PostgreSQL
from astra.dialects.sqlite import SQLite

__all__ = ["Batch", "Denied", "PostgreSQL", "SQLite", "of"]


def of(database: peewee.Database) -> PostgreSQL | SQLite:
    """The dialect that speaks for `database`."""
    found: PostgreSQL | SQLite = dialects[getattr(database, "obj", database)]
    return found
