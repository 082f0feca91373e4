"""XPO: Exploratory Preference Optimization (Xie et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class XPO:
    r"""Online DPO on a sample of the policy and one of the reference, which the policy is moved away from.

    L = -log sigmoid(beta (rho_w - rho_l)) + alpha log pi(y'|x),   y' the side that the reference wrote

    Value at policy = reference: log 2 + alpha log pi_ref(y'|x).

    Identities: xpo(alpha=0.0) = dpo.

    Fixed points: with labels by Bradley-Terry, pi_ref exp(r / beta) / Z at alpha = 0, the optimum of RLHF; alpha takes
    probability from what the reference writes, and so explores.

    Differences: none from Algorithm 1, but that the paper's sums over all samples so far are over those of a step. The
    paper asks for alpha of the order of beta / sqrt(samples); the default is that of TRL 1.9; TRL 1.16 has no XPO.
    Half of a prompt's samples are the reference's (`mixture_coef`); `rollout.num_generations=2` is the paper's.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.21046"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, opponent=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2405.21046, Algorithm 1", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "huggingface/trl examples/scripts/xpo.py@0567e7f, not the authors'"
    )
    mixture_coef: ClassVar[float] = 1.0  # the opponent is the reference itself

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1, above 0
    alpha: float = 1e-5  # per nat, weight of the step off the reference's samples; 0 or above, useful range 0 to 1e-3

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 <= self.alpha < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        others = torch.where(logps.opponents, logps.chosen.sum, logps.rejected.sum)
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected) + self.alpha * others,
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        others = torch.where(logps.opponents, logps.chosen.reference, logps.rejected.reference)
        return math.log(2) + self.alpha * others
