"""Keys of rows in PostgreSQL, of any type: lists of keys, and pages frozen from a query."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import peewee
from peewee import SQL, fn

from astra.database import postgresql_queries as queries
from astra.database.array_text import array_literal
from astra.database.dialect import no_moment
from astra.database.postgresql_writing import Writing
from astra.errors import TaskError

#: The field that declares a key of a type; columns of the same field can be compared.
_FIELDS = {
    "int2": "IntegerField", "int4": "IntegerField", "int8": "IntegerField", "text": "TextField",
    "varchar": "TextField", "uuid": "UUIDField", "date": "DateField",
}  # fmt: skip

#: The most bytes of a key as text: an entry of an index may have 2,704, with the task's name.
_MAX_KEY_BYTES = 2000

#: Of temporary tables: a transaction may have several.
_numbers = count(1)

#: The types of lists of keys, by that of their items.
_LISTS = {"integer": "BIGINT[]", "text": "TEXT[]"}


class Keys(Writing):
    """The part of the dialect of PostgreSQL that handles keys."""

    def among(self, field: Any, keys: Iterable[Any], item: str = "integer") -> peewee.Expression:
        """Return the clause that `field` is one of `keys`, which are one parameter together."""
        wanted = SQL(f"ANY(%s::{_LISTS[item]})", (self.pack_list(keys, item),))
        return peewee.Expression(field, "=", wanted)

    def type_of_lists(self, item: str) -> str:
        """Return the type of a column of long lists, which LZ4 compresses if the server has it."""
        has_lz4 = self.fetch_value(queries.SERVER_HAS_LZ4)
        return f"{_LISTS[item]} COMPRESSION lz4" if has_lz4 else _LISTS[item]

    list_text = staticmethod(array_literal)

    def _kind_of(self, field: Any) -> str:
        """Return the type of a column in the database."""
        return self.column_types(self.table(field.model)).get(field.column_name, "text")

    def key_text(self, fields: Sequence[Any]) -> Any:
        one = fields[0] if len(fields) == 1 else fn.jsonb_build_array(*fields)
        return one.cast("text")

    def wanted_values(self, fields: Sequence[Any]) -> list[str]:
        kinds = map(self._kind_of, fields)
        if len(fields) == 1:
            return [f"wanted.key::{kind}" for kind in kinds]
        return [f"(wanted.key::jsonb ->> {place})::{kind}" for place, kind in enumerate(kinds)]

    def key_type(self, field: Any) -> tuple[str, str | None]:
        """Return the type of a key's column now, and the field that declares one, if it may be."""
        self._types.pop(self.table(field.model), None)
        kind = _short(self._kind_of(field))
        return kind, _FIELDS.get(kind)

    def as_moment(self, field: Any) -> Any:
        """Convert a column of dates or times to a moment; without a time zone, it is UTC."""
        stored = self.column_types(self.table(field.model)).get(field.column_name)
        kind = stored and _short(stored)
        if kind == "timestamptz":
            return field
        if kind in ("timestamp", "date"):
            return fn.timezone("UTC", field.cast("timestamp"))
        raise no_moment(field, kind)

    def nearest_moment(self, moment: Any) -> Any:
        """Replace moments that Python does not know by its first or last one, as reading does."""
        first, last = (at.replace(tzinfo=UTC) for at in (datetime.min, datetime.max))
        return peewee.Case(None, ((moment < first, first), (moment > last, last)), moment)

    def rounded(self, moment: datetime) -> datetime:
        """Return a moment with the precision of the server."""
        return moment

    def primary_columns(self, table: str, schema: str | None) -> list[str]:
        """Return the columns of a table's primary key."""
        name = ".".join(map(self.quote, [schema, table] if schema else [table]))
        return self.fetch_column(queries.PRIMARY_COLUMNS, (name,))

    def is_key_of_page(self, column: Any, key: Any) -> Any:
        """Return the clause that this key is among the keys of a page."""
        return peewee.Expression(peewee.Value(key, converter=False), "=", fn.ANY(column))

    def freeze(
        self, query: Any, page: Any, plan_pk: int, limit: int, order: str, column: str
    ) -> tuple[int, int]:
        """Freeze the keys of `query` (key, and the columns of the order) into pages.

        Return the numbers of pages and rows. The order is total, so that the same keys always give
        the same pages; `column` of a page holds its keys.

        Raises
        ------
        TaskError
            If a key is too long to be recorded with how its row ended.
        """
        sql, parameters = query.sql()
        cut = queries.CUT_INTO_PAGES.format(order=order, pending=sql)
        pages, values = self._evaluated(cut, (limit, *parameters))
        parts = {"page": self.table(page), "keys": column, "cut": pages}
        n_pages, n_rows = self.run(queries.FREEZE, (plan_pk, *values), **parts).fetchone()
        self._check_keys(plan_pk, parts["page"])
        return int(n_pages), int(n_rows)

    def _check_keys(self, plan_pk: int, page: str) -> None:
        """Refuse keys that are too long; reading shows those that are no texts, as in SQL_ASCII."""
        parameters = (plan_pk, _MAX_KEY_BYTES, self.database.codec == "ascii")  # type: ignore[attr-defined]
        for (text,) in self.run(queries.LONG_KEYS, parameters, page=page).fetchall():
            if (size := len(text.encode())) > _MAX_KEY_BYTES:
                raise TaskError(
                    f"a row has a key of {size:,} bytes, {text[:60]!r}...: no index of PostgreSQL "
                    f"could hold it, and keys of more than {_MAX_KEY_BYTES:,} bytes cannot be "
                    "planned: declare another unique column as the primary key of the model"
                )

    def _evaluated(self, sql: str, parameters: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        """Evaluate a SELECT for a statement of the transaction: return its source and parameters.

        The source is a temporary table, or the SELECT itself where none may be created: by this
        role, or by anybody, as an event trigger can have it.
        """
        table = f"pg_temp.astra_evaluated_{next(_numbers)}"
        try:
            with self.database.savepoint():
                self.run(queries.COMPRESS_WITH_LZ4)
                self.run(queries.CREATE_EVALUATED, parameters, table=table, query=sql)
        except (peewee.ProgrammingError, peewee.InternalError, peewee.NotSupportedError):
            return f"({sql})", parameters  # where an error of its own is raised again
        return table, ()


def _short(kind: str) -> str:
    """Return the name of a type as a person writes it."""
    return kind.removeprefix("pg_catalog.").strip('"')
