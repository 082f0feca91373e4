"""NPO: Negative Preference Optimization, From Catastrophic Collapse to Effective Unlearning (Zhang et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

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
class NPO:
    r"""Unlearning: the rejected side of DPO alone.

    L = -(2 / beta) * log sigmoid(-beta * rho_l),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: (2 / beta) * log 2.

    Differences: the paper has single texts to forget; here these are the rejected sides, and the chosen sides are not
    used. Its retain loss is `mix` with `sft`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.05868"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.05, 0.1, 0.14, 0.2)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "licong-lin/negative-preference-optimization TOFU/dataloader.py@1207bbe", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-5, 1e-5, "licong-lin/negative-preference-optimization config/forget.yaml@3bb1366"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.05 to 0.2; to 0 it is gradient ascent on the NLL

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        rejected = self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-(2 / self.beta) * F.logsigmoid(-rejected),
            chosen_reward=(self.beta * logps.chosen.ratio).detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 2 / self.beta * math.log(2)
