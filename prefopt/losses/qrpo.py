"""QRPO: Quantile Reward Policy Optimization (Matrenok et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.plugin import Audit, Data, Level, ListLogps, LossOutput, Needs, Ranking, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class QRPO:
    r"""Regression of each completion's log-ratio on the quantile of its score among the completions of its prompt.

    L = mean over k of (q_k - beta log Z - beta rho_k)^2,   q_k = share of scores s_j <= s_k     (Eq. 11)
    Z = beta * (exp(1/beta) - 1), exact because quantiles of the reference are uniform

    Value at policy = reference: mean over k of (q_k - beta log Z)^2.

    Identities: qrpo where rho = q/beta - log Z = 0.

    Differences: the reference samples of a list are its own completions, so they must be the reference's. The authors'
    code drops the -1 in Z, which is harmless at beta below 0.2, and can divide beta or the loss by the length; in
    Apertus beta is 5 / length, at most 0.1.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2507.08068"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.0003, 0.001, 0.003, 0.01)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "CLAIRE-Labo/quantile-reward-policy-optimization README.md@0d80ee5", "2026-11-30"
    )

    beta: float = 0.001  # quantile per nat of log-ratio; useful range 3e-4 to 1e-1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        reward = self.beta * logps.completions.ratio
        return LossOutput(loss=self._loss(logps, reward), reward=reward.detach())

    def _loss(self, logps: ListLogps, reward: Tensor) -> Tensor:
        below = (logps.scores.unsqueeze(-2) <= logps.scores.unsqueeze(-1)) & logps.mask.unsqueeze(-2)
        count = logps.mask.sum(-1, keepdim=True)
        error = below.sum(-1).to(reward.dtype) / count - self._beta_log_z() - reward
        return (error**2 * logps.mask).sum(-1) / count.squeeze(-1)

    def _beta_log_z(self) -> float:
        """beta log(beta (e^(1/beta) - 1)), without the overflow of e^(1/beta)."""
        return self.beta * math.log(self.beta) + 1 + self.beta * math.log1p(-math.exp(-1 / self.beta))

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return self._loss(logps, torch.zeros_like(logps.completions.ratio))
