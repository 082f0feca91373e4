"""DPOP: Smaug, Fixing Failure Modes of Preference Optimisation with DPO-Positive (Pal et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class DPOP:
    r"""DPO with a penalty, inside the sigmoid, where the chosen side falls below its reference.

    L = -log sigmoid(beta * (rho_w - rho_l - lambda * max(0, -rho_w)))

    Value at policy = reference: log 2.

    Identities: dpop(lam=0.0, beta=0.3) = dpo(beta=0.3).

    Differences: every run starts at the kink rho_w = 0; `relu` takes the subgradient 0 there, so step 0 is a step of
    `dpo` (`clamp` would take 1, a chosen gradient 1 + lambda times as large). The defaults are from a note on the
    paper (lambda 50, beta 0.3); turbo-alignment, which has the same formula, sets lambda to 0.1.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.13228"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.SECONDARY, "turbo-llm/turbo-alignment turbo_alignment/trainers/dpo.py@72e737d", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(4e-7, 1e-6, "as a baseline in LuJunru/SamPO dpo.sh@8b409a4")

    beta: float = 0.3  # reward per nat of log-ratio; useful range 0.01 to 1
    lam: float = 50.0  # lambda, weight of the penalty, nats per nat; useful range 1 to 50 (0 is `dpo`)

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, lam=0 <= self.lam < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.ratio, logps.rejected.ratio
        penalty = F.relu(-chosen)
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (chosen - rejected - self.lam * penalty)),
            chosen_reward=(self.beta * (chosen - self.lam * penalty)).detach(),
            rejected_reward=(self.beta * rejected).detach(),
            metrics={"penalty": penalty.detach()},
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
