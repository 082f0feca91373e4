"""A terminal that no text controls, and tables on it: at any width no word is broken, and nothing is lost."""

from __future__ import annotations

import io
import random

import pytest

from prefopt.common.escaping_console import Console, Table

HOSTILE = "a\x1b[2Jb\x9b31m\x07"
SHOWN = "a\\x1b[2Jb\\x9b31m\\x07"
WIDTHS = (60, 80, 100, 120, 150)


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


def shown(table: Table, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(table)
    return file.getvalue()


def words_of(rng: random.Random, count: int, longest: int) -> str:
    return " ".join("x" * rng.randint(1, longest) + str(rng.randint(0, 9)) for _ in range(count))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(6))
def test_words_stay_whole(width: int, seed: int) -> None:
    rng = random.Random(seed)
    heads = [f"head{i} more" for i in range(rng.randint(2, 9))]
    table = Table(*heads, title="a title", box=None)
    rows = [[words_of(rng, rng.randint(1, 12), rng.choice((4, 20, 40))) for _ in heads] for _ in range(4)]
    for row in rows:
        table.add_row(*row)
    text = shown(table, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert {word for row in rows for cell in row for word in cell.split()} <= set(text.split())


def test_a_table_that_fits_stands_side_by_side() -> None:
    table = Table("figure", "value")
    table.add_row("kl", "0.1")
    assert table.fits(Console(width=60), 60)
    assert any("kl" in line and "0.1" in line for line in shown(table, 60).splitlines())


def test_a_table_that_does_not_fit_names_each_cell() -> None:
    table = Table("name", "what it says", "empty")
    table.add_row("dpo", "y" * 50, "")
    table.add_row("[red]x", "z" * 70, "1")
    text = shown(table, 60)
    assert "what it says:" in text
    assert text.count("empty:") == 1


def test_columns_are_measured_anew_for_each_width() -> None:
    table = Table("name", "text")
    table.add_row("a", "word " * 30)
    wide, narrow = shown(table, 150), shown(table, 60)
    assert len(narrow.splitlines()) > len(wide.splitlines())
    assert shown(table, 150) == wide


def test_a_figure_stays_with_its_error_where_there_is_room() -> None:
    def shown(width: int) -> str:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("figure", "base", "tuned", "change", ""):
            table.add_column(name, justify="right" if name in ("base", "tuned", "change") else "left")
        table.add_row("Log-prob of chosen, nats", "−50.60 ± 2.56", "−48.57 ± 2.46", "+2.03 ± 0.18", "higher")
        console = Console(width=width, file=io.StringIO())
        console.print(table)
        found: str = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, found.splitlines())) <= width
        return found

    assert "−50.60 ± 2.56  −48.57 ± 2.46  +2.03 ± 0.18  higher" in shown(80)
    assert "−50.60 ± 2.56 −48.57 ± 2.46 +2.03 ± 0.18 higher" in shown(60)
    assert "± 2.56" in shown(44)
