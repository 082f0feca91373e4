"""BDPO (Bounded-DPO): Rethinking DPO, The Role of Rejected Responses in Preference Misalignment (Cho et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class BDPO:
    r"""DPO with a mixture of policy and reference on the rejected side, which bounds its reward from below.

    L = -log sigmoid(beta * (rho_w - log(lambda * e^rho_l + 1 - lambda))),   rho = log pi - log pi_ref

    Value at policy = reference: log 2.

    Identities: bdpo(lam=1.0) = dpo.

    Differences: none known from the paper. lambda = 1 is `dpo`. The rejected reward is never below beta * log(1 -
    lambda), so lowering y_l further gains nothing; at step 0 its gradient is lambda times DPO's.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2506.12725"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "accounts of arXiv:2506.12725", "2026-11-29")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    lam: float = 0.5  # lambda, share of the policy in the mixture; useful range 0.1 to 1 (which is `dpo`), above 0

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, lam=0 < self.lam <= 1)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * self._mixed(logps.rejected.ratio)
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _mixed(self, ratio: Tensor) -> Tensor:
        if self.lam == 1:
            return ratio
        return torch.logaddexp(ratio + math.log(self.lam), torch.full_like(ratio, math.log1p(-self.lam)))

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
