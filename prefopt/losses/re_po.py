"""RePO: Understanding Preference Learning Through ReLU-Based Optimization (Wu et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class RePO:
    r"""Hinge on the difference of log-probs per token: SimPO in the limit of large beta.

    L = max(0, gamma - (log pi(y_w|x) / n_w - log pi(y_l|x) / n_l))

    Value at policy = reference: none, it has no reference.

    Differences: none from the paper and its code (`loss_type="repo"`). gamma is in nats/token, comparable with SimPO's
    gamma_beta_ratio. The paper uses 0.6 for Llama-3 and 0.4 for Mistral and Gemma.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2503.07426"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"gamma": (0.2, 0.4, 0.6, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "junkangwu/RePO scripts/simpo_trainer.py@79cdf5b", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(6e-7, 1e-6, "junkangwu/RePO training_configs@11bf85d")

    gamma: float = 0.6  # target margin in nats/token; useful range 0.2 to 1

    def __post_init__(self) -> None:
        require(self, gamma=0 <= self.gamma < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.mean, logps.rejected.mean
        return LossOutput(
            loss=F.relu(self.gamma - (chosen - rejected)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )
