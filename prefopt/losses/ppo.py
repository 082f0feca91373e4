"""PPO: Proximal Policy Optimization (Schulman et al., 2017), as it is used for RLHF (Ouyang et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.losses._rollouts import divisor, drawn, gae, surrogate, token_ratio
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


class CutOff(Enum):
    """What a text that was cut off gets at its end."""

    BOOTSTRAP = "bootstrap"  # what the value model expects of it; its score is not read
    SCORE = "score"  # its score, as if it had ended there


@dataclass(frozen=True, kw_only=True)
class PPO:
    r"""Clipped policy gradient on advantages from a value model with a body of its own, which is trained beside.

    L = 1/N sum_t [-min(r_t A'_t, clip(r_t, 1 - eps, 1 + eps) A'_t) + c/2 max((V_t - G_t)^2, (V'_t - G_t)^2)]
    over all N tokens of the rollout,   V'_t = clip(V_t, V_old_t - eps_V, V_old_t + eps_V)
    A_t = sum_s (gamma lambda)^s delta_{t+s},   delta_t = R_t + gamma V_old_{t+1} - V_old_t,   G = A + V_old
    R_t = -beta rho_t, and the score at the last token;   A' = A whitened over the rollout

    Value at policy = reference: minus the mean of A' over the list's tokens, and the value term.

    Identities: gradient of ppo(lam=1, gamma=1, beta=0, cut_off=SCORE) at values 0 and texts of one length = that of
    reinforce_pp(beta=0) but for a factor.

    Fixed points: pi_ref exp(r / beta) / Z, the optimum of RLHF, with exact values at any lambda; with wrong values only
    at lambda = 1.

    Differences: none from the code of the N+ implementation details but for these: rewards are not whitened (their
    `whiten_rewards`), the score stands at the end token itself and not behind it, the value model starts as the policy
    with a head of zeros (theirs as the reward model: `model.value_model=RM`), and a text that was cut off is not taken
    for one that ended: it gets the value model's estimate of what would follow (`cut_off=BOOTSTRAP`), theirs a score of
    -1 (`cut_off=SCORE` reads its score, and `rollout.missing_end_penalty` with it). N and the whitening are those of
    the whole rollout. The policy's and the value model's gradients are clipped apart, so that the value term never
    changes the policy. TRL 1.16 has no PPO.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.02155"
    needs: ClassVar[Needs] = Needs(
        data=Data.LISTS, reference=True, scores=True, lengths=True, tokens=True, on_policy=True, ended=True, values=True
    )
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    search_space: ClassVar[SearchSpace] = {"beta": (0.02, 0.05, 0.2, 0.5)}
    learning_rates: ClassVar[LearningRates] = LearningRates(1e-6, 9e-6, "arXiv:2403.17031 (3e-6); arXiv:2203.02155")
    updates: ClassVar[int] = 4
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE,
        "vwxyzjn/summarize_from_feedback_details summarize_from_feedback_details/ppo_left_padding_new.py@166e51f",
        "2026-11-30",
    )
    exceptions: ClassVar[dict[str, str]] = {
        "direction": "the baseline is the value model's estimate: all texts of a good prompt may rise"
    }

    beta: float = 0.05  # reward per nat of log-ratio; 0 or above, useful range 0.01 to 1
    epsilon: float = 0.2  # how far a token's ratio may move in the updates of a rollout; above 0, below 1
    gamma: float = 1.0  # discount a token; above 0, at most 1
    lam: float = 0.95  # trust in rewards (1) or in the value model (0); 0 to 1
    value_coefficient: float = 0.1  # weight of the value term; above 0
    value_epsilon: float = 0.2  # how far a value may move in the updates of a rollout, in units of reward; above 0
    cut_off: CutOff = CutOff.BOOTSTRAP  # what a text that was cut off gets at its end: BOOTSTRAP or SCORE

    def __post_init__(self) -> None:
        require(self, beta=0 <= self.beta < math.inf, epsilon=0 < self.epsilon < 1, gamma=0 < self.gamma <= 1,
                lam=0 <= self.lam <= 1, value_coefficient=0 < self.value_coefficient < math.inf,
                value_epsilon=0 < self.value_epsilon < math.inf)  # fmt: skip

    @property
    def scores_cut_off(self) -> bool:
        """Whether the score of a text that was cut off is read."""
        return self.cut_off is CutOff.SCORE

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        as_drawn, inside = rollout.completions, rollout.completions.mask
        if as_drawn.value_after is None or rollout.ended is None:
            raise ValueError("this rollout has no estimates of a value model: declare `Needs(values=True, ended=True)`")
        whole = rollout.ended | (self.cut_off is CutOff.SCORE)
        reward = -self.beta * (as_drawn.per_token - as_drawn.ref_per_token) * inside
        last = inside & (torch.arange(inside.shape[-1], device=inside.device) == as_drawn.num_tokens.unsqueeze(-1) - 1)
        reward = reward + last * torch.where(whole, rollout.scores, 0.0).unsqueeze(-1)
        after = torch.where(whole, 0.0, as_drawn.value_after)
        advantage = gae(reward, as_drawn.values, after, inside, gamma=self.gamma, lam=self.lam)
        mean = advantage[inside].mean()
        deviation = divisor((advantage[inside] - mean).square().mean().sqrt(), advantage[inside])
        lists = len(rollout.scores)
        return {
            "advantage": (advantage - mean) / deviation.square().add(1e-8).sqrt() * inside,
            "return": (advantage + as_drawn.values) * inside,
            "share": (lists / as_drawn.num_tokens.sum()).expand(as_drawn.num_tokens.shape),
        }

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        ratio, advantage = token_ratio(logps), logps.targets["advantage"]
        value = self._sum(logps, -surrogate(ratio, advantage, self.epsilon)) + self._value_term(logps)
        clipped = (ratio - 1).abs() > self.epsilon
        count = logps.completions.mask.sum((-1, -2))
        share = (clipped & logps.completions.mask).sum((-1, -2)) / count.clamp(min=1)
        return LossOutput(loss=value, metrics={"clip_ratio": share.detach()})

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return self._sum(logps, -logps.targets["advantage"]) + self._value_term(logps).detach()

    def _value_term(self, logps: ListLogps) -> Tensor:
        values, old, wanted = logps.completions.values, drawn(logps).values, logps.targets["return"]
        near = old + (values - old).clamp(-self.value_epsilon, self.value_epsilon)
        squares = torch.maximum((values - wanted).square(), (near - wanted).square())
        return 0.5 * self.value_coefficient * self._sum(logps, squares)

    def _sum(self, logps: ListLogps, of_token: Tensor) -> Tensor:
        """(B,) a list's part of the mean over all tokens of the rollout."""
        inside = torch.where(logps.completions.mask, of_token, torch.zeros_like(of_token))
        return (inside.sum(-1) * logps.targets["share"]).sum(-1)
