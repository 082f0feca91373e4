"""PRO: Preference Ranking Optimization for Human Alignment (Song et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from prefopt.losses._lists import best, best_first
from prefopt.plugin import Audit, Data, LearningRates, Level, ListLogps, LossOutput, Needs, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class PRO:
    r"""Plackett-Luce on log-probs per token, sharper where scores differ more, plus the best completion's likelihood.

    L = sum_{k < K} [log(exp(g_kk p_k) + sum_{j > k} exp(g_kj p_j)) - g_kk p_k] - beta (K-1)^2 log pi(y_1|x)
    along the scores in descending order;   p = log pi(y|x) / n,   g_kj = s_k - s_j,   g_kk = max_{j > k} g_kj

    Value at policy = reference: none, it has no reference.

    Identities: pro(beta=0) on two completions a score of 1 apart = simpo(beta=1, gamma_beta_ratio=0).

    Differences: none from the paper, whose temperatures are 1/g. Its code adds 1e-10 inside the log. The likelihood is
    summed. Tied completions have g = 0 and no effect.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.17492"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=False, lengths=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.03, 0.05, 0.1)}
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "AlibabaResearch/DAMO-ConvAI PRO/train/utils/process_manager.py@64f4da7", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-6, 5e-6, "AlibabaResearch/DAMO-ConvAI PRO/train/train_hh.sh@64f4da7"
    )

    beta: float = 0.05  # weight of the likelihood term, times (K - 1)^2; useful range 0 to 0.1

    def __post_init__(self) -> None:
        require(self, beta=0 <= self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        mean = logps.completions.mean
        order, present = best_first(logps)
        ranked = mean.gather(-1, order)
        scores = logps.scores.to(mean.dtype).gather(-1, order)
        gap = (scores.unsqueeze(-1) - scores.unsqueeze(-2)) * present.unsqueeze(-2)  # (B, K, K), g_kj at [k, j]
        later = torch.ones_like(gap, dtype=torch.bool).triu(1) & present.unsqueeze(-2)
        sharpest = gap.masked_fill(~later, 0.0).amax(-1)
        own = sharpest * ranked
        others = (gap * ranked.unsqueeze(-2)).masked_fill(~later, -math.inf)
        total = torch.cat([own.unsqueeze(-1), others], -1).logsumexp(-1)
        ranking = ((total - own) * later.any(-1)).sum(-1)
        others_count = logps.mask.sum(-1).to(mean.dtype) - 1
        nll = -best(logps, logps.completions.sum)
        return LossOutput(
            loss=ranking + self.beta * others_count**2 * nll, reward=mean.detach(), metrics={"nll": nll.detach()}
        )
