"""f-DPO: Beyond Reverse KL, Generalizing Direct Preference Optimization (Wang et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._numerics import expm1_or_tangent
from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


class Divergence(Enum):
    """The f-divergence that keeps the policy near its reference, by f' at u = pi / pi_ref."""

    REVERSE_KL = "reverse_kl"  # log u, which is `dpo`
    FORWARD_KL = "forward_kl"  # -1/u
    JENSEN_SHANNON = "jensen_shannon"  # log(2u / (1 + u))
    ALPHA = "alpha"  # (1 - u^-alpha) / alpha


@dataclass(frozen=True, kw_only=True)
class FDPO:
    r"""DPO under a divergence other than the reverse KL.

    L = -log sigmoid(beta * (f'(u_w) - f'(u_l))),   u = pi(y|x) / pi_ref(y|x)

    Value at policy = reference: log 2.

    Identities: f_dpo(divergence=reverse_kl) = dpo; f_dpo(alpha, alpha=1) = f_dpo(forward_kl); f_dpo(alpha, alpha to 0)
    = dpo.

    Differences: where alpha * rho < -20, u^-alpha continues along its tangent, so that it stays finite; TRL 1.16
    (`f_divergence_type`) clamps the exponent of the alpha divergence, which stops the gradient there. TRL's
    `f_alpha_divergence_coef` is alpha up to 0.28 and 1 - alpha from 0.29 on.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2309.16240"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "alecwangcq/f-divergence-dpo trainers.py@07d9369", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 5e-7, "arXiv:2502.01237, App. B.4 (forward KL)")

    beta: float = 0.1  # reward per unit of f'; useful range 0.01 to 1
    divergence: Divergence = Divergence.JENSEN_SHANNON  # reverse_kl, forward_kl, jensen_shannon or alpha
    alpha: float = 0.5  # order of the alpha divergence; useful range above 0 (reverse KL) to 1 (forward KL)

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 < self.alpha <= 1)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = (self.beta * self._slope(side.ratio) for side in (logps.chosen, logps.rejected))
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _slope(self, ratio: Tensor) -> Tensor:
        """f'(u) - f'(1): the constant cancels between the sides, and near u = 1 this keeps the precision of log u."""
        match self.divergence:
            case Divergence.REVERSE_KL:
                return ratio
            case Divergence.FORWARD_KL:
                return -expm1_or_tangent(-ratio)
            case Divergence.JENSEN_SHANNON:
                return math.log(2) + F.logsigmoid(ratio)
            case Divergence.ALPHA:
                return -expm1_or_tangent(-self.alpha * ratio) / self.alpha

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
