"""How SQLite is given a batch of results."""

import json

from astra.database import sqlite_queries as queries
from astra.database.dialect import Batch, Common, NotStored, on_conflict, peewee_errors
from astra.version import Version

#: What SQLite makes of values of a declared type.
_AFFINITIES = {
    "INTEGER": "INTEGER", "BIGINT": "INTEGER", "SMALLINT": "INTEGER", "REAL": "REAL",
    "BLOB": "BLOB", "DECIMAL": "NUMERIC",
}  # fmt: skip


class Writing(Common):
    """What the dialect of SQLite knows of writing."""

    _columns: dict[str, set[str]]

    def upsert(self, batch: Batch) -> dict[int, int]:
        """Write a batch; what was written, as {place in the batch: primary key}.

        Raises
        ------
        NotStored
            If what is stored is not what was given.
        """
        written = self._written(batch)
        name, declared = batch.model._meta.table_name, batch.declared
        is_plain = not self.run(queries.TRIGGER_OR_VIEW, (name,)).fetchone() and (
            declared.items() <= set(self.run(queries.COLUMN_TYPES, (name,)).fetchall())
        )
        if not is_plain:
            self._compare(batch, declared, written)
        return written

    def _compare(self, batch: Batch, declared: dict[str, str], written: dict[int, int]) -> None:
        """Look at what is stored, where a trigger or the type of a column may have changed it."""
        # As of the declared type, of which a text of the same digits is another value.
        kinds = [_AFFINITIES.get(kind.partition("(")[0], "TEXT") for kind in declared.values()]
        same = ", ".join(
            f"CAST({self.quote(name)} AS {kind}) IS CAST(? AS {kind})"
            for name, kind in zip(declared, kinds, strict=True)
        )
        values = ", ".join(f"quote({self.quote(name)})" for name in declared)
        primary, width = self.quote(batch.primary), len(declared)
        sql = queries.COMPARE.format(same=same, values=values, table=batch.table, primary=primary)
        for place, pk in written.items():
            given = [column[place] for column in batch.columns.values()]
            found = self.run(sql, (*given, pk)).fetchone()
            if found is None:
                raise NotStored(batch.model._meta.table_name)
            for name, is_same, stored in zip(declared, found, found[width:], strict=False):
                if not is_same:
                    raise NotStored(batch.model._meta.table_name, name, stored)

    def _written(self, batch: Batch) -> dict[int, int]:
        names = list(batch.columns)
        if batch.table not in self._columns:
            rows = self.run(queries.COLUMNS, (batch.table.strip('"'),)).fetchall()
            self._columns[batch.table] = {row[0] for row in rows}
        sql = queries.INSERT.format(
            table=batch.table,
            names=", ".join(map(self.quote, names)),
            marks=", ".join("?" for _ in names),
            conflict=on_conflict(self, batch, self._columns[batch.table]),
        )
        primary, keys = self.quote(batch.primary), batch.keys
        newest = queries.NEWEST.format(primary=primary, table=batch.table)
        before = self.fetch_value(newest)
        with peewee_errors():
            cursor = self.database.cursor()
            cursor.executemany(sql, zip(*batch.columns.values(), strict=True))
        last = self.fetch_value(newest)
        if last - before == len(keys):
            # Nobody else writes meanwhile: all of them are new, and their keys follow each other.
            return dict(enumerate(range(before + 1, last + 1)))
        same = " AND ".join(
            f"{self.quote(name)} = json_extract(wanted.value, '$[{place}]')"
            for place, name in enumerate(batch.key)
        )
        condition = batch.where.replace("WHERE", "AND")
        stored = self.run(
            queries.STORED.format(
                primary=primary, table=batch.table, same=same, condition=condition
            ),
            (json.dumps(keys, default=str), Version(batch.columns["v_astra"][0]).major_minor),
        ).fetchall()
        # A row whose stored time of reading is not ours was written by a later attempt.
        read = batch.columns["input_read"]
        return {place: primary for place, primary, at in stored if read[place] == at}
