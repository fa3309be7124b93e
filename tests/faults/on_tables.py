"""Faults of tables: of their rows, columns, indexes and triggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2

from tests.faults.kinds import Fault, kind
from tests.faults.nemesis import patiently
from tests.faults.tasks import WIDE

if TYPE_CHECKING:
    from tests.faults.nemesis import Nemesis


@kind(4, repeats=True)
def modify(nemesis: Nemesis, fault: Fault) -> str:
    """Modify input rows."""
    world = nemesis.world
    keys = nemesis.dice.sample(range(1, world.scenario.rows + 1), 4)
    snr = round(nemesis.dice.uniform(1000, 2000), 1)
    world.sql("UPDATE boss_visit_spectrum SET snr = %s WHERE spectrum_pk = ANY(%s)", snr, keys)
    world.remember(keys)
    return f"rows {keys}"


@kind(2)
def retype(nemesis: Nemesis, fault: Fault) -> str:
    """Change the type of a column of results to one of the same width, or narrower."""
    types = ["double precision", "numeric", "integer", "real", "smallint"]
    for name in nemesis.dice.sample(types, len(types)):
        try:
            nemesis.world.sql(f"ALTER TABLE ordeal ALTER COLUMN n TYPE {name}")
        except psycopg2.errors.NumericValueOutOfRange:  # a value that is stored does not fit
            continue
        if name == "smallint":
            nemesis.world.excuse("DataError", lambda key: key in WIDE)
        return f"bigint to {name}"
    raise AssertionError("numeric takes every value")


@kind(2, repeats=True)
def demand(nemesis: Nemesis, fault: Fault) -> str:
    """Add a column that the model lacks and that requires a value."""
    nemesis.world.sql("ALTER TABLE ordeal ADD COLUMN surplus integer NOT NULL DEFAULT 0")
    nemesis.world.sql("ALTER TABLE ordeal ALTER COLUMN surplus DROP DEFAULT")
    return _repaired(nemesis, fault, "ALTER TABLE ordeal DROP COLUMN surplus")


@kind(2, repeats=True)
def rename(nemesis: Nemesis, fault: Fault) -> str:
    """Rename a column of results."""
    nemesis.world.sql("ALTER TABLE ordeal RENAME COLUMN n TO renamed")
    return _repaired(nemesis, fault, "ALTER TABLE ordeal RENAME COLUMN renamed TO n")


@kind(2, repeats=True)
def drop(nemesis: Nemesis, fault: Fault) -> str:
    """Drop a column of results, with its values; astra initdb creates it again."""
    nemesis.world.sql("ALTER TABLE ordeal DROP COLUMN extra")
    ((at,),) = nemesis.world.sql("SELECT extract(epoch FROM clock_timestamp())::float8")
    nemesis.world.dropped = at
    return _repaired(nemesis, fault)


@kind(2)
def keep_out(nemesis: Nemesis, fault: Fault) -> str:
    """Have a trigger discard every third row of the results, without an error."""
    nemesis.world.excuse("NotStored", lambda key: key % 3 == 0)
    nemesis.world.sql(
        "CREATE TRIGGER keep_out BEFORE INSERT ON ordeal FOR EACH ROW "
        "WHEN (NEW.spectrum_pk % 3 = 0) EXECUTE FUNCTION keep_out()"
    )
    return _repaired(nemesis, fault, "DROP TRIGGER keep_out ON ordeal")


@kind(2, repeats=True)
def unguard(nemesis: Nemesis, fault: Fault) -> str:
    """Drop a unique index that astra relies on; astra initdb creates it again."""
    table = nemesis.dice.choice(["ordeal", "ordeal", "failure", "no_result"])
    ((index,), *_) = nemesis.world.sql(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass "
        "AND indisunique AND NOT indisprimary AND pg_get_indexdef(indexrelid) "
        "~ '(spectrum_pk|key_text|key), ' ORDER BY 1", table,
    )  # fmt: skip
    nemesis.world.sql(f"DROP INDEX {index}")
    return f"{index}, {_repaired(nemesis, fault)}"


@kind(2, repeats=True)
def unwatch(nemesis: Nemesis, fault: Fault) -> str:
    """Disable or drop the trigger that maintains `modified`; astra initdb restores it."""
    words = nemesis.dice.choice(["ALTER TABLE {} DISABLE TRIGGER {}", "DROP TRIGGER {1} ON {0}"])
    nemesis.world.sql(words.format("boss_visit_spectrum", "astra_keep_modified"))
    said = _repaired(nemesis, fault)
    return f"{said}, then {modify(nemesis, fault)}"


def _repaired(nemesis: Nemesis, fault: Fault, statement: str | None = None) -> str:
    """Wait as long as the fault lasts, then repair the table, as a person would."""
    nemesis.world.is_repaired = False
    nemesis.over.wait(fault.lasts_s)
    if statement is None:
        nemesis.command("initdb", "tests.faults.tasks")
    else:
        patiently(lambda: nemesis.world.sql(statement))
    nemesis.world.is_repaired = True
    return f"for {fault.lasts_s} s"
