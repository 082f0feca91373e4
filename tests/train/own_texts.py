"""Runs of the tiny model on its own texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.rewards.reward import Answer
from prefopt.train import BatchConfig
from prefopt.train.sources.rollout_config import RolloutConfig
from tests.train import tiny

PROMPTS = tiny.records(Data.PAIRS, 9)  # 6 different prompts
WORDS = {str(token): token for token in range(tiny.VOCAB)}
TOKENIZER: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(WORDS, unk_token="0")), eos_token="2")
ROLLOUT = RolloutConfig(num_generations=4, max_new_tokens=5, updates=1)


class LowTokens:
    """The reward of small token ids; it counts the texts that it scores."""

    name = "low tokens"
    scored = 0

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        self.scored += len(answers)
        return np.array([-np.mean(answer.completion) / tiny.VOCAB for answer in answers])


class HighTokens(LowTokens):
    """The reward of large token ids."""

    name = "high tokens"

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        return -super().__call__(answers)


def options(**changes: Any) -> dict[str, Any]:
    """The settings of a run on the model's own texts, 3 prompts a step."""
    given = {"reward": LowTokens(), "rollout": ROLLOUT, "tokenizer": TOKENIZER, "batch": BatchConfig(records=3)}
    return {**given, **changes}


def run(name: str, folder: Path, policy: Any = None, *, resume: Path | None = None, **changes: Any) -> tiny.Run:
    """A run of 2 steps, unless `changes` say otherwise; `loss` has the loss's settings."""
    loss = load(name, **changes.pop("loss", {}))
    return tiny.run(loss, PROMPTS, folder, policy, resume=resume, **options(**changes))
