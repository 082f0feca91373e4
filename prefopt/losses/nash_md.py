"""Nash-MD: Nash Learning from Human Feedback (Munos et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.losses._rollouts import drawn, log_ratio
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
class NashMD:
    r"""Policy gradient on how often a sample beats an opponent between the policy and the reference, less KL.

    L = -1/K sum_k A_k pi(y_k) / pi_old(y_k),   A_k = P(y_k > y') - 1/2 - beta rho_old,   y' ~ pi^(1 - c) pi_ref^c
    c = mixture_coef

    Value at policy = reference: 1/2 - mean of P(y_k > y').

    Identities: gradient of nash_md(beta=0.5) where the mean of P - beta rho over a prompt is 1/2 = (K - 1)/K of that of
    rloo(beta=0.5).

    Fixed points: pi = pi_ref exp(P(y > opponent) / beta) / Z, its own opponent's best answer; with a small
    `mixture_coef`, close to the Nash equilibrium of the regularized game, also where preferences are intransitive.

    Differences: none from the paper's policy gradient. `mixture_coef` is the paper's beta and `beta` its tau. The
    opponent is drawn token by token from the normalized mixture of both models' next tokens (the paper's one-step
    mixture), not from the normalized mixture of whole texts. P is the mean over the opponent's samples of the prompt;
    from a reward it is sigmoid((r - r') / `rollout.label_temperature`). TRL 1.9 multiplies the log-ratio and the
    log-prob token by token, so that a token knows nothing of the KL of those behind it, and has another fixed point;
    TRL 1.16 has no Nash-MD.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.00886"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, scores=True, on_policy=True, opponent=True)
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.02, 0.05, 0.1)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2312.00886, Sections 6 and 7", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "huggingface/trl examples/scripts/nash_md.py@023004c, not the authors'"
    )
    exceptions: ClassVar[dict[str, str]] = {
        "direction": "the baseline is 1/2: all samples that beat the opponent may rise"
    }

    beta: float = 0.02  # probability of winning per nat of log-ratio; 0 or above, useful range 0.01 to 0.2
    mixture_coef: float = 0.125  # the reference's share in the opponent; 0 (the policy itself) to 1 (the reference)

    def __post_init__(self) -> None:
        require(self, beta=0 <= self.beta < math.inf, mixture_coef=0 <= self.mixture_coef <= 1)

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        wins = rollout.scores - 0.5 - self.beta * rollout.completions.ratio
        return {"advantage": wins * rollout.mask}

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        ratio = log_ratio(logps.completions.sum, drawn(logps).sum).exp()
        value = torch.where(logps.mask, -ratio * logps.targets["advantage"], torch.zeros_like(ratio))
        return LossOutput(loss=value.sum(-1) / logps.mask.sum(-1))

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        return -logps.targets["advantage"].sum(-1) / logps.mask.sum(-1)
