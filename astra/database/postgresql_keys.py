"""Keys of rows in PostgreSQL, of any type: lists of keys, and pages frozen from a query."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import peewee
from peewee import SQL, fn
from psycopg2.errors import UndefinedFunction

from astra.database import postgresql_queries as queries
from astra.database.array_text import array_literal
from astra.database.dialect import no_moment
from astra.database.postgresql_writing import Writing
from astra.errors import TaskError

_ZONED = "pg_catalog.timestamptz"

#: Types whose values Python can all represent, so that results store them unchanged.
_EXACT = frozenset(
    f"pg_catalog.{name}" for name in ("int2", "int4", "int8", "text", "varchar", "uuid", "bool")
)

_WHOLE = frozenset(f"pg_catalog.{name}" for name in ("int2", "int4", "int8", "oid"))

#: Types that would round values of other types than these.
_STORED_FROM = {
    **dict.fromkeys(_WHOLE, _WHOLE), "pg_catalog.date": frozenset({"pg_catalog.date"})
}  # fmt: skip

#: Texts whose blanks at the end, or capital letters, do not count, and a number with fewer digits
#: than others. The second is of an extension, which may be in any schema.
_UNLIKE_OTHERS = frozenset({"bpchar", "citext", "float4"})


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
        """Return the text of a key, which does not depend on settings of the session."""
        parts = [fn.timezone("UTC", f) if self._kind_of(f) == _ZONED else f for f in fields]
        one = parts[0] if len(parts) == 1 else fn.jsonb_build_array(*parts)
        return one.cast("text")

    def wanted_values(self, fields: Sequence[Any]) -> list[str]:
        values = []
        for place, kind in enumerate(map(self._kind_of, fields)):
            text = "wanted.key" if len(fields) == 1 else f"(wanted.key::jsonb ->> {place})"
            is_zoned = kind == _ZONED
            values.append(f"timezone('UTC', {text}::timestamp)" if is_zoned else f"{text}::{kind}")
        return values

    def may_be_written_differently(self, fields: Sequence[Any]) -> bool:
        is_exact = _EXACT.issuperset(map(self._kind_of, fields))
        return not is_exact or any(map(self.collation, fields))

    def may_change_keys(self, fields: Sequence[Any], stored: Sequence[Any]) -> bool:
        """Return whether :meth:`changed_keys` has to be asked."""
        return not _EXACT.issuperset(map(self._kind_of, [*fields, *stored]))

    def changed_keys(
        self,
        fields: Sequence[Any],
        stored: Sequence[Any],
        keys: Sequence[Any],
        values: Sequence[Sequence[Any]],
    ) -> list[int]:
        """Return the places of keys that results would not store unchanged.

        `values` are the keys as the fields of the results, `stored`, write them: Python has no
        infinite date, and a type may have fewer digits.
        """
        names = [field.column_name for field in stored]
        columns = self.columns(stored[0].model)
        types = {name: column.kind.replace("%", "%%") for name, column in columns.items()}
        differ = " OR ".join(
            f"{wanted} IS DISTINCT FROM CAST(value_{n} AS {types[name]})"
            for n, (wanted, name) in enumerate(zip(self.wanted_values(fields), names, strict=True))
        )
        parts = {
            "arrays": ", ".join(["%s::text[]"] * (1 + len(names))),
            "names": ", ".join(f"value_{n}" for n in range(len(names))),
            "differ": differ,
        }
        try:
            arrays = [self.pack_list(keys, "text"), *map(array_literal, zip(*values, strict=True))]
            with self.database.atomic():
                return self.fetch_column(queries.CHANGED_KEYS, arrays, **parts)
        except (peewee.DataError, peewee.ProgrammingError, peewee.InternalError, TypeError):
            if len(keys) == 1:  # the type does not know the value that Python has of it
                return [0]
        half = len(keys) // 2
        first = self.changed_keys(fields, stored, keys[:half], values[:half])
        second = self.changed_keys(fields, stored, keys[half:], values[half:])
        return first + [half + place for place in second]

    def collation(self, field: Any) -> str | None:
        """Return the collation of a column, if texts that differ may be equal by it."""
        names = self.table(field.model), field.column_name
        return next(iter(self.fetch_column(queries.COLLATION, names)), None)

    def differing_types(self, one: Any, other: Any) -> tuple[str, str] | None:
        """Return the types of two columns if a value of one, stored in the other, may differ.

        The server may also have no operator, or go by the time zone of the session. The types are
        those of the tables now, which somebody may have altered.
        """
        for field in (one, other):
            self._types.pop(self.table(field.model), None)
        first, second = self._kind_of(one), self._kind_of(other)
        is_like = (first == second and first in _EXACT) or self._has_operator(first, second)
        if first != second:
            is_like &= not _UNLIKE_OTHERS & {kind.rpartition(".")[2] for kind in (first, second)}
            is_like &= first in _STORED_FROM.get(second, {first})
            if is_like and _ZONED in (first, second):
                is_like = bool(self.fetch_value(queries.IS_UTC))
        return None if is_like else (_short(first), _short(second))

    def _has_operator(self, first: str, second: str) -> bool:
        try:
            with self.database.atomic():
                self.run(queries.COMPARE_TYPES, first=first, second=second)
        except peewee.ProgrammingError as error:
            if not isinstance(error.__cause__ or error.__context__, UndefinedFunction):
                raise
            return False
        return True

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

    def key_and_types(self, table: str, schema: str | None) -> tuple[list[str], dict[str, str]]:
        """Return the columns of a table's primary key, and the type of each column; of a domain,
        the type below it."""
        name = (".".join(map(self.quote, [schema, table] if schema else [table])),)
        types = self.run(queries.COLUMN_TYPES, name).fetchall()
        by_column = {column: kind.removeprefix("pg_catalog.") for column, kind in types}
        return self.fetch_column(queries.PRIMARY_COLUMNS, name), by_column

    def schemas_of_table(self, table: str) -> list[str]:
        """Return the schemas that have a table or view of this name, which the role may read."""
        return self.fetch_column(queries.SCHEMAS_OF_TABLE, (table,))

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
        """Refuse keys that are too long. Reading them also fails for bytes that are not text."""
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
        role, or, because of an event trigger, by anybody.
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
