"""`prefopt sample`: texts of several models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.cli import main

Capture = pytest.CaptureFixture[str]


def test_sample_puts_a_run_beside_where_it_started(tuned: Path, model_folder: Path, capsys: Capture) -> None:
    assert main(["sample", str(tuned), "--count", "2", "--max-new-tokens", "4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    kept = [json.loads(line) for line in (tuned / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [k["prompt"] for k in kept[:2]]
    for row, k in zip(rows, kept, strict=False):
        assert row["texts"] == [
            {"model": str(model_folder), "text": k["before"]}, {"model": str(tuned), "text": k["after"]},
        ]  # fmt: skip


def test_sample_of_given_prompts(tuned: Path, model_folder: Path, capsys: Capture) -> None:
    models = [str(model_folder), str(tuned), f"{tuned}/final"]
    assert main(["sample", *models, "--prompt", "The quick", "--prompt", "Is 3", "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert out.index("The quick") < out.index("Is 3")
    assert all(out.count(f"{name}: ") == 2 for name in models)
