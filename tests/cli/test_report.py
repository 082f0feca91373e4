"""`prefopt report`: the page of a run, written again."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.data.account import account

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def sketched() -> None:
    """Figures are rendered here: a page is compared with that of a finished run, which has them."""


def test_report_is_made_again(tuned: Path, capsys: Capture) -> None:
    first = (tuned / "report.html").read_text()
    (tuned / "report.html").unlink()
    assert main(["report", str(tuned)]) == 0
    assert f"the page: {tuned}/report.html" in capsys.readouterr().out
    assert (tuned / "report.html").read_text() == first
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
