"""Win rates by judges; what a judge that changed has measured is not served again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

from prefopt.cli import main
from prefopt.compare import win_rates
from prefopt.compare.jobs import Job, JobResult

Hold = Callable[..., dict[str, Any]]
LONGER = "def fn(prompts, first, second):\n    return [float(len(a) > len(b)) for a, b in zip(first, second)]\n"


def points(content: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: row["point"] for row in content["methods"]}


def first_is_longer(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A judge that likes length, and the first place."""
    return [1.0 if len(a) >= len(b) else 0.2 for a, b in zip(first, second, strict=True)]


@pytest.mark.slow
def test_a_judge_that_compares(
    hold: Hold,
    made_up: Callable[..., list[Job]],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_up()
    given = ["losses=[dpo]", "seeds=1", "budget.trials=3", "judge=tests.compare.test_win_rates:first_is_longer"]
    found = hold(*given)
    rows = {row["name"]: row for row in found["methods"]}
    assert found["metric"] == "win_rate"
    assert rows["sft"]["point"] == 0.5  # against itself
    assert main(["compare", *words, *given, f"output_dir={tmp_path / 'out'}", "--list"]) == 0
    assert "to do" not in capsys.readouterr().out  # the list, too, chooses by the judge
    assert len(list((tmp_path / "out" / "judgements").iterdir())) > 0
    monkeypatch.setattr(win_rates, "function", lambda judge: pytest.fail("asked twice"))
    assert hold(*given)["methods"] == found["methods"]


@pytest.mark.slow
def test_a_reward_model_and_another_one_in_the_same_folder(
    hold: Hold, ran: list[tuple[Job, JobResult]], model_folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(tmp_path / "judge")
    found = []
    for seed in (1, 2, 2):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(model_folder, num_labels=1, pad_token_id=tokenizer.eos_token_id)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
        content = hold("losses=[dpo]", "seeds=1", f"judge={tmp_path / 'judge'}")
        found.append(points(content))
        rows = {row["name"]: row for row in content["methods"]}
        assert content["metric"] == "judge"
        assert rows["sft"]["figures"]["win_rate"] == 0.5
        assert 0 <= rows["dpo"]["figures"]["win_rate"] <= 1
    assert len(ran) == 2 * 3
    assert all(found[0][name] != found[1][name] for name in found[0])
    assert found[1] == found[2]


def test_an_edited_function_is_asked_again_and_nothing_is_trained_again(
    hold: Hold, ran: list[tuple[Job, JobResult]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found in the current folder."""
    given = ["losses=[dpo]", "seeds=1", "judge=a_judge_here:fn", "trainer.max_steps=6", "trainer.learning_rate=1e-1"]
    found = []
    for text in (LONGER, LONGER.replace("len(a) > len(b)", "len(a) <= len(b)")):
        (tmp_path / "a_judge_here.py").write_text(text)
        monkeypatch.delitem(sys.modules, "a_judge_here", raising=False)
        found.append(points(hold(*given)))
    assert len(ran) == 3
    assert str(tmp_path) not in sys.path
    assert found[0]["dpo"] == pytest.approx(1 - found[1]["dpo"])
    assert found[0]["dpo"] != found[1]["dpo"]
    monkeypatch.delitem(sys.modules, "a_judge_here")
