"""Reward models from rankings of K completions (Ouyang et al., 2022; Liu et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.losses._lists import best_first, better_pairs, log_sum_of_rest
from prefopt.plugin import Audit, Data, LearningRates, Level, ListLogps, LossOutput, Needs, SearchSpace


@dataclass(frozen=True, kw_only=True)
class RMList:
    r"""Plackett-Luce likelihood of a whole ranking under a reward model.

    L = -sum_k [s_k - log sum_{j >= k} exp(s_j)],   s = the model's scores, along the data's scores in descending order

    Value at policy = reference: none, there is no reference.

    Identities: rm_list = plackett_luce(beta=1.0) on scores with a reference of 0; rm_list on two completions =
    bradley_terry.

    Differences: none from the paper. Only the order of the data's scores matters; tied completions keep the order of
    the record, so drop or break ties.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2301.11270"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=False, scores=True, reward_model=True)
    search_space: ClassVar[SearchSpace] = {}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2301.11270, Eq. 3", "2026-11-30")

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        scores = logps.completions.sum
        order, present = best_first(logps)
        ranked = scores.gather(-1, order)
        loss = ((log_sum_of_rest(ranked, present) - ranked) * present).sum(-1)
        return LossOutput(loss=loss, reward=scores.detach())


@dataclass(frozen=True, kw_only=True)
class RMAllPairs:
    r"""Mean of the Bradley-Terry losses of all pairs of one prompt, so that a prompt counts once.

    L = -(1 / |P|) sum_{(i, j) in P} log sigmoid(s_i - s_j),   P = the pairs where i has the higher score in the data

    Value at policy = reference: none, there is no reference.

    Identities: rm_all_pairs on two completions = bradley_terry.

    Differences: none from InstructGPT, which ranks K = 4 to 9 completions. Pairs with equal scores are left out; a list
    of equal scores alone has the value 0.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.02155"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=False, scores=True, reward_model=True)
    search_space: ClassVar[SearchSpace] = {}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2203.02155, Eq. 1", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(9e-6, 9e-6, "arXiv:2203.02155 (6B), as in bradley_terry")

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        scores, pairs = logps.completions.sum, better_pairs(logps)
        each = -F.logsigmoid(scores.unsqueeze(-1) - scores.unsqueeze(-2))
        loss = (each * pairs).sum((-1, -2)) / pairs.sum((-1, -2)).clamp(min=1)
        return LossOutput(loss=loss, reward=scores.detach())
