"""Conservative DPO: A note on DPO with noisy preferences (Mitchell, 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class CDPO:
    r"""DPO with smoothed labels: assumes that each preference is flipped with probability epsilon.

    L = -(1 - epsilon) * log sigmoid(z) - epsilon * log sigmoid(-z),   z = beta * (rho_w - rho_l)     (Eq. 3)

    Value at policy = reference: log 2.

    Identities: cdpo(label_smoothing=0.0) = dpo; cdpo = dpo + epsilon beta Delta.

    Differences: none from the note. In TRL up to 0.28 this was `loss_type="sigmoid"` with `label_smoothing`; from 0.29
    on, 1.16 included, there is no such loss. Past z = log((1 - epsilon) / epsilon) the loss turns back, by design.
    """

    paper: ClassVar[str] = "https://ericmitchell.ai/cdpo.pdf"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "eric-mitchell/direct-preference-optimization trainers.py@f8b8c0f", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "eric-mitchell/direct-preference-optimization config/config.yaml@1ea1c06 (RMSprop)"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    label_smoothing: float = 0.1  # epsilon, probability of a flipped label; useful range 0 to 0.4, below 0.5

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, label_smoothing=0 <= self.label_smoothing < 0.5)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        margin = chosen - rejected
        loss = -(1 - self.label_smoothing) * F.logsigmoid(margin) - self.label_smoothing * F.logsigmoid(-margin)
        return LossOutput(loss=loss, chosen_reward=chosen.detach(), rejected_reward=rejected.detach())

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
