"""Distilled DPO: Robust Preference Optimization through Reward Model Distillation (Fisch et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class DistillDPO:
    r"""Regression of the implicit reward margin on a reward model's margin.

    L = (beta * (rho_w - rho_l) - (s_w - s_l))^2,   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: (s_w - s_l)^2.

    Differences: the paper's pessimistic form, over several reward models, is not implemented. The default of beta is
    not verified.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.19316"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, scores=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "accounts of arXiv:2405.19316", "2026-11-29")

    beta: float = 1.0  # units of score per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=(chosen - rejected - logps.score_gap) ** 2,
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return logps.score_gap**2
