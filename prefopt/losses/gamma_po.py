"""gamma-PO: Robust Preference Optimization via Dynamic Target Margins (Sun et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require

_STEPS = 20
_SMALLEST_SHARE = 1e-10


@dataclass(frozen=True, kw_only=True)
class GammaPO:
    r"""SimPO whose target margin is shared out over the batch: pairs with a wide margin already get more of it.

    L_i = -log sigmoid(r_i - gamma_i),   r = beta * (log pi(y_w|x)/n_w - log pi(y_l|x)/n_l)
    gamma_i = gamma0 * B * p_i,   gamma0 = beta * gamma_beta_ratio
    p = argmin over distributions of mean_i L_i + tau * KL(p || uniform), without gradient

    Value at policy = reference: has no reference.

    Identities: gamma_po on one pair = simpo(beta=10, gamma_beta_ratio=0.4); gamma_po(tau to infinity) =
    simpo(beta=10, gamma_beta_ratio=0.4).

    Differences: p is solved over the global batch, as in the authors' `get_gamma_b`, by their 20 steps of mirror
    descent; their recipes solve it over 256 margins, most of them drawn from a queue of the last 2,048. Theirs also
    exists on DPO.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2506.03690"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True, coupled=True)
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 3.5, 6.0, 10.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(6e-7, 1e-6, "sunjie279/gammaPO training_configs")
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "sunjie279/gammaPO scripts/simpo_trainer.py@4f2e09c", "2026-11-30"
    )

    beta: float = 10.0  # reward per (nat/token); useful range 2 to 10
    gamma_beta_ratio: float = 0.4  # mean target margin in nats/token; 0.1 to 0.8
    tau: float = 10.0  # price of unequal margins, in units of reward; useful range 3 to 20

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            gamma_beta_ratio=0 <= self.gamma_beta_ratio < math.inf,
            tau=0 < self.tau < math.inf,
        )

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.mean, self.beta * logps.rejected.mean
        target = self._targets((chosen - rejected).detach())
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected - target),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
            metrics={"target_margin": target},
        )

    def _targets(self, reward_gap: Tensor) -> Tensor:
        gamma, count = self.beta * self.gamma_beta_ratio, len(reward_gap)
        share, rate = torch.full_like(reward_gap, 1 / count), min(0.5 / self.tau, 1.0)
        for _ in range(_STEPS):
            of_loss = gamma * torch.sigmoid(gamma * count * share - reward_gap)
            of_kl = self.tau * (1 + torch.log(count * (share + _SMALLEST_SHARE)))
            share = share * torch.exp(-rate * (of_loss + of_kl))
            share = share / share.sum()
        return gamma * count * share
