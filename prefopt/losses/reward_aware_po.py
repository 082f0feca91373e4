"""RPO: Reward-aware Preference Optimization (Sun et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


class Distance(Enum):
    """How the implicit margin a = beta * (rho_w - rho_l) is compared with the target b = eta * (s_w - s_l)."""

    SQUARE = "square"  # (a - b)^2
    BACKWARD_KL = "backward_kl"  # KL(sigmoid(b) || sigmoid(a))
    FORWARD_KL = "forward_kl"  # KL(sigmoid(a) || sigmoid(b))


@dataclass(frozen=True, kw_only=True)
class RewardAwarePO:
    r"""Distance between the implicit reward margin and the scaled difference of scores.

    L = D(beta * (rho_w - rho_l), eta * (s_w - s_l)),   rho = log pi(y|x) - log pi_ref(y|x)     (Sec. 2, Table 1)

    Value at policy = reference: D(0, eta * (s_w - s_l)).

    Identities: reward_aware_po(distance=square, beta=0.3) = distill_dpo(beta=0.3); reward_aware_po(backward_kl) at the
    label's log-odds = cdpo - H(epsilon); reward_aware_po(forward_kl) at the label's log-odds = exo.

    Differences: none from NeMo-Aligner, where the KLs, between Bernoulli distributions, have these names: "backward"
    has the target first.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.00203"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, scores=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.05, 0.2, 0.5, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE,
        "NVIDIA/NeMo-Aligner nemo_aligner/models/nlp/gpt/megatron_gpt_dpo_model.py@af2b3bd",
        "2026-11-29",
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 9e-7, "NVIDIA/NeMo-Aligner docs/user-guide/dpo.rst@0955252"
    )

    beta: float = 0.2  # reward per nat of log-ratio; useful range 0.01 to 1
    eta: float = 1.0  # reward per unit of score; useful range 0.1 to 10
    distance: Distance = Distance.BACKWARD_KL  # square, backward_kl or forward_kl

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, eta=0 < self.eta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=self._distance(chosen - rejected, self.eta * logps.score_gap),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _distance(self, margin: Tensor, target: Tensor) -> Tensor:
        match self.distance:
            case Distance.SQUARE:
                return (margin - target) ** 2
            case Distance.BACKWARD_KL:
                return _bernoulli_kl(target, margin)
            case Distance.FORWARD_KL:
                return _bernoulli_kl(margin, target)

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        target = self.eta * logps.score_gap
        return self._distance(torch.zeros_like(target), target)


def _bernoulli_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL between the Bernoulli distributions with log-odds a and b."""
    won = torch.sigmoid(a) * (F.logsigmoid(a) - F.logsigmoid(b))
    lost = torch.sigmoid(-a) * (F.logsigmoid(-a) - F.logsigmoid(-b))
    return won + lost
