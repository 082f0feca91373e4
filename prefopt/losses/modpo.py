"""MODPO: Multi-Objective Direct Preference Optimization (Zhou et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, Level, Logps, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class MODPO:
    r"""DPO on one objective, with the reward of another as a margin: both together are what the policy maximises.

    L = -log sigmoid((beta * (rho_w - rho_l) - (1 - w) * (s_w - s_l)) / w),   s the other objective's reward

    Value at policy = reference: log(1 + exp((1 - w)/w * (s_w - s_l))).

    Identities: modpo(weight=1.0) = dpo.

    Differences: none from the authors' code with two objectives, whose logged rewards, as here, are
    (beta rho - (1 - w) s) / w. For more of them, put their weighted mean into the scores. Labels are of the first
    objective alone, so the gap may be negative.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.03708"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "ZHZisZZ/modpo src/trainer/modpo_trainer.py@2e2df20", "2026-11-30"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    weight: float = 0.5  # w, share of the objective of the labels, no unit; useful range above 0 to 1 (which is `dpo`)

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, weight=0 < self.weight <= 1)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        margin = self.beta * (logps.chosen.ratio - logps.rejected.ratio) - (1 - self.weight) * logps.score_gap
        return LossOutput(
            loss=-F.logsigmoid(margin / self.weight),
            chosen_reward=self._reward(logps.chosen, logps.chosen_score),
            rejected_reward=self._reward(logps.rejected, logps.rejected_score),
        )

    def _reward(self, side: Logps, score: Tensor | None) -> Tensor:
        assert score is not None  # `score_gap` has checked it
        return ((self.beta * side.ratio - (1 - self.weight) * score) / self.weight).detach()

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return F.softplus((1 - self.weight) / self.weight * logps.score_gap)
