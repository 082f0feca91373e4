"""NCA: Noise Contrastive Alignment of Language Models with Explicit Rewards (Chen et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

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
class NCA:
    r"""Noise contrastive alignment of a pair: raises the chosen reward and pulls both rewards to 0, each separately.

    L = -log sigmoid(r_w) - [log sigmoid(-r_w) + log sigmoid(-r_l)] / 2,   r = beta * rho,   rho = log pi - log pi_ref

    Value at policy = reference: 2 log 2.

    Differences: none from TRL 1.16 (`loss_type="nca_pair"`) or from `nca_list` with two completions and a one-hot
    target. The chosen side turns back past r_w = log 2, where sigmoid(-r_w) = sigmoid(r_w) / 2.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.05369"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 0.3, 1.0)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "thu-ml/Noise-Contrastive-Alignment preference_trainer.py@cbb9248", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        3e-7, 1e-6, "arXiv:2502.01237, Tables 8 and 11; the authors' 5e-6 is with QLoRA"
    )

    beta: float = 0.01  # reward per nat of log-ratio; useful range 1e-3 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        loss = -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2
        return LossOutput(loss=loss, chosen_reward=chosen.detach(), rejected_reward=rejected.detach())

    def at_reference(self, logps: PairLogps, /) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True, kw_only=True)
class NCAList:
    r"""Noise contrastive alignment of a list to its scores: fits absolute rewards, not only relative ones.

    L = -sum_k t_k * log sigmoid(r_k) - (1/K) sum_k log sigmoid(-r_k),   t = softmax(s / alpha),   r = beta * rho

    Value at policy = reference: 2 log 2.

    Identities: nca_list on two completions, one-hot target = nca.

    Differences: scores are used as given: at alpha = 0.01 a difference of 0.05 makes the target nearly one-hot, so mind
    their scale. The authors' code has alpha = 1e-4 by default and breaks ties of scores by 0.01.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.05369"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 0.3, 1.0)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "thu-ml/Noise-Contrastive-Alignment reward_trainer.py@cbb9248", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "as nca; the authors' 5e-6 is with QLoRA")

    alpha: float = 0.01  # temperature, in units of the scores; useful range 1e-4 (one-hot) to 1
    beta: float = 0.01  # reward per nat of log-ratio; useful range 1e-3 to 1

    def __post_init__(self) -> None:
        require(self, alpha=0 < self.alpha < math.inf, beta=0 < self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        reward = self.beta * logps.completions.ratio
        present = logps.mask.to(reward.dtype)
        attract = -(_target(logps, self.alpha) * F.logsigmoid(reward)).sum(-1)
        repel = -(present * F.logsigmoid(-reward)).sum(-1) / present.sum(-1)
        return LossOutput(loss=attract + repel, reward=reward.detach())

    def at_reference(self, logps: ListLogps, /) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True, kw_only=True)
class InfoNCA:
    r"""Cross-entropy from the softmax of a list's scores to the softmax of its rewards.

    L = -sum_k t_k * log softmax(r)_k,   t = softmax(s / alpha),   r = beta * rho,   rho = log pi - log pi_ref

    Value at policy = reference: log K.

    Identities: info_nca on two completions, one-hot target = dpo.

    Differences: the scale of scores as in `nca_list`. With two completions and a one-hot target this is `dpo`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.05369"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "thu-ml/Noise-Contrastive-Alignment reward_trainer.py@cbb9248", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "as nca; the authors' 5e-6 is with QLoRA")

    alpha: float = 0.01  # temperature, in units of the scores; useful range 1e-4 (one-hot) to 1
    beta: float = 0.01  # reward per nat of log-ratio; useful range 1e-3 to 1

    def __post_init__(self) -> None:
        require(self, alpha=0 < self.alpha < math.inf, beta=0 < self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        reward = self.beta * logps.completions.ratio
        absent = ~logps.mask
        normaliser = reward.masked_fill(absent, -math.inf).logsumexp(-1, keepdim=True)
        log_softmax = (reward - normaliser).masked_fill(absent, 0.0)
        return LossOutput(loss=-(_target(logps, self.alpha) * log_softmax).sum(-1), reward=reward.detach())

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return logps.mask.sum(-1).to(logps.scores.dtype).log()


def _target(logps: ListLogps, alpha: float) -> Tensor:
    """(B, K) softmax of the scores, 0 where a completion is absent."""
    return (logps.scores / alpha).masked_fill(~logps.mask, -math.inf).softmax(-1).to(logps.completions.sum.dtype)
