"""Soft labels in DPO: Geometric-Averaged Preference Optimization (Furuta et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class SoftDPO:
    r"""DPO on the probability that the chosen side wins, the cross-entropy of a share of annotators.

    L = -P log sigmoid(z) - (1 - P) log sigmoid(-z),   z = beta * (rho_w - rho_l)
    P: the probability that y_w is the better one

    Value at policy = reference: log 2.

    Identities: soft_dpo at probability 1 - epsilon = cdpo at that epsilon; soft_dpo at probability 1 = dpo.

    Differences: none known from the paper, whose name for it is cDPO with soft labels; `cdpo` has one epsilon for all
    pairs. Data with scores and no probability have P = sigmoid(s_w - s_l).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2409.06691"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, probability=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2409.06691, cross-entropy with the soft label", "2026-11-30")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        wins = logps.fact("probability")
        z = chosen - rejected
        return LossOutput(
            loss=-wins * F.logsigmoid(z) - (1 - wins) * F.logsigmoid(-z),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)


@dataclass(frozen=True, kw_only=True)
class GDPO:
    r"""DPO on likelihoods that are averaged geometrically by the probability that the chosen side wins.

    L = -log sigmoid(beta * (2P - 1) * (rho_w - rho_l)),   P: the probability that y_w is the better one

    Both sides become pi(y_w)^P pi(y_l)^(1-P) and pi(y_w)^(1-P) pi(y_l)^P, whose log-ratios differ by (2P - 1) Delta.

    Value at policy = reference: log 2.

    Identities: gdpo at probability 3/4 = dpo(beta halved); gdpo at probability 1 = dpo.

    Differences: none known from the paper. Data with scores and no probability have P = sigmoid(s_w - s_l).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2409.06691"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, probability=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2409.06691, weighted geometric average", "2026-11-30")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        confidence = 2 * logps.fact("probability") - 1
        return LossOutput(
            loss=-F.logsigmoid(confidence * (chosen - rejected)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
