"""C2-DPO: Constrained Controlled Direct Preference Optimization (Asadi et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class C2DPO:
    r"""DPO whose two log-ratios are held to opposite values, so that they do not fall together.

    L = -log sigmoid(beta * (rho_w - rho_l)) + lam * (rho_w + rho_l)^2,   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: log 2.

    Identities: c2_dpo(lam=0.0) = dpo.

    Differences: formula from oxRL's code; not checked against the paper. Notes on the paper's second version agree with
    it on the squared sum and on lam 2e-4, and apply the term to four losses.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.17507"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "warlockee/oxRL oxrl/algs/c2dpo.py@d4e8a4b", "2026-11-30")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    lam: float = 2e-4  # weight of the squared sum, per square nat; useful range 0 (which is `dpo`) to 1e-2

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, lam=0 <= self.lam < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.ratio, logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (chosen - rejected)) + self.lam * (chosen + rejected) ** 2,
            chosen_reward=(self.beta * chosen).detach(),
            rejected_reward=(self.beta * rejected).detach(),
            metrics={"ratios/sum": (chosen + rejected).detach()},
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
