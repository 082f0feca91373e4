"""`prefopt sample`: texts of several models side by side."""

from __future__ import annotations

import json
import shutil
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


def test_control_characters_are_escaped(tuned: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "a\x1b[2Jb"
    shutil.copytree(tuned / "final", folder)
    assert main(["sample", str(folder), "--prompt", "Is \x9b3\x07", "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "Is \\x9b3\\x07" in out
    assert "a\\x1b[2Jb" in "".join(out.split())
    assert not set("\x1b\x9b\x07") & set(out)


def test_sample_asks_the_model_of_the_world_that_the_run_was_on(
    world_run: Path, model_folder: Path, capsys: Capture
) -> None:
    """One call each for the run alone, for prompts of the data, and for samples of a given prompt."""

    def sampled(*argv: str) -> list[dict[str, str]]:
        assert main(["sample", *argv, "--count", "2", "--max-new-tokens", "4", "--json"]) == 0
        texts: list[list[dict[str, str]]] = [row["texts"] for row in json.loads(capsys.readouterr().out)]
        return [{one["model"]: one["text"] for one in row} for row in texts]

    three = ["world", str(model_folder), str(world_run)]
    beside = sampled(*three)
    assert all(row["world"] == row[str(model_folder)] for row in beside)
    assert sampled(str(world_run)) == [{name: row[name] for name in ("world", str(world_run))} for row in beside]
    (drawn,) = sampled(*three, "--prompt", "Is 3", "num_generations=1")
    assert drawn["world"] == drawn[str(model_folder)]
    named = sampled(*three[:2], "data.path=world", "data.world.seed=3", "data.eval_records=8")
    assert all(row["world"] == row[str(model_folder)] for row in named)
