"""EXO: Towards Efficient Exact Optimization of Language Model Alignment (Ji et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class EXO:
    r"""Reverse KL from the policy's probability of the preference to a smoothed label.

    L = KL(p || q),   p = (sigmoid(z), sigmoid(-z)),   q = (1 - epsilon, epsilon),   z = beta * (rho_w - rho_l)
        (Eq. 16, with two completions)

    Value at policy = reference: log(1 / (4 epsilon (1 - epsilon))) / 2.

    Differences: none from TRL 1.16 (`loss_type="exo_pair"`). The authors' code smooths with epsilon = e^-10, and their
    scripts use beta 0.5; at epsilon = 0 the KL is infinite. The KL in the other direction is `cdpo` minus the entropy
    of the label. Past z = log((1 - epsilon) / epsilon) the loss turns back, by design.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.00856"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "haozheji/exact-optimization src/align_stage/loss.py@a8ab360", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "haozheji/exact-optimization exp/hh_exp/train_exo.sh@1278978"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    label_smoothing: float = 1e-3  # epsilon, probability of a flipped label; useful range 1e-5 to 0.1, above 0

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, label_smoothing=0 < self.label_smoothing < 0.5)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        z = chosen - rejected
        kept = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-self.label_smoothing))
        flipped = torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(self.label_smoothing))
        return LossOutput(loss=kept + flipped, chosen_reward=chosen.detach(), rejected_reward=rejected.detach())

    def at_reference(self, logps: PairLogps, /) -> float:
        return -math.log(4 * self.label_smoothing * (1 - self.label_smoothing)) / 2
