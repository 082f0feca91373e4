"""RRHF: Rank Responses to Align Language Models with Human Feedback without tears (Yuan et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.losses._lists import best, better_pairs
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
class RRHF:
    r"""Hinge over all pairs of a list on log-probs per token, plus the likelihood of the best completion.

    L = lambda * sum over s_i > s_j of max(0, p_j - p_i) - p_best,   p = log pi(y|x) / n

    Value at policy = reference: none, it has no reference.

    Identities: rrhf on two completions less the likelihood of the best = re_po(gamma=0).

    Differences: lambda weights the ranking term; in the paper, and as `rrhf_weight` in the authors' code, it is 1. The
    paper sums the likelihood, the authors' code takes the mean over the padded width of the batch; here it is the mean
    over the completion's own tokens. Each pair counts once.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2304.05302"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=False, lengths=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"lam": (0.3, 1.0, 3.0, 10.0)}
    ranking: ClassVar[Ranking] = Ranking.PAIRWISE
    chosen_rises: ClassVar[bool] = True
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "arXiv:2405.14734, appendix (3e-7 to 1e-6)")
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "GanjinZero/RRHF train.py@e1a2b61", "2026-11-29")

    lam: float = 1.0  # lambda, weight of the ranking term, no unit; useful range 0.1 to 10

    def __post_init__(self) -> None:
        require(self, lam=0 <= self.lam < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        mean = logps.completions.mean
        hinge = F.relu(mean.unsqueeze(-2) - mean.unsqueeze(-1)) * better_pairs(logps)
        nll = -best(logps, mean)
        return LossOutput(
            loss=self.lam * hinge.sum((-1, -2)) + nll, reward=mean.detach(), metrics={"nll": nll.detach()}
        )
