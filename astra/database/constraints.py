"""Find lost constraints of tables, and values that their columns should not hold.

Only changes by hand, or an incomplete restore, cause these.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import peewee

from astra.database import postgresql_queries, sqlite_queries
from astra.database.connection import dialect, tuples
from astra.database.dialect import NO_COLUMN


def lost_constraints(model: Any) -> Iterator[str]:
    """Describe the keys and constraints that a table lacks."""
    engine, name = dialect(), (dialect().catalogue_name(model),)
    if engine.name == "postgresql" and engine.fetch_value(postgresql_queries.IS_UNLOGGED, name):
        yield f"is unlogged: a crash of the server empties it: ALTER TABLE {name[0]} SET LOGGED"
    columns = defaultdict(lambda: NO_COLUMN, engine.columns(model))
    references = set(engine.run(engine.queries.CASCADING_KEYS, name).fetchall())
    fields = [field for field in model._meta.sorted_fields if _is_astras(model, field)]
    primary = [field.column_name for field in model._meta.get_primary_keys()]
    if not engine.keeps_unique(model, primary):
        yield f"has no primary key ({', '.join(primary)})"
    for field in fields:
        name = field.column_name
        column = columns[name]
        if not field.null and not field.primary_key and not column.is_not_null:
            yield f"allows NULL in the column {name}"
        if any("GENERATED" in str(getattr(c, "sql", "")) for c in field.constraints or ()):
            if not column.is_computed:
                yield f"no longer computes the column {name}"
        if field.on_delete if isinstance(field, peewee.ForeignKeyField) else False:
            owner = field.rel_model._meta.table_name
            if (name, owner) not in references:
                yield f"has no valid foreign key from {name} to {owner} with ON DELETE CASCADE"
    if engine.name == "postgresql" and isinstance(model._meta.primary_key, peewee.AutoField):
        if behind := _sequence_behind(model, primary[0], columns[primary[0]].has_default):
            yield behind


def undoing_triggers(model: Any, tables: Iterable[str]) -> Iterator[str]:
    """Return the names of the triggers of a table that may undo what is written to one of `tables`.

    A trigger that writes only to other tables, for example for an audit, is harmless.
    """
    changes = re.compile(
        r"\b(INSERT|UPDATE|DELETE|REPLACE|MERGE|TRUNCATE)\s+((OR\s+\w+|INTO|FROM|ONLY|TABLE)\s+)*"
        rf"""([\w"`[]+\.)?["`[]?({"|".join(tables)})\b""",
        re.IGNORECASE,
    )
    engine = dialect()
    rows = engine.run(engine.queries.ENABLED_TRIGGERS, (engine.catalogue_name(model),))
    for name, may_replace, text in rows.fetchall():
        if may_replace or changes.search(text):
            yield f"has the trigger or rule {name}, which may undo what astra writes: drop it"


def _is_astras(model: Any, field: Any) -> bool:
    """Return whether astra declares a column; users may change by hand those that they declare."""
    return any(
        field.name in getattr(getattr(base, "_meta", None), "fields", {})
        for base in model.__mro__
        if base.__module__.startswith("astra.")
    )


def _sequence_behind(model: Any, primary: str, has_default: bool) -> str | None:
    """Describe what is wrong with the sequence that numbers the rows of a table."""
    engine, table = dialect(), dialect().table(model)
    sequence, may_read = engine.run(
        postgresql_queries.READABLE_SEQUENCE, (table, primary)
    ).fetchone()
    if sequence is None:
        return f"has no sequence for the column {primary}"
    column = engine.quote(primary)
    if not has_default:
        return f"has no default for the column {primary}: set it to nextval('{sequence}')"
    names = {"column": column, "sequence": sequence, "table": table}
    is_behind = postgresql_queries.SEQUENCE_IS_BEHIND.format(**names)
    if may_read and engine.fetch_value(is_behind):
        advance = postgresql_queries.ADVANCE_SEQUENCE.format(**names)
        return f"has a sequence that would assign values of {primary} a second time: {advance}"
    return None


#: The storage classes of SQLite that are valid for a type; a column accepts others too.
_TYPES = {
    "INT": "integer", "BIGINT": "integer", "SMALLINT": "integer", "AUTO": "integer",
    "BIGAUTO": "integer", "BOOL": "integer", "FLOAT": "real integer", "DOUBLE": "real integer",
    "TEXT": "text", "VARCHAR": "text", "MOMENT": "text", "BLOB": "blob",
}  # fmt: skip


def impossible_values(model: Any, condition: Any) -> Iterator[str]:
    """Describe columns of astra's own that hold invalid NULLs, or values of another type."""
    wrong = {
        field.column_name: clause
        for field in model._meta.sorted_fields
        if _is_astras(model, field) and (clause := _is_impossible(field)) is not None
    }
    counts = [peewee.fn.COUNT(peewee.Case(None, [(clause, 1)])) for clause in wrong.values()]
    counted = next(tuples(model.select(*counts).where(condition))) if counts else ()
    for name, n in zip(wrong, counted, strict=True):
        if n:
            yield f"{n} rows of the table {model._meta.table_name} have an invalid {name}"


def _is_impossible(field: Any) -> Any:
    """Return the clause that a column holds a forbidden value; None if every value is allowed."""
    if field.primary_key:
        return None
    wrong = None if field.null else field.is_null()
    if dialect().name == "sqlite" and (other := _other_type(field)) is not None:
        wrong = other if wrong is None else wrong | other
    return wrong


def _other_type(field: Any) -> Any:
    """Return the clause that SQLite holds a value of another type in a column."""
    column = field.column
    if (item := getattr(field, "item_type", None)) is not None:
        holds_others = sqlite_queries.LIST_HOLDS_OTHERS
        return peewee.SQL(holds_others.format(column=field.column_name, type=item))
    kind = getattr(field, "rel_field", field).field_type
    allowed = _TYPES.get(kind)
    if allowed is None:
        return None
    other = peewee.fn.typeof(column).not_in([*allowed.split(), "null"])
    if kind == "MOMENT":
        other |= ~peewee.Expression(column, "GLOB", "????-??-?? ??:??:??.??????")
    return other
