"""BPO: Revisiting Preference Modeling in Direct Preference Optimization (Sun et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class BPO:
    r"""DPO on the lesser of the two sides' progress, so that neither can pay for the other.

    L = -log sigmoid(beta * min(rho_w, -alpha * rho_l))

    Value at policy = reference: log 2.

    Identities: bpo(alpha=1.0) where rho_l = -rho_w = dpo(beta halved).

    Differences: this is the authors' `balance_logistic_alpha`; their configuration trains its hinge. At step 0, the
    kink rho_w = rho_l = 0, each side has half of its gradient, or rounding picks the one that has it all.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2506.03557"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "sunlin-ai/BPO train_dpo.py@d882c0f", "2026-11-30")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    alpha: float = 0.3  # weight of the rejected side, no unit; useful range 0.1 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 < self.alpha < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(torch.minimum(chosen, -self.alpha * rejected)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
