"""ORPO with a beta, from The Differences Between Direct Alignment Algorithms are a Blur (Gorbatovski et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.losses._numerics import log_odds
from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class ORPOBeta:
    r"""ORPO whose log-odds ratio is scaled before the sigmoid.

    L = -log pi(y_w|x) / n_w - lambda * log sigmoid(beta * (o_w - o_l)),   o = log(p / (1 - p)),  p = exp(log pi / n)

    Value at policy = reference: none, it has no reference.

    Identities: orpo_beta(beta=1.0, lam=0.1) = orpo.

    Differences: none from the authors' code but for the limit of p near 1, as in `asft`, which is the pointwise form.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.01237"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.3, 1.0, 3.0, 10.0)}
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "turbo-llm/turbo-alignment turbo_alignment/trainers/dpo.py@72e737d", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 5e-7, "arXiv:2502.01237, Tables 8 and 11")

    beta: float = 1.0  # reward per nat of log-odds; useful range 0.1 to 10
    lam: float = 1.0  # lambda, weight of the odds term; useful range 0.05 to 10

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, lam=0 <= self.lam < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = (self.beta * log_odds(side.mean) for side in (logps.chosen, logps.rejected))
        return LossOutput(
            loss=-logps.chosen.mean - self.lam * F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )
