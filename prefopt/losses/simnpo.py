"""SimNPO: Simplicity Prevails, Rethinking Negative Preference Optimization for LLM Unlearning (Fan et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    LossOutput,
    Needs,
    PairLogps,
    Ranking,
    SearchSpace,
    require,
)


@dataclass(frozen=True, kw_only=True)
class SimNPO:
    r"""Unlearning without a reference: the rejected side of SimPO alone.

    L = -(2 / beta) * log sigmoid(-beta * (log pi(y_l|x) / n_l + gamma))

    Value at policy = reference: none, it has no reference.

    Identities: simnpo at lengths 1 = npo with a zero reference.

    Differences: none from the authors' code, where gamma, in nats/token inside beta, is 0 by default on TOFU and 0.1 on
    MUSE; the paper writes it as absolute. The texts to forget are the rejected
    sides; the chosen sides are not used. Its retain loss is `mix` with `sft`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.07163"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (1.0, 2.5, 3.5, 5.0)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "OPTML-Group/Unlearn-Simple MUSE/baselines/baselines/iterative.py@f1a355d", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-5, 1e-5, "OPTML-Group/Unlearn-Simple TOFU/config/forget.yaml@a7782fc"
    )

    beta: float = 2.5  # reward per (nat/token); useful range 1 to 5
    gamma: float = 0.0  # margin in nats/token; useful range 0 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, gamma=-math.inf < self.gamma < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        rejected = self.beta * logps.rejected.mean
        return LossOutput(
            loss=-(2 / self.beta) * F.logsigmoid(-rejected - self.beta * self.gamma),
            chosen_reward=(self.beta * logps.chosen.mean).detach(),
            rejected_reward=rejected.detach(),
        )
