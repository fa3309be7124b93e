"""Write a batch of results to PostgreSQL: by a binary COPY, or in one statement."""

from datetime import date
from io import BytesIO
from typing import Any

import peewee
from psycopg2.extensions import Binary

from astra.database.array_text import BYTES, array_literal
from astra.database.dialect import Batch, Common, NotStored, on_conflict, peewee_errors
from astra.database.values import MOMENTS, check
from astra.errors import BrokenElement
from astra.version import Version

#: Rows from which the statements around a COPY cost less than it saves.
_COPIED_FROM = 50

#: What values of a type are to whoever reads them. An enum is a text; among types that are like no
#: other, such as bytea, and between moments with a time zone and without, each is of its own kind.
_KIND = """(SELECT CASE WHEN typname IN ('json', 'jsonb') THEN 'json'
                        WHEN typcategory = 'U' OR typname = 'timestamptz' THEN typname::text
                        WHEN typcategory = 'E' THEN 'S' ELSE typcategory::text END
            FROM pg_type WHERE oid = {})"""


class Writing(Common):
    """What the dialect of PostgreSQL knows of writing."""

    _types: dict[str, dict[str, str]]
    _seen_columns: dict[str, list[tuple[Any, ...]]]
    _sequences: dict[str, str | None]
    _is_plain: dict[str, bool]

    def checked(self, field: peewee.Field, value: Any) -> Any:
        """A value in database form; the server itself looks at all but bytes, of which a text
        would make some, and moments, of which it makes others."""
        if field.field_type in MOMENTS and type(value) is not date:
            check(field, value)
        if field.field_type == "BLOB" and not isinstance(value, BYTES | Binary):
            raise TypeError(f"{type(value).__name__} is not bytes")
        return value

    def column_types(self, table: str) -> dict[str, str]:
        if table not in self._types:
            rows = self.run(
                """SELECT attname, quote_ident(nspname) || '.' || quote_ident(typname)
                   FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
                   JOIN pg_namespace ON pg_namespace.oid = typnamespace
                   WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped""",
                (table,),
            ).fetchall()
            # A percent sign in the name of a type would be taken for a parameter.
            self._types[table] = {name: kind.replace("%", "%%") for name, kind in rows}
        return self._types[table]

    def _look_at(self, batch: Batch) -> None:
        """Forget what is known of a table, if somebody has altered it since.

        The lock is the one that writing takes: the table stays as it is until the transaction ends.

        Raises
        ------
        BrokenElement
            If a column is of another kind than the model says, so that what is read is not what
            was written.
        """
        table = batch.table
        columns = self.run(
            f"""LOCK TABLE {table} IN ROW EXCLUSIVE MODE;
                SELECT attname, atttypid::bigint, atttypmod, relkind <> 'r' OR relhasrules
                    OR relrowsecurity OR EXISTS (
                        SELECT 1 FROM pg_trigger WHERE tgrelid = attrelid AND NOT tgisinternal)
                FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
                ORDER BY attnum""",
            (table,),
        ).fetchall()
        if self._seen_columns.get(table) == columns:
            return
        self._types.pop(table, None)
        self._sequences.pop(table, None)
        declared = batch.declared
        types = self.run(
            f"""SELECT attname, format_type(atttypid, atttypmod), to_regtype(declared)::text,
                    {_KIND.format("atttypid")}, {_KIND.format("to_regtype(declared)")}
                FROM pg_attribute JOIN unnest(%s::text[], %s::text[]) AS wanted(name, declared)
                    ON attname = name
                WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped""",
            (list(declared), list(declared.values()), table),
        ).fetchall()
        kinds = {name: (stored, kind == wanted) for name, stored, _, kind, wanted in types}
        for name, kind in declared.items():
            stored, is_same = kinds.get(name, ("missing", False))
            if not is_same:
                raise BrokenElement(
                    f"the column {name} of the table {batch.model._meta.table_name} is {stored}, "
                    f"where {batch.model.__name__} declares {kind}: its rows stay pending: repair "
                    "the table (astra initdb adds a missing column), then astra resume"
                )
        self._is_plain[table] = not columns[0][3] and all(
            stored == f"{wanted}{''.join(declared[name].partition('(')[1:]).replace(' ', '')}"
            for name, stored, wanted, *_ in types
        )
        self._seen_columns[table] = columns

    def upsert(self, batch: Batch) -> dict[int, int]:
        """Write a batch; what was written, as {place in the batch: primary key}.

        A row is replaced only by one whose input was read later or at the same time. Where no row
        has a result yet, which is most often so, the batch is copied straight into the table.

        Raises
        ------
        NotStored
            If what is stored is not what was given.
        """
        self._look_at(batch)
        written = self._written(batch)
        if written and not self._is_plain[batch.table]:
            self._compare(batch, written)
        return written

    def _compare(self, batch: Batch, written: dict[int, int]) -> None:
        """Look at what is stored, where a trigger, a rule or a type may have changed it."""
        declared = batch.declared
        arrays = [[str(pk) for pk in written.values()]]
        arrays += [[values[place] for place in written] for values in batch.columns.values()]
        given = ", ".join(f"g{i}" for i in range(len(declared)))
        # By the text that a type's own function makes: char(n)::text would hide its blanks.
        pairs = ", ".join(
            f"({i}, to_jsonb(CAST(g{i} AS {kind})), CASE WHEN "
            f"stored.{self.quote(name)} IS NOT NULL THEN "
            f"to_jsonb(CAST(format('%%s', stored.{self.quote(name)}) AS {kind})) END, "
            f"stored.{self.quote(name)}::text)"
            for i, (name, kind) in enumerate(declared.items())
        )
        primary = f"stored.{self.quote(batch.primary)}"
        other = self.run(
            f"""SELECT {primary}, place, found
                FROM unnest({", ".join(["%s::text[]"] * len(arrays))}) AS given(pk, {given})
                LEFT JOIN {batch.table} AS stored ON {primary} = pk::bigint,
                LATERAL (VALUES {pairs}) AS columns(place, wanted, read, found)
                WHERE {primary} IS NULL OR wanted IS DISTINCT FROM read LIMIT 1""",
            list(map(array_literal, arrays)),
        ).fetchone()
        if other is not None:
            pk, place, found = other
            column = None if pk is None else list(declared)[place]
            raise NotStored(batch.model._meta.table_name, column, found)

    def _written(self, batch: Batch) -> dict[int, int]:
        if len(batch.columns[batch.key[0]]) < _COPIED_FROM:
            return self._inserted(batch)
        try:
            with self.database.atomic():
                copied = self._copied(batch)
        except (peewee.IntegrityError, peewee.DataError, peewee.NotSupportedError):
            # A row is bad, or another process has just written one: this is found below. Or the
            # table has row level security, under which PostgreSQL copies nothing.
            copied = None
        return self._inserted(batch) if copied is None else copied

    def _copied(self, batch: Batch) -> dict[int, int] | None:
        """A batch by a binary COPY; None where it cannot be, or replaces a row."""
        if not self._is_utf8():
            return None
        from astra.database import binary_copy  # here, as few commands write results

        types = self.column_types(batch.table)
        packed: dict[str, binary_copy.Packed] = {}
        for name, values in batch.columns.items():
            schema, _, kind = types[name].rpartition(".")
            found = binary_copy.pack(kind, values) if schema == "pg_catalog" else None
            if found is None:
                return None
            packed[name] = found
        primaries = self._drawn(batch)
        if not primaries:
            return None
        packed[batch.primary] = binary_copy.pack("int8", primaries)  # type: ignore[assignment]
        # In the order of their keys, so that two who write the same rows do not block each other.
        order = sorted(range(len(primaries)), key=batch.keys.__getitem__)
        names, rows = binary_copy.rows(packed, order)
        columns = ", ".join(map(self.quote, names))
        with peewee_errors(), self.database.cursor() as cursor:
            cursor.copy_expert(
                f"COPY {batch.table} ({columns}) FROM STDIN (FORMAT binary)", BytesIO(rows), 1 << 20
            )
            if cursor.rowcount != len(primaries):
                raise peewee.DataError("a trigger discarded rows")  # which, is found one by one
        return dict(enumerate(primaries))

    def _drawn(self, batch: Batch) -> list[int]:
        """Primary keys for the rows of a batch; none if one of them has a result at this version.

        By a LIMIT within, each row is looked up in the index: a table that was not analysed since
        it was empty would be gone through from end to end.
        """
        sequence = self._sequence(batch.table, batch.primary)
        if sequence is None:
            return []
        types, of = self.column_types(batch.table), batch.where.replace("WHERE", "AND")
        lists = [batch.columns[name] for name in batch.key]
        arrays = ", ".join(f"%s::{types[name]}[]" for name in batch.key)
        names = ", ".join(f"key_{place}" for place in range(len(lists)))
        same = " AND ".join(
            f"{self.quote(name)} = wanted.key_{place}" for place, name in enumerate(batch.key)
        )
        drawn = self.run(
            f"""SELECT nextval(%s::regclass) FROM generate_series(1, %s) WHERE NOT EXISTS (
                SELECT 1 FROM unnest({arrays}) AS wanted({names}), LATERAL (
                    SELECT 1 FROM {batch.table} WHERE {same}
                    AND v_astra_major_minor = %s {of} LIMIT 1) AS stored)""",
            (
                sequence, len(lists[0]), *map(array_literal, lists),
                Version(batch.columns["v_astra"][0]).major_minor,
            ),
        )  # fmt: skip
        return [pk for (pk,) in drawn.fetchall()]

    def _is_utf8(self) -> bool:
        return bool(self.database.connection().encoding == "UTF8")

    def _sequence(self, table: str, column: str) -> str | None:
        """The sequence that a column's values come from."""
        if table not in self._sequences:
            found = self.run("SELECT pg_get_serial_sequence(%s, %s)", (table, column))
            self._sequences[table] = found.fetchone()[0]
        return self._sequences[table]

    def _inserted(self, batch: Batch) -> dict[int, int]:
        """A batch in one statement.

        Each column travels as one array literal: one parameter a column, whatever the rows,
        and no table made or dropped (which would swell the catalogues at every checkpoint).
        """
        types = self.column_types(batch.table)
        names = [self.quote(name) for name in batch.columns]
        arrays: list[str] = []
        casts = []
        for name, values in batch.columns.items():
            scalar = not types[name].split(".")[-1].strip('"').startswith("_")
            arrays.append(array_literal(values))
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
        cursor = self.run(
            f"""WITH given AS MATERIALIZED (
                    SELECT u.place - 1 AS place, {selected}
                    FROM unnest({unnested}) WITH ORDINALITY AS u({aliases}, place)),
                written AS (
                    INSERT INTO {batch.table} AS stored ({", ".join(names)})
                    SELECT {aliases} FROM given ORDER BY {", ".join(keys)}
                    {self._on_conflict(batch)}
                    RETURNING {key}, {self.quote(batch.primary)} AS primary_key)
                SELECT given.place, written.primary_key FROM given JOIN written ON {same}""",
            arrays,
        )
        return dict(cursor.fetchall())

    def _on_conflict(self, batch: Batch) -> str:
        return on_conflict(self, batch, set(self.column_types(batch.table)))
