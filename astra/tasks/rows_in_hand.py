"""The rows that a task was given and that have not ended."""

from dataclasses import replace
from typing import Any

import peewee

from astra.models.keys import as_key, moment_in, table_name
from astra.results.rows import Handed, Target, Yielded
from astra.tasks.row_clock import Board


class RowsInHand:
    """The rows in a task's hands, in the order in which it was given them.

    Parameters
    ----------
    target : whose results are written.
    keeps_rows : keep the rows themselves, since nobody can read them again.
    is_page : the rows are those of a page, and no others can end.
    board : learns which rows are in hand.
    """

    def __init__(self, target: Target, keeps_rows: bool, is_page: bool, board: Board | None):
        self.target, self.key_name = target, target.key_name
        self.keeps_rows, self.is_page, self.board = keeps_rows, is_page, board
        # By key; a row without one, or one of two with the same, by itself.
        self.open: dict[object, Handed] = {}
        self.last: Handed | None = None  # that was handed over
        self.gathered: dict[Handed, list[Yielded]] = {}  # results that wait for their row's end
        #: The database's time at which rows that bear none of their own were read.
        self.read: Any = None
        self.row_type: object = None  # of the row before
        self.is_model = self.has_values = False  # such rows are of a table, have values by name
        self.table: str | None = None  # of such rows

    def __len__(self) -> int:
        return len(self.open)

    def start_pass(self) -> None:
        """The task is called anew."""
        self.last = None

    def wrap(self, row: object) -> Handed:
        """Return a row that a caller gave as it is, with its key and its table."""
        if type(row) is not self.row_type:
            self._look_at_type(row)
        if not self.has_values:
            return Handed(None, row, None, self.read, 0.0, self.table)
        link = self.target.link
        modified = moment_in(row) if self.is_model else None
        bears = link.of_row(row) if link is not None else None
        if self.key_name is not None:  # what it bears is its key
            return Handed(as_key(bears), row, modified, self.read, 0.0, self.table)
        return Handed(None, row, modified, self.read, 0.0, self.table, bears)

    def _look_at_type(self, row: Any) -> None:
        """Note what rows of one type have in common."""
        self.row_type = type(row)
        self.is_model, self.has_values = isinstance(row, peewee.Model), hasattr(row, "__data__")
        self.table = table_name(self.row_type) if self.is_model else None

    def look_at_first(self, row: object) -> Target:
        """Rows of a generator say only themselves of which table they are."""
        if isinstance(row, peewee.Model):
            self.target = replace(self.target, model=type(row))
            self.key_name = self.target.key_name
        return self.target

    def take(self, handed: Handed) -> Any:
        """Note that the task is given a row now; return the row itself."""
        row = handed.row
        known = handed.key if handed.bears is None else handed.bears
        self.open[handed if known is None or known in self.open else known] = handed
        if not self.keeps_rows:
            handed.row = None
        self.last = handed
        if self.board is not None:
            self.board.hand(handed.key)
        return row

    def row_of(self, result: object) -> tuple[Handed | None, bool]:
        """Return the row that a result is for, which ends with it, and whether it had ended before.

        A result that bears no key of a row in hand is for the row that was handed over last.
        """
        last = self.last
        if self.key_name is not None and type(result) is self.target.output:  # as it mostly is
            bears = as_key(result.__data__.get(self.key_name))
        else:
            bears = self.target.bears(result)
        if bears is not None and bears in self.open:
            return self.open.pop(bears), False
        if last is not None:
            known = last.known
            if bears is None or bears == known:
                return last, not self.close(last)
            if known is None and self.close(last):
                return last, False
        # It is of a row that ended, or that was never handed over: nothing is known of it.
        if self.is_page:
            return None, False
        key = as_key(bears) if self.key_name is not None else None
        return Handed(key, None, None, self.read, bears=None if key else bears), False

    def gather(self, result: object) -> Yielded:
        """Keep a result until its row ends: the row in hand that it bears, or else the last one.

        A result of a row that has ended is not kept; it comes `again`.
        """
        handed = self.open.get(self.target.bears(result), self.last)
        if handed is None or not self.holds(handed):
            return Yielded(result, handed, again=True)
        yielded = Yielded(result, handed)
        self.gathered.setdefault(handed, []).append(yielded)
        return yielded

    def holds(self, handed: Handed) -> bool:
        """Whether a row is in hand."""
        return handed in self.open or self.open.get(handed.known) is handed

    def find(self, row: object) -> Handed | None:
        """The row in hand that a task names."""
        link = self.target.link
        return None if link is None else self.open.get(link.of_row(row))

    def close(self, handed: Handed) -> bool:
        """Take a row out of hand; return whether it was in hand."""
        if self.open.pop(handed, None) is not None:
            return True
        known = handed.known
        if self.open.get(known) is not handed:
            return False
        del self.open[known]
        return True

    def clear(self) -> list[Handed]:
        """Take all rows out of hand; return them."""
        rows = list(self.open.values())
        self.open.clear()
        self.gathered.clear()
        if self.board is not None:
            self.board.clear()
        return rows
