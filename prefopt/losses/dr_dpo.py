"""Dr. DPO: Towards Robust Alignment of Language Models, Distributionally Robustifying DPO (Wu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class DrDPO:
    r"""Soft minimum over the batch's DPO losses, so that pairs that look mislabelled count less.

    L = -beta' * log mean_i exp(-l_i / beta'),   l = -log sigmoid(beta * (rho_w - rho_l)),   rho = log pi - log pi_ref

    Value at policy = reference: log 2.

    Identities: dr_dpo(beta_prime to infinity) = batch mean of dpo, error Var(l) / (2 beta_prime).

    Differences: the mean is over the global batch (in the authors' code, over each device's batch). Every example has
    the value of its batch. For beta' to infinity this is `dpo`, with an error of Var(l) / (2 beta').
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.07880"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, coupled=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "junkangwu/Dr_DPO trainers.py@3c0678f", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "junkangwu/Dr_DPO config/config.yaml@3c0678f (RMSprop)"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    beta_prime: float = 1.0  # temperature over the batch, nats of loss; useful range 0.1 to 10 (infinity is `dpo`)

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, beta_prime=0 < self.beta_prime < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        log_p = F.logsigmoid(chosen - rejected) / self.beta_prime
        value = -self.beta_prime * (log_p.logsumexp(0) - math.log(len(log_p)))
        return LossOutput(
            loss=value.expand_as(log_p),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
