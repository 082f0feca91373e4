"""`prefopt report`: the page of a run, written again."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.data.account import account
from tests.cli.conftest import Run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def sketched() -> None:
    """Figures are rendered here."""


def test_report_is_made_again(run: Run, capsys: Capture) -> None:
    assert run("trainer.learning_rate=1e-2", "trainer.max_steps=8") == 0
    page = run.out / "report.html"
    first = page.read_text()
    page.unlink()
    assert main(["report", str(run.out)]) == 0
    assert f"the page: {page}" in capsys.readouterr().out
    assert page.read_text() == first
    assert main(["report", str(run.out), "--json"]) == 0
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
