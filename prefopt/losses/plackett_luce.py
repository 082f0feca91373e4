"""Plackett-Luce DPO: Direct Preference Optimization on rankings (Rafailov et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.losses._lists import best_first, log_sum_of_rest
from prefopt.plugin import Audit, Data, LearningRates, Level, ListLogps, LossOutput, Needs, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class PlackettLuce:
    r"""Likelihood of a whole ranking: the best first, then the best of the rest, and so on.

    L = -sum_k [r_k - log sum_{j >= k} exp(r_j)],   r = beta * rho, along the scores in descending order

    Value at policy = reference: log K!.

    Identities: plackett_luce on two completions = dpo.

    Differences: none from the paper (App. A.3). Only the order of the scores matters; tied completions keep the order
    of the record, so drop or break ties. With two completions this is `dpo`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.18290"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2305.18290, App. A.3", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "as dpo in the same paper, arXiv:2305.18290, App. B"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        reward = self.beta * logps.completions.ratio
        order, present = best_first(logps)
        ranked = reward.gather(-1, order)
        rest = log_sum_of_rest(ranked, present)
        return LossOutput(loss=((rest - ranked) * present).sum(-1), reward=reward.detach())

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return torch.lgamma(logps.mask.sum(-1).to(logps.completions.sum.dtype) + 1)
