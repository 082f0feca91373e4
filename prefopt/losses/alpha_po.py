"""AlphaPO: Reward shape matters for LLM alignment (Gupta et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._numerics import expm1_or_tangent
from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class AlphaPO:
    r"""SimPO with a power of the probability in place of the log-prob.

    L = -log sigmoid(beta * (r_w - r_l - gamma_beta_ratio)),   r = (1 - p^-alpha) / alpha,   p = exp(log pi(y|x) / n)

    Value at policy = reference: none, it has no reference.

    Identities: alpha_po(alpha=0.0, beta=2.0, gamma_beta_ratio=0.5) = simpo; alpha_po(alpha to 0) = simpo; difference of
    alpha_po's rewards at alpha=-1 = -simper.

    Differences: none from the authors' trainer (TRL PR #3776), where the margin is a ratio, as in the paper's Table 3;
    TRL 1.16 (`CPOTrainer(loss_type="alphapo", alpha=..., simpo_gamma=...)`) and the example in its index of papers take
    it as absolute, gamma = beta * gamma_beta_ratio. Where alpha * log p < -20, p^-alpha continues along its tangent, so
    that it stays finite.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2501.03884"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 3.5, 6.0, 10.0)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "huggingface/trl, pull request 3776", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        3e-7,
        7e-7,
        "arXiv:2501.03884, Table 3 (7e-7), as in TRL's paper_index.md@0167b7d; arXiv:2502.01237, App. B.4 (3e-7)",
    )

    beta: float = 2.5  # reward per (nat/token) of r; useful range 2 to 10
    alpha: float = 0.25  # curvature of r, per (nat/token); useful range -0.5 to 0.5 (0 is `simpo`, -1 linear in p)
    gamma_beta_ratio: float = 0.1  # target margin in nats/token of r; useful range 0.1 to 1

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            alpha=-math.inf < self.alpha < math.inf,
            gamma_beta_ratio=-math.inf < self.gamma_beta_ratio < math.inf,
        )

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = (self.beta * self._reward(side.mean) for side in (logps.chosen, logps.rejected))
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected - self.beta * self.gamma_beta_ratio),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _reward(self, mean: Tensor) -> Tensor:
        return mean if self.alpha == 0 else -expm1_or_tangent(-self.alpha * mean) / self.alpha
