"""MyPG: a policy gradient with the group's mean as baseline, an example of a loss on the policy's own samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.plugin import Data, ListLogps, LossOutput, Needs, Ranking, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class MyPG:
    r"""REINFORCE on K samples of each prompt, less their mean reward.

    L = -1/K sum_k A_k pi(y_k) / pi_old(y_k),   A_k = R_k - mean R,   R = r - beta rho_old

    Value at policy = reference: 0, since the A_k sum to 0.

    Fixed points: pi_ref exp(r / beta) / Z, the optimum of RLHF.

    Differences: an example, from no paper. It is (K - 1) / K times `rloo`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.14740"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True, on_policy=True)
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    shift_invariant: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.02, 0.05, 0.2, 0.5)}

    beta: float = 0.05  # reward per nat of log-ratio; 0 or above, useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 <= self.beta < math.inf)

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        """Once for a whole rollout, without gradient."""
        reward, mask = rollout.scores - self.beta * rollout.completions.ratio, rollout.mask
        mean = (reward * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
        return {"advantage": (reward - mean) * mask}

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        assert logps.old is not None
        ratio = (logps.completions.sum - logps.old.sum).clamp(-20, 20).exp()
        value = torch.where(logps.mask, ratio * logps.targets["advantage"], torch.zeros_like(ratio))
        return LossOutput(loss=-value.sum(-1) / logps.mask.sum(-1))

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return -logps.targets["advantage"].sum(-1) / logps.mask.sum(-1)
