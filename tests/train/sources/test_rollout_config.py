"""Options of samples: those that cannot be used are named."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from prefopt.errors import UserError
from tests.train import own_texts, tiny


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rloo", {"temperature": 0.0}, "must be above 0"),
        ("rloo", {"num_generations": 1}, "at least 2 samples"),
        ("dpo", {"num_generations": 3}, "must be even"),
        ("nash_md", {"num_generations": 2}, "must be even and at least 4"),
        ("dpo", {"max_new_tokens": 0}, "at least 1"),
        ("dpo", {"label_temperature": 0.0}, "above 0"),
        ("dpo", {"missing_end_penalty": -1.0}, "at least 0"),
        ("ppo", {"missing_end_penalty": 1.0}, "does not read the scores of texts that were cut off"),
        ("kto", {}, "completions of other prompts"),
        ("csft", {}, "control text"),
    ],
)
def test_options_that_cannot_be_used_are_named(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        own_texts.run(name, tmp_path, rollout=dataclasses.replace(own_texts.ROLLOUT, **changes))


def test_one_sample_of_each_prompt_is_a_demonstration(tmp_path: Path) -> None:
    rollout = dataclasses.replace(own_texts.ROLLOUT, num_generations=1)
    kept = own_texts.run("sft", tmp_path, rollout=rollout, max_steps=1)
    assert math.isfinite(kept.losses[0])


def test_a_prompt_with_its_samples_must_fit_the_positions_of_the_model(tmp_path: Path) -> None:
    rollout = dataclasses.replace(own_texts.ROLLOUT, max_new_tokens=500)
    config = GPT2Config(vocab_size=tiny.VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=64, eos_token_id=2)
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens with its samples"):
        own_texts.run("rloo", tmp_path, GPT2LMHeadModel(config).double(), rollout=rollout)
