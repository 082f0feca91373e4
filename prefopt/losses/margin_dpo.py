"""DPO with a margin for each pair, as in turbo-alignment (`sigmoid_with_margin`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class MarginDPO:
    r"""DPO that asks for the pair's margin: a column of the data, else the gap of its scores.

    L = -log sigmoid(beta * (rho_w - rho_l) - scale * m),   m: the pair's margin

    Value at policy = reference: log(1 + exp(scale * m)).

    Identities: margin_dpo(scale=0.0) = dpo.

    Differences: none from turbo-alignment, whose margin is a column of the data (`scale` 1). `odpo` takes the logarithm
    of the gap of scores.
    """

    paper: ClassVar[str] = "https://github.com/turbo-llm/turbo-alignment"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, margin=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "turbo-llm/turbo-alignment turbo_alignment/trainers/dpo.py@72e737d", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "turbo-llm/turbo-alignment configs/exp/train/dpo/dpo.json@452d45a, without margins"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    scale: float = 1.0  # reward per unit of margin; useful range 0 (which is `dpo`) to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, scale=0 <= self.scale < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected - self.scale * logps.fact("margin")),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return F.softplus(self.scale * logps.fact("margin"))
