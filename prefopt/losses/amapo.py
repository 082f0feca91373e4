"""AMaPO: Adaptive Margin-attached Preference Optimization for Language Model Alignment (Deng et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._numerics import exp_or_tangent
from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class AMaPO:
    r"""SimPO whose margin is 0 on pairs above the batch's mean and grows below it.

    L = -log sigmoid(beta * d - m),   d = log pi(y_w|x)/n_w - log pi(y_l|x)/n_l
    m = beta * 1[d < mu] * exp(mu * (mu - d) / S), without gradient;   mu, S: mean and deviation of d in the batch

    Value at policy = reference: none, it has no reference.

    Identities: amapo on one pair = simpo(gamma_beta_ratio=0).

    Differences: none from the authors' code, except that mu and S are taken over the global batch. A batch without
    deviation (one pair, or equal pairs) has no margin, there and here. Past x = 20, e^x continues along its tangent.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2511.09385"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True, coupled=True)
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 2.3, 2.6, 3.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "Shiroha-Offical/AMaPO scripts/amapo_trainer.py@c6c89cc", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        4e-7, 1e-6, "Shiroha-Offical/AMaPO training_configs@7ac8044"
    )

    beta: float = 3.0  # reward per (nat/token); useful range 2 to 3

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        d = logps.chosen.mean - logps.rejected.mean
        margin = self.beta * self._margin(d.detach())
        return LossOutput(
            loss=-F.logsigmoid(self.beta * d - margin),
            chosen_reward=(self.beta * logps.chosen.mean).detach(),
            rejected_reward=(self.beta * logps.rejected.mean).detach(),
            metrics={"margin": margin},
        )

    def _margin(self, d: Tensor) -> Tensor:
        mean = d.mean()
        deviation = d.std() if len(d) > 1 else torch.zeros_like(mean)
        below = (d < mean) & (deviation > 0)
        z = torch.where(below, (mean - d) / deviation.clamp(min=torch.finfo(d.dtype).tiny), 0.0)
        return torch.where(below, exp_or_tangent(mean * z).to(d.dtype), 0.0)
