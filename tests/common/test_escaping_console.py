"""A terminal that no text controls."""

from __future__ import annotations

import io

from rich.table import Table

from prefopt.common.escaping_console import Console

HOSTILE = "a\x1b[2Jb\x9b31m\x07"
SHOWN = "a\\x1b[2Jb\\x9b31m\\x07"


def test_strings_anywhere_are_escaped() -> None:
    console = Console(file=io.StringIO(), markup=False, width=100, force_terminal=True, color_system=None)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE, style="bold")
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count(SHOWN) == 4
    assert HOSTILE not in text
    assert "\x9b" not in text
    assert "\x07" not in text
