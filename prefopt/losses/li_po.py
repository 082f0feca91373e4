"""LiPO: Listwise Preference Optimization through Learning-to-Rank (Liu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._lists import better_pairs
from prefopt.plugin import Audit, Data, Level, ListLogps, LossOutput, Needs, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class LiPO:
    r"""LiPO-lambda: logistic losses over all pairs of a list, each weighted by the change in DCG from swapping it.

    L = sum over s_i > s_j of Delta_ij * -log sigmoid(r_i - r_j),   r = beta * rho,   rho = log pi - log pi_ref
    Delta_ij = |G_i - G_j| * |1/D_i - 1/D_j|, without gradient;   G = 2^s - 1,   D = log(1 + rank by r, from 1)

    Value at policy = reference: log 2 * sum of Delta_ij, with ranks in the order of the record.

    Identities: li_po on two completions scored 1 and 0 = (1/log 2 - 1/log 3) dpo.

    Differences: each pair counts once, the better one first. Scores must be in [0, 1], as in the paper. Completions of
    equal reward, which all have at step 0, are ranked in the order of the record.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.01878"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.05, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2402.01878, Eq. 8", "2026-11-30")

    beta: float = 0.05  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        reward = self.beta * logps.completions.ratio
        weight = _swap_gain(logps, reward.detach())
        loss = (weight * -F.logsigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))).sum((-1, -2))
        return LossOutput(loss=loss, reward=reward.detach())

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        # Ranked as the loss ranks them: log-probs computed twice are equal up to rounding, which orders them too.
        return math.log(2) * _swap_gain(logps, logps.completions.ratio.detach()).sum((-1, -2))


def _swap_gain(logps: ListLogps, reward: Tensor) -> Tensor:
    """(B, K, K) Delta_ij where s_i > s_j, else 0."""
    scores = logps.scores.to(reward.dtype)
    if not bool(((scores >= 0) & (scores <= 1))[logps.mask].all()):
        raise ValueError("li_po needs scores in [0, 1], since its gain is 2^s - 1: rescale them")
    last = reward.masked_fill(~logps.mask, -math.inf)
    rank = 1 + last.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    gain, discount = 2**scores - 1, 1 / torch.log1p(rank.to(reward.dtype))
    change = (gain.unsqueeze(-1) - gain.unsqueeze(-2)).abs() * (discount.unsqueeze(-1) - discount.unsqueeze(-2)).abs()
    return change * better_pairs(logps)
