"""REINFORCE++: policy gradient with whitened rewards-to-go (Hu, 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.losses._rollouts import divisor, surrogate, token_ratio
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
class ReinforcePP:
    r"""Clipped policy gradient; a token's advantage is what comes after it: reward less KL, whitened over the rollout.

    L = -1/N sum_t min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) over all N tokens of the rollout
    A = whitened over them: G_t = r - beta sum_{s >= t} rho_s

    Value at policy = reference: minus the mean of A over the list's tokens.

    Identities: reinforce_pp of rewards + 1 = reinforce_pp.

    Fixed points: pi_ref exp(r / beta) / Z, the optimum of RLHF, as far as whitening by a rollout's own mean and
    deviation leaves the expected gradient's direction.

    Differences: none from the paper with gamma = 1. The whitening and N are those of the whole rollout, whatever the
    micro-batches and processes; OpenRLHF 0.11.2 averages over the tokens of each micro-batch.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2501.03262"
    needs: ClassVar[Needs] = Needs(
        data=Data.LISTS, reference=True, scores=True, lengths=True, tokens=True, on_policy=True
    )
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    shift_invariant: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.003, 0.01, 0.03, 0.1)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2501.03262, Eqs. (8) to (10)", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "OpenRLHF/OpenRLHF examples/scripts/train_reinforce_ray_hybrid_engine.sh@34ba290"
    )
    exceptions: ClassVar[dict[str, str]] = {
        "direction": "the baseline is the mean of the whole rollout: all texts of a good prompt may rise"
    }

    beta: float = 0.01  # reward per nat of log-ratio; 0 or above, useful range 0.001 to 0.3
    epsilon: float = 0.2  # how far a token's ratio may move in the updates of a rollout; above 0, below 1

    def __post_init__(self) -> None:
        require(self, epsilon=0 < self.epsilon < 1, beta=0 <= self.beta < float("inf"))

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        drawn = rollout.completions
        inside = drawn.mask
        rho = (drawn.per_token - drawn.ref_per_token) * inside
        to_go = rho.flip(-1).cumsum(-1).flip(-1)
        gain = rollout.scores.unsqueeze(-1) - self.beta * to_go
        mean, count = gain[inside].mean(), inside.sum()
        deviation = ((gain[inside] - mean).square().sum() / (count - 1).clamp(min=1)).sqrt()
        lists = len(rollout.scores)
        return {
            "advantage": (gain - mean) * inside / (divisor(deviation, gain[inside]) + 1e-8),
            "share": (lists / drawn.num_tokens.sum()).expand(drawn.num_tokens.shape),
        }

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        now = logps.completions
        gain = surrogate(token_ratio(logps), logps.targets["advantage"], self.epsilon)
        value = -(torch.where(now.mask, gain, torch.zeros_like(gain)).sum(-1) * logps.targets["share"]).sum(-1)
        return LossOutput(loss=value)

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return -(logps.targets["advantage"].sum(-1) * logps.targets["share"]).sum(-1)
