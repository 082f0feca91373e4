"""LMPO: Length-Controlled Margin-Based Preference Optimization without Reference Model (Li et al., 2025)."""

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
class LMPO:
    r"""SimPO whose target margin is larger for pairs with an unlikely chosen side, compared at a common length.

    L = -log sigmoid(beta * (l_w - l_l - gamma_beta_ratio) - lam * z),   l = log pi(y|x) / n
    z = (m - M) / S, without gradient;   M, S: moving averages of the batch mean and deviation of m
    m = (1 - p_w) * (1 - (p_w - p_l)^5) / 2,   p = exp(l * (n_w + n_l) / (2 n))

    Value at policy = reference: has no reference.

    Identities: lmpo(lam=0.0) = simpo(beta=2.0, gamma_beta_ratio=0.5).

    Differences: the authors' code (`lmpo_trainer.py`) never sets M and S and fails where it updates them, with a decay
    that it names 0.9; here they are updated before use, once per global batch, and corrected for their start. Its z is
    0 / 0 where S is 0, and 0 here. p is the code's, in which l is divided by n once more.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.14643"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True, coupled=True, state=True)
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 3.5, 6.0, 10.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "gengxuli/LMPO training_configs")
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "gengxuli/LMPO scripts/lmpo_trainer.py@cdfd99f", "2026-11-30")

    beta: float = 2.0  # reward per (nat/token); useful range 2 to 10
    gamma_beta_ratio: float = 0.5  # target margin in nats/token, the paper's home advantage; 0.1 to 0.8
    lam: float = 0.2  # growth of the margin, reward per deviation; useful range 0 to 1
    decay: float = 0.9  # of the moving averages, per batch; useful range 0.5 to 0.99, below 1

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            gamma_beta_ratio=-math.inf < self.gamma_beta_ratio < math.inf,
            lam=0 <= self.lam < math.inf,
            decay=0 <= self.decay < 1,
        )

    def initial_state(self) -> State:
        return initial_moments()

    def __call__(self, logps: PairLogps, state: State, /) -> LossOutput:
        chosen, rejected = logps.chosen, logps.rejected
        length = (chosen.num_tokens + rejected.num_tokens) / 2
        likely, other = _probability(chosen, length), _probability(rejected, length)
        margin = (1 - likely) * (1 - (likely - other) ** 5) / 2
        moments = update_moments(state, margin, self.decay)
        target = self.beta * self.gamma_beta_ratio + self.lam * z_score(margin, moments).to(margin)
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (chosen.mean - rejected.mean) - target),
            chosen_reward=(self.beta * chosen.mean).detach(),
            rejected_reward=(self.beta * rejected.mean).detach(),
            metrics={"target_margin": target},
            state=moments,
        )


def _probability(side: Logps, length: Tensor) -> Tensor:
    """exp(l * (n_w + n_l) / (2 n)), without gradient."""
    return (side.mean.detach() * length / side.num_tokens.clamp(min=1)).exp()
