"""DPO-Shift: Shifting the Distribution of Direct Preference Optimization (Yang et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class DPOShift:
    r"""DPO with a smaller weight on the rejected side's reward, so that the chosen likelihood falls less.

    L = -log sigmoid(beta * (rho_w - lambda * rho_l)),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: log 2.

    Identities: dpo_shift(lam=1.0, beta=0.3) = dpo(beta=0.3).

    Differences: lambda is constant; the authors' code can also change it during training. Their recipes use 0.7, some
    of their checkpoints 0.95.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.07599"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "Meaquadddd/DPO-Shift scripts/dposhift_trainer.py@52eebac", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "Meaquadddd/DPO-Shift recipes/llama-3-8b/dpo and recipes/qwen-2-7b/dpo@0aa8357"
    )

    beta: float = 0.01  # reward per nat of log-ratio; useful range 0.01 to 1
    lam: float = 0.7  # lambda, weight of the rejected reward; useful range 0.5 to 1 (which is `dpo`), above 0

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, lam=0 < self.lam <= 1)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - self.lam * rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
