"""Hinge loss of RSO: Statistical Rejection Sampling Improves Preference Optimization (Liu et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class Hinge:
    r"""Hinge loss on the scaled difference of log-ratios.

    L = max(0, 1 - beta * (rho_w - rho_l)),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: 1.

    Differences: RSO's rejection sampling of pairs concerns the data, not the loss. The paper uses beta = 0.05; the
    default here is that of TRL 1.16 (`loss_type="hinge"`).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2309.06657"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.DERIVED, "arXiv:2309.06657, the hinge of log-ratios; TRL 1.16.0 trl/trainer/dpo_trainer.py", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "as a baseline in luchris429/DiscoPOP recipes/zephyr-7b-gemma/dpo/config_full_hinge.yaml@b0fe641"
    )

    beta: float = 0.1  # reward per nat of log-ratio (the paper's gamma); useful range 0.02 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=F.relu(1 - (chosen - rejected)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 1.0
