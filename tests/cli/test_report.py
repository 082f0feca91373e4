"""`prefopt report`: the page of a run, written again."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.data.account import account

Capture = pytest.CaptureFixture[str]


def without_figures(page: Path) -> str:
    """The text of a page; whether its figures were rendered depends on which test made the run."""
    return re.sub(r"<svg.*?</svg>\s*", "", page.read_text(), flags=re.DOTALL)


def test_report_is_made_again(tuned: Path, capsys: Capture) -> None:
    first = without_figures(tuned / "report.html")
    (tuned / "report.html").unlink()
    assert main(["report", str(tuned)]) == 0
    assert f"the page: {tuned}/report.html" in capsys.readouterr().out
    assert without_figures(tuned / "report.html") == first
    assert main(["report", str(tuned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["grew"]["count"] == 8


def test_the_account_of_the_data_is_that_of_data_check(
    tuned: Path, model_folder: Path, pairs_file: Path, capsys: Capture
) -> None:
    main(["data", "check", str(pairs_file), "--tokenizer", str(model_folder), "--json"])
    *lines, tokens = json.loads(capsys.readouterr().out)["account"]
    assert tokens.startswith("tokens: ")
    assert lines == ["flow: 40 rows → 40 records → 40 in tokens"]
    assert lines == account(json.loads((tuned / "manifest.json").read_text())["data"]["counts"])
    assert html.escape(lines[0].removeprefix("flow: ")) in (tuned / "report.html").read_text()
