"""Write a batch of results to SQLite."""

import json

from astra.database import sqlite_queries as queries
from astra.database.dialect import Batch, Common, NotStored, on_conflict, peewee_errors
from astra.records import dataclass
from astra.version import Version

#: The affinity of a declared type, by which SQLite converts values.
_AFFINITIES = {
    "INTEGER": "INTEGER", "BIGINT": "INTEGER", "SMALLINT": "INTEGER", "REAL": "REAL",
    "BLOB": "BLOB", "DECIMAL": "NUMERIC",
}  # fmt: skip


@dataclass(frozen=True)
class _Target:
    """A table for batches of the same columns, at one version of the schema."""

    columns: set[str]  # all columns of the table
    declared: dict[str, str]  # the types of the batch's columns, as the model declares them
    is_plain: bool  # the table stores values of these types unchanged


class Writing(Common):
    """Writes results to SQLite."""

    #: By version of the schema, model and columns.
    _targets: dict[tuple[object, ...], _Target]

    def _target(self, batch: Batch) -> _Target:
        """Describe the table of a batch; read it again if the schema has changed since."""
        key = (self.fetch_value(queries.SCHEMA_VERSION), batch.model, *batch.columns)
        if key not in self._targets:
            name, declared = batch.model._meta.table_name, batch.declared
            columns = self.columns(batch.model).items()
            stored = {column: c.kind for column, c in columns if not c.is_computed}
            may_change = bool(self.fetch_column(queries.MAY_CHANGE, (name,)))
            is_plain = not may_change and declared.items() <= stored.items()
            self._targets[key] = _Target(set(stored), declared, is_plain)
        return self._targets[key]

    def upsert(self, batch: Batch, may_copy: bool) -> dict[int, int]:
        """Write a batch, and return what was written, as {place in the batch: primary key}.

        SQLite has no COPY, so `may_copy` changes nothing.
        """
        names = list(batch.columns)
        sql = queries.INSERT.format(
            table=batch.table,
            names=", ".join(map(self.quote, names)),
            marks=", ".join("?" for _ in names),
            conflict=on_conflict(self, batch, self._target(batch).columns),
        )
        primary, keys = self.quote(batch.primary), batch.keys
        newest = queries.NEWEST.format(primary=primary, table=batch.table)
        before = self.fetch_value(newest)
        with peewee_errors:
            cursor = self.database.cursor()
            cursor.executemany(sql, zip(*batch.columns.values(), strict=True))
        last = self.fetch_value(newest)
        if last - before == len(keys):
            # Nobody else writes meanwhile, so all rows are new, and have consecutive keys.
            return dict(enumerate(range(before + 1, last + 1)))
        same = " AND ".join(
            f"{self.quote(name)} = json_extract(wanted.value, '$[{place}]')"
            for place, name in enumerate(batch.key)
        )
        condition = batch.condition and f"AND {batch.condition}"
        stored = self.run(
            queries.STORED,
            (json.dumps(keys, default=str), Version(batch.columns["v_astra"][0]).major_minor),
            primary=primary,
            table=batch.table,
            same=same,
            condition=condition,
        ).fetchall()
        # A result that was read at another time was written by a later attempt.
        read = batch.columns["input_read"]
        return {place: primary for place, primary, at in stored if read[place] == at}

    def is_plain(self, batch: Batch) -> bool:
        """Return whether no trigger or type can change what :meth:`upsert` wrote."""
        return self._target(batch).is_plain

    def compare(self, batch: Batch, written: dict[int, int]) -> None:
        """Check that what is stored is what was given; raise NotStored otherwise."""
        declared = self._target(batch).declared
        # Cast to the declared type: as a number, "1.0" equals 1, and as a text it does not.
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
            row = self.run(sql, (*given, pk)).fetchone()
            if row is None:
                raise NotStored(batch.model._meta.table_name)
            for name, is_same, stored in zip(declared, row, row[width:], strict=False):
                if not is_same:
                    raise NotStored(batch.model._meta.table_name, name, stored)
