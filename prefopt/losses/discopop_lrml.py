"""DiscoPOP: Discovering Preference Optimization Algorithms with and for LLMs (Lu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class DiscoPOPLRML:
    r"""Log-ratio modulated loss: a logistic and an exponential loss, blended by the margin.

    L = (1 - m) * log(1 + e^-z) + m * e^-z,   m = sigmoid(z / tau),   z = beta * (rho_w - rho_l)     (Eq. 5)

    Value at policy = reference: (1 + log 2) / 2.

    Identities: discopop_lrml where z < -40 tau = dpo.

    Differences: none from the paper or TRL 1.16 (`loss_type="discopop"`). It is not monotone: with L'(0) = -3/4 + (1 -
    log 2) / (4 tau) it rises at step 0 for every tau below 0.102 (slope +0.784 at 0.05, where it rises between z/tau =
    -2.37 and 1.44). A tau above 1 would let e^-z grow without bound, and is refused.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.08414"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.025, 0.05, 0.1)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/dpo_trainer.py", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "luchris429/DiscoPOP recipes/zephyr-7b-gemma/gpo/config_full.yaml@b0fe641"
    )
    exceptions: ClassVar[dict[str, str]] = {
        "direction": "L'(0) = -3/4 + (1 - log 2)/(4 tau) > 0 for tau < 0.102: the blend moves to e^-z, which is larger"
    }

    beta: float = 0.05  # reward per nat of log-ratio; useful range 0.01 to 0.1
    tau: float = 0.05  # temperature of the blend, in units of beta times nats; useful range 0.02 to 1, at most 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, tau=0 < self.tau <= 1)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        z = chosen - rejected
        logistic = torch.sigmoid(-z / self.tau) * -F.logsigmoid(z)
        exponential = torch.exp(F.logsigmoid(z / self.tau) - z)  # m e^-z; the exponent is never above log 2
        return LossOutput(loss=logistic + exponential, chosen_reward=chosen.detach(), rejected_reward=rejected.detach())

    def at_reference(self, logps: PairLogps, /) -> float:
        return (1 + math.log(2)) / 2
