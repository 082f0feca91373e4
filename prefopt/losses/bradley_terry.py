"""Bradley-Terry reward models: plain (Ouyang et al., 2022), and with a margin (Touvron et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    LossOutput,
    Needs,
    PairLogps,
    SearchSpace,
    require,
)


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    r"""Likelihood of each preference under a reward model, with optional centring.

    L = -log sigmoid(s_w - s_l) + centre * (s_w + s_l)^2

    Here s is the score that the reward model gives a completion at its last token, the end token included.

    Value at policy = reference: none, there is no reference.

    Identities: bradley_terry = dpo(beta=1.0) on scores with a reference of 0.

    Differences: none from InstructGPT on pairs (Eq. 1 at K = 2). Centring (Eisenstein et al., arXiv:2312.09244) is TRL
    1.16's `center_rewards_coefficient`. It is not free: it pulls large gaps together. A shift of all scores changes no
    gap and is exact: `centre: true` of a `reward` subtracts the mean of a run's held-out scores.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.02155"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, reward_model=True)
    search_space: ClassVar[SearchSpace] = {"centre": (0.0, 0.001, 0.01, 0.1)}
    learning_rates: ClassVar[LearningRates] = LearningRates(
        3e-6, 9e-6, "arXiv:2203.02155 (9e-6 at 6B), arXiv:2403.17031 (3e-6 at 1B to 6.9B)"
    )
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2203.02155, Eq. 1", "2026-11-30")

    centre: float = 0.0  # weight of the squared sum of both scores; useful range 0 to 0.1 (0 leaves it out)

    def __post_init__(self) -> None:
        require(self, centre=0 <= self.centre < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return _likelihood(logps, self.centre, 0.0)


@dataclass(frozen=True, kw_only=True)
class BradleyTerryMargin:
    r"""Bradley-Terry reward model that asks for the pair's margin: a column of the data, else the gap of its scores.

    L = -log sigmoid(s_w - s_l - scale * m) + centre * (s_w + s_l)^2,   m: the pair's margin

    Value at policy = reference: none, there is no reference.

    Identities: bradley_terry_margin(scale=0.0) = bradley_terry; bradley_terry_margin = margin_dpo(beta=1.0) on scores
    with a reference of 0.

    Differences: none from Llama 2, whose margins are 1, 2/3, 1/3 and 0 by how sure the annotator was (or three times
    that), nor from TRL 1.16's `margin` column.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2307.09288"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, margin=True, reward_model=True)
    search_space: ClassVar[SearchSpace] = {"scale": (0.1, 0.3, 1.0, 3.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(5e-6, 1e-5, "arXiv:2307.09288 (1e-5; 5e-6 at 70B)")
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/reward_trainer.py", "2026-11-30")

    scale: float = 1.0  # score per unit of margin; useful range 0 to 3 (0 is `bradley_terry`)
    centre: float = 0.0  # weight of the squared sum of both scores; useful range 0 to 0.1 (0 leaves it out)

    def __post_init__(self) -> None:
        require(self, scale=0 <= self.scale < math.inf, centre=0 <= self.centre < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return _likelihood(logps, self.centre, self.scale * logps.fact("margin"))


def _likelihood(logps: PairLogps, centre: float, margin: Tensor | float) -> LossOutput:
    chosen, rejected = logps.chosen.sum, logps.rejected.sum
    return LossOutput(
        loss=-F.logsigmoid(chosen - rejected - margin) + centre * (chosen + rejected) ** 2,
        chosen_reward=chosen.detach(),
        rejected_reward=rejected.detach(),
    )
