"""What a run is known by: contents by their digests, adapters by their settings, and the options that explain them."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.models.adapters import attach
from prefopt.models.peft_config import PeftConfig
from prefopt.plugin import Data
from prefopt.rewards import from_function
from prefopt.train import BatchConfig
from prefopt.train.run_identity import differences
from tests.data.tiny import tokenizer
from tests.train import own_texts, tiny

DATA = tiny.records(Data.PAIRS, 4)
LORA = PeftConfig(method="lora", r=2, alpha=4, target_modules=["k_proj"])


def adapted(seed: int = 0, config: PeftConfig = LORA, **changes: Any) -> Any:
    model = attach(tiny.model(seed), config, seed=0)
    for name, value in changes.items():
        setattr(model.peft_config["default"], name, value)
    return model


def test_contents_are_explained_by_the_options_that_gave_them() -> None:
    before = {"data.template": "auto", "data.path": "a.jsonl", "model.path": "m", "data.max_length": 64}
    kept = {"tokens": "a", "weights": "b", "seed": 0, "origin": before}
    assert differences(kept, {**kept, "origin": {**before, "data.max_length": 32}}) == [], "the same tokens"
    now = {"tokens": "x", "weights": "y", "seed": 1, "origin": {**before, "data.template": "other", "model.path": "n"}}
    assert differences(kept, now) == [
        "other records (data.template: auto, now other)",
        "other starting weights (model.path: m, now n)",
        "another seed (0, now 1)",
    ]
    assert differences(kept, {**kept, "weights": "y"}) == [
        "other starting weights (no option of theirs has changed: look at the files of model.path=m)"
    ]
    assert differences({"tokens": "a", "old": 1}, {"tokens": "b", "new": 1}) == ["other records"]


def test_a_resume_with_another_adapter_base_or_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch": BatchConfig(records=4), "save_strategy": "steps", "save_steps": 1}
    made = tokenizer()
    tiny.run(load("simpo"), DATA, tmp_path, adapted(), tokenizer=made, **options)
    other = tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<extra>"]})

    def lora(**changes: Any) -> Any:
        return adapted(
            config=PeftConfig(**{"method": "lora", "r": 2, "alpha": 4, "target_modules": ["k_proj"], **changes})
        )

    cases: list[tuple[str, Any, Any]] = [
        ("another peft.target_modules (['k_proj'], now ['q_proj'])", lora(target_modules=["q_proj"]), made),
        ("another peft.r (2, now 4)", lora(r=4), made),
        ("another peft.alpha (4, now 8)", lora(alpha=8), made),
        ("another peft.method (lora, now dora)", lora(method="dora"), made),
        ("another peft.method (lora, now none)", tiny.model(), made),
        ("another adapter_config.json ({}, now {'use_rslora': True})", adapted(use_rslora=True), made),
        ("other starting weights", adapted(seed=1), made),
        ("another tokenizer", adapted(), other),
    ]
    for words, model, its in cases:
        with pytest.raises(UserError, match=f"made with .*{re.escape(words)}"):
            tiny.run(load("simpo"), DATA, tmp_path, model, tokenizer=its, resume=tmp_path / "checkpoint-1", **options)
    made("a", padding=True, truncation=True, max_length=4)  # sets what calls set
    tiny.run(load("simpo"), DATA, tmp_path, adapted(), tokenizer=made, resume=tmp_path / "checkpoint-1", **options)


def test_a_resume_with_changed_code_of_the_reward_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in a reward may be mended before a resume; that it is another reward then does not go unsaid."""
    monkeypatch.setattr(logging.getLogger("prefopt"), "propagate", True)
    file = tmp_path / "r.py"
    file.write_text("def f(prompts, completions):\n    return [len(text) for text in completions]\n")
    own_texts.run("dpo", tmp_path, save_strategy="steps", save_steps=1, reward=from_function(f"{file}:f"))
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "b" / "checkpoint-1")
    resumed: dict[str, Any] = {"resume": tmp_path / "b" / "checkpoint-1", "save_strategy": "steps", "save_steps": 1}
    own_texts.run("dpo", tmp_path / "b", reward=from_function(f"{file}:f"), **resumed)
    assert "the code of the reward has changed" not in caplog.text
    file.write_text("def f(prompts, completions):\n    return [-len(text) for text in completions]\n")
    own_texts.run("dpo", tmp_path / "b", reward=from_function(f"{file}:f"), **resumed)
    assert f"the code of the reward has changed since {tmp_path / 'b' / 'checkpoint-1'}" in caplog.text
