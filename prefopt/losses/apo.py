"""APO: Anchored Preference Optimization and Contrastive Revisions (D'Oosterlinck et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    LossOutput,
    Needs,
    PairLogps,
    Ranking,
    SearchSpace,
    require,
)


@dataclass(frozen=True, kw_only=True)
class APOZero:
    r"""Raises the chosen and lowers the rejected side separately: for chosen answers better than the model's own.

    L = 1 - sigmoid(beta * rho_w) + sigmoid(beta * rho_l),   rho = log pi(y|x) - log pi_ref(y|x)     (Eq. 7)

    Value at policy = reference: 1.

    Differences: none from the paper or TRL 1.16 (`loss_type="apo_zero"`). On single completions this is `kto_zero`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2408.06266"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2408.06266, Eq. 7", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        2e-7,
        1e-6,
        "arXiv:2408.06266, Sec. 5.2 (2e-7), as in TRL's paper_index.md@0167b7d; arXiv:2502.01237, Tables 8 and "
        "11 (3e-7 to 1e-6)",
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=torch.sigmoid(-chosen) + torch.sigmoid(rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class APODown:
    r"""Lowers the chosen side, and the rejected one further: for chosen answers worse than the model's own.

    L = sigmoid(beta * rho_w) + 1 - sigmoid(beta * (rho_w - rho_l)),   rho = log pi - log pi_ref     (Eq. 8)

    Value at policy = reference: 1.

    Identities: apo_down + 1 = apo_zero + 2 sigmoid(r_w) - sigmoid(r_l) + sigmoid(r_l - r_w), r = beta rho.

    Differences: none from the paper or TRL 1.16 (`loss_type="apo_down"`). At step 0 the two terms cancel on the chosen
    side: sigmoid'(0) - sigmoid'(0) = 0, so only the rejected side moves.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2408.06266"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    chosen_rises: ClassVar[bool] = False
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2408.06266, Eq. 8", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        2e-7, 2e-7, "arXiv:2408.06266, Sec. 5.2, as in TRL's paper_index.md@0167b7d"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 1.0
