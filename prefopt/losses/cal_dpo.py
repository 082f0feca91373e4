"""Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment (Xiao et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class CalDPO:
    r"""Bradley-Terry loss on log-ratios, each of which is also regressed on its calibrated value.

    L = -log sigmoid(rho_w - rho_l) + [(rho_w - 1/(2 beta))^2 + (rho_l + 1/(2 beta))^2] / 2

    Value at policy = reference: log 2 + 1 / (4 beta^2).

    Differences: as in the authors' code, the first term has no beta, and the squares are halved. The logged rewards are
    beta * rho.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.14516"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.001, 0.005, 0.02, 0.1)}
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "tengxiao1/Cal-DPO zephyr-selm/dpo_config_full.yaml"
    )
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "tengxiao1/Cal-DPO scripts/dpo_trainer.py@7d16b46", "2026-11-30")

    beta: float = 1e-3  # per nat: the targets are +-1/(2 beta) nats; useful range 1e-3 to 1e-1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.ratio, logps.rejected.ratio
        target = 1 / (2 * self.beta)
        calibration = ((chosen - target) ** 2 + (rejected + target) ** 2) / 2
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected) + calibration,
            chosen_reward=(self.beta * chosen).detach(),
            rejected_reward=(self.beta * rejected).detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2) + 1 / (4 * self.beta**2)
