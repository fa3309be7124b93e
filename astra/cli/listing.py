"""Tables on a terminal, in a pipe, and as CSV.

On a terminal that is too narrow, columns are left out in a stated order, and then the last one is
cut: no word is folded. What goes to a file or another program is whole.
"""

import csv
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from astra.config.startup import printable

_GAP = 2  # blanks between two columns

_LEAST = 12  # characters that are left of a last column that is cut


class Terminal(Console):
    """A console on which no text does what a terminal takes for a command."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render to segments of which only rich's own control the terminal."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text), style)


class Listing(Table):
    """A table, and which of its columns are left out first where there is no room."""

    def __init__(self, columns: tuple[str, ...], out: tuple[str, ...]) -> None:
        super().__init__(box=None, pad_edge=False, header_style="bold")
        self.out = out
        for column in columns:
            name = column.rstrip(">")
            self.add_column(name, justify="left" if name == column else "right", no_wrap=True)


def table(*columns: str, out: str = "") -> Listing:
    """Begin a table.

    Parameters
    ----------
    columns : their names; one that ends with > holds numbers, on the right.
    out : names of columns, with commas, in the order in which they are left out.
    """
    return Listing(columns, tuple(filter(None, out.split(", "))))


def print_table(made: Table, console: Console, as_csv: bool = False) -> None:
    """Print a table as wide as the terminal is, as wide as it is itself elsewhere, or as CSV."""
    cells = [[_text(cell) for cell in column._cells] for column in made.columns]
    if as_csv:
        _print_csv(made, cells)
        return
    if not console.is_terminal:
        Terminal(highlight=False, width=max(_width(made, cells), 200)).print(made)
        return
    left_out = _leave_out(made, cells, console.width)
    if made.columns and (over := _width(made, cells) - console.width) > 0:
        _cut(made, cells[-1], over)
    console.print(made)
    if left_out:
        console.print(f"(no room for: {', '.join(left_out)})", style="dim", soft_wrap=False)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))


def _column_width(header: object, cells: list[Text]) -> int:
    return max([len(str(header)), *(cell.cell_len for cell in cells)])


def _width(made: Table, cells: list[list[Text]]) -> int:
    pairs = zip(made.columns, cells, strict=True)
    widths = [_column_width(column.header, texts) for column, texts in pairs]
    return sum(widths) + _GAP * (len(widths) - 1)


def _leave_out(made: Table, cells: list[list[Text]], width: int) -> list[str]:
    """Remove columns until the others fit; return their names."""
    removed = []
    for name in made.out if isinstance(made, Listing) else ():
        if _width(made, cells) <= width:
            break
        place = next((n for n, c in enumerate(made.columns) if c.header == name), None)
        if place is not None:
            removed.append(name)
            del made.columns[place], cells[place]
    for place, column in enumerate(made.columns):
        column._index = place  # by which rich knows the first and the last
    return removed


def _cut(made: Table, last: list[Text], over: int) -> None:
    """Cut the last column, by so many characters."""
    column = made.columns[-1]
    room = max(_column_width(column.header, last) - over, _LEAST)
    for place, text in enumerate(last):
        if text.cell_len > room:
            short = text.copy()
            short.truncate(room - 3, overflow="crop")
            column._cells[place] = short.append("...")


def _print_csv(made: Table, cells: list[list[Text]]) -> None:
    """Write the cells as they are read by programs: numbers without commas between digits."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([column.header or "note" for column in made.columns])
    for row in zip(*cells, strict=True):
        plain = [printable(text.plain) for text in row]
        numbers = [column.justify == "right" for column in made.columns]
        writer.writerow(
            [word.replace(",", "") if n else word for word, n in zip(plain, numbers, strict=True)]
        )
