"""SPPO: Self-Play Preference Optimization for Language Model Alignment (Wu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.losses._lists import best, worst
from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    ListLogps,
    LossOutput,
    Needs,
    PairLogps,
    Ranking,
    SearchSpace,
    require,
)


@dataclass(frozen=True, kw_only=True)
class SPPO:
    r"""Regression of each log-ratio on its win rate, with hard labels: the chosen side always wins.

    L = (rho_w - 1/(2 beta))^2 + (rho_l + 1/(2 beta))^2,   rho = log pi(y|x) - log pi_ref(y|x)     (Eq. 4.7 at P = 1)

    Value at policy = reference: 1 / (2 beta^2).

    Identities: sppo = 2 (cal_dpo - dpo(beta=1)).

    Differences: none from TRL 1.16 (`loss_type="sppo_hard"`). The authors' code halves every form of it, and has win
    rates from a model: its `sppo_single` is `sppo_soft` here, its default, `sppo`, is `sppo_list`. The paper draws new
    samples in each iteration, which concerns the data.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.00675"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.001, 0.005, 0.02, 0.1)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "uclaml/SPPO sppo/trainer.py@5e61c4e", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "uclaml/SPPO scripts/pipeline.sh@0a4a1c1 (RMSprop)"
    )

    beta: float = 1e-3  # per nat (1/eta in the paper): the targets are +-1/(2 beta) nats; useful range 1e-3 to 1e-1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return _regression(self.beta, logps, torch.full_like(logps.chosen.sum, 0.5 / self.beta))

    def at_reference(self, logps: PairLogps, /) -> float:
        return 1 / (2 * self.beta**2)


@dataclass(frozen=True, kw_only=True)
class SPPOSoft:
    r"""SPPO with the probability that the chosen side wins, from the scores.

    L = (rho_w - (P - 1/2)/beta)^2 + (rho_l + (P - 1/2)/beta)^2,   P = sigmoid(s_w - s_l)     (Eq. 4.7)

    Value at policy = reference: 2 ((P - 1/2) / beta)^2.

    Identities: sppo_soft at a sure win = sppo.

    Differences: P follows from the scores by Bradley-Terry; scores are log-odds, so give logit(P) and 0 where P itself
    is known. The authors' code has half of this as `sppo_single`; its default is `sppo_list`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.00675"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, scores=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.001, 0.005, 0.02, 0.1)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "uclaml/SPPO sppo/trainer.py@5e61c4e", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "uclaml/SPPO scripts/pipeline.sh@0a4a1c1 (RMSprop)"
    )

    beta: float = 1e-3  # per nat (1/eta in the paper): the targets are +-(P - 1/2)/beta nats; useful range 1e-3 to 1e-1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return _regression(self.beta, logps, self._target(logps))

    def _target(self, logps: PairLogps) -> Tensor:
        return (torch.sigmoid(logps.score_gap) - 0.5) / self.beta

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return 2 * self._target(logps) ** 2


@dataclass(frozen=True, kw_only=True)
class SPPOList:
    r"""SPPO on the best and the worst of K samples, each with its average win rate over all K.

    L = [(rho_w - (P_w - 1/2)/beta)^2 + (rho_l - (P_l - 1/2)/beta)^2] / 2     (Eq. 4.7)
    P_k = mean_j sigmoid(s_k - s_j)

    Value at policy = reference: [(P_w - 1/2)^2 + (P_l - 1/2)^2] / (2 beta^2).

    Identities: sppo_list on two completions = sppo_soft(beta doubled) / 2.

    Differences: none from the default of the authors' code (`loss_type=sppo`): the mean over j includes k itself, at
    1/2, and the loss is halved. Scores are log-odds.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.00675"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.001, 0.005, 0.02, 0.1)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "uclaml/SPPO sppo/trainer.py@5e61c4e", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "uclaml/SPPO scripts/pipeline.sh@0a4a1c1 (RMSprop)"
    )

    beta: float = 1e-3  # per nat (1/eta in the paper): the targets are (P - 1/2)/beta nats; useful range 1e-3 to 1e-1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        ratio = logps.completions.ratio
        return LossOutput(loss=self._loss(logps, ratio), reward=(self.beta * ratio).detach())

    def _loss(self, logps: ListLogps, ratio: Tensor) -> Tensor:
        wins = torch.sigmoid(logps.scores.unsqueeze(-1) - logps.scores.unsqueeze(-2)) * logps.mask.unsqueeze(-2)
        rates = wins.sum(-1) / logps.mask.sum(-1, keepdim=True)
        error = (ratio - (rates - 0.5) / self.beta) ** 2
        return (best(logps, error) + worst(logps, error)) / 2

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return self._loss(logps, torch.zeros_like(logps.completions.sum))


def _regression(beta: float, logps: PairLogps, target: Tensor) -> LossOutput:
    chosen, rejected = logps.chosen.ratio, logps.rejected.ratio
    return LossOutput(
        loss=(chosen - target) ** 2 + (rejected + target) ** 2,
        chosen_reward=(beta * chosen).detach(),
        rejected_reward=(beta * rejected).detach(),
    )
