"""alpha-DPO: Adaptive Reward Margin is What Direct Preference Optimization Needs (Wu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._running import initial_moments, update_moments, z_score
from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    Logps,
    LossOutput,
    Needs,
    PairLogps,
    SearchSpace,
    State,
    require,
)


@dataclass(frozen=True, kw_only=True)
class AlphaDPO:
    r"""SimPO whose target margin is larger where the policy has already moved further from its reference.

    L = -log sigmoid(beta * (d - gamma_beta_ratio - alpha * z)),   d = log pi(y_w|x)/n_w - log pi(y_l|x)/n_l
    z = (d - d_ref - M) / S, without gradient;   M, S: moving averages of the batch mean and deviation of d - d_ref

    Value at policy = reference: log(1 + exp(-beta * (d_ref - gamma_beta_ratio))): z is 0 there.

    Identities: alpha_dpo(alpha=0.0) = simpo(beta=2.5, gamma_beta_ratio=0.6).

    Differences: M and S are updated before use, once per global batch, and corrected for their start, so that the first
    batch has its own mean and deviation. The authors' code updates them from 0 in each forward: with 16 accumulated
    forwards they have 81 % of their weight after the first step. Where S is 0, as at step 0, z is 0 (the authors' code
    divides 0 by 0). The defaults are those of the authors' first recipe for Llama-3; their second has beta 10 and ratio
    0.4, as that for Gemma-2, which has alpha 0.05; that for Mistral has ratio 0.15 and alpha 0.05. Logged rewards are
    the authors': beta * (l - alpha * (l - l_ref)), l = log pi(y|x) / n.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.10148"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True, coupled=True, state=True)
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 3.5, 6.0, 10.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(6e-7, 1e-6, "junkangwu/alpha-DPO training_configs")
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "junkangwu/alpha-DPO scripts/simpo_trainer.py@fab3209", "2026-11-29"
    )

    beta: float = 2.5  # reward per (nat/token); useful range 2 to 10
    gamma_beta_ratio: float = 0.6  # target margin in nats/token; 0.1 to 0.8
    alpha: float = 0.2  # growth of the margin, nats/token per deviation; useful range 0 to 0.2
    decay: float = 0.9  # of the moving averages, per batch; useful range 0.5 to 0.99, below 1

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            gamma_beta_ratio=-math.inf < self.gamma_beta_ratio < math.inf,
            alpha=0 <= self.alpha < math.inf,
            decay=0 <= self.decay < 1,
        )

    def initial_state(self) -> State:
        return initial_moments()

    def __call__(self, logps: PairLogps, state: State, /) -> LossOutput:
        chosen, rejected = logps.chosen, logps.rejected
        margin = chosen.mean - rejected.mean
        moved = margin - (chosen.ref_mean - rejected.ref_mean)
        moments = update_moments(state, moved, self.decay)
        target = self.gamma_beta_ratio + self.alpha * z_score(moved, moments).to(margin)
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (margin - target)),
            chosen_reward=self._reward(chosen),
            rejected_reward=self._reward(rejected),
            metrics={"target_margin": target},
            state=moments,
        )

    def _reward(self, side: Logps) -> Tensor:
        return (self.beta * (side.mean - self.alpha * (side.mean - side.ref_mean))).detach()

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return -F.logsigmoid(self.beta * (logps.chosen.ref_mean - logps.rejected.ref_mean - self.gamma_beta_ratio))
