"""ASFT: Aligned Supervised Fine-Tuning through Absolute Likelihood (Wang et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.losses._numerics import log_odds
from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    LossOutput,
    Needs,
    PairLogps,
    Ranking,
    SearchSpace,
    require,
)


@dataclass(frozen=True, kw_only=True)
class ASFT:
    r"""Likelihood of the chosen side, plus its odds pushed up and the rejected side's pushed down, each on its own.

    L = -log pi(y_w|x) / n_w - lambda * [log sigmoid(beta * o_w) + log sigmoid(-beta * o_l)]
    o = log(p / (1 - p)),  p = exp(log pi(y|x) / n)

    Value at policy = reference: none, it has no reference.

    Identities: asft(lam=0) = sft.

    Differences: beta is from turbo-alignment (2502.01237), where as in the paper it is 1 by default. A mean log-prob
    above -2^-24 counts as -2^-24, where odds stay finite (there p is at most 1 - 1e-7 in 1 - p). `orpo_beta` is the
    pairwise form.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2409.10571"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {"lam": (0.1, 0.5, 2.0, 8.0)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(
        Level.SECONDARY, "turbo-llm/turbo-alignment turbo_alignment/trainers/dpo.py@72e737d", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "arXiv:2502.01237, Tables 8 and 11")

    beta: float = 1.0  # reward per nat of log-odds; useful range 0.1 to 10
    lam: float = 1.0  # lambda, weight of the odds terms; useful range 0.05 to 10

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, lam=0 <= self.lam < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = (self.beta * log_odds(side.mean) for side in (logps.chosen, logps.rejected))
        return LossOutput(
            loss=-logps.chosen.mean - self.lam * (F.logsigmoid(chosen) + F.logsigmoid(-rejected)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )
