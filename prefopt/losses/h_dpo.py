"""H-DPO: Entropy Controllable Direct Preference Optimization (Omura et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, Level, Logps, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class HDPO:
    r"""DPO whose optimum is sharper (alpha below 1) or flatter than the tilted reference.

    L = -log sigmoid(beta * (alpha * d - d_ref)),   d = log pi(y_w|x) - log pi(y_l|x)

    From the objective E[r] - beta * (cross-entropy to the reference - alpha * entropy), whose optimum is
    pi_ref^(1/alpha) exp(r / (alpha beta)) / Z.

    Value at policy = reference: log(1 + exp(-beta * (alpha - 1) * d_ref)).

    Identities: h_dpo(alpha=1.0) = dpo.

    Differences: none known from the paper; its code was not found. The default of alpha is ours.
    The logged reward is beta * (alpha * log pi - log pi_ref), which is not 0 at policy = reference.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2411.07595"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2411.07595, the objective with alpha", "2026-11-30")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    alpha: float = 0.95  # weight of the policy's entropy, no unit; useful range 0.8 to 1.2; 1 is `dpo`

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 < self.alpha < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self._reward(logps.chosen), self._reward(logps.rejected)
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _reward(self, side: Logps) -> Tensor:
        """beta (alpha log pi - log pi_ref)"""
        return self.beta * (self.alpha * side.ratio + (self.alpha - 1) * side.reference.to(side.ratio.dtype))

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        gap = logps.chosen.reference - logps.rejected.reference
        return F.softplus(-self.beta * (self.alpha - 1) * gap)
