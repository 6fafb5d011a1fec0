"""What a terminal shows: tables that break no word or number, and the progress of what takes longer than expected."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP = 2
_SILENT_S, _INTERVAL_S = 2.0, 2.0
Item = TypeVar("Item")


class TextTable:
    """Rows of plain text, without markup. On a terminal that is too narrow for the longest words, each row becomes a block.

    Args:
        columns: the headings.
        right: headings of columns that are aligned to the right; they hold numbers.
    """

    def __init__(self, columns: Sequence[str], right: Sequence[str] = ()) -> None:
        self._columns = list(columns)
        self._right = set(right)
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        self._rows.append(cells)

    def print(self, console: Console) -> None:
        if not console.is_terminal:
            self._print_lines(console)
            return
        widths = self._widths(console.width)
        if widths is None:
            self._print_blocks(console)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, width in zip(self._columns, widths, strict=True):
            table.add_column(Text(name), justify="right" if name in self._right else "left", width=width)
        for row in self._rows:
            table.add_row(*map(Text, row))
        console.print(table, highlight=False)

    def _print_lines(self, console: Console) -> None:
        """One line for each row: a pipe or a file has no width, and other programs read lines there."""
        rows = [tuple(self._columns), *self._rows]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = []
            for name, cell, width in zip(self._columns, row, widths, strict=True):
                space = " " * (width - cell_len(cell))
                cells.append(space + cell if name in self._right else cell + space)
            console.print(Text((" " * _GAP).join(cells)), highlight=False, soft_wrap=True)

    def _widths(self, available: int) -> list[int] | None:
        """The width of each column; None when the longest words do not fit."""
        cells = list(zip(self._columns, *self._rows, strict=True))
        widths = [max(map(cell_len, column)) for column in cells]
        words = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in cells]
        left = available - _GAP * (len(widths) - 1)
        while sum(widths) > left:
            spare = [width - word for width, word in zip(widths, words, strict=True)]
            if max(spare) <= 0:
                return None
            widths[spare.index(max(spare))] -= 1
        return widths

    def _print_blocks(self, console: Console) -> None:
        indent = max(map(cell_len, self._columns)) + 2
        for row in self._rows:
            for name, cell in zip(self._columns, row, strict=True):
                if cell:
                    line = Text(f"{name:<{indent}}", style="bold") + Text(cell)
                    console.print(line, highlight=False, soft_wrap=True)
            console.print()


def log_line(text: str) -> str:
    """`text` after the local time at which it is shown: `14:05:09 [1/3] …`."""
    return f"{time.strftime('%H:%M:%S', time.localtime())} {text}"


def shown_after(items: Iterable[Item], what: str) -> Iterator[Item]:
    """The items; after two seconds, stderr shows every two seconds how many there were: `3,000 trials checked`."""
    due = time.monotonic() + _SILENT_S
    shown = False
    for number, item in enumerate(items):
        if time.monotonic() >= due:
            due = time.monotonic() + _INTERVAL_S
            shown = True
            count = f"{number:,} {what}"
            sys.stderr.write(f"\r{count}" if sys.stderr.isatty() else f"{log_line(count)}\n")
            sys.stderr.flush()
        yield item
    if shown and sys.stderr.isatty():
        sys.stderr.write("\n")
