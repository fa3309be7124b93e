"""Tables on a terminal, in a pipe, and as CSV.

On a terminal that is too narrow, columns are left out in a stated order, and then the last one is
cut: no word is wrapped. Output to a file or another program is complete.
"""

import csv
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from astra.config.secrets import hide
from astra.config.startup import printable
from astra.config.units import written_moment

#: The colours of states.
COLOURS = {
    "done": "green", "whole": "bold green", "failed rows": "bold yellow",
    "running": "cyan", "waiting": "blue",
    "failed": "red", "lost": "bold red", "incomplete": "bold red", "broken": "bold red",
    "attention": "bold red", "not whole": "bold red", "without a finalizer": "bold red",
    "interrupted": "yellow", "unsubmitted": "yellow", "unknown": "magenta",
}  # fmt: skip

_GAP = 2  # blanks between two columns

_LEAST = 12  # characters that are left of a last column that is cut


class Terminal(Console):
    """A console that prints texts literally: none becomes a terminal command or an emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)
        if not self.width:  # COLUMNS=0 says that the width is not known
            self.width = 80

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render to segments; only those of rich itself may control the terminal."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text), style)


class Column:
    """A column of a table; its heading ends with > if it holds numbers, which are aligned right."""

    def __init__(self, head: str) -> None:
        self.head, self.is_number = head.rstrip(">"), head.endswith(">")
        self.cells: list[Text] = []
        # As programs read them: numbers without commas between digits, times as in JSON.
        self.values: list[str] = []

    @property
    def width(self) -> int:
        return max([len(self.head), *(cell.cell_len for cell in self.cells)])

    def add(self, value: object) -> None:
        text, is_counted = "" if value is None else str(value), isinstance(value, int | float)
        if is_counted:
            text = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
        colour = COLOURS.get(text, "") if self.head == "state" else ""
        if isinstance(value, datetime):
            text = written_moment(value)
        cell = Text(printable(hide(text)), style=colour)
        self.cells.append(cell)
        plain = cell.plain.replace(",", "") if is_counted else cell.plain
        self.values.append(value.isoformat() if isinstance(value, datetime) else plain)


class Listing:
    """A table, and which of its columns are omitted first if there is no room.

    Parameters
    ----------
    heads : the headings of the columns; that of a column of numbers ends with >.
    out : names of columns, separated by commas, in the order in which they are omitted.
    enough : columns are omitted until this many characters of the last column fit; by default, all
        of them.
    """

    def __init__(self, *heads: str, out: str = "", enough: int | None = None) -> None:
        self.columns = [Column(head) for head in heads]
        self.out = out.split(", ") if out else []
        self.enough = enough

    def add(self, *values: object) -> None:
        """Add a row: counts get commas, states their colour, times their zone; unknown is empty."""
        for column, value in zip(self.columns, values, strict=True):
            column.add(value)

    def print(self, console: Console, as_csv: bool = False) -> None:
        """Print it as wide as the terminal is, as wide as it is itself elsewhere, or as CSV."""
        if as_csv:
            self._print_csv()
            return
        if not console.is_terminal:
            width = max(_width(self.columns), 200)
            Terminal(width=width).print(self.fitted(width)[0])
            return
        table, left_out = self.fitted(console.width)
        console.print(table)
        if left_out:
            text = f"(no room for: {', '.join(left_out)})"
            console.print(text, style="dim", soft_wrap=False)

    def fitted(self, width: int) -> tuple[Table, list[str]]:
        """Return a table that is at most so wide, and the names of columns that are left out."""
        columns, left_out = list(self.columns), []
        last_width = columns[-1].width
        may_be_cut = 0 if self.enough is None else max(last_width - self.enough, 0)
        for name in self.out:
            if _width(columns) <= width + may_be_cut:
                break
            columns = [column for column in columns if column.head != name]
            left_out.append(name)
        table = Table(box=None, pad_edge=False, header_style="bold")
        room = max(last_width - max(_width(columns) - width, 0), _LEAST)
        for column in columns:
            justify: JustifyMethod = "right" if column.is_number else "left"
            most = room if column is columns[-1] else None
            table.add_column(column.head, justify=justify, no_wrap=True, max_width=most)
        for cells in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*cells)
        return table, left_out

    def _print_csv(self) -> None:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([column.head or "note" for column in self.columns])
        writer.writerows(zip(*(column.values for column in self.columns), strict=True))


def _width(columns: list[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)
