"""Keep track of the rows in progress: those that a task was given and that have not ended."""

from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, cast

import peewee

from astra.models.keys import RowKey, as_key, moment_in, table_name
from astra.results.columns import copy_of
from astra.results.rows import HandedRow, Target, YieldedResult
from astra.tasks.row_clock import ProgressBoard

if TYPE_CHECKING:
    from ctypes import Array, c_uint8


class RowsInProgress:
    """The rows that a task has in progress, in the order in which it was given them.

    Parameters
    ----------
    target : whose results are written.
    keeps_rows : keep copies of the rows, since they cannot be read again.
    is_page : the rows are those of a page, and no others can end.
    board : is notified of the rows in progress.
    """

    def __init__(
        self, target: Target, keeps_rows: bool, is_page: bool, board: ProgressBoard | None
    ):
        self.target, self.key_name = target, target.key_name
        self.keeps_rows, self.is_page, self.board = keeps_rows, is_page, board
        #: By place in the page: 1 while a row is in progress.
        self.flags: dict[int, int] | Array[c_uint8] = {} if board is None else board.flags
        # A row without a key, or one of two with the same key, is its own key here.
        self.by_key: dict[object, HandedRow] = {}
        self.last: HandedRow | None = None  # the row that was handed over last
        self.ended: set[object] = set()  # the rows of the page that have ended, as in `by_key`
        #: What results of this pass named that is not the key of a row in progress, None if they
        #: named no row, by the row that had been handed over last, if any.
        self.unmatched: dict[HandedRow | None, object] = {}
        #: Results that wait for the end of their row.
        self.gathered: dict[HandedRow, list[YieldedResult]] = {}
        #: When rows were read that do not hold that time themselves, by the database's clock.
        self.read: datetime | None = None
        self.row_type: object = None  # the type of the previous row, and what such rows have:
        self.is_model = self.has_values = False
        self.table: str | None = None

    def __len__(self) -> int:
        return len(self.by_key)

    def start_pass(self) -> None:
        """Note that the task is called again."""
        self.last = None
        self.unmatched.clear()

    def wrap(self, row: object) -> HandedRow:
        """Return a row that a caller gave as it is, with its key and its table."""
        if type(row) is not self.row_type:
            self._set_row_type(row)
        if not self.has_values:
            return HandedRow(None, row, None, self.read, 0.0, self.table)
        link = self.target.link
        modified = moment_in(row) if self.is_model else None
        link_value = link.of_row(row) if link is not None else None
        key = self._key_of(link_value)
        return HandedRow(key, row, modified, self.read, 0.0, self.table, link_value)

    def _key_of(self, link_value: object) -> RowKey | None:
        """Return the key of a row, if results point to it by a whole number: by the key itself."""
        return None if self.key_name is None else cast("int | None", link_value)

    def _set_row_type(self, row: object) -> None:
        """Store what rows of one type have in common."""
        self.row_type = type(row)
        self.is_model, self.has_values = isinstance(row, peewee.Model), hasattr(row, "__data__")
        self.table = table_name(type(row)) if isinstance(row, peewee.Model) else None

    def set_table(self, row: object) -> Target:
        """Set the table of the rows from the first row of a generator."""
        if isinstance(row, peewee.Model):
            self.target = replace(self.target, model=type(row))
            self.key_name = self.target.key_name
        return self.target

    def take(self, handed: HandedRow) -> object:
        """Note that the task is given a row now; return the row itself."""
        row, known = handed.row, handed.link_value
        self.by_key[handed if known is None or known in self.by_key else known] = handed
        if not self.keeps_rows:
            handed.row = None
        else:  # a copy, as the task may change the row before another one raises
            with suppress(Exception):  # not of a model
                handed.row = copy_of(row)
        self.last = handed
        self.flags[handed.place] = 1
        return row

    def match(self, result: object) -> YieldedResult:
        """Return a result with the row that it is for, which may have ended before.

        That is the row in progress whose key it has. If it has no key, or the key of the row is
        unknown, it is the row that was handed over last. If results are gathered, it may also
        be of another row of the group, or of a spectrum of the source.
        """
        last, gathers = self.last, self.target.gathers
        if self.key_name is not None and type(result) is self.target.output:  # the usual case
            link_value: object = as_key(result.__data__.get(self.key_name))
        else:
            link_value = self.target.link_value_of(result)
        if link_value is not None and link_value in self.by_key:
            return YieldedResult(result, self.by_key[link_value])
        if last is not None:
            is_open, known = last in self, last.link_value
            if link_value is None and result is not None and len(self.by_key) > 1:
                self.unmatched[last] = None  # it names no row, as a list, and may be of several
            is_of_last = link_value is None or link_value == known or (known is None and is_open)
            if gathers:
                is_of_last |= self.target.groups or link_value not in self.ended
            if is_of_last:
                return YieldedResult(result, last, again=not is_open)
        # Its row has ended, or was never handed over: nothing is known of it.
        again = gathers or (self.is_page and link_value in self.ended)
        if self.is_page and not gathers:
            self.unmatched[last] = link_value
        handed = HandedRow(self._key_of(link_value), None, None, self.read, link_value=link_value)
        return YieldedResult(result, handed, again, is_stray=self.is_page and not again)

    def __contains__(self, handed: HandedRow) -> bool:
        """Return whether a row is in progress."""
        return handed in self.by_key or self.by_key.get(handed.link_value) is handed

    def find(self, row: object) -> HandedRow | None:
        """Return the row in progress that a task names."""
        link = self.target.link
        return None if link is None else self.by_key.get(link.of_row(row))

    def end(self, handed: HandedRow) -> bool:
        """End a row; return whether it was in progress."""
        known = handed.link_value
        if self.by_key.get(known) is not handed:
            return self.by_key.pop(handed, None) is not None
        del self.by_key[known]
        if self.is_page:
            self.ended.add(known)
        return True

    def pop_misattributed(self) -> dict[HandedRow, object]:
        """Remove the rows in progress that lack a result because results named other rows, or none.

        Return them with what was named. That is the row that was handed over last before such a
        result; where that row has another result, it may be any row in progress.
        """
        if not self.unmatched:
            return {}
        rows = {row: named for row, named in self.unmatched.items() if row and row in self}
        if len(rows) < len(self.unmatched):
            named = next(named for row, named in self.unmatched.items() if row not in rows)
            rows = {row: rows.get(row, named) for row in self.by_key.values()}
        for row in rows:
            self.end(row)
        return rows

    def clear(self) -> list[HandedRow]:
        """Remove all rows; return them."""
        rows = list(self.by_key.values())
        self.by_key.clear()
        self.gathered.clear()
        if self.board is not None:
            self.board.clear()
        return rows
