"""MinorDPO: Minor DPO reject penalty to increase training robustness (Xie et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class MinorDPO:
    r"""DPO that stops lowering the rejected side once it is below its reference.

    L = -log sigmoid(beta * (rho_w - max(0, rho_l))),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: log 2.

    Identities: minor_dpo where rho_l > 0 = dpo.

    Differences: every run starts at the kink rho_l = 0; `relu` takes the subgradient 0 there, so the rejected side has
    no gradient at step 0. Equal to `dpo` wherever rho_l > 0.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2408.09834"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "warlockee/oxRL oxrl/algs/minor_dpo.py@2a2bd5d", "2026-11-30")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - F.relu(rejected)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
