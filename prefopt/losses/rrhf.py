"""RRHF: Rank Responses to Align Language Models with Human Feedback without tears (Yuan et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.losses._lists import best, better_pairs
from prefopt.plugin import Audit, Data, ListLogps, LossOutput, Needs, Ranking, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class RRHF:
    r"""Hinge over all pairs of a list on log-probs per token, plus the likelihood of the best completion.

    L = lambda * sum over s_i > s_j of max(0, p_j - p_i) - log pi(y_best|x),   p = log pi(y|x) / n

    Value at policy = reference: none, it has no reference.

    Identities: rrhf on two completions less the likelihood of the best = re_po(gamma=0).

    Differences: lambda weights the ranking term (in the paper its weight is 1). The likelihood is summed, as in the
    paper. Each pair counts once.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2304.05302"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=False, lengths=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"lam": (1.0, 5.0, 20.0, 100.0)}
    ranking: ClassVar[Ranking] = Ranking.PAIRWISE
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit.AUTHORS_CODE

    lam: float = 1.0  # lambda, weight of the ranking term, nats per (nat/token); useful range 1 to 100

    def __post_init__(self) -> None:
        require(self, lam=0 <= self.lam < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        mean = logps.completions.mean
        hinge = F.relu(mean.unsqueeze(-2) - mean.unsqueeze(-1)) * better_pairs(logps)
        nll = -best(logps, logps.completions.sum)
        return LossOutput(
            loss=self.lam * hinge.sum((-1, -2)) + nll, reward=mean.detach(), metrics={"nll": nll.detach()}
        )

    def at_reference(self, logps: ListLogps, /) -> None:
        return None
