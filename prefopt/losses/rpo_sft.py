"""RPO: Provably Mitigating Overoptimization in RLHF (Liu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class RPOSFT:
    r"""DPO plus the chosen side's likelihood, summed and scaled by beta.

    L = -log sigmoid(beta * (rho_w - rho_l)) - eta * beta * log pi(y_w|x)

    Value at policy = reference: log 2 - eta * beta * log pi_ref(y_w|x).

    Identities: rpo_sft(eta=0.0, beta=0.3) = dpo(beta=0.3).

    Differences: this is the authors' first script, with the factor beta and a sum; their second one has no beta and a
    mean per token: `irpo` with alpha = eta (there 0.2, with beta 0.5).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.16436"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.05, 0.15, 0.5)}
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE,
        "YSLIU627/Regularized-Preference-Optimization alignment-handbook/scripts/rpo_trainer.py@d0389c4",
        "2026-11-29",
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7,
        5e-7,
        "YSLIU627/Regularized-Preference-Optimization "
        "alignment-handbook/recipes/zephyr-7b-beta/rpo/config_full.yaml@088d921",
    )

    beta: float = 0.01  # reward per nat of log-ratio; useful range 0.01 to 0.5
    eta: float = 0.005  # weight of the likelihood term, per unit of reward; useful range 0.001 to 0.2

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, eta=0 <= self.eta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected) - self.eta * self.beta * logps.chosen.sum,
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return math.log(2) - self.eta * self.beta * logps.chosen.reference
