"""chi-PO: Correcting the Mythos of KL-Regularization (Huang et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.losses._numerics import exp_or_tangent
from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class ChiPO:
    r"""DPO under the sum of the chi-squared and the KL divergence, which grows with u itself, not with log u.

    L = -log sigmoid(clip(beta * (phi_w - phi_l), -2 R_max, 2 R_max)),   phi = u + log u,   u = pi / pi_ref
        (Algorithm 1)

    Value at policy = reference: log 2.

    Identities: chi_po's margin unclipped = dpo's plus beta (u_w - u_l).

    Differences: past log u = 20, u continues along its tangent, so that it stays finite. The clip is the paper's: it
    acts on the scaled difference, and the gradient beyond it is 0. R_max, the largest reward, has no verified default
    and must be given. Rewards are beta * phi, so beta, not 0, at policy = reference. At step 0 phi' = 2: the gradient
    is twice that of `dpo`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.13399"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.SECONDARY, "arXiv:2407.13399, Algorithm 1, as in warlockee/oxRL oxrl/algs/chipo.py@2a2bd5d", "2026-11-30"
    )

    r_max: float  # largest reward, in units of reward; must be given; useful range 1 to 10
    beta: float = 0.1  # reward per unit of phi; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, r_max=self.r_max > 0)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = (
            self.beta * (exp_or_tangent(side.ratio) + side.ratio) for side in (logps.chosen, logps.rejected)
        )
        return LossOutput(
            loss=-F.logsigmoid((chosen - rejected).clamp(-2 * self.r_max, 2 * self.r_max)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
