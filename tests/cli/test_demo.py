"""`prefopt demo` from end to end, made small: its table, its page and its figures."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest

from prefopt.cli import demo
from prefopt.cli.arguments import as_typed
from prefopt.compare.demo import METHODS, DemoSize
from prefopt.worlds.build import WorldFiles
from prefopt.worlds.review import ReviewWorld

NAMES = ["base", "sft", "dpo", "ipo", "kto", "orpo", "simpo", "rlhf"]


def test_demo(
    world_files: WorldFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    size = DemoSize(steps=2, prompts=16, samples_per_prompt=2)
    rows = demo.run(tmp_path / "demo", size=size, world=ReviewWorld(pairs=256))
    printed = capsys.readouterr().out
    assert all(row.name in printed for row in rows)
    stages = [line for line in printed.splitlines() if re.fullmatch(r".+: \d+ s", line)]
    assert stages[0].startswith("World, base and SFT model: ")
    assert len(stages) > len(rows)  # no bar moves in a pipe
    *_, name, check, train = (line.split() for line in printed.splitlines())
    assert [words[0] for words in (name, check, train)] == 3 * [as_typed()]
    assert train[1:5] == ["train", "loss=dpo", "model=MODEL", "data=FILE"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["report.html", "results.json"]
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert [result["method"] for result in results] == NAMES
    for result in results:
        for name in ("true_reward", "kl", "accuracy", "chosen_change", "rejected_change", "length", "valid"):
            assert math.isfinite(result[name])
            assert result[f"{name}_se"] >= 0
        assert result["seconds"] > 0
    by_method = {result["method"]: result for result in results}
    assert by_method["sft"]["kl"] == pytest.approx(0, abs=1e-6)
    assert by_method["base"]["true_reward"] < by_method["sft"]["true_reward"]
    start = by_method["dpo"]["curve"][0]
    assert (start["step"], start["accuracy"]) == (0, 0.5)
    assert start["chosen_change"] == start["rejected_change"] == 0  # before the first step policy is reference
    assert [point["step"] for point in by_method["dpo"]["curve"]] == [0, 1, 2]
    # the last point of the curve and the evaluation look at the same pairs with the same weights
    assert by_method["rlhf"]["samples"] == 2 * 128
    assert by_method["rlhf"]["tokens_sampled"] > 2 * 128
    for result in results[2:]:
        assert result["curve"][-1]["chosen_change"] == pytest.approx(result["chosen_change"], abs=1e-4)
        assert result["curve"][-1]["rejected_change"] == pytest.approx(result["rejected_change"], abs=1e-4)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(row.name in page for row in rows)
    assert "Five ways" in page
    assert "It cost 256 texts of its own" in page


def test_methods_on_own_samples_say_so() -> None:
    assert METHODS[-1].setting.startswith("loss=rloo loss.beta=0.5 source=rollouts reward=RUN batch.records=16")


def test_methods_say_how_to_repeat_them() -> None:
    assert METHODS[0].setting == "loss=dpo loss.beta=0.6 trainer.learning_rate=0.001"


def test_commands_are_shown_as_they_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / ".venv" / "bin" / "prefopt"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert as_typed() == ".venv/bin/prefopt"
    monkeypatch.setenv("PATH", str(script.parent))
    assert as_typed() == "prefopt"
