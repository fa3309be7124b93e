"""Keys of rows in PostgreSQL, of any type: lists of them, and pages frozen from a query."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import reduce
from operator import and_
from typing import Any

import peewee
from peewee import SQL, fn

from astra.database.array_text import array_literal
from astra.database.postgresql_writing import Writing
from astra.errors import TaskError


class Keys(Writing):
    """What the dialect of PostgreSQL knows of sets of keys."""

    def among(self, field: Any, keys: Iterable[int]) -> peewee.Expression:
        """`field` is one of `keys`: one parameter, whatever their number."""
        return peewee.Expression(field, "=", SQL("ANY(%s::bigint[])", (self.pack_keys(keys),)))

    def pack_keys(self, keys: Iterable[int]) -> Any:
        return "{" + ",".join(map(str, map(int, keys))) + "}"  # a third of the time of a list

    def unpack_keys(self, value: Any) -> list[int]:
        return list(value)

    def among_texts(self, field: Any, keys: Iterable[Any]) -> peewee.Expression:
        """`field` is one of `keys`, as texts."""
        packed = self.pack_texts([str(key) for key in keys])
        return peewee.Expression(field, "=", SQL("ANY(%s::text[])", (packed,)))

    def pack_texts(self, keys: Iterable[str]) -> Any:
        return array_literal(list(keys))

    def _kind_of(self, field: Any) -> str:
        """The type of a column, as the server has it."""
        return self.column_types(self.table(field.model)).get(field.column_name, "text")

    def key_text(self, fields: Sequence[Any]) -> Any:
        """The text of a key, the same whatever the settings of the session are."""
        zoned = "pg_catalog.timestamptz"
        parts = [fn.timezone("UTC", f) if self._kind_of(f) == zoned else f for f in fields]
        one = parts[0] if len(parts) == 1 else fn.jsonb_build_array(*parts)
        return one.cast("text")

    def wanted(self, fields: Sequence[Any], keys: Sequence[str]) -> tuple[Any, Any]:
        """Texts of keys as rows of a query, and the clause that a row has such a key."""
        clauses = []
        for place, field in enumerate(fields):
            text = "wanted.key" if len(fields) == 1 else f"(wanted.key::jsonb ->> {place})"
            kind = self._kind_of(field)
            cast = f"{text}::{kind}"
            if kind == "pg_catalog.timestamptz":
                cast = f"timezone('UTC', {text}::timestamp)"
            clauses.append(peewee.Expression(field, "=", SQL(cast)))
        rows = SQL(
            "unnest(%s::text[]) WITH ORDINALITY AS wanted(key, place)", (self.pack_texts(keys),)
        )
        return rows, reduce(and_, clauses)

    def as_moment(self, field: Any) -> Any:
        """A column of dates or times as a moment, UTC where it does not say otherwise."""
        kind = self._kind_of(field).removeprefix("pg_catalog.").strip('"')
        if kind == "timestamptz":
            return field
        if kind in ("timestamp", "date"):
            return fn.timezone("UTC", field.cast("timestamp"))
        raise TaskError(
            f"{field.model.__name__}.{field.name} is of the type {kind}, which says no moment: "
            "class Meta: modified names a column of dates or times"
        )

    def rounded(self, moment: datetime) -> datetime:
        """A moment as the server keeps it."""
        return moment

    def primary_columns(self, table: str, schema: str | None) -> list[str]:
        """The columns of a table's primary key, which a role that only reads can see as well."""
        name = ".".join(map(self.quote, [schema, table] if schema else [table]))
        rows = self.run(
            """SELECT attname FROM pg_index, unnest(indkey::int2[]) WITH ORDINALITY AS k(n, place)
               JOIN pg_attribute ON attnum = k.n
               WHERE indrelid = to_regclass(%s) AND attrelid = indrelid AND indisprimary
               ORDER BY place""",
            (name,),
        )
        return [column for (column,) in rows.fetchall()]

    def keeps_unique(self, model: Any, columns: Sequence[str]) -> bool:
        """Whether the server itself keeps these columns unique, and none of them NULL."""
        return bool(
            self.run(
                """SELECT EXISTS (
                    SELECT 1 FROM pg_index WHERE indrelid = to_regclass(%s) AND indisunique
                    AND indisvalid AND indpred IS NULL AND indexprs IS NULL
                    AND (SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute
                         WHERE attrelid = indrelid AND attnotnull
                         AND attnum = ANY((indkey::int2[])[0:indnkeyatts - 1])) = %s::text[])""",
                (self.table(model), array_literal(sorted(columns))),
            ).fetchone()[0]
        )

    def holds(self, column: Any, key: Any) -> Any:
        """A clause: the keys of a page, in a query on pages, have this one among them."""
        return peewee.Expression(peewee.Value(key, converter=False), "=", fn.ANY(column))

    def held(
        self,
        key: Any,
        task: str,
        input_table: str,
        version: int,
        page: Any,
        plan: Any,
        attempt: Any,
        column: str,
    ) -> Any:
        """A clause: a live plan of the task still has to end the row of this `key`.

        A cancelled plan lives on in the pages that an attempt still runs. `version` is
        major * 1000 + minor: a plan of another one cannot run.
        """
        clause = SQL(
            f"""EXISTS (
                SELECT 1 FROM {self.table(page)} AS hp
                JOIN {self.table(plan)} AS hl ON hl.pk = hp.plan_pk,
                unnest(hp.{column}) WITH ORDINALITY AS held(key, place)
                WHERE hl.task = %s AND hl.input_table = %s AND hl.v_astra / 1000 = %s
                  AND (hl.cancelled IS NULL OR EXISTS (
                       SELECT 1 FROM {self.table(attempt)} AS ha
                       WHERE ha.pk = hp.attempt_pk AND ha.state = 'running'))
                  AND hp.n_done + hp.n_failed + hp.n_no_result < hp.n_rows
                  AND get_byte(hp.outcomes, (held.place - 1)::int) = 0 AND held.key = """,
            (task, input_table, version),
        )
        return peewee.NodeList((clause, key, SQL(")")))

    def freeze(
        self, query: Any, page: Any, plan_pk: int, limit: int, order: str, column: str
    ) -> tuple[int, int]:
        """Cut the keys of `query` (key, and the columns of the order) into pages.

        The order is total, so that they are cut into the same pages again; `column` of a page
        holds the keys.
        """
        sql, parameters = query.sql()
        cut = f"""
            SELECT (place - 1) / %s + 1 AS number, count(*) AS n_rows,
                   array_agg(key ORDER BY place) AS keys
            FROM (SELECT key, row_number() OVER (ORDER BY {order}) AS place
                  FROM ({sql}) AS pending) AS numbered
            GROUP BY 1"""
        with self._evaluated(cut, (limit, *parameters)) as (pages, values):
            cursor = self.run(
                f"""
                WITH frozen AS (
                    INSERT INTO {self.table(page)}
                        (plan_pk, number, n_rows, {column}, outcomes, n_done, n_failed, n_no_result)
                    SELECT %s, number, n_rows, keys, decode(repeat('00', n_rows::int), 'hex'),
                           0, 0, 0
                    FROM {pages} AS pages
                    RETURNING n_rows)
                SELECT count(*), coalesce(sum(n_rows), 0) FROM frozen""",
                (plan_pk, *values),
            )
            n_pages, n_rows = cursor.fetchone()
        return int(n_pages), int(n_rows)

    @contextmanager
    def _evaluated(
        self, sql: str, parameters: tuple[Any, ...]
    ) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """What stands for a SELECT in the transaction's next statement, and its parameters.

        A temporary table, as PostgreSQL fills one with several processes, but runs an INSERT ...
        SELECT in one; the SELECT itself for a role that may make none.
        """
        may = "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
        if not self.run(may).fetchone()[0]:
            yield f"({sql})", parameters
            return
        # A compressed list is stored on as it is.
        self.run(
            """SELECT set_config(name, 'lz4', true) FROM pg_settings
               WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)"""
        )
        self.run(f"CREATE TEMPORARY TABLE astra_evaluated ON COMMIT DROP AS {sql}", parameters)
        yield "pg_temp.astra_evaluated", ()
        self.run("DROP TABLE pg_temp.astra_evaluated")  # there may be another in the transaction
