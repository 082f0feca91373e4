"""GPO: Generalized Preference Optimization, A Unified Approach to Offline Alignment (Tang et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._numerics import exp_or_tangent
from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


class Convex(Enum):
    """The function f of the scaled margin z."""

    LOGISTIC = "logistic"  # log(1 + e^-z), which is `dpo`
    HINGE = "hinge"  # max(0, 1 - z)
    SQUARE = "square"  # (1 - z)^2, which is beta^2 times `ipo_sum` at tau = beta / 2
    EXPONENTIAL = "exponential"  # e^-z
    TRUNCATED_SQUARE = "truncated_square"  # max(0, 1 - z)^2
    SAVAGE = "savage"  # 1 / (1 + e^z)^2


@dataclass(frozen=True, kw_only=True)
class GPO:
    r"""Classification loss f of the scaled difference of log-ratios.

    L = f(beta * (rho_w - rho_l)),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: f(0): log 2 for logistic, 1/4 for savage, 1 for the others.

    Identities: gpo(f=logistic) = dpo; gpo(f=hinge) = hinge; gpo(square) = beta^2 ipo_sum(tau=beta/2).

    Differences: past z = -20, e^-z continues along its tangent, so that it stays finite. `savage` is not convex; the
    paper lists it with the others. The default f is one that no other plugin implements.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.05749"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "warlockee/oxRL oxrl/algs/gpo.py@2a2bd5d", "2026-11-30")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    f: Convex = Convex.TRUNCATED_SQUARE  # logistic, hinge, square, exponential, truncated_square or savage

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=self._f(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _f(self, z: Tensor) -> Tensor:
        match self.f:
            case Convex.LOGISTIC:
                return -F.logsigmoid(z)
            case Convex.HINGE:
                return F.relu(1 - z)
            case Convex.SQUARE:
                return (1 - z) ** 2
            case Convex.EXPONENTIAL:
                return exp_or_tangent(-z)
            case Convex.TRUNCATED_SQUARE:
                return F.relu(1 - z) ** 2
            case Convex.SAVAGE:
                return torch.sigmoid(-z) ** 2

    def at_reference(self, logps: PairLogps, /) -> float:
        return {Convex.LOGISTIC: math.log(2), Convex.SAVAGE: 0.25}.get(self.f, 1.0)
