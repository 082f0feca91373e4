"""The table of a multirun: options that differ, figures, verdicts; a run that did not end says so."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest

from prefopt.common.escaping_console import Console
from prefopt.report.runs_page import runs_of, short_names, show_runs, write_runs_page
from tests.report.html import EVIL, Page
from tests.report.run_folders import run_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (loss, margin) in {10: ("ipo", 0.0), 2: ("dpo", 1.0), 1: ("dpo", 2.0)}.items():
        made = run_folder(tmp_path / f"{number}-{loss}", margin=margin, loss=loss)
        config = json.loads((made.path / "config.yaml").read_text())
        config["trainer"]["learning_rate"] = 1e-5 / number
        (made.path / "config.yaml").write_text(json.dumps(config | {"seed": f"7{EVIL}" if number == 2 else 7}))
    (tmp_path / "2-dpo" / "report.html").write_text("a page")
    shutil.copytree(tmp_path / "1-dpo", tmp_path / "11-dpo")
    (tmp_path / "11-dpo" / "summary.json").unlink()
    return tmp_path


def test_runs_are_in_order_with_the_options_that_differ(folder: Path) -> None:
    lines = runs_of(folder)
    assert [line.name for line in lines] == ["1-dpo", "2-dpo", "10-ipo", "11-dpo"]
    assert [list(line.options) for line in lines] == [["loss.beta", "trainer.learning_rate", "seed"]] * 4
    assert [line.options["loss.beta"] for line in lines] == ["0.2", "0.2", "–", "0.2"]
    assert lines[-1].said == "did not end"
    assert [line.page for line in lines] == ["", "2-dpo/report.html", "", ""]
    assert lines[0].figures["KL"] == lines[1].figures["KL"] != ""


def test_page_and_table(folder: Path) -> None:
    lines = runs_of(folder)
    page = write_runs_page(folder, lines)
    html = page.read_text()
    assert not Page(html).resources
    assert EVIL not in html
    assert 'href="2-dpo/report.html"' in html
    table = html[html.index("<table") : html.index("</table>")]
    assert "learnt the preference" not in table  # a sentence would push the other columns out of sight
    assert "learnt the preference" in html
    assert "trainer.<wbr>learning_<wbr>rate" in table
    assert 'data-label="trainer.learning_rate"' in table
    stream = io.StringIO()
    show_runs(Console(file=stream, width=160), lines, page)
    said = stream.getvalue()
    assert "did not end" in said
    assert "\x1b" not in said
    assert "prefopt compare" in said


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_stands_in_a_terminal(folder: Path, width: int) -> None:
    """From 120 columns on beside each other; before, one figure a line. Verdicts are sentences below."""
    stream = io.StringIO()
    show_runs(Console(file=stream, width=width), runs_of(folder), folder / "runs.html")
    shown = stream.getvalue()
    assert ("log-ratio right, %: " in shown) == (width < 120)
    assert "learning_rate" in shown
    assert "trainer.learning_rate" not in shown
    assert re.search(r"^✗ 11-dpo: did not end$", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines()[:-1])) <= width


def test_names_are_short_where_they_tell_options_apart() -> None:
    assert short_names(["loss.beta", "seed", "a.path", "b.path"]) == ["beta", "seed", "a.path", "b.path"]
