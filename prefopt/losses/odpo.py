"""ODPO: Direct Preference Optimization with an Offset (Amini et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class ODPO:
    r"""DPO with an offset to the margin that grows with the score gap.

    L = -log sigmoid(beta * (rho_w - rho_l) - alpha * log(s_w - s_l)),   s_w > s_l

    Value at policy = reference: log(1 + (s_w - s_l)^alpha).

    Identities: odpo(alpha=0.0) = dpo; odpo at a gap of 1 = dpo.

    Differences: the paper leaves the function of the scores open and uses the logarithm; as there, gaps below 1 give a
    negative offset.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.10571"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "rycolab/odpo trainers.py@6152f67", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 1e-6, "rycolab/odpo config/config.yaml@c4a01be (RMSprop)"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    alpha: float = 1.0  # offset in reward, per unit of log gap; useful range 0 (which is `dpo`) to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 <= self.alpha < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected - self._offset(logps)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _offset(self, logps: PairLogps) -> Tensor:
        gap = logps.score_gap
        if not bool((gap > 0).all()):
            raise ValueError("odpo needs chosen_score > rejected_score in every pair: drop ties, or swap the sides")
        return self.alpha * gap.log()

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return F.softplus(self._offset(logps))
