"""RLOO: REINFORCE with a leave-one-out baseline (Kool et al., 2019; Ahmadian et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.losses._rollouts import KL, drawn, group_mean, k3, log_ratio, penalised
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
class RLOO:
    r"""Policy gradient on K samples of each prompt; the others' mean reward is the baseline of each.

    L = -1/K sum_k A_k pi(y_k) / pi_old(y_k),   A_k = R_k - mean of R_j over j != k,   R = r - beta rho_old

    Value at policy = reference: 0, since the A_k sum to 0.

    Identities: gradient of rloo(beta=0.5) = half the mean gradient of rebel(eta=2.0) over all pairs of the samples.

    Fixed points: with `kl=REWARD`, pi_ref exp(r / beta) / Z, the optimum of RLHF. With `kl=LOSS_K3` another one: the
    gradient of k3 is that of the KL the other way round. With `kl=NONE`, all weight on the best texts.

    Differences: TRL 1.16 clips the ratio as PPO does (epsilon .2), which changes nothing in the first update of a
    rollout.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.14740"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True, on_policy=True)
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    shift_invariant: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.02, 0.05, 0.2, 0.5)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "huggingface/trl trl/trainer/rloo_trainer.py@v1.16.0", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "arXiv:2402.14740, App. C, as in TRL's paper_index.md@0167b7d"
    )

    beta: float = 0.05  # reward per nat of log-ratio; 0 or above, useful range 0.01 to 1
    kl: KL = KL.REWARD  # where the KL to the reference stands: REWARD, LOSS_K3 or NONE

    def __post_init__(self) -> None:
        require(self, beta=0 <= self.beta < math.inf)

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        reward, mask = penalised(rollout, self), rollout.mask
        count = mask.sum(-1, keepdim=True)
        return {"advantage": (reward - group_mean(reward, mask)) * mask * count / (count - 1).clamp(min=1)}

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        ratio = log_ratio(logps.completions.sum, drawn(logps).sum).exp()
        value = -ratio * logps.targets["advantage"]
        if self.kl is KL.LOSS_K3:
            value = value + self.beta * k3(logps.completions.sum, logps.completions.reference)
        value = torch.where(logps.mask, value, torch.zeros_like(value))
        return LossOutput(loss=value.sum(-1) / logps.mask.sum(-1))

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return -logps.targets["advantage"].sum(-1) / logps.mask.sum(-1)
