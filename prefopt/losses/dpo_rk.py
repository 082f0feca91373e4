"""DPO-RK and DPO-D: On Extending Direct Preference Optimization to Accommodate Ties (Chen et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class DPORK:
    r"""DPO on the model of Rao and Kupper, in which a pair is a tie the more often the closer its rewards are.

    L = -log sigmoid(d - log nu),   d = beta * (rho_w - rho_l)                      on a pair with a winner
    L = -log[(nu^2 - 1) * sigmoid(d - log nu) * sigmoid(-d - log nu)]               on a tie

    From P(y_w wins) = e^(r_w) / (e^(r_w) + nu e^(r_l)), the same for y_l, and P(tie) as the rest.

    Value at policy = reference: log(1 + nu) on a pair with a winner, log((nu + 1)/(nu - 1)) on a tie.

    Identities: dpo_rk on a pair with a winner = margin_dpo at a margin of log nu; dpo_rk's probabilities of a win, a
    loss and a tie = 1 in sum.

    Differences: none known from the paper; its code was not found. Its nu is 3, at which half of all pairs with equal
    rewards are ties. Which pairs are ties the data says; the order of their sides means nothing here.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2409.17431"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, ties=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2409.17431, Eqs. 10, 11 and 14", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(5e-7, 5e-7, "arXiv:2409.17431, Apps. E.1 and E.3 (RMSprop)")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    nu: float = 3.0  # odds for y_w that a win at equal rewards takes, no unit; useful range 1.5 to 10, above 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, nu=1 < self.nu < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        margin = chosen - rejected
        win, lose = -F.logsigmoid(margin - math.log(self.nu)), -F.logsigmoid(-margin - math.log(self.nu))
        return LossOutput(
            loss=torch.where(logps.fact("tied"), win + lose - math.log(self.nu**2 - 1), win),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return _by_tie(logps, math.log((self.nu + 1) / (self.nu - 1)), math.log(1 + self.nu))


@dataclass(frozen=True, kw_only=True)
class DPOD:
    r"""DPO on the model of Davidson, in which a tie has the geometric mean of the two sides' strengths.

    L = log(1 + e^(-d) + 2 nu e^(-d/2)),   d = beta * (rho_w - rho_l)               on a pair with a winner
    L = log(1 + e^(-d) + 2 nu e^(-d/2)) - log(2 nu e^(-d/2))                        on a tie

    From P(y_w wins) = e^(r_w) / (e^(r_w) + e^(r_l) + 2 nu e^((r_w + r_l)/2)), the same for y_l, and P(tie) as the rest.

    Value at policy = reference: log(2 + 2 nu) on a pair with a winner, log((1 + nu)/nu) on a tie.

    Identities: dpo_d(nu to 0) on a pair with a winner = dpo; dpo_d's probabilities of a win, a loss and a tie = 1 in
    sum.

    Differences: none known from the paper; its code was not found. Its nu is 1, at which half of all pairs with equal
    rewards are ties. Ties as in `dpo_rk`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2409.17431"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, ties=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2409.17431, Eqs. 12, 13 and 14", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(5e-7, 5e-7, "arXiv:2409.17431, Apps. E.1 and E.3 (RMSprop)")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    nu: float = 1.0  # odds of a tie at equal rewards, no unit; useful range 0.1 to 10, above 0

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, nu=0 < self.nu < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        margin = chosen - rejected
        tie = math.log(2 * self.nu) - margin / 2
        total = torch.stack([torch.zeros_like(margin), -margin, tie]).logsumexp(0)
        return LossOutput(
            loss=torch.where(logps.fact("tied"), total - tie, total),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return _by_tie(logps, math.log((1 + self.nu) / self.nu), math.log(2 + 2 * self.nu))


def _by_tie(logps: PairLogps, tie: float, win: float) -> Tensor:
    like = torch.zeros_like(logps.chosen.ratio)
    return torch.where(logps.fact("tied"), like + tie, like + win)
