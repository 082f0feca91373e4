"""DPO: Direct Preference Optimization (Rafailov et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class DPO:
    r"""Bradley-Terry loss on the difference of log-ratios to a frozen reference.

    L = -log sigmoid(beta * (rho_w - rho_l)),   rho = log pi(y|x) - log pi_ref(y|x)     (Eq. 7)

    Value at policy = reference: log 2.

    Differences: none from the paper. Label smoothing is a separate loss (`cdpo`, `robust_dpo`).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.18290"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(
        3e-7, 1e-6, "arXiv:2305.18290 (1e-6), arXiv:2310.16944 (5e-7), arXiv:2405.14734 (3e-7 to 1e-6)"
    )
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "eric-mitchell/direct-preference-optimization trainers.py@f8b8c0f", "2026-11-29"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1, smaller lets the policy go further

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
