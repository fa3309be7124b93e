"""Keep track of the rows in progress: those that a task was given and that have not ended."""

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import peewee

from astra.models.keys import as_key, moment_in, table_name
from astra.results.rows import HandedRow, Target, YieldedResult
from astra.tasks.row_clock import ProgressBoard

if TYPE_CHECKING:
    from ctypes import Array, c_uint8


class RowsInProgress:
    """The rows that a task has in progress, in the order in which it was given them.

    Parameters
    ----------
    target : whose results are written.
    keeps_rows : keep the rows themselves, since they cannot be read again.
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
        if self.key_name is not None:  # the value that its results bear is its key
            return HandedRow(as_key(link_value), row, modified, self.read, 0.0, self.table)
        return HandedRow(None, row, modified, self.read, 0.0, self.table, link_value)

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
        row = handed.row
        known = handed.key if handed.link_value is None else handed.link_value
        self.by_key[handed if known is None or known in self.by_key else known] = handed
        if not self.keeps_rows:
            handed.row = None
        self.last = handed
        self.flags[handed.place] = 1
        return row

    def row_of(self, result: object) -> tuple[HandedRow | None, bool]:
        """Return the row that a result is for, which ends with it, and whether it had ended before.

        A result that bears no key of a row in progress is for the row that was handed over last.
        """
        last = self.last
        if self.key_name is not None and type(result) is self.target.output:  # the usual case
            link_value: object = as_key(result.__data__.get(self.key_name))
        else:
            link_value = self.target.link_value_of(result)
        if link_value is not None and link_value in self.by_key:
            if self.is_page:
                self.ended.add(link_value)
            return self.by_key.pop(link_value), False
        if last is not None:
            known = last.link_or_key
            if link_value is None:
                self._note_unnamed(result, last)
            if link_value is None or link_value == known:
                return last, not self.end(last)
            if known is None and self.end(last):
                return last, False
        # Its row has ended, or was never handed over: nothing is known of it.
        if self.is_page:
            self.unmatched[last] = link_value
            return None, link_value in self.ended
        return self.row_named(link_value), False

    def _note_unnamed(self, result: object, last: HandedRow) -> None:
        """Note a result that names no row, such as a list, while it may be of several rows.

        None holds no result of another row.
        """
        if result is not None and len(self.by_key) > 1:
            self.unmatched[last] = None

    def row_named(self, link_value: object) -> HandedRow:
        """Return a row that is not in progress, by the value with which a result points to it."""
        if self.key_name is not None and (key := as_key(link_value)) is not None:
            return HandedRow(key, None, None, self.read)
        return HandedRow(None, None, None, self.read, link_value=link_value)

    def gather(self, result: object) -> YieldedResult:
        """Keep a result until its row ends: the row that it names, or else the last.

        A result of a row that has ended is not kept; it is marked as `again`.
        """
        link_value = self.target.link_value_of(result)
        handed = self.by_key.get(link_value, self.last)
        is_named = handed is not None and handed.link_or_key == link_value
        if not is_named and link_value in self.ended and not self.target.groups:
            return YieldedResult(result, self.row_named(link_value), again=True)
        if handed is None or handed not in self:
            return YieldedResult(result, handed or HandedRow(None, None), again=True)
        if link_value is None:
            self._note_unnamed(result, handed)
        yielded = YieldedResult(result, handed)
        self.gathered.setdefault(handed, []).append(yielded)
        return yielded

    def __contains__(self, handed: HandedRow) -> bool:
        """Return whether a row is in progress."""
        return handed in self.by_key or self.by_key.get(handed.link_or_key) is handed

    def find(self, row: object) -> HandedRow | None:
        """Return the row in progress that a task names."""
        link = self.target.link
        return None if link is None else self.by_key.get(link.of_row(row))

    def end(self, handed: HandedRow) -> bool:
        """End a row; return whether it was in progress."""
        if self.by_key.pop(handed, None) is not None:
            return True
        known = handed.link_or_key
        if self.by_key.get(known) is not handed:
            return False
        del self.by_key[known]
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
