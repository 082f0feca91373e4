"""A terminal on which texts from files are shown and control nothing, and tables whose words stay whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import rich.console
import rich.table
from rich.measure import Measurement
from rich.padding import Padding
from rich.text import Text

from prefopt.common.redact import printable

INDENT = 2
LINES = 8  # a cell of more lines than this is read more easily below the others
UNLIMITED = 100_000  # columns


class Console(rich.console.Console):
    """rich's console, which escapes control characters in every string: in lines, tables and their titles."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make the text of a string; a `Text` made elsewhere is shown as it is."""
        return super().render_str(printable(text), **options)


class Table(rich.table.Table):
    """rich's table, which breaks no word: where the words do not fit beside each other, rows become paragraphs.

    Columns that are set to the right have figures, whose parts ("0.79 ± 0.07") stay on one line where there is room.
    """

    def fits(self, console: rich.console.Console, width: int) -> bool:
        """Whether the table can stand in `width` columns without a broken word or a cell of many lines."""
        return self._layout(console, width) is not None

    def __rich_console__(self, console: rich.console.Console, options: rich.console.ConsoleOptions) -> Iterator[Any]:
        layout = self._layout(console, options.max_width)
        if layout is None:
            yield from self._paragraphs(console)
            return
        given = self.padding
        self.padding, widths = layout
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)
        self.padding = given

    def _layout(self, console: rich.console.Console, width: int) -> tuple[Any, list[int]] | None:
        """The padding and the widths of the columns, with whole figures where they fit; None where no words do."""
        given = self.padding
        top, right, bottom, left = given
        narrow = (top, min(left + right, 1), bottom, 0)
        try:
            for figures, self.padding in ((True, given), (True, narrow), (False, given), (False, narrow)):
                if (widths := self._widths(console, width, whole_figures=figures)) is not None:
                    return self.padding, widths
        finally:
            self.padding = given
        return None

    def _widths(self, console: rich.console.Console, width: int, *, whole_figures: bool) -> list[int] | None:
        """The widths of the columns, from their longest words up; None where they do not fit."""
        options = console.options.update_width(UNLIMITED)
        ranges = []
        for column in self.columns:
            cells = [Measurement.get(console, options, cell) for cell in column.cells]
            header = [Measurement.get(console, options, column.header)] if self.show_header else []
            whole = whole_figures and column.justify == "right"
            least = [*(size.maximum if whole else size.minimum for size in cells), *(size.minimum for size in header)]
            ranges.append((max(least, default=0), max((size.maximum for size in (*cells, *header)), default=0)))
        for column in self.columns:
            column.width = None
        all_of_it = super().__rich_measure__(console, options).maximum
        left = width - (all_of_it - sum(most for _, most in ranges)) - sum(least for least, _ in ranges)
        if left < 0:
            return None
        widths = [least for least, _ in ranges]
        while left > 0 and (short := [i for i, (_, most) in enumerate(ranges) if widths[i] < most]):
            share = max(1, left // len(short))
            for i in short[:left]:
                more = min(share, ranges[i][1] - widths[i])
                widths[i] += more
                left -= more
        crowded = any(most > LINES * size for (_, most), size in zip(ranges, widths, strict=True) if size)
        return None if crowded else widths

    def _paragraphs(self, console: rich.console.Console) -> Iterator[Any]:
        """Each row as a line of its first cell, and below it the others behind the names of their columns."""
        if self.title is not None:
            yield console.render_str(self.title) if isinstance(self.title, str) else self.title
        for cells in zip(*(list(column.cells) for column in self.columns), strict=True):
            texts = [console.render_str(cell) if isinstance(cell, str) else cell for cell in cells]
            yield texts[0]
            for column, text in zip(self.columns[1:], texts[1:], strict=True):
                if str(text).strip():
                    name = f"{column.header}: " if self.show_header and column.header else ""
                    yield Padding(Text.assemble(name, text) if isinstance(text, Text) else text, (0, 0, 0, INDENT))
