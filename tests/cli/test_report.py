"""`prefopt report`: the page of a run, written again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.cli import main

Capture = pytest.CaptureFixture[str]


def test_report_is_made_again(tuned: Path, capsys: Capture) -> None:
    first = (tuned / "report.html").read_text()
    (tuned / "report.html").unlink()
    assert main(["report", str(tuned)]) == 0
    assert f"the page: {tuned}/report.html" in capsys.readouterr().out
    assert (tuned / "report.html").read_text() == first
    assert main(["report", str(tuned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["grew"]["count"] == 8
