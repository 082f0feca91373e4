"""GRPO: Group Relative Policy Optimization (Shao et al., 2024), and Dr. GRPO (Liu et al., 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prefopt.losses._rollouts import KL, divisor, group_mean, group_std, k3, penalised, surrogate, token_ratio
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
class GRPO:
    r"""Clipped policy gradient whose advantage is a reward standardized within the K samples of a prompt.

    L = -1/K sum_k 1/|y_k| sum_t [min(r_t A_k, clip(r_t, 1 - eps, 1 + eps) A_k) - beta k3_t]
    A_k = (R_k - mean R) / std R,   r_t = pi(y_t) / pi_old(y_t),   k3_t = e^-rho_t + rho_t - 1

    Value at policy = reference: 0.

    Identities: gradient of grpo(kl=NONE) at K = 2 and |y| = 1 = -1/sqrt(8) for the better sample.

    Fixed points: with `kl=LOSS_K3`, the paper's, not the optimum of RLHF: the gradient of k3 is that of the KL the
    other way round. With `kl=REWARD`, pi_ref exp(r / beta) / Z, the optimum of RLHF: there all R of a prompt are equal.
    Close to it, dividing by std R keeps the advantages large; those of `rloo` and `dr_grpo` shrink.

    Differences: none from the paper (Eqs. 3 and 4; one update of a rollout: nothing is clipped). A group of equal
    rewards has advantage 0. TRL 1.16 adds 1e-4 to the standard deviation, has beta 0 by default, and its default
    `dapo` divides by the tokens of the batch instead of each completion's.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.03300"
    needs: ClassVar[Needs] = Needs(
        data=Data.LISTS, reference=True, scores=True, lengths=True, tokens=True, on_policy=True
    )
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    shift_invariant: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.04, 0.1, 0.3)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "huggingface/trl trl/trainer/grpo_trainer.py@v1.16.0", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(1e-6, 1e-6, "arXiv:2402.03300, Sec. 4.1.4")

    beta: float = 0.04  # advantage per nat of k3 (reward per nat with kl=REWARD); 0 or above, useful range 0.001 to 0.3
    epsilon: float = 0.2  # how far a token's ratio may move in the updates of a rollout; above 0, below 1
    kl: KL = KL.LOSS_K3  # where the KL to the reference stands: REWARD, LOSS_K3 or NONE

    def __post_init__(self) -> None:
        require(self, epsilon=0 < self.epsilon < 1, beta=0 <= self.beta < math.inf)

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        reward, mask = penalised(rollout, self), rollout.mask
        deviation = group_std(reward, mask)
        centred = (reward - group_mean(reward, mask)) * mask
        return {"advantage": centred / divisor(deviation, reward)}

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        return _clipped(self, logps, logps.completions.num_tokens.clamp(min=1))

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        advantage = logps.targets["advantage"]
        return -advantage.sum(-1) / logps.mask.sum(-1)


@dataclass(frozen=True, kw_only=True)
class DrGRPO:
    r"""GRPO without the two normalizations that bias it: by std R, and by each completion's own length.

    L = -1/K sum_k 1/length sum_t min(r_t A_k, clip(r_t, 1 - eps, 1 + eps) A_k)
    A_k = R_k - mean R,   R = r - beta rho

    Value at policy = reference: -1/K sum_k A_k |y_k| / length.

    Identities: gradient of dr_grpo(length=1) at the sampling policy = (K - 1)/K of that of rloo.

    Fixed points: with `kl=REWARD`, pi_ref exp(r / beta) / Z, the optimum of RLHF. With `kl=LOSS_K3` another one: the
    gradient of k3 is that of the KL the other way round.

    Differences: the paper has no KL (`kl=NONE`); its code divides by the largest number of new tokens, here `length`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2503.20783"
    needs: ClassVar[Needs] = Needs(
        data=Data.LISTS, reference=True, scores=True, lengths=True, tokens=True, on_policy=True
    )
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    shift_invariant: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.02, 0.05, 0.2, 0.5)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "huggingface/trl trl/trainer/grpo_trainer.py@v1.16.0", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "sail-sg/understand-r1-zero examples/qwen2.5-math-7b.sh@0bc78c2"
    )

    beta: float = 0.05  # reward per nat of log-ratio; 0 or above, useful range 0.01 to 1
    epsilon: float = 0.2  # how far a token's ratio may move in the updates of a rollout; above 0, below 1
    kl: KL = KL.REWARD  # where the KL to the reference stands: REWARD, LOSS_K3 or NONE
    length: int = 128  # tokens that the sum over a completion is divided by, for all alike; rollout.max_new_tokens

    def __post_init__(self) -> None:
        require(self, epsilon=0 < self.epsilon < 1, length=self.length >= 1, beta=0 <= self.beta < math.inf)

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        reward, mask = penalised(rollout, self), rollout.mask
        return {"advantage": (reward - group_mean(reward, mask)) * mask}

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        return _clipped(self, logps, self.length)

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        advantage = logps.targets["advantage"] * logps.completions.mask.sum(-1)
        return -advantage.sum(-1) / logps.mask.sum(-1) / self.length


def _clipped(loss: GRPO | DrGRPO, logps: ListLogps, length: Tensor | int) -> LossOutput:
    """The mean over a list of its completions' token sums, each divided by `length`."""
    now, inside = logps.completions, logps.completions.mask
    advantage = logps.targets["advantage"].unsqueeze(-1)
    gain = surrogate(token_ratio(logps), advantage, loss.epsilon)
    if loss.kl is KL.LOSS_K3:
        gain = gain - loss.beta * k3(now.per_token, now.ref_per_token)
    value = -(gain * inside).sum(-1) / length
    return LossOutput(loss=value.sum(-1) / logps.mask.sum(-1))
