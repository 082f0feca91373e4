"""Counts what a run reads, writes and buys: texts sampled, texts scored, and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.digest import of_json
from prefopt.compare.spec import RewardChange
from prefopt.config.run_config import RunConfig
from prefopt.rewards.combine import Combined
from prefopt.rewards.model import ModelReward
from prefopt.rewards.reward import Answer, Reward
from prefopt.runs.run_folder import RunFolder
from prefopt.runs.run_path import is_run
from prefopt.train.sources.rollouts import Rollout


@dataclass(eq=False)
class SampleCount:
    """Counts the texts of a run on the policy's own samples; `add` is called with every rollout.

    Attributes:
        tokens: of the texts that the policy wrote.
        texts: their number; the reward labels each.
        read: tokens of prompts and texts, each text with its prompt.
    """

    tokens: int = 0
    texts: int = 0
    read: int = 0

    def add(self, rollout: Rollout) -> None:
        """Take in the samples of a rollout."""
        written = [len(answer.completion) for answer in rollout.answers]
        self.texts += len(written)
        self.tokens += sum(written)
        self.read += sum(len(answer.prompt) for answer in rollout.answers) + sum(written)

    def costs(self, config: RunConfig, reward: Reward) -> dict[str, float]:
        """Return what the samples cost.

        `tokens_sampled`, `tokens_scored` (by reference, value model and reward models), `labels` (rewards that no model
        gave, and records that reward models learned from) and `reward_model_seconds` (of their training).
        """
        needs, models = config.loss.needs, reward_models(reward)
        bought = [training_of(model) for model in models]
        asked = 0 if models and len(models) == len(parts_of(reward)) else self.texts
        return {
            "tokens_sampled": float(self.tokens),
            "tokens_scored": float(self.read * (needs.reads_reference + needs.values + len(models))),
            "labels": float(asked + sum(records for records, _ in bought)),
            "reward_model_seconds": float(sum(seconds for _, seconds in bought)),
        }


def parts_of(reward: Any) -> list[Any]:
    """The rewards that a reward is made of."""
    if isinstance(reward, ChangedReward):
        return parts_of(reward.reward)
    return [one for part in reward.parts for one in parts_of(part)] if isinstance(reward, Combined) else [reward]


def reward_models(reward: Any) -> list[ModelReward]:
    """The reward models among them, each once."""
    found = {part.path: part for part in parts_of(reward) if isinstance(part, ModelReward)}
    return list(found.values())


def training_of(model: ModelReward) -> tuple[float, float]:
    """(records that it read, seconds of its steps) of a reward model's own run; nan where there is no such run."""
    folder = Path(model.path).parent
    if not is_run(folder):
        return math.nan, math.nan
    run = RunFolder.open(folder)
    records = min(run.summary["steps"] * run.config["batch"]["records"], run.summary["counts"]["train"])
    return float(records), float(run.summary["seconds"]["train"])


def offline_costs(config: RunConfig, records: Sequence[Any], steps: int, trained: float) -> dict[str, float]:
    """Return the same of a run on a data set: its records are labels that somebody gave.

    Args:
        config: of the run.
        records: all that it may train on; the reference reads them once, before the steps.
        steps: the optimizer steps that were made.
        trained: tokens of these steps, which a moving reference reads as well.
    """
    needs = config.loss.needs
    scored = 0.0
    if needs.moving_reference:
        scored = trained
    elif needs.reads_reference:
        scored = float(sum(len(ids) for r in records for text in r.completions for ids in (r.prompt, text)))
    return {
        "tokens_sampled": 0.0,
        "tokens_scored": scored,
        "labels": float(min(steps * config.batch.records, len(records))),
        "reward_model_seconds": 0.0,
    }


@dataclass(frozen=True)
class ChangedReward:
    """A reward for controls: the opposite of another one, or its scores handed round among the texts of a rollout."""

    reward: Reward
    change: RewardChange
    seed: int = 0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.reward.name}, {self.change}")

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        scores = np.asarray(self.reward(answers), dtype=np.float64)
        if self.change == "negated":
            return -scores
        texts = of_json([self.seed, [answer.completion for answer in answers]], size=8)
        return np.random.default_rng(int(texts, 16)).permutation(scores)
