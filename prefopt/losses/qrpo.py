"""QRPO: Quantile Reward Policy Optimization (Matrenok et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    ListLogps,
    LossOutput,
    Needs,
    Ranking,
    SearchSpace,
    require,
)


@dataclass(frozen=True, kw_only=True)
class QRPO:
    r"""Regression of each completion's log-ratio on the quantile of its score among the completions of its prompt.

    L = mean over k of (q_k - beta log Z - beta rho_k)^2,   q_k = share of scores s_j <= s_k     (Eq. 11)
    Z = beta * (exp(1/beta) - 1), exact because quantiles of the reference are uniform

    Value at policy = reference: mean over k of (q_k - beta log Z)^2.

    Identities: qrpo where rho = q/beta - log Z = 0.

    Differences: the reference samples of a list are its own completions, so they must be the reference's. The authors'
    code drops the -1 in Z, which is harmless at beta below 0.2. `qrpo_norm` divides beta by the length.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2507.08068"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.0003, 0.001, 0.003, 0.01)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "CLAIRE-Labo/quantile-reward-policy-optimization README.md@0d80ee5", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "CLAIRE-Labo/quantile-reward-policy-optimization src/qrpo/configs/train-qrpo.yaml@e93dcf1"
    )

    beta: float = 0.001  # quantile per nat of log-ratio; useful range 3e-4 to 1e-1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        beta = self._betas(logps)
        reward = beta * logps.completions.ratio
        return LossOutput(loss=_loss(logps, beta, reward), reward=reward.detach())

    def _betas(self, logps: ListLogps) -> Tensor:
        """(N, K)"""
        return torch.full_like(logps.completions.sum, self.beta)

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return _loss(logps, self._betas(logps), torch.zeros_like(logps.completions.ratio))


@dataclass(frozen=True, kw_only=True)
class QRPONorm(QRPO):
    r"""QRPO with beta divided by each completion's length, as Apertus was trained.

    L = mean over k of (q_k - beta_k log Z_k - beta_k rho_k)^2,   beta_k = min(beta / n_k, max_beta)
    Z_k = beta_k * (exp(1/beta_k) - 1)

    Value at policy = reference: mean over k of (q_k - beta_k log Z_k)^2.

    Identities: qrpo_norm at n tokens each = qrpo(beta/n).

    Differences: as in `qrpo`. The bound on beta is a constant in the authors' code.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2509.14233"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (1.0, 2.5, 5.0, 10.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "swiss-ai/posttraining reproducibility-scripts/alignment-apertus-swissaiformat-template/6-train"
    )
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "swiss-ai/posttraining src/post_training/trainers/preference.py@b19a318", "2026-11-30"
    )

    beta: float = 5.0  # quantile times tokens per nat; useful range 1 to 10
    max_beta: float = 0.1  # for short texts, whose gradients are too large otherwise

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, max_beta=0 < self.max_beta < math.inf)

    def _betas(self, logps: ListLogps) -> Tensor:
        return (self.beta / logps.completions.num_tokens.clamp(min=1)).clamp(max=self.max_beta)


def _loss(logps: ListLogps, beta: Tensor, reward: Tensor) -> Tensor:
    """(N,)"""
    below = (logps.scores.unsqueeze(-2) <= logps.scores.unsqueeze(-1)) & logps.mask.unsqueeze(-2)
    count = logps.mask.sum(-1, keepdim=True)
    error = below.sum(-1).to(reward.dtype) / count - _beta_log_z(beta) - reward
    return (error**2 * logps.mask).sum(-1) / count.squeeze(-1)


def _beta_log_z(beta: Tensor) -> Tensor:
    """beta log(beta (e^(1/beta) - 1)), without the overflow of e^(1/beta)."""
    return beta * beta.log() + 1 + beta * torch.log1p(-(-1 / beta).exp())
