"""Write a batch of results to PostgreSQL: by a binary COPY, or in one statement."""

from collections.abc import Collection, Sequence
from datetime import date
from io import BytesIO
from typing import Any

import peewee
from psycopg2.extensions import Binary

from astra.database import postgresql_queries as queries
from astra.database.array_text import BYTES, array_literal
from astra.database.dialect import Batch, Common, CopyRefused, NotStored, on_conflict, peewee_errors
from astra.database.values import MOMENTS, check
from astra.errors import BrokenElement
from astra.records import dataclass
from astra.version import Version

#: The number of rows from which a COPY is faster, with the statements that it needs.
_COPIED_FROM = 50

#: The most rows of a batch that are looked up before it is copied.
_LOOKED_UP = 20

#: The most bytes of values in a statement. At one of 1 GB, PostgreSQL closes the connection.
_MAX_BYTES = 1_000_000_000

#: The most characters of values of several rows in a statement. A character has up to four bytes.
_MAX_CHARACTERS = 200_000_000


@dataclass(frozen=True)
class Target:
    """A table for results that set certain columns, until somebody alters it."""

    columns: list[tuple[Any, ...]]  # all of the table, as LOCK_AND_DESCRIBE selects them
    is_plain: bool  # nothing changes what is written
    sequence: str | None  # that numbers its rows


class Writing(Common):
    """The part of the dialect of PostgreSQL that writes results."""

    #: By the names of tables.
    _types: dict[str, dict[str, str]]
    #: By table and columns.
    _targets: dict[tuple[str, ...], Target]

    def checked(self, field: peewee.Field, value: Any) -> Any:
        """Check a value in database form: the server would take a text for bytes, and interpret
        some moments in its own way; it checks all others itself."""
        if hasattr(field, "dimensions") and isinstance(value, list | tuple):  # its items
            for item in value:
                self.checked(field, item)
            return value
        if value is None:
            return None
        if field.field_type in MOMENTS and type(value) is not date:
            check(field, value)
        if field.field_type == "BLOB" and not isinstance(value, BYTES | Binary):
            raise TypeError(f"{type(value).__name__} is not bytes")
        return value

    def column_types(self, table: str) -> dict[str, str]:
        if table not in self._types:
            rows = self.run(queries.COLUMN_TYPES, (table,)).fetchall()
            # A percent sign in the name of a type would be mistaken for a parameter.
            self._types[table] = {name: kind.replace("%", "%%") for name, kind in rows}
        return self._types[table]

    def _lock_and_describe(self, batch: Batch) -> None:
        """Describe a table again if somebody has altered it, and lock it against that.

        Raises
        ------
        BrokenElement
            If a column is of another kind than the model declares, so that reading would not
            return what was written.
        """
        table = batch.table
        columns = self.run(queries.LOCK_AND_DESCRIBE, (table,), table=table).fetchall()
        known = self._targets.get(batch.target)
        if known is not None and known.columns == columns:
            return
        self._types.pop(table, None)
        declared = batch.declared
        types = self.run(
            queries.KINDS_OF_COLUMNS, (list(declared), list(declared.values()), table)
        ).fetchall()
        kinds = {name: (stored, kind == expected) for name, stored, _, kind, expected in types}
        for name, kind in declared.items():
            stored, is_same = kinds.get(name, ("missing", False))
            if not is_same:
                raise BrokenElement(
                    f"the column {name} of the table {batch.model._meta.table_name} is {stored}, "
                    f"where {batch.model.__name__} declares {kind}; its rows stay pending: repair "
                    "the table (astra initdb MODULE adds a missing column), then astra resume"
                )
        is_plain = not columns[0][3] and all(
            stored == f"{expected}{''.join(declared[name].partition('(')[1:]).replace(' ', '')}"
            for name, stored, expected, *_ in types
        )
        sequence = self.fetch_value(queries.SEQUENCE, (table, batch.primary))
        self._targets[batch.target] = Target(columns, is_plain, sequence)

    def upsert(self, batch: Batch, may_copy: bool) -> dict[int, int]:
        """Write a batch, and return what was written, as {place in the batch: primary key}.

        A result is replaced only by one whose input was read later or at the same time. If no row
        has a result yet, which is the usual case, and `may_copy` is true, the batch is copied
        directly into the table.

        Raises
        ------
        CopyRefused
            If the COPY failed.
        """
        self._lock_and_describe(batch)
        copied = None
        if may_copy and len(batch.columns[batch.key[0]]) >= _COPIED_FROM:
            try:
                copied = self._copy(batch)
            except (peewee.IntegrityError, peewee.DataError, peewee.NotSupportedError) as error:
                # A row is bad, or another process has just written one, which the insertion
                # handles. Or the table has row level security, under which nothing is copied.
                raise CopyRefused from error
        return self._insert(batch) if copied is None else copied

    def is_plain(self, batch: Batch) -> bool:
        """Return whether no trigger, rule or type can change what :meth:`upsert` wrote."""
        return self._targets[batch.target].is_plain

    def compare(self, batch: Batch, written: dict[int, int]) -> None:
        """Check that what is stored is what was given; raise NotStored otherwise."""
        declared = batch.declared
        columns = [[str(pk) for pk in written.values()]]
        columns += [[values[place] for place in written] for values in batch.columns.values()]
        arrays = _literals(columns)
        given = ", ".join(f"g{i}" for i in range(len(declared)))
        pairs = ", ".join(
            queries.COMPARED.format(place=i, kind=kind, column=self.quote(name))
            for i, (name, kind) in enumerate(declared.items())
        )
        primary = f"stored.{self.quote(batch.primary)}"
        other = self.run(
            queries.FIRST_CHANGED,
            arrays,
            primary=primary,
            arrays=", ".join(["%s::text[]"] * len(arrays)),
            given=given,
            table=batch.table,
            pairs=pairs,
        ).fetchone()
        if other is not None:
            pk, place, stored = other
            column = None if pk is None else list(declared)[place]
            raise NotStored(batch.model._meta.table_name, column, stored)

    def _copy(self, batch: Batch) -> dict[int, int] | None:
        """Write a batch by a binary COPY; return None if that is impossible, or replaces a row."""
        if self.database.connection().encoding != "UTF8":
            return None
        from astra.database import binary_copy  # here, because few commands write results

        types = self.column_types(batch.table)
        packed: dict[str, binary_copy.Packed] = {}
        for name, values in batch.columns.items():
            schema, _, kind = types[name].rpartition(".")
            column = binary_copy.pack(kind, values) if schema == "pg_catalog" else None
            if column is None:
                return None
            packed[name] = column
        primaries = self._draw_keys(batch)
        if not primaries:
            return None
        packed[batch.primary] = binary_copy.pack("int8", primaries)  # type: ignore[assignment]
        # In the order of their keys, so that two processes with the same rows do not deadlock.
        order = sorted(range(len(primaries)), key=batch.keys.__getitem__)
        names, rows = binary_copy.rows(packed, order)
        columns = ", ".join(map(self.quote, names))
        with peewee_errors, self.database.cursor() as cursor:
            copy = queries.COPY.format(table=batch.table, columns=columns)
            cursor.copy_expert(copy, BytesIO(rows), 1 << 20)
            if cursor.rowcount != len(primaries):
                raise peewee.DataError("a trigger discarded rows")  # inserting shows which
        return dict(enumerate(primaries))

    def _draw_keys(self, batch: Batch) -> list[int]:
        """Draw primary keys for the rows of a batch; none if some of them have results already.

        A few rows are looked up, since mostly all rows of a batch have one, or none. Should it be
        another row that has one, the COPY fails, and the batch is inserted.
        """
        sequence = self._targets[batch.target].sequence
        if sequence is None:
            return []
        types = self.column_types(batch.table)
        lists = [batch.columns[name] for name in batch.key]
        n_rows = len(lists[0])
        lists = [values[:: n_rows // _LOOKED_UP + 1] for values in lists]
        arrays = ", ".join(f"%s::{types[name]}[]" for name in batch.key)
        names = ", ".join(f"key_{place}" for place in range(len(lists)))
        same = " AND ".join(
            f"{self.quote(name)} = wanted.key_{place}" for place, name in enumerate(batch.key)
        )
        condition = batch.condition and f"AND {batch.condition}"
        parts = {"arrays": arrays, "names": names, "table": batch.table, "same": same}
        version = Version(batch.columns["v_astra"][0]).major_minor
        parameters = (sequence, n_rows, *map(array_literal, lists), version)
        return self.fetch_column(queries.DRAW_NUMBERS, parameters, condition=condition, **parts)

    def _insert(self, batch: Batch) -> dict[int, int]:
        """Insert or replace a batch in one statement."""
        types = self.column_types(batch.table)
        columns = self._targets[batch.target].columns
        writable = {name for name, *_, is_generated in columns if not is_generated}
        names = [self.quote(name) for name in batch.columns]
        arrays = _literals(batch.columns.values())
        casts = []
        for name in batch.columns:
            schema, _, kind = types[name].rpartition(".")
            # An array of arrays, or of rows, would be taken apart.
            scalar = schema == "pg_catalog" and not kind.strip('"').startswith("_")
            kind = types[name] if scalar else "text"
            casts.append((f"%s::{kind}[]", "" if scalar else f"::{types[name]}"))
        unnested = ", ".join(array for array, _ in casts)
        selected = ", ".join(f"u.c{i}{cast} AS c{i}" for i, (_, cast) in enumerate(casts))
        aliases = ", ".join(f"c{i}" for i in range(len(casts)))
        keys = [f"c{list(batch.columns).index(name)}" for name in batch.key]
        key = ", ".join(map(self.quote, batch.key))
        same = " AND ".join(
            f"written.{self.quote(name)} = given.{c}"
            for name, c in zip(batch.key, keys, strict=True)
        )
        upsert = queries.UPSERT.format(
            selected=selected,
            arrays=unnested,
            aliases=aliases,
            table=batch.table,
            names=", ".join(names),
            keys=", ".join(keys),
            conflict=on_conflict(self, batch, writable),
            key=key,
            primary=self.quote(batch.primary),
            same=same,
        )
        return dict(self.run(upsert, arrays).fetchall())


def _literals(columns: Collection[Sequence[Any]]) -> list[str]:
    """Write the values of each column as the text of an array.

    Raises
    ------
    ValueError
        If a statement cannot hold all of them; it may hold those of half of the rows.
    """
    arrays = [array_literal(values) for values in columns]
    n_characters, n_rows = sum(map(len, arrays)), max(map(len, columns))
    if n_characters > _MAX_CHARACTERS and (n_rows > 1 or _n_bytes(arrays) > _MAX_BYTES):
        raise ValueError(f"PostgreSQL takes no statement of {n_characters:,} characters")
    return arrays


def _n_bytes(texts: list[str]) -> int:
    """Return the bytes of texts in a statement, in which quotes and backslashes are doubled."""
    return sum(len(text.encode()) + text.count("'") + text.count("\\") for text in texts)
