"""ORPO: Monolithic Preference Optimization without Reference Model (Hong et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.losses._numerics import log_odds
from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class ORPO:
    r"""Likelihood of the chosen side plus a log-odds-ratio term on length-averaged probabilities.

    L = -log pi(y_w|x) / n_w - lambda * log sigmoid(log odds(p_w) - log odds(p_l))     (Eqs. 6 and 7)
    p = exp(log pi(y|x) / n),  odds(p) = p / (1 - p)     (Eqs. 3 and 4)

    Value at policy = reference: none, it has no reference.

    Identities: orpo(lam=0) = sft.

    Differences: the likelihood is that of the completion alone (the authors' code trains on the prompt too) and is a
    mean over each example's own tokens (TRL 1.16: over all tokens of the micro-batch, prompt included for a decoder).
    TRL calls lambda `beta`, as do its metrics. A mean log-prob above -2^-24 counts as -2^-24, where odds stay finite.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.07691"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {"lam": (0.1, 0.5, 2.0, 8.0)}
    chosen_rises: ClassVar[bool] = True
    learning_rates: ClassVar[LearningRates] = LearningRates(
        3e-7, 8e-6, "arXiv:2403.07691 (5e-6 to 8e-6), arXiv:2405.14734 (3e-7 to 1e-6)"
    )
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2403.07691, Eqs. 3, 4, 6 and 7", "2026-11-29")

    lam: float = 0.1  # lambda, weight of the odds term; useful range 0.05 to 10 (the paper: 0.1 to 0.25)

    def __post_init__(self) -> None:
        require(self, lam=0 <= self.lam < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.mean, logps.rejected.mean
        odds_ratio = log_odds(chosen) - log_odds(rejected)
        return LossOutput(
            loss=-chosen - self.lam * F.logsigmoid(odds_ratio),
            chosen_reward=(self.lam * chosen).detach(),
            rejected_reward=(self.lam * rejected).detach(),
            metrics={"log_odds_ratio": odds_ratio.detach(), "nll": -chosen.detach()},
        )
