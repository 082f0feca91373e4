"""REBEL: Reinforcement Learning via Regressing Relative Rewards (Gao et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class REBEL:
    r"""Regression of the difference of log-ratios on the difference of scores.

    L = ((rho_w - rho_l) / eta - (s_w - s_l))^2,   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: (s_w - s_l)^2.

    Identities: rebel(eta=0.5) = distill_dpo(beta=2.0); rebel and distill_dpo at scale 1, target 1/(2 tau) =
    ipo_sum(tau).

    Differences: in the paper, pi_ref is the policy of the last iteration and the pairs are samples from it, which
    concerns the data. The authors' code minimises eta^2 times this loss. eta depends on the task: start with 1; the
    authors use up to 1e6 with scores of a reward model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.16767"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, scores=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"eta": (1.0, 3.0, 10.0, 30.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "ZhaolinGao/REBEL src/ultrafeedback/rebel.py@4ad7c11", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-7,
        3e-7,
        "ZhaolinGao/REBEL src/ultrafeedback/rebel.py@fb1e3b1 (1e-7, last 4 layers), "
        "src/ultrafeedback_largebatch/rebel.py@7d8766e (3e-7)",
    )

    eta: float = 1.0  # nats per unit of score (a step size, 1/beta); useful range by task, 0.1 to 1e6, above 0

    def __post_init__(self) -> None:
        require(self, eta=0 < self.eta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.ratio / self.eta, logps.rejected.ratio / self.eta
        return LossOutput(
            loss=(chosen - rejected - logps.score_gap) ** 2,
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return logps.score_gap**2
